"""Queries that follow a growing codebook.

    tracked = TrackedQueries(codebook)
    tracked.add(queries)
    stamps = tracked.stamps()

A stamp names the value that answers a query now; a query whose stamp is as before is answered as
before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from grace_bench.codebook.search import reserve

if TYPE_CHECKING:
    from grace_bench.codebook.codebook import Codebook


class TrackedQueries:
    """Queries of which the codebook's answers are asked again and again while it grows.

    What a query's nearest key is, is remembered; keys at the end cost one distance per query.

    Args:
        codebook: the codebook; it may change in any way.
        boundary: `open` or `closed`, as in Codebook.inside.
    """

    def __init__(self, codebook: Codebook, boundary: str = "open") -> None:
        self.boundary = boundary
        self._n = 0
        self._queries = codebook.keys.new_empty(0, codebook.d_in)
        self._distances = self._queries.new_empty(0)
        self._nearest = self._distances.long()
        self.rebind(codebook)

    def __len__(self) -> int:
        """Return the number of queries."""
        return self._n

    @property
    def queries(self) -> Tensor:
        """The queries, a view (n, d_in)."""
        return self._queries[: self._n]

    def rebind(self, codebook: Codebook) -> None:
        """Follow another codebook; its stamps have nothing to do with the old one's."""
        self._codebook = codebook
        self._n_keys = self._moves = 0  # of the codebook when it was looked at
        self._n_known = 0  # queries whose nearest key of these is known

    @torch.inference_mode(False)
    def add(self, queries: Tensor) -> range:
        """Track further queries (B, d_in); return their indices."""
        start, self._n = self._n, self._n + len(queries)
        for name in ("_queries", "_distances", "_nearest"):
            setattr(self, name, reserve(getattr(self, name), start, self._n))
        self._queries[start : self._n] = queries.detach()
        return range(start, self._n)

    def stamps(self) -> Tensor:
        """Return the stamp (n,) of the value that answers each query now; 0 where none does."""
        return self.answers()[1]

    def answers(self) -> tuple[Tensor, Tensor]:
        """Return the key (n,) that answers each query now, or -1, and its value's stamp, or 0."""
        codebook, n = self._codebook, self._n
        if len(codebook) == 0:
            self._n_known = 0
            return codebook.stamps.new_full((n,), -1), codebook.stamps.new_zeros(n)
        self._follow(codebook)
        nearest = self._nearest[:n]
        fires = codebook.inside(self._distances[:n], nearest, self.boundary)
        return torch.where(fires, nearest, -1), torch.where(fires, codebook.stamps[nearest], 0)

    def _follow(self, codebook: Codebook) -> None:
        device, n_keys = codebook.keys.device, len(codebook)
        if self._queries.device != device:
            for name in ("_queries", "_distances", "_nearest"):
                setattr(self, name, getattr(self, name).to(device))
            self._n_known = 0
        if codebook.moves != self._moves or n_keys < self._n_keys:
            self._n_known = 0
        known = slice(0, self._n_known)
        if n_keys > self._n_keys and self._n_known:
            distances, nearest = codebook.nearest(self._queries[known], start=self._n_keys)
            old = self._distances[known]
            # Of equally near keys the oldest wins; one that is not a number spoils all, as in
            # a fresh search.
            closer = (distances < old) | distances.isnan()
            self._nearest[known] = torch.where(closer, nearest, self._nearest[known])
            self._distances[known] = torch.where(closer, distances, old)
        new = slice(self._n_known, self._n)
        if self._n > self._n_known:
            self._distances[new], self._nearest[new] = codebook.nearest(self._queries[new])
        self._n_known, self._n_keys, self._moves = self._n, n_keys, codebook.moves
