"""Two codebooks of one model and layer become one.

find_conflicts(older, newer)            # keys that claim the same queries with other answers
merged = merge(older, newer)            # refuses conflicts
merged = merge(older, newer, "newer")   # the newer codebook wins, as a later edit would
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from grace_bench.codebook.codebook import ZERO_DISTANCE, Codebook
from grace_bench.codebook.keys import KeyInfo, Label
from grace_bench.errors import EditorError

MOST_SHOWN = 3


@dataclass(frozen=True)
class Conflict:
    """Two keys with different answers whose balls meet, so that a query may lie within both.

    Args:
        older: key of the older codebook.
        newer: key of the newer one.
        distance: between them.
        answers: labels of the older and of the newer key.
    """

    older: int
    newer: int
    distance: float
    answers: tuple[Label, Label]

    @property
    def agree(self) -> bool:
        """Whether the answers are the same, so that there is no conflict."""
        return self.answers[0].same_as(self.answers[1], "exact")


def find_conflicts(older: Codebook, newer: Codebook) -> list[Conflict]:
    """Return the pairs of keys with different answers whose balls meet, by the newer key.

    Raises:
        EditorError: the codebooks are for layers of different sizes.
    """
    return [one for one in _meetings(older, newer) if not one.agree]


def merge(
    older: Codebook, newer: Codebook, conflicts: Literal["refuse", "newer"] = "refuse"
) -> Codebook:
    """Return a new codebook with the keys of both.

    It equals what one stream of both codebooks' edits gives if their keys are far apart: if no edit
    of one is within reach of the other's keys. Of two keys in the same place with the same answer,
    the older one stays, with the larger radius and the examples of both.

    Args:
        older: its keys come first.
        newer: of the same model and layer. Its steps count on from the older one's, unless they
            are later than those anyway.
        conflicts: "refuse" raises; with "newer", each key of the newer codebook splits the older
            one's balls as an edit does (GRACE, Algorithm 1): both radii become half the distance
            if they are larger. An older key in the same place is replaced.

    Raises:
        EditorError: there are conflicts to refuse, or the layers' sizes differ.
    """
    meetings = _meetings(older, newer)
    found = [one for one in meetings if not one.agree]
    if found and conflicts == "refuse":
        raise EditorError(describe_conflicts(found))
    same_place = [
        one for one in meetings if one.distance <= ZERO_DISTANCE * newer.keys[one.newer].norm()
    ]
    replaced = {one.older for one in same_place if not one.agree}
    joined = {one.newer: one.older for one in same_place if one.older not in replaced}
    radii = [older.radii.clone(), newer.radii.clone()]
    for key, other in joined.items():
        radii[0][other] = torch.maximum(radii[0][other], radii[1][key])
    for one in found:
        if one.older not in replaced:
            for which, key in enumerate((one.older, one.newer)):
                radii[which][key] = radii[which][key].clamp(max=one.distance / 2)
    kept = [key for key in range(len(older)) if key not in replaced]
    added = [key for key in range(len(newer)) if key not in joined]
    info = [replace(one) for one in older.info]
    for key, other in joined.items():
        info[other].example_ids |= newer.info[key].example_ids
    later = _counted_on(older, newer)
    return Codebook.of(
        torch.cat([older.keys[kept], newer.keys[added]]),
        torch.cat([older.values[kept], newer.values[added]]),
        torch.cat([radii[0][kept], radii[1][added]]),
        [*(info[key] for key in kept), *(later[key] for key in added)],
    )


def describe_conflicts(found: Sequence[Conflict]) -> str:
    """Return the first conflicts as a sentence, and what to do about them."""
    shown = "; ".join(
        f"key {one.older} ({one.answers[0].text!r}) and key {one.newer} ({one.answers[1].text!r}), "
        f"{one.distance:.3g} apart"
        for one in found[:MOST_SHOWN]
    )
    more = f"; and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
    return (
        f"the codebooks give different answers where keys meet: {shown}{more}. Undo edits of one, "
        'or let the newer one win: conflicts="newer".'
    )


def _meetings(older: Codebook, newer: Codebook) -> list[Conflict]:
    """Return the pairs of keys whose balls meet, whatever they answer."""
    if (older.d_in, older.d_out) != (newer.d_in, newer.d_out):
        raise EditorError(
            f"the codebooks are for layers of {older.d_in} -> {older.d_out} and of {newer.d_in} -> "
            f"{newer.d_out}; merge two of the same layer."
        )
    found = []
    for key, (vector, radius) in enumerate(zip(newer.keys, newer.radii, strict=True)):
        distances = (older.keys - vector).norm(dim=1)
        for other in (distances < older.radii + radius).nonzero().flatten().tolist():
            answers = older.info[other].label, newer.info[key].label
            found.append(Conflict(other, key, float(distances[other]), answers))
    return found


def _counted_on(older: Codebook, newer: Codebook) -> list[KeyInfo]:
    """Return the newer codebook's infos with steps after the older one's."""
    last = max((info.changed_at_step for info in older.info), default=0)
    first = min((info.made_at_step for info in newer.info), default=last + 1)
    shift = 0 if first > last else last
    return [
        replace(
            info,
            made_at_step=info.made_at_step + shift,
            changed_at_step=info.changed_at_step + shift,
        )
        for info in newer.info
    ]
