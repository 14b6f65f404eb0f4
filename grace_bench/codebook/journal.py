"""The journal of a codebook: what each edit changed, so that earlier states can be had again.

    with codebook.recording(step) as changes:  # rows of schemas.JOURNAL
        ...                                    # one edit
    rewind(codebook, journal, step=37)         # as it was after step 37

A row holds what a key was before the edit. A key's vector and value are seldom changed, so a
journal is small, and going back needs neither the model nor another edit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from grace_bench.codebook.codebook import Codebook

Change = Mapping[str, Any]
"""A row of schemas.JOURNAL; columns that are null may be missing."""


def rewind(codebook: Codebook, journal: Sequence[Change], step: int) -> None:
    """Change a codebook to what it was after a step, bit for bit.

    Args:
        codebook: after the journal's last change.
        journal: all changes, in order.
        step: of the edit stream; 0: before the first edit.

    Raises:
        ValueError: the journal is another codebook's.
    """
    for change in _newest_first(codebook, journal):
        if change["step"] <= step:
            break
        codebook.take_back(change)


def trained_values(codebook: Codebook, journal: Sequence[Change]) -> dict[int, Tensor]:
    """Return the value (d_out,) that each edit trained for a key that it made or gave a new label.

    Edits that train an old value further are left out: what they train depends on earlier edits.

    Args:
        codebook: after the journal's last change; it is not changed.
        journal: all changes, in order.

    Returns:
        The values by step.
    """
    current = dict(enumerate(codebook.values.clone()))
    found: dict[int, Tensor] = {}
    for change in reversed(journal):
        key, before = change["key"], change.get("value")
        if change.get("radius") is None or change.get("label") is not None:
            found[change["step"]] = current[key]
        if before is not None:
            current[key] = codebook.values.new_tensor(before)
    return found


def _newest_first(codebook: Codebook, journal: Sequence[Change]) -> Iterator[Change]:
    """Yield the changes, the newest first, each checked against the codebook that it changed."""
    for change in reversed(journal):
        key, last = change["key"], len(codebook) - 1
        is_new = change.get("radius") is None
        if not 0 <= key <= last or (is_new and key != last):
            raise ValueError(f"changes key {key} of a codebook of {last + 1}")
        for name, width in (("vector", codebook.d_in), ("value", codebook.d_out)):
            if change.get(name) is not None and len(change[name]) != width:
                raise ValueError(f"has {name}s of {len(change[name])} numbers instead of {width}")
        yield change
