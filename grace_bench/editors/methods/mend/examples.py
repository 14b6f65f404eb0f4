"""The edits that MEND's transform is trained on, made of examples that no run edits or scores.

Every one asks for what another example of the same relation says. An example without a prompt, a
whole text, is cut in two: what follows its beginning is to be what followed another text's.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grace_bench.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FEWEST = 8
"""Facts; with fewer there is nothing to hold out."""

Row = dict[str, Any]

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class TrainingEdit:
    """One edit to train on.

    Args:
        edit: the example with its wanted label.
        outer: another phrasing with the same label, or the edit itself.
        local: another fact's example, to be answered as before.
    """

    edit: Row
    outer: Row
    local: Row


def training_edits(rows: Sequence[Row], seed: int) -> Iterator[TrainingEdit]:
    """Yield edits without end, in a random order of the rows that the seed fixes.

    Raises:
        DataError: no example has a label that another of its relation could take over.
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
        raise DataError("MEND finds no two labels of one relation to train on; give it more data.")
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
    """Return what rows must share for one to take over the other's label."""
    return row.get("relation"), not row["text"] and len(_sentences(row["label"])) > 1


def _sentences(text: str) -> list[str]:
    return _SENTENCE_END.split(text.strip())


def _can_be_asked(row: Row) -> bool:
    """Say whether a row's prompt leaves its answer open; a whole text needs two words."""
    if not row["text"]:
        return len(row["label"].split()) > 1
    return not re.search(rf"(?<!\w){re.escape(row['label'])}(?!\w)", row["text"], re.IGNORECASE)


def cut(row: Row, generator: random.Random) -> Row:
    """Return a row with a prompt: its own, or some of its text, then one sentence or the rest.

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
    """Return the rows of most facts, and those of a random `share` of facts."""
    facts = list(dict.fromkeys(row["fact_id"] for row in rows))
    if len(facts) < FEWEST:
        raise DataError(f"MEND needs {FEWEST} facts to train on, there are {len(facts)}.")
    drawn = random.Random(f"mend-held-out-{seed}").sample(facts, len(facts))
    held_out = set(drawn[: max(2, round(share * len(facts)))])
    return (
        [row for row in rows if row["fact_id"] not in held_out],
        [row for row in rows if row["fact_id"] in held_out],
    )
