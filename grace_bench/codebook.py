"""The codebook: keys, values, deferral radii, and what is known about each key.

It knows nothing of models; rules that change it are pure geometry (GRACE, Algorithm 1). One key
is one row; storage grows by doubling, so that an edit costs one row and not the whole codebook.

    codebook = Codebook(d_in=1024, d_out=512)
    i = codebook.add(query, value, radius=1.0, info=KeyInfo(Label.of(labels, "Paris")))
    distance, nearest = codebook.nearest(queries)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from grace_bench.errors import EditorError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

IGNORED = -100
"""Label id that Hugging Face losses leave out."""

MM_ROWS = 25
"""Above so many rows torch.cdist takes the matrix product on its own (G8)."""


@dataclass(frozen=True)
class Label:
    """What a key stands for.

    Args:
        ids: the label's token ids, masked ones left out.
        mean: mean of the whole label row in float32, mask included (for the released rule, G1).
        text: the label for people.
    """

    ids: tuple[int, ...]
    mean: float
    text: str = ""

    @classmethod
    def of(cls, labels: Tensor, text: str = "") -> Label:
        """Read a label from the model's `labels` of one example, any shape."""
        row = labels.detach().flatten().cpu()
        return cls(tuple(row[row != IGNORED].tolist()), row.float().mean().item(), text)

    def same_as(self, other: Label, rule: str) -> bool:
        """Compare by token ids (`exact`) or by means (`mean`, the released rule; G1)."""
        return self.mean == other.mean if rule == "mean" else self.ids == other.ids


@dataclass(frozen=True)
class KeyInfo:
    """Where a key comes from: its label, the examples behind it, and when it was changed."""

    label: Label
    example_ids: tuple[str, ...] = ()
    made_at_step: int = 0
    changed_at_step: int = 0


class Codebook:
    """Keys (N, d_in), values (N, d_out) and radii (N,), all float32, with a KeyInfo per key."""

    def __init__(self, d_in: int, d_out: int, device: torch.device | str = "cpu") -> None:
        self.d_in = d_in
        self.d_out = d_out
        self.info: list[KeyInfo] = []
        self._keys = torch.zeros(0, d_in, device=device)
        self._values = torch.zeros(0, d_out, device=device)
        self._radii = torch.zeros(0, device=device)

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self.info)

    @property
    def keys(self) -> Tensor:
        """The keys, a view (N, d_in)."""
        return self._keys[: len(self)]

    @property
    def values(self) -> Tensor:
        """The values, a view (N, d_out)."""
        return self._values[: len(self)]

    @property
    def radii(self) -> Tensor:
        """The deferral radii, a view (N,)."""
        return self._radii[: len(self)]

    def to(self, device: torch.device | str) -> Codebook:
        """Move the tensors to `device` in place."""
        self._keys = self._keys.to(device)
        self._values = self._values.to(device)
        self._radii = self._radii.to(device)
        return self

    def nearest(self, queries: Tensor, distance: str = "exact") -> tuple[Tensor, Tensor]:
        """Return the Euclidean distance to, and the index of, each query's nearest key.

        Of equally near keys the oldest wins. A query's result doesn't depend on the other rows.

        Args:
            queries: (B, d_in).
            distance: `exact`, or `matrix_product` as torch.cdist does it above 25 keys (G8).

        Returns:
            distances (B,) and indices (B,).
        """
        by_product = distance == "matrix_product" and len(self) > MM_ROWS
        mode = "use_mm_for_euclid_dist" if by_product else "donot_use_mm_for_euclid_dist"
        distances = torch.cdist(self.keys, queries.to(self._keys), p=2.0, compute_mode=mode)
        # min() may return any of several equal minima; the first is the oldest key.
        smallest = distances.amin(0)
        first = (distances == smallest).int().argmax(0)
        return smallest, first

    def inside(self, distances: Tensor, indices: Tensor, boundary: str = "open") -> Tensor:
        """Say which queries a key answers: d < radius (`open`, Eq. 1) or d <= radius (P4)."""
        radii = self.radii[indices]
        return distances <= radii if boundary == "closed" else distances < radii

    def add(self, key: Tensor, value: Tensor, radius: float | Tensor, info: KeyInfo) -> int:
        """Append a key (d_in,) with its value (d_out,); return its index."""
        index = len(self)
        if index == len(self._radii):
            self._grow(max(8, 2 * index))
        self._keys[index] = key.detach()
        self._values[index] = value.detach()
        self._radii[index] = radius
        self.info.append(info)
        return index

    def expand(
        self,
        index: int,
        query: Tensor,
        distance: float | Tensor,
        radius: float,
        rule: str,
    ) -> None:
        """Make a key's ball reach out to a query with its label.

        Args:
            index: the key.
            query: (d_in,), at `distance` from the key.
            distance: Euclidean distance of the query.
            radius: eps_init.
            rule: `add_radius` (paper: radius + eps_init), `to_distance` (released: d),
                `moving_average` (released: d, and the key moves half way), or `none`.
        """
        if rule == "add_radius":
            self._radii[index] += radius
        elif rule in ("to_distance", "moving_average"):
            self._radii[index] = distance
            if rule == "moving_average":
                self._keys[index] = 0.5 * self._keys[index] + 0.5 * query.to(self._keys)
        elif rule != "none":
            raise EditorError(f"unknown expansion rule '{rule}'; use one of the documented ones.")

    def split(
        self,
        index: int,
        distance: float | Tensor,
        radius: float,
        rule: str,
        margin: float = 0.0,
    ) -> Tensor:
        """Shrink a key's ball away from a query with another label.

        Args:
            index: the key.
            distance: Euclidean distance d of the query.
            radius: eps_init.
            rule: `half`: both radii become d/2 (paper); `shrink`: none grows by it (G7).
            margin: taken off the old key's radius.

        Returns:
            The radius for the new key.
        """
        half = torch.as_tensor(distance, device=self._radii.device, dtype=torch.float32) / 2
        if rule == "shrink":
            self._radii[index] = torch.minimum(self._radii[index], half - margin)
            return half.clamp(max=radius)
        self._radii[index] = half - margin
        return half

    def overwrite(self, index: int, value: Tensor, info: KeyInfo) -> None:
        """Give a key another value and label; its place, radius and age stay."""
        self._values[index] = value.detach()
        self.info[index] = replace(info, made_at_step=self.info[index].made_at_step)

    def set_value(self, index: int, value: Tensor) -> None:
        """Store a trained value (d_out,)."""
        self._values[index] = value.detach()

    def note(self, index: int, example_ids: Iterable[str], step: int, changed: bool) -> None:
        """Record further examples behind a key, and that it was changed at `step`."""
        info = self.info[index]
        news = tuple(name for name in example_ids if name not in info.example_ids)
        self.info[index] = replace(
            info,
            example_ids=info.example_ids + news,
            changed_at_step=step if changed else info.changed_at_step,
        )

    def remove(self, index: int) -> KeyInfo:
        """Roll back one key; later keys move up by one. Radii of others stay as they are.

        Raises:
            EditorError: there is no such key.
        """
        n = len(self)
        if not 0 <= index < n:
            raise EditorError(f"there is no key {index}; the codebook has {n}, counted from 0.")
        for storage in (self._keys, self._values, self._radii):
            storage[index : n - 1] = storage[index + 1 : n].clone()
        return self.info.pop(index)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row of records.CODEBOOK per key."""
        return [
            {
                "key": index,
                "label": info.label.text,
                "radius": radius,
                "made_at_step": info.made_at_step,
                "changed_at_step": info.changed_at_step,
                "n_examples": len(info.example_ids),
                "example_ids": list(info.example_ids),
            }
            for index, (info, radius) in enumerate(zip(self.info, self.radii.tolist(), strict=True))
        ]

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, radii: Tensor, info: Sequence[KeyInfo]) -> Codebook:
        """Build a codebook from whole tensors, copied: (N, d_in), (N, d_out), (N,)."""
        codebook = cls(keys.shape[1], values.shape[1], keys.device)
        codebook._keys = keys.detach().float().clone()
        codebook._values = values.detach().float().clone()
        codebook._radii = radii.detach().float().clone()
        codebook.info = list(info)
        return codebook

    def _grow(self, capacity: int) -> None:
        for name in ("_keys", "_values", "_radii"):
            old = getattr(self, name)
            new = old.new_zeros(capacity, *old.shape[1:])
            new[: len(old)] = old
            setattr(self, name, new)
