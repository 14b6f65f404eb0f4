"""Nearest keys without measuring most distances.

Every result here is, bit for bit, that of measuring all distances with torch.cdist, without its
matrix product, and taking the first minimum. Only which distances are measured differs: a matrix
product gives each squared distance but for rounding, and what is then farther than the best one
by more than all roundings can add up to is left out.

    search = KeySearch(d_in=1024)
    distances, indices = search.nearest(keys, queries)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable

MEASURED = "donot_use_mm_for_euclid_dist"
"""torch.cdist then works out each distance from its two rows alone."""

# Where measuring all distances is quicker: few numbers (keys x queries x d_in), or few keys, as
# making the queries ready takes its time too.
PLAIN_WORK = 2**19
FEW_KEYS = 32
# What is held at once.
CHUNK = 2**20  # numbers, keys x queries
QUERIES = 256
GATHERED = 4096  # keys copied
PAIRS = 512  # pairs of a key and a query copied
MANY_PAIRS = 2**21  # pairs that may be near; of more, all distances are worked out
# What keys are projected onto.
DIRECTIONS = 30
SAMPLE = 512  # keys that the directions are chosen by

UNIT = 2.0**-24  # half the distance from 1 to the next float32
LARGE = 1e30  # squares up to here leave room below the greatest float32
TINY = 1e-30  # more than underflow takes from a sum of squares


def reserve(buffer: Tensor, used: int, needed: int) -> Tensor:
    """Return `buffer` with room for `needed` rows, the first `used` of them kept.

    The spare room is as much as is needed up to 1024 rows, then an eighth: appending a row costs
    a constant number of copies, and the room is small.
    """
    if needed <= len(buffer):
        return buffer
    room = needed + max(8, min(needed, 1024), needed // 8)
    new = buffer.new_empty(room, *buffer.shape[1:])
    new[:used] = buffer[:used]
    return new


def close_gap(buffer: Tensor, index: int, used: int) -> None:
    """Take row `index` out of the first `used`: later rows move up, some at a time."""
    for start in range(index, used - 1, GATHERED):
        stop = min(start + GATHERED, used - 1)
        buffer[start:stop] = buffer[start + 1 : stop + 1].clone()


def inside(distances: Tensor, radii: Tensor, boundary: str) -> Tensor:
    """Say where a distance is within a radius: d < radius (`open`) or d <= radius (`closed`)."""
    return distances <= radii if boundary == "closed" else distances < radii


class Ready(NamedTuple):
    """Queries made ready for looking up.

    Args:
        raw: (B, d_in), the queries.
        shifted: (B, d_in) in float64, less the centre.
        squares: (B,) in float64, their square norms.
        along: (B,) in float64, their products with the centre.
        points: (B, p + 2): a product with a key's point, plus `offset`, is at most |q - k|^2.
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
    """Finds nearest keys; holds a few numbers per key, its point, that rule it out cheaply.

    With k and q less the mean key, a key's point is (P k, |k - P'P k|), for P with p orthonormal
    rows; two points are never farther apart than their keys. |k|^2 stands beside each. The keys
    stay where they are and come with every call.

    Roundings: a sum of n products is wrong by at most about n units of the sum of their sizes,
    here at most |q|^2 + |k|^2. Each slack is at least twice what its roundings add up to.

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
        """Take note that key `index` is now `key` (d_in,)."""
        if index < self._n:
            self._project(index, key[None])

    def removed(self, index: int) -> None:
        """Take note that key `index` is gone and the later ones moved up."""
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
            ready = self._make_ready(keys, some, len(keys) - start)
            parts.append(
                _measure_all(keys, some, start)
                if ready is None
                else self._nearest_of(keys, ready, _slices(start, len(keys), len(some)))
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
        """Return distances (B,) and indices (B,) of keys: the nearest ones if those answer."""
        ready = self._make_ready(keys, queries, len(keys))
        if ready is None:
            return _measure_all(keys, queries, 0)
        # All keys are looked at up to the usual radius, so that one with a smaller radius is seen
        # to be nearer than one that would answer.
        usual = radii.nan_to_num(0.0, 0.0, 0.0).mean()
        pairs = self._pairs_within(ready, _bound(torch.fmax(radii, usual), self._slack))
        near, at = self._nearest_of_pairs(keys, ready, pairs)
        beyond = ((near > usual) & (at >= 0) & inside(near, radii[at], boundary)).nonzero()[:, 0]
        if pairs is not None and len(beyond):
            some, limits = ready.at(beyond), _bound(near[beyond], self._slack)
            pairs = self._pairs_within(some, limits.new_zeros(len(keys)), limits)
            near[beyond], at[beyond] = self._nearest_of_pairs(keys, some, pairs)
        return near, at

    def _nearest_of_pairs(
        self, keys: Tensor, ready: Ready, pairs: tuple[Tensor, Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Return the nearest of some keys, all for None: distances (B,) and indices (B,).

        Infinite and -1 for a query without a pair. Keys that are not its own may be among them.
        """
        n_queries = len(ready.raw)
        if pairs is None:
            return self._nearest_of(keys, ready, _slices(0, len(keys), n_queries))
        rows, columns = self._leave_out(keys, ready, *pairs)
        if len(rows) <= 16 * n_queries:
            return _measure_pairs(keys, ready.raw, rows, columns)
        near = ready.raw.new_full((n_queries,), torch.inf)
        at = near.long().fill_(-1)
        which, counts = columns.unique(return_counts=True)
        groups = [rows.unique()]
        # Copying a key takes as long as ten products; a product with one query is slow, too.
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
        """Return the keys (P,) and queries (P,) of pairs that may be near; None if they are many.

        Near is a squared distance of at most the key's bound (N,) plus the query's (B,). A third
        tensor (P,) holds what the squared distances are at least.
        """
        n_queries, n_pairs, pairs = len(ready.raw), 0, []
        for some in _slices(0, self._n, n_queries):
            score = self._points[some] @ ready.points.T
            score += ready.offset  # (n, B)
            excess = score if of_queries is None else score - of_queries
            rows, columns = _pairs(excess, of_keys[some])
            pairs.append((rows + some.start, columns, score[rows, columns]))
            n_pairs += len(rows)
            if n_pairs > max(min(self._n * n_queries // 16, MANY_PAIRS), 4 * n_queries):
                return None
        return tuple(torch.cat(parts) for parts in zip(*pairs, strict=True))

    def _leave_out(
        self, keys: Tensor, ready: Ready, rows: Tensor, columns: Tensor, scores: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the pairs (P,) that may be as near as the one that seems nearest to the query."""
        n_queries = len(ready.raw)
        if len(rows) <= 2 * n_queries:
            return rows, columns
        lowest = scores.new_full((n_queries,), torch.inf).scatter_reduce(0, columns, scores, "amin")
        first = scores == lowest[columns]
        near, _ = _measure_pairs(keys, ready.raw, rows[first], columns[first])
        kept = scores <= _bound(near, self._slack)[columns]
        return rows[kept], columns[kept]

    def _nearest_of(
        self, keys: Tensor, ready: Ready, chunks: Iterable[slice] | Iterable[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the nearest of some keys, in ascending chunks: distances (B,), indices (B,)."""
        best = ready.raw.new_full((len(ready.raw),), torch.inf)
        indices = best.long().fill_(-1)
        # The products of keys are with queries less the centre, |q - k|^2 being
        # |q - c|^2 + |k - c|^2 - 2 (q - c) k + 2 (q - c) c: roundings are then the smallest.
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
                found = _measure_lowest(block, ready.raw, score, offset.float(), best, self._slack)
            near, at = _measure_all(block, ready.raw, 0) if found is None else found
            closer = near < best
            at = at + some.start if isinstance(some, slice) else some[at]
            best, indices = torch.where(closer, near, best), torch.where(closer, at, indices)
        return best, indices

    def _make_ready(self, keys: Tensor, queries: Tensor, n_keys: int) -> Ready | None:
        """Return the queries made ready, or None where all distances are to be measured."""
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

    @torch.inference_mode(False)  # what is stored must stay changeable outside of it
    def _catch_up(self, keys: Tensor) -> None:
        """Project the keys that are new; choose the directions anew when they are four times."""
        n = len(keys)
        if n >= 4 * self._n_at_choice:
            self._choose(keys)
        self._points = reserve(self._points, self._n, n)
        for start in range(self._n, n, PAIRS):
            self._project(start, keys[start : start + PAIRS])
        self._n = n

    def _choose(self, keys: Tensor) -> None:
        """Take the principal directions of a sample, roughly; all keys must be projected anew."""
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
        # Keys that are not finite, or whose squares are not: all distances are measured.
        self._sound = self._sound and bool((squares < LARGE).all())

    def _points_of(self, shifted: Tensor) -> tuple[Tensor, Tensor]:
        """(n, d_in) in float64 -> points (n, p + 1) and square norms (n,)."""
        projected = shifted @ self._basis
        squares = shifted.square().sum(1)
        left = torch.addmm(shifted, projected, self._basis.T, alpha=-1).square().sum(1).sqrt()
        return torch.cat([projected, left[:, None]], 1), squares


def _bound(distances: Tensor, slack: float) -> Tensor:
    """Return what no square is above if its distance, as measured, is at most `distances`."""
    return distances.square() * (1 + slack)


def _measure_all(keys: Tensor, queries: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Return the first smallest of all distances: (N, d_in), (B, d_in) -> (B,), (B,)."""
    best = queries.new_full((len(queries),), torch.inf)
    indices = best.long().fill_(-1)
    for some in _slices(start, len(keys), len(queries)):
        distances = torch.cdist(keys[some], queries, p=2.0, compute_mode=MEASURED)
        # min() may return any of several equal minima; the first is the oldest key.
        near = distances.amin(0)
        at = (distances == near).int().argmax(0) + some.start
        closer = (near < best) | near.isnan() | (indices < 0)
        best, indices = torch.where(closer, near, best), torch.where(closer, at, indices)
    return best, indices.masked_fill(best.isnan(), start)


def _measure_lowest(
    keys: Tensor, queries: Tensor, score: Tensor, offset: Tensor, best: Tensor, slack: float
) -> tuple[Tensor, Tensor] | None:
    """Return the nearest keys where they are nearer than `best` (B,); None if many may be.

    score (n, B) plus offset (B,) is at most the squared distance. score is used up.
    """
    lowest = shift = score.amin(0)
    for _ in range(2):
        score -= shift
        rows, columns = _pairs(score, score.new_zeros(len(score)))
        if len(rows) > max(4 * len(queries), score.numel() // 16):
            return None
        found = _measure_pairs(keys, queries, rows, columns)
        # Those of the lowest score need not be the nearest: look again up to their distance.
        shift = _bound(torch.minimum(found[0], best), slack) - offset - lowest
    return found


def _measure_pairs(
    keys: Tensor, queries: Tensor, rows: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the first smallest distance of each query: keys (P,), queries (P,) -> (B,), (B,).

    Infinite and -1 for a query without a pair.
    """
    distances = torch.cat(
        [
            torch.cdist(
                keys.index_select(0, r)[:, None],
                queries.index_select(0, c)[:, None],
                p=2.0,
                compute_mode=MEASURED,
            )
            for r, c in zip(rows.split(PAIRS), columns.split(PAIRS), strict=True)
        ]
    )[:, 0, 0]
    best = distances.new_full((len(queries),), torch.inf)
    best.scatter_reduce_(0, columns, distances, "amin")
    first = distances == best[columns]
    indices = rows.new_full((len(queries),), len(keys))
    indices.scatter_reduce_(0, columns[first], rows[first], "amin")
    return best, indices.masked_fill(indices == len(keys), -1)


def _pairs(score: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows (P,) and columns (P,) where (n, B) is at most its row's limit, (n,)."""
    # Rows first: there are few, and to test each number takes as long as the product.
    some = (score.amin(1) <= limits).nonzero()[:, 0]
    rows, columns = (score.index_select(0, some) <= limits[some, None]).nonzero(as_tuple=True)
    return some[rows], columns


def _slices(start: int, stop: int, n_queries: int) -> list[slice]:
    step = max(1, CHUNK // max(1, n_queries))
    return [slice(i, min(i + step, stop)) for i in range(start, stop, step)]


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _products_are_float32(device: torch.device) -> bool:
    """Say whether matrix products are in full float32; MPS also lacks float64."""
    if device.type == "mps" or torch.is_autocast_enabled(device.type):
        return False
    backends = torch.backends
    products = backends.cuda.matmul if device.type == "cuda" else backends.mkldnn.matmul
    return products.fp32_precision in ("none", "ieee")
