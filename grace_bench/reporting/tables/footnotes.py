"""Marks in the cells of failed runs, and the sentences below the table that explain them."""

from __future__ import annotations

import string
from dataclasses import replace
from typing import TYPE_CHECKING

from grace_bench.reporting.tables.table import NONE, Cell

if TYPE_CHECKING:
    from grace_bench.reporting.summary.read import Setting, Summary

FAILED = "failed"
CAPTION = (
    " Letters: failed seeds, described below; they are in no number, and such cells are not bold."
)


class Footnotes:
    """The footnotes of one table, lettered in order of first use."""

    def __init__(self, data: Summary) -> None:
        self.data = data
        self._marks: dict[str, str] = {}

    def mark(self, setting: Setting | None) -> str:
        """Return the letter of the footnote on a setting's failed seeds; empty: none failed."""
        sentence = self.data.footnote(setting)
        return self._marks.setdefault(sentence, letter(len(self._marks))) if sentence else ""

    def marked(self, item: Cell, setting: Setting | None, says_failed: bool = True) -> Cell:
        """Return a cell with the mark of its setting.

        A cell without a number from any seed says "failed"; it is a dash if `says_failed` is false,
        as another cell of the row says so.
        """
        mark = self.mark(setting)
        if not mark:
            return item
        if item.number is not None:
            return replace(item, mark=mark)
        return Cell(FAILED, mark=mark) if says_failed else Cell(NONE)

    @property
    def sentences(self) -> tuple[tuple[str, str], ...]:
        """Each letter and its sentence."""
        return tuple((mark, sentence) for sentence, mark in self._marks.items())

    @property
    def caption(self) -> str:
        """The caption's sentence on the letters, if there are any."""
        return CAPTION if self._marks else ""


def letter(number: int) -> str:
    """Return a, b, ..., z, aa, ab, ...

    >>> letter(0), letter(26)
    ('a', 'aa')
    """
    name = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        name = string.ascii_lowercase[rest] + name
    return name
