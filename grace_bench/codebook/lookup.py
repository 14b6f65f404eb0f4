"""Look the same queries up again and again while a codebook grows.

    lookup = IncrementalLookup(codebook)
    lookup.add(queries)
    keys, versions = lookup.answers()

While the version of a query's value stays the same, so does its answer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from grace_bench.codebook.codebook import Codebook
from grace_bench.codebook.storage import reserve

_STORED = ("_queries", "_distances", "_nearest")


class IncrementalLookup:
    """Remembers each query's nearest key; a key added at the end costs one distance per query.

    Args:
        codebook: it may change in any way.
        boundary: `open` or `closed`, as in Codebook.inside.
    """

    def __init__(self, codebook: Codebook, boundary: str = "open") -> None:
        self.boundary = boundary
        self._codebook = codebook
        self._n = 0
        self._queries = codebook.keys.new_empty(0, codebook.d_in)
        self._distances = self._queries.new_empty(0)
        self._nearest = self._distances.long()
        self._n_keys = self._moves = 0  # of the codebook at the last look-up
        self._n_known = 0  # queries whose nearest key among these is known

    @property
    def queries(self) -> Tensor:
        """The queries, a view (n, d_in)."""
        return self._queries[: self._n]

    @torch.inference_mode(False)
    def add(self, queries: Tensor) -> range:
        """Add queries (B, d_in); return their indices."""
        start, self._n = self._n, self._n + len(queries)
        for name in _STORED:
            setattr(self, name, reserve(getattr(self, name), start, self._n))
        self._queries[start : self._n] = queries.detach()
        return range(start, self._n)

    def answers(self) -> tuple[Tensor, Tensor]:
        """Return the key (n,) that answers each query now, or -1, and its value's version, or 0."""
        codebook, n = self._codebook, self._n
        if len(codebook) == 0:
            self._n_known = 0
            versions = codebook.value_versions
            return versions.new_full((n,), -1), versions.new_zeros(n)
        self._update(codebook)
        nearest = self._nearest[:n]
        fires = codebook.inside(self._distances[:n], nearest, self.boundary)
        versions = codebook.value_versions[nearest]
        return torch.where(fires, nearest, -1), torch.where(fires, versions, 0)

    def _update(self, codebook: Codebook) -> None:
        device, n_keys = codebook.keys.device, len(codebook)
        if self._queries.device != device:
            for name in _STORED:
                setattr(self, name, getattr(self, name).to(device))
            self._n_known = 0
        if codebook.moves != self._moves or n_keys < self._n_keys:
            self._n_known = 0
        known = slice(0, self._n_known)
        if n_keys > self._n_keys and self._n_known:
            distances, nearest = codebook.nearest(self._queries[known], start=self._n_keys)
            old = self._distances[known]
            # The oldest of equally near keys wins; NaN spoils all, as in a fresh search.
            closer = (distances < old) | distances.isnan()
            self._nearest[known] = torch.where(closer, nearest, self._nearest[known])
            self._distances[known] = torch.where(closer, distances, old)
        new = slice(self._n_known, self._n)
        if self._n > self._n_known:
            self._distances[new], self._nearest[new] = codebook.nearest(self._queries[new])
        self._n_known, self._n_keys, self._moves = self._n, n_keys, codebook.moves
