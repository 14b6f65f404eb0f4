"""Measure distances between keys and queries, each from its two rows alone."""

from __future__ import annotations

import torch
from torch import Tensor

MEASURED = "donot_use_mm_for_euclid_dist"
"""How torch.cdist measures each distance from its two rows alone."""

CHUNK = 2**20
"""Numbers held at once, keys x queries."""

PAIRS = 512
"""Pairs of a key and a query copied at once."""


def inside(distances: Tensor, radii: Tensor, boundary: str) -> Tensor:
    """Say where a distance is within a radius: d < radius (`open`) or d <= radius (`closed`)."""
    return distances <= radii if boundary == "closed" else distances < radii


def bound(distances: Tensor, slack: float) -> Tensor:
    """Return an upper bound of the squares of distances that measure at most `distances`."""
    return distances.square() * (1 + slack)


def measure_all(keys: Tensor, queries: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Return the first smallest of all distances: (N, d_in), (B, d_in) -> (B,), (B,)."""
    best = queries.new_full((len(queries),), torch.inf)
    indices = best.long().fill_(-1)
    for some in slices(start, len(keys), len(queries)):
        distances = torch.cdist(keys[some], queries, p=2.0, compute_mode=MEASURED)
        # min() may return any of several equal minima; the first one is the oldest key.
        near = distances.amin(0)
        at = (distances == near).int().argmax(0) + some.start
        closer = (near < best) | near.isnan() | (indices < 0)
        best, indices = torch.where(closer, near, best), torch.where(closer, at, indices)
    return best, indices.masked_fill(best.isnan(), start)


def measure_lowest(
    keys: Tensor, queries: Tensor, score: Tensor, offset: Tensor, best: Tensor, slack: float
) -> tuple[Tensor, Tensor] | None:
    """Return the nearest keys where they are nearer than `best` (B,); None if too many may be.

    score (n, B) plus offset (B,) is at most the squared distance. score is overwritten.
    """
    lowest = shift = score.amin(0)
    for _ in range(2):
        score -= shift
        rows, columns = pairs_below(score, score.new_zeros(len(score)))
        if len(rows) > max(4 * len(queries), score.numel() // 16):
            return None
        found = measure_pairs(keys, queries, rows, columns)
        # The lowest score need not be the nearest key: look again, up to its distance.
        shift = bound(torch.minimum(found[0], best), slack) - offset - lowest
    return found


def measure_pairs(
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


def pairs_below(score: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows (P,) and columns (P,) where (n, B) is at most its row's limit, (n,)."""
    # Rows first: few pass, and testing every number costs as much as the product.
    some = (score.amin(1) <= limits).nonzero()[:, 0]
    rows, columns = (score.index_select(0, some) <= limits[some, None]).nonzero(as_tuple=True)
    return some[rows], columns


def slices(start: int, stop: int, n_queries: int) -> list[slice]:
    """Return slices of at most CHUNK / n_queries keys."""
    step = max(1, CHUNK // max(1, n_queries))
    return [slice(i, min(i + step, stop)) for i in range(start, stop, step)]
