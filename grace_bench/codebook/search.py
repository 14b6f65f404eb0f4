"""Find nearest keys without measuring most distances.

Every result is, bit for bit, the first minimum of all distances as torch.cdist measures them
without its matrix product. A matrix product approximates each squared distance; keys farther than
the best one by more than all rounding errors together are skipped, and the rest are measured.

    search = KeySearch(d_in=1024)
    distances, indices = search.nearest(keys, queries)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from grace_bench.codebook.distances import (
    CHUNK,
    PAIRS,
    bound,
    inside,
    measure_all,
    measure_lowest,
    measure_pairs,
    pairs_below,
    slices,
)
from grace_bench.codebook.storage import close_gap, reserve

# Measuring all distances is faster for few numbers (keys x queries x d_in), or for few keys, as
# preparing the queries takes time too.
PLAIN_WORK = 2**19
FEW_KEYS = 32
# Limits on what is held at once.
QUERIES = 256
GATHERED = 4096  # keys copied
MANY_PAIRS = 2**21  # pairs that may be near; beyond this, all distances are measured
# What keys are projected onto.
DIRECTIONS = 30
SAMPLE = 512  # keys that determine the directions

UNIT = 2.0**-24  # half the distance from 1 to the next float32
LARGE = 1e30  # squares up to here stay well below the greatest float32
TINY = 1e-30  # more than underflow takes from a sum of squares


class Ready(NamedTuple):
    """Queries prepared for a search.

    Args:
        raw: (B, d_in), the queries.
        shifted: (B, d_in) in float64, minus the centre.
        squares: (B,) in float64, their square norms.
        along: (B,) in float64, their products with the centre.
        points: (B, p + 2); the product with a key's point, plus `offset`, is at most |q - k|^2.
        offset: (B,).
    """

    raw: Tensor
    shifted: Tensor
    squares: Tensor
    along: Tensor
    points: Tensor
    offset: Tensor

    def at(self, which: Tensor) -> Ready:
        """Return some of the queries."""
        return Ready(*(tensor[which] for tensor in self))


class KeySearch:
    """Finds nearest keys; a few numbers per key, its point, rule most keys out cheaply.

    With k and q minus the mean key, a key's point is (P k, |k - P'P k|), for P with p orthonormal
    rows; two points are never farther apart than their keys. |k|^2 is stored beside each point.
    The keys themselves are passed to every call.

    Rounding: a sum of n products is off by at most about n units of the sum of their sizes, here
    at most |q|^2 + |k|^2. Each slack is at least twice the sum of its rounding errors.

    Args:
        d_in: width of the keys.
        device: where the keys are.
    """

    def __init__(self, d_in: int, device: torch.device | str = "cpu") -> None:
        p = min(DIRECTIONS, d_in)
        self._points = torch.empty(0, p + 2, device=device)
        self._centre = self._basis = torch.empty(0)
        self._n = 0
        self._n_at_choice = 0
        self._sound = True
        self._slack = 2 * (d_in + 16) * UNIT
        self._points_slack = 4 * (p + 12) * UNIT

    @property
    def nbytes(self) -> int:
        """Bytes held, spare room included."""
        return self._points.nbytes + self._centre.nbytes + self._basis.nbytes

    def moved(self, index: int, key: Tensor) -> None:
        """Update key `index` to `key` (d_in,)."""
        if index < self._n:
            self._project(index, key[None])

    def removed(self, index: int) -> None:
        """Remove key `index`; later ones move up."""
        if index < self._n:
            close_gap(self._points, index, self._n)
            self._n -= 1

    @torch.no_grad()
    def nearest(self, keys: Tensor, queries: Tensor, start: int = 0) -> tuple[Tensor, Tensor]:
        """Return each query's nearest key, from `start` on; infinite and -1 without keys.

        keys (N, d_in), queries (B, d_in) -> distances (B,), indices (B,).
        """
        parts = []
        for some in queries.split(QUERIES):
            ready = self._prepare(keys, some, len(keys) - start)
            parts.append(
                measure_all(keys, some, start)
                if ready is None
                else self._nearest_of(keys, ready, slices(start, len(keys), len(some)))
            )
        return _joined(parts)

    @torch.no_grad()
    def answering(
        self, keys: Tensor, radii: Tensor, queries: Tensor, boundary: str
    ) -> tuple[Tensor, Tensor]:
        """Return each query's nearest key if it answers, else infinite and -1.

        keys (N, d_in), radii (N,), queries (B, d_in) -> distances (B,), indices (B,).
        """
        if len(keys) == 0:
            return self.nearest(keys, queries)
        parts = []
        for some in queries.split(QUERIES):
            near, at = self._perhaps_answering(keys, radii, some, boundary)
            silent = (at < 0) | ~inside(near, radii[at], boundary)
            parts.append((near.masked_fill(silent, torch.inf), at.masked_fill(silent, -1)))
        return _joined(parts)

    def _perhaps_answering(
        self, keys: Tensor, radii: Tensor, queries: Tensor, boundary: str
    ) -> tuple[Tensor, Tensor]:
        """Return distances (B,) and indices (B,), correct wherever the nearest key answers."""
        ready = self._prepare(keys, queries, len(keys))
        if ready is None:
            return measure_all(keys, queries, 0)
        # All keys are searched up to the usual radius: one with a smaller radius may be nearer than
        # one that would answer.
        usual = radii.nan_to_num(0.0, 0.0, 0.0).mean()
        pairs = self._pairs_within(ready, bound(torch.fmax(radii, usual), self._slack))
        near, at = self._nearest_of_pairs(keys, ready, pairs)
        beyond = ((near > usual) & (at >= 0) & inside(near, radii[at], boundary)).nonzero()[:, 0]
        if pairs is not None and len(beyond):
            some, limits = ready.at(beyond), bound(near[beyond], self._slack)
            pairs = self._pairs_within(some, limits.new_zeros(len(keys)), limits)
            near[beyond], at[beyond] = self._nearest_of_pairs(keys, some, pairs)
        return near, at

    def _nearest_of_pairs(
        self, keys: Tensor, ready: Ready, pairs: tuple[Tensor, Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Return the nearest of the paired keys (None: all keys): distances (B,), indices (B,).

        Infinite and -1 for a query without a pair; it may also find another query's keys.
        """
        n_queries = len(ready.raw)
        if pairs is None:
            return self._nearest_of(keys, ready, slices(0, len(keys), n_queries))
        rows, columns = self._leave_out(keys, ready, *pairs)
        if len(rows) <= 16 * n_queries:
            return measure_pairs(keys, ready.raw, rows, columns)
        near = ready.raw.new_full((n_queries,), torch.inf)
        at = near.long().fill_(-1)
        which, counts = columns.unique(return_counts=True)
        groups = [rows.unique()]
        # Copying a key costs as much as ten products; a product with one query is slow too.
        if len(groups[0]) * (len(which) + 10) <= 16 * len(rows):
            which = which[None]
        else:
            which = which[:, None]
            groups = rows[columns.argsort(stable=True)].split(counts.tolist())
        for some, group in zip(which, groups, strict=True):
            chunks = group.split(max(1, min(GATHERED, CHUNK // len(some))))
            near[some], at[some] = self._nearest_of(keys, ready.at(some), chunks)
        return near, at

    def _pairs_within(
        self, ready: Ready, of_keys: Tensor, of_queries: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return the keys (P,) and queries (P,) of pairs that may be near; None if too many.

        Near means a squared distance of at most the key's bound (N,) plus the query's (B,). A third
        tensor (P,) holds lower bounds of the squared distances.
        """
        n_queries, n_pairs, pairs = len(ready.raw), 0, []
        for some in slices(0, self._n, n_queries):
            score = self._points[some] @ ready.points.T
            score += ready.offset  # (n, B)
            excess = score if of_queries is None else score - of_queries
            rows, columns = pairs_below(excess, of_keys[some])
            pairs.append((rows + some.start, columns, score[rows, columns]))
            n_pairs += len(rows)
            if n_pairs > max(min(self._n * n_queries // 16, MANY_PAIRS), 4 * n_queries):
                return None
        return tuple(torch.cat(parts) for parts in zip(*pairs, strict=True))

    def _leave_out(
        self, keys: Tensor, ready: Ready, rows: Tensor, columns: Tensor, scores: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the pairs (P,) that may be as near as the query's apparently nearest one."""
        n_queries = len(ready.raw)
        if len(rows) <= 2 * n_queries:
            return rows, columns
        lowest = scores.new_full((n_queries,), torch.inf).scatter_reduce(0, columns, scores, "amin")
        first = scores == lowest[columns]
        near, _ = measure_pairs(keys, ready.raw, rows[first], columns[first])
        kept = scores <= bound(near, self._slack)[columns]
        return rows[kept], columns[kept]

    def _nearest_of(
        self, keys: Tensor, ready: Ready, chunks: Iterable[slice] | Iterable[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the nearest of some keys, in ascending chunks: distances (B,), indices (B,)."""
        best = ready.raw.new_full((len(ready.raw),), torch.inf)
        indices = best.long().fill_(-1)
        # Keys are multiplied with queries minus the centre c, which keeps rounding smallest:
        # |q - k|^2 = |q - c|^2 + |k - c|^2 - 2 (q - c) k + 2 (q - c) c.
        times = (-2 * ready.shifted).float().T  # (d_in, B)
        wrong = 2 * self._slack * ready.squares.sqrt() * self._centre.norm()
        offset = (1 - self._slack) * ready.squares + 2 * ready.along - wrong - TINY
        for some in chunks:
            if isinstance(some, slice):
                points, block = self._points[some], keys[some]
            else:
                points, block = self._points.index_select(0, some), keys.index_select(0, some)
            found = None
            if block.numel() * len(best) > PLAIN_WORK:
                score = block @ times  # (n, B)
                score += (1 - self._slack) * points[:, -1:]
                found = measure_lowest(block, ready.raw, score, offset.float(), best, self._slack)
            near, at = measure_all(block, ready.raw, 0) if found is None else found
            closer = near < best
            at = at + some.start if isinstance(some, slice) else some[at]
            best, indices = torch.where(closer, near, best), torch.where(closer, at, indices)
        return best, indices

    def _prepare(self, keys: Tensor, queries: Tensor, n_keys: int) -> Ready | None:
        """Prepare queries, or return None where all distances should be measured."""
        if n_keys < FEW_KEYS or n_keys * queries.numel() <= PLAIN_WORK:
            return None
        if not _products_are_float32(keys.device):
            return None
        self._catch_up(keys)
        shifted = queries.double() - self._centre
        points, squares = self._points_of(shifted)
        if not (self._sound and bool((squares < LARGE).all())):
            return None
        once = points.new_full((len(points), 1), 1 - self._points_slack)
        return Ready(
            queries,
            shifted,
            squares,
            shifted @ self._centre,
            torch.cat([-2 * points, once], 1).float(),
            ((1 - self._points_slack) * squares - TINY).float(),
        )

    @torch.inference_mode(False)  # inference tensors could not be changed later
    def _catch_up(self, keys: Tensor) -> None:
        """Project new keys; choose the directions again when there are four times as many keys."""
        n = len(keys)
        if n >= 4 * self._n_at_choice:
            self._choose(keys)
        self._points = reserve(self._points, self._n, n)
        for start in range(self._n, n, PAIRS):
            self._project(start, keys[start : start + PAIRS])
        self._n = n

    def _choose(self, keys: Tensor) -> None:
        """Take a sample's approximate principal directions; all keys are then projected again."""
        sample = keys[:: -(-len(keys) // SAMPLE)].double()
        self._centre = sample.mean(0)
        sample -= self._centre
        generator = torch.Generator().manual_seed(0)
        basis = torch.randn(
            sample.shape[1], self._points.shape[1] - 2, generator=generator, dtype=torch.float64
        ).to(keys.device)
        for _ in range(3):
            basis = torch.linalg.qr(sample.T @ (sample @ basis) + TINY * basis)[0]
        self._basis = basis  # (d_in, p)
        self._n, self._n_at_choice = 0, len(keys)
        self._sound = bool(self._centre.square().sum() < LARGE)

    def _project(self, start: int, keys: Tensor) -> None:
        points, squares = self._points_of(keys.double() - self._centre)
        stop = start + len(keys)
        self._points[start:stop, :-1] = points
        self._points[start:stop, -1] = squares
        # With keys that are not finite, or whose squares are not, all distances are measured.
        self._sound = self._sound and bool((squares < LARGE).all())

    def _points_of(self, shifted: Tensor) -> tuple[Tensor, Tensor]:
        """(n, d_in) in float64 -> points (n, p + 1) and square norms (n,)."""
        projected = shifted @ self._basis
        squares = shifted.square().sum(1)
        left = torch.addmm(shifted, projected, self._basis.T, alpha=-1).square().sum(1).sqrt()
        return torch.cat([projected, left[:, None]], 1), squares


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _products_are_float32(device: torch.device) -> bool:
    """Say whether matrix products are in full float32; MPS also lacks float64."""
    if device.type == "mps" or torch.is_autocast_enabled(device.type):
        return False
    backends = torch.backends
    products = backends.cuda.matmul if device.type == "cuda" else backends.mkldnn.matmul
    return products.fp32_precision in ("none", "ieee")
