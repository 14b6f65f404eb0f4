"""The codebook: keys, values and deferral radii, with a KeyInfo per key.

It knows no model; the rules that change it are pure geometry (GRACE, Algorithm 1). Look-ups are in
codebook/search.py.

    codebook = Codebook(d_in=1024, d_out=512)
    i = codebook.add(query, value, radius=1.0, info=KeyInfo(Label.of(labels, "Paris")))
    distance, nearest = codebook.nearest(queries)

An edit made within `recording` leaves rows of a journal, by which `codebook/journal.py` goes back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from grace_bench.codebook.distances import inside
from grace_bench.codebook.keys import KeyInfo, Label
from grace_bench.codebook.search import KeySearch
from grace_bench.codebook.storage import close_gap, reserve
from grace_bench.errors import EditorError

MM_ROWS = 25
"""Above this number of rows, torch.cdist chooses the matrix product (G8)."""

ZERO_DISTANCE = 1e-5
"""Relative to the key's norm: two inputs closer than this differ by rounding only."""


@dataclass(frozen=True, slots=True)
class _Image:
    """A key as it was before an edit."""

    key: Tensor
    value: Tensor
    radius: float
    info: KeyInfo
    n_examples: int
    changed_at_step: int


_STORED = ("_keys", "_values", "_radii", "_versions")


class Codebook:
    """Keys (N, d_in), values (N, d_out) and radii (N,), all float32, with a KeyInfo per key.

    Storage grows by a share of itself, so an edit copies one row. `moves` counts the changes that
    may invalidate an earlier look-up; adding a key at the end doesn't count.
    """

    def __init__(self, d_in: int, d_out: int, device: torch.device | str = "cpu") -> None:
        self.d_in = d_in
        self.d_out = d_out
        self.info: list[KeyInfo] = []
        self.moves = 0
        self._images: dict[int, _Image] | None = None
        self._keys = torch.zeros(0, d_in, device=device)
        self._values = torch.zeros(0, d_out, device=device)
        self._radii = torch.zeros(0, device=device)
        self._versions = torch.zeros(0, dtype=torch.int64, device=device)
        self._last_version = 0
        self._search = KeySearch(d_in, device)

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

    @property
    def value_versions(self) -> Tensor:
        """The version number of each value, a view (N,) int64; set_value gives a new one."""
        return self._versions[: len(self)]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, spare room included, without `info`."""
        return sum(getattr(self, name).nbytes for name in _STORED) + self._search.nbytes

    def to(self, device: torch.device | str) -> Codebook:
        """Move the tensors to `device` in place."""
        before = self._keys.device
        for name in _STORED:
            setattr(self, name, getattr(self, name).to(device))
        if self._keys.device != before:
            self._search = KeySearch(self.d_in, self._keys.device)
        return self

    def nearest(
        self, queries: Tensor, distance: str = "exact", start: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Return the Euclidean distance to, and the index of, each query's nearest key.

        The oldest of equally near keys wins. A query's result doesn't depend on the other rows.

        Args:
            queries: (B, d_in).
            distance: `exact`, or `matrix_product` as torch.cdist does it above 25 keys (G8).
            start: the first key to search, with `exact`.

        Returns:
            distances (B,) and indices (B,); infinite and -1 without keys.
        """
        queries = queries.to(self._keys)
        if distance != "matrix_product" or len(self) <= MM_ROWS:
            return self._search.nearest(self.keys, queries, start)
        distances = torch.cdist(self.keys, queries, p=2.0, compute_mode="use_mm_for_euclid_dist")
        # min() may return any of several equal minima; the first one is the oldest key.
        smallest = distances.amin(0)
        first = (distances == smallest).int().argmax(0)
        return smallest, first

    def answering(self, queries: Tensor, boundary: str = "open") -> tuple[Tensor, Tensor]:
        """Return the exact distance to, and the index of, each query's nearest key if it answers.

        The same as `nearest` with `inside`, but much faster if most keys are far away.

        Args:
            queries: (B, d_in).
            boundary: as in `inside`.

        Returns:
            distances (B,) and indices (B,); infinite and -1 where the nearest key doesn't answer.
        """
        return self._search.answering(self.keys, self.radii, queries.to(self._keys), boundary)

    def inside(self, distances: Tensor, indices: Tensor, boundary: str = "open") -> Tensor:
        """Say which queries a key answers: d < radius (`open`, Eq. 1) or d <= radius (P4)."""
        return inside(distances, self.radii[indices], boundary)

    def add(self, key: Tensor, value: Tensor, radius: float | Tensor, info: KeyInfo) -> int:
        """Append a key (d_in,) with its value (d_out,); return its index."""
        index = len(self)
        for name in _STORED:
            setattr(self, name, reserve(getattr(self, name), index, index + 1))
        self._keys[index] = key.detach()
        self.set_value(index, value)
        self._radii[index] = radius
        self.info.append(replace(info))
        return index

    def expand(
        self,
        index: int,
        query: Tensor,
        distance: float | Tensor,
        radius: float,
        rule: str,
    ) -> None:
        """Extend a key's ball to a query with its label.

        Args:
            index: the key.
            query: (d_in,).
            distance: of the query from the key.
            radius: eps_init.
            rule: `add_radius` (paper: radius + eps_init), `to_distance` (released: d),
                `moving_average` (released: d, and the key moves half way), or `none`.
        """
        self._remember(index)
        if rule == "add_radius":
            self._radii[index] += radius
        elif rule in ("to_distance", "moving_average"):
            self._radii[index] = distance
            if rule == "moving_average":
                self._keys[index] = 0.5 * self._keys[index] + 0.5 * query.to(self._keys)
                self._search.moved(index, self._keys[index])
                self.moves += 1
        elif rule != "none":
            raise EditorError(f"unknown expansion rule '{rule}'; use one from `Codebook.expand`.")

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
            distance: d, of the query from the key.
            radius: eps_init.
            rule: `half`: both radii become d/2 (paper); `shrink`: but neither grows (G7).
            margin: subtracted from the old key's radius.

        Returns:
            The radius for the new key.
        """
        self._remember(index)
        half = torch.as_tensor(distance, device=self._radii.device, dtype=torch.float32) / 2
        if rule == "shrink":
            self._radii[index] = torch.minimum(self._radii[index], half - margin)
            return half.clamp(max=radius)
        self._radii[index] = half - margin
        return half

    def overwrite(self, index: int, value: Tensor, info: KeyInfo) -> None:
        """Replace a key's value and label; its place, radius and age stay."""
        self.set_value(index, value)
        self.info[index] = replace(info, made_at_step=self.info[index].made_at_step)

    def set_value(self, index: int, value: Tensor) -> None:
        """Store a trained value (d_out,) under a new version number."""
        self._remember(index)
        self._values[index] = value.detach()
        self._last_version += 1
        self._versions[index] = self._last_version

    def restore_versions(self, versions: Tensor, last: int) -> None:
        """Restore the version numbers (N,) that the values had in a codebook with these keys."""
        self._versions = versions.to(self._versions.device, copy=True)
        self._last_version = last

    @property
    def last_version(self) -> int:
        """The newest version number."""
        return self._last_version

    def note(self, index: int, example_ids: Iterable[str], step: int, changed: bool) -> None:
        """Add examples to a key's info and, if it changed, the step."""
        self._remember(index)
        info = self.info[index]
        info.example_ids.update(dict.fromkeys(example_ids))
        if changed:
            info.changed_at_step = step

    def remove(self, index: int) -> KeyInfo:
        """Remove one key; later keys move up by one, and the others' radii stay.

        Raises:
            EditorError: there is no such key.
        """
        n = len(self)
        if not 0 <= index < n:
            raise EditorError(f"there is no key {index}; the codebook has {n}, counted from 0.")
        for name in _STORED:
            close_gap(getattr(self, name), index, n)
        self._search.removed(index)
        self.moves += 1
        return self.info.pop(index)

    @contextmanager
    def recording(self, step: int) -> Iterator[list[dict[str, Any]]]:
        """Collect what one edit changes, as rows of schemas.JOURNAL; no key may be removed."""
        changes: list[dict[str, Any]] = []
        self._images = images = {}
        before = len(self)
        try:
            yield changes
        finally:
            self._images = None
        for index, image in images.items():
            if index < before:
                changes.append({"step": step, "key": index, **self._change(index, image)})
        changes += [{"step": step, "key": index} for index in range(before, len(self))]

    def _remember(self, index: int) -> None:
        if self._images is not None and index < len(self) and index not in self._images:
            info = self.info[index]
            self._images[index] = _Image(
                self._keys[index].clone(),
                self._values[index].clone(),
                self._radii[index].item(),
                info,
                len(info.example_ids),
                info.changed_at_step,
            )

    def _change(self, index: int, image: _Image) -> dict[str, Any]:
        """Return what a key was before an edit; of what it kept, only what is small."""
        row: dict[str, Any] = {
            "radius": image.radius,
            "changed_at_step": image.changed_at_step,
            "n_examples": image.n_examples,
        }
        if self.info[index] is not image.info:
            label = image.info.label
            row |= {"label": label.text, "label_ids": list(label.ids), "label_mean": label.mean}
            row["example_ids"] = list(image.info.example_ids)
        if not torch.equal(self._keys[index], image.key):
            row["vector"] = image.key.tolist()
        if not torch.equal(self._values[index], image.value):
            row["value"] = image.value.tolist()
        return row

    def take_back(self, change: Mapping[str, Any]) -> None:
        """Undo the newest change of a journal.

        Args:
            change: a row of schemas.JOURNAL; columns that are null may be missing.
        """
        index = change["key"]
        if change.get("radius") is None:
            self.remove(index)
            return
        info = self.info[index]
        label, examples, made = info.label, list(info.example_ids), info.made_at_step
        if change.get("label") is not None:
            ids = tuple(change["label_ids"])
            label, examples = (
                Label(ids, change["label_mean"], change["label"]),
                change["example_ids"],
            )
        self.info[index] = KeyInfo(
            label, examples[: change["n_examples"]], made, change["changed_at_step"]
        )
        self._radii[index] = change["radius"]
        if change.get("vector") is not None:
            self._keys[index] = torch.tensor(change["vector"])
            self._search.moved(index, self._keys[index])
            self.moves += 1
        if change.get("value") is not None:
            self.set_value(index, torch.tensor(change["value"]))

    def rows(self) -> list[dict[str, Any]]:
        """Return one row of schemas.CODEBOOK per key."""
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
        """Build a codebook from copies of tensors (N, d_in), (N, d_out) and (N,)."""
        codebook = cls(keys.shape[1], values.shape[1], keys.device)
        for name, tensor in (("_keys", keys), ("_values", values), ("_radii", radii)):
            setattr(codebook, name, tensor.detach().to(torch.float32, copy=True))
        codebook._versions = torch.arange(1, len(keys) + 1, device=keys.device)
        codebook._last_version = len(keys)
        codebook.info = [replace(one) for one in info]
        return codebook
