"""The edits that MEND's transform is trained on, from examples that no run edits or scores.

Each edit asks for the label of another example of the same relation. An example without a prompt,
a whole text, is split in two: its beginning should be followed by another text's continuation.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from grace_bench.errors import DataError

FEWEST = 8
"""Facts needed to hold some out."""

Row = dict[str, Any]

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class TrainingEdit:
    """One edit to train on.

    Args:
        edit: the example with the wanted label.
        outer: another phrasing with the same label, or the edit itself.
        local: another fact's example, whose answer must not change.
    """

    edit: Row
    outer: Row
    local: Row


def training_edits(rows: Sequence[Row], seed: int) -> Iterator[TrainingEdit]:
    """Yield edits endlessly, in a random order that depends on the seed.

    Raises:
        DataError: no two examples of one relation have different labels.
    """
    generator = random.Random(f"mend-{seed}")
    alike: dict[Any, list[Row]] = defaultdict(list)
    phrasings: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if _can_be_asked(row):
            alike[_kind(row)].append(row)
        phrasings[row["fact_id"]].append(row)
    several = {kind for kind, found in alike.items() if len({row["label"] for row in found}) > 1}
    usable = [row for kind in alike if kind in several for row in alike[kind]]
    if not usable or len(phrasings) < 2:
        raise DataError("MEND finds no two labels of one relation to train on; add more data.")
    while True:
        for row in generator.sample(usable, len(usable)):
            other = cut(generator.choice(alike[_kind(row)]), generator)
            asked = cut(row, generator)
            local = generator.choice(rows)
            own = row["fact_id"] in (other["fact_id"], local["fact_id"])
            if own or other["label"] == asked["label"]:
                continue
            edit = {**asked, "label": other["label"]}
            outer = generator.choice(phrasings[row["fact_id"]])
            yield TrainingEdit(
                edit, {**outer, "label": edit["label"]} if outer["text"] else edit, local
            )


def _kind(row: Row) -> tuple[Any, bool]:
    """Return what two rows must share to exchange labels."""
    return row.get("relation"), not row["text"] and len(_sentences(row["label"])) > 1


def _sentences(text: str) -> list[str]:
    return _SENTENCE_END.split(text.strip())


def _can_be_asked(row: Row) -> bool:
    """Say whether a row's prompt doesn't contain its answer; a whole text needs two words."""
    if not row["text"]:
        return len(row["label"].split()) > 1
    return not re.search(rf"(?<!\w){re.escape(row['label'])}(?!\w)", row["text"], re.IGNORECASE)


def cut(row: Row, generator: random.Random) -> Row:
    """Return a row with a prompt: its own, or the beginning of its text.

    >>> cut({"text": "", "label": "One two. Three."}, random.Random(0))
    {'text': 'One two.', 'label': 'Three.'}
    """
    if row["text"]:
        return row
    sentences = _sentences(row["label"])
    if len(sentences) > 1:
        place = generator.randrange(1, len(sentences))
        return {**row, "text": " ".join(sentences[:place]), "label": sentences[place]}
    words = row["label"].split()
    place = len(words) // 2
    return {**row, "text": " ".join(words[:place]), "label": " ".join(words[place:])}


def take(items: Iterator[TrainingEdit], count: int) -> list[TrainingEdit]:
    """Return the next `count` items."""
    return [next(items) for _ in range(count)]


def split_by_fact(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Return the rows of most facts, and those of a random `share` of the facts."""
    facts = list(dict.fromkeys(row["fact_id"] for row in rows))
    if len(facts) < FEWEST:
        raise DataError(f"MEND needs {FEWEST} facts to train on, but there are {len(facts)}.")
    drawn = random.Random(f"mend-held-out-{seed}").sample(facts, len(facts))
    held_out = set(drawn[: max(2, round(share * len(facts)))])
    return (
        [row for row in rows if row["fact_id"] not in held_out],
        [row for row in rows if row["fact_id"] in held_out],
    )
