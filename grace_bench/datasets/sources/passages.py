"""Passages of GPT-3 about people and places, sentence by sentence, with Wikipedia's text.

Forms: the hub's (gpt3_text, gpt3_sentences) and an older one (main_passage, main_sentences). Lists
may be strings that contain Python lists; they are parsed, never run.
"""

from __future__ import annotations

import ast
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grace_bench.datasets.reading.fields import Row, complete, is_decodable, text_of
from grace_bench.datasets.reading.files import Records, read_records
from grace_bench.datasets.reading.sentences import split_sentences
from grace_bench.errors import DataError

if TYPE_CHECKING:
    from grace_bench.datasets.options import Source

_SHARED = ("annotation", "wiki_bio_text", "wiki_bio_test_idx")
PASSAGE_FORMS = {"hub": ("gpt3_sentences", *_SHARED), "main": ("main_sentences", *_SHARED)}
_ANNOTATIONS = {"accurate": False, "minor_inaccurate": True, "major_inaccurate": True}
_MIN_NAMED = 0.5


@dataclass(frozen=True)
class Passage:
    """What GPT-3 wrote about a concept, which sentences are false, and what Wikipedia says."""

    number: str
    concept: str
    sentences: tuple[str, ...]
    is_false: tuple[bool, ...]
    wiki: tuple[str, ...]


def read_passages(
    records: Records, form: str, concepts: Source | None, dropped: Counter[str]
) -> tuple[list[Passage], dict[str, str]]:
    """Return the usable passages in their order, and the manifest's entry of their names."""
    names, entry = _names(records, concepts)
    fields = PASSAGE_FORMS[form]
    passages: list[Passage] = []
    seen: set[str] = set()
    for number, row in complete(records.rows, fields, dropped, lists=fields[:2]):
        index = text_of(row["wiki_bio_test_idx"])
        passage = _passage(index, names[number], row, fields[0])
        if isinstance(passage, Passage) and index in seen:
            passage = "passage with the wiki_bio_test_idx of an earlier one"
        if isinstance(passage, str):
            dropped[passage] += 1
            continue
        seen.add(index)
        passages.append(passage)
    _check_names(passages, records.path)
    return passages, entry


def _names(records: Records, concepts: Source | None) -> tuple[list[str], dict[str, str]]:
    what = "the passages' names, one per line (wiki_bio_concepts.txt of the GRACE repository),"
    if concepts is None:
        raise DataError(
            f"{records.path}: passages need the option 'concepts'; put {what} on disk and set it "
            "to the file."
        )
    read = read_records(concepts, what)
    if any("line" not in row for row in read.rows):
        raise DataError(f"{read.path}: {what} must be a .txt file; convert it.")
    names = [row["line"] for row in read.rows]
    if len(names) < len(records.rows) or not all(names):
        raise DataError(
            f"{read.path}: has {sum(map(bool, names))} names for {len(records.rows)} passages; it "
            "must have one per line, in the passages' order."
        )
    if odd := next((n for n, name in enumerate(names, start=1) if not is_decodable(name)), None):
        raise DataError(f"{read.path}: line {odd} has undecodable characters; get the file again.")
    return names, read.entry


def _passage(index: str, concept: str, row: Row, sentences: str) -> Passage | str:
    """Return a passage, or why it cannot be used."""
    said, annotation = _strings(row[sentences]), _strings(row["annotation"])
    if said is None or annotation is None:
        return "passage whose sentences or annotations are not a list"
    if len(said) != len(annotation):
        return "passage with more sentences than annotations, or fewer"
    if not set(annotation) <= set(_ANNOTATIONS):
        return "passage with an unknown annotation"
    wiki = split_sentences(str(row["wiki_bio_text"]))
    if not all(text.strip(" .?!") for text in said) or not said or not wiki:
        return "passage with an empty sentence or no Wikipedia text"
    if not all(map(is_decodable, (*said, *wiki))):
        return "passage with undecodable text"
    false = tuple(_ANNOTATIONS[label] for label in annotation)
    return Passage(index, concept, tuple(said), false, tuple(wiki))


def _strings(value: Any) -> list[str] | None:
    """Return a list of strings, also from a Python literal in a string; None for anything else."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        return None
    return [item.strip() for item in value]


def _check_names(passages: list[Passage], path: str) -> None:
    """Refuse names in another order: most passages contain a word of their name."""
    named = 0
    for passage in passages:
        text = " ".join((*passage.sentences, *passage.wiki[:3])).casefold()
        named += any(word in text for word in passage.concept.casefold().split() if len(word) > 2)
    if named < _MIN_NAMED * len(passages):
        raise DataError(
            f"{path}: only {named} of {len(passages)} passages mention their name in 'concepts'; "
            "put the names in the passages' order."
        )
