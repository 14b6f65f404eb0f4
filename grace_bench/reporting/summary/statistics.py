"""Bootstrap intervals over facts and seeds, vectorised and repeatable.

What is resampled:

* *Facts*, not examples: ten phrasings of one fact are right or wrong together, and an interval
  that takes them for ten independent observations is too narrow. Where every example has a fact
  of its own (upstream questions), this is the ordinary bootstrap over examples.
* *Seeds*, where there are several.

Facts and seeds are crossed (every seed meets the same upstream examples and largely the same
edits), so one draw of facts serves all seeds; drawing facts anew within each seed would take the
unedited model's one TRR, met again under k seeds, for k independent ones, and make its interval
sqrt(k) times too narrow. This is the pigeonhole bootstrap (Owen, "The pigeonhole bootstrap",
Annals of Applied Statistics 2007), which errs on the wide side. With two or three seeds no
bootstrap knows much about the spread between seeds, and where all examples score alike no
resample differs and the interval is a point; captions print the numbers of examples and seeds.

A resample is kept as integer weights, so that every mean of every measure at every probe is one
matrix product:

    facts = draw_weights(generator, n_units=200)                # (resamples, facts)
    replicates = weighted_means(values, units, facts, [1000])   # (samples, columns, resamples)
    low, high = interval(replicates[0, 0])
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = NDArray[np.float64]

RESAMPLES = 2000
SEED = 20231210
CHUNK = 32  # examples that a median's search takes at once


def generator_for(key: str) -> np.random.Generator:
    """Return a generator that depends on `key` only, so that no order of work moves a number."""
    return np.random.default_rng([SEED, int(hashlib.sha256(key.encode()).hexdigest()[:16], 16)])


def unit_indices(names: Sequence[str | int] | NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Return the number of each name's unit, in order of first appearance, and how many."""
    encoded = pa.array(names).dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), len(encoded.dictionary)


def draw_weights(generator: np.random.Generator, n_units: int, resamples: int = RESAMPLES) -> Array:
    """Return how often each unit is drawn in each resample, (resamples, n_units)."""
    if n_units == 0:
        return np.zeros((resamples, 0))
    drawn = generator.integers(0, n_units, size=(resamples, n_units))
    drawn += np.arange(resamples)[:, None] * n_units
    counts = np.bincount(drawn.ravel(), minlength=resamples * n_units)
    return counts.reshape(resamples, n_units).astype(np.float64)


def weighted_means(
    values: Array, units: NDArray[np.int64], weights: Array, sizes: Sequence[int]
) -> Array:
    """Return the means of the columns of each sample of examples in each resample.

    Missing values (NaN) count neither in the sum nor in the number of examples; a resample that
    holds an infinite value has an infinite mean, one that holds no value has NaN.

    Args:
        values: (examples, columns), one sample (a seed's, say) after the other.
        units: (examples,) the unit of each example.
        weights: (resamples, units).
        sizes: (samples,) how many examples each sample has.

    Returns:
        (samples, columns, resamples).
    """
    n_samples, n_columns = len(sizes), values.shape[1]
    infinite = np.isinf(values)
    present = ~np.isnan(values)
    # Where nothing is missing, all columns have the same counts.
    parts = [np.where(present & ~infinite, values, 0.0), present[:, : 1 if present.all() else None]]
    if infinite.any():
        parts.append(infinite)
    columns = np.hstack(parts)
    # Summed per unit first, all samples at once: one matrix product over facts, not over examples.
    n_units = units.max(initial=-1) + 1  # later ones do not occur here
    sums = np.zeros((n_units, n_samples, columns.shape[1]))
    np.add.at(sums, (units, np.repeat(np.arange(n_samples), sizes)), columns)
    products = sums.reshape(n_units, n_samples * columns.shape[1]).T @ weights[:, :n_units].T
    products = products.reshape(n_samples, -1, len(weights))
    counts = products[:, n_columns : n_columns + parts[1].shape[1]]
    with np.errstate(invalid="ignore", divide="ignore"):
        means = products[:, :n_columns] / counts
    if infinite.any():
        means[products[:, -n_columns:] > 0] = math.inf
    return means


def weighted_medians(values: Array, units: NDArray[np.int64], weights: NDArray[np.number]) -> Array:
    """Return the median of `values` in each resample; NaN where a resample holds none.

    Args:
        values: (examples,).
        units: (examples,) the unit of each example.
        weights: (resamples, units); not copied if they are int16 in Fortran order.
    """
    kept = ~np.isnan(values)
    if not kept.any():
        return np.full(len(weights), math.nan)
    order = np.argsort(values[kept], kind="stable")
    ordered, units = values[kept][order], units[kept][order]
    n, n_chunks = len(ordered), math.ceil(len(ordered) / CHUNK)
    # (examples, resamples); nothing is drawn so often that a chunk's sum would not fit.
    drawn = np.empty((n_chunks * CHUNK, len(weights)), dtype=np.int16)
    np.take(np.asarray(weights.T, dtype=np.int16), units, axis=0, out=drawn[:n], mode="clip")
    drawn[n:] = 0
    by_chunk = drawn.reshape(n_chunks, CHUNK, -1).sum(axis=1, dtype=np.int16).astype(np.int32)
    _accumulate(by_chunk)
    total = by_chunk[-1]
    # So much comes before the two middle elements of a resample; they agree when it is odd.
    before = ((total - 1) // 2, total // 2)
    # The middle of every resample lies in few of the chunks: only these are gone through.
    first = (by_chunk <= before[0]).sum(axis=0).min()
    last = (by_chunk <= before[1]).sum(axis=0).max()
    cumulated = drawn[first * CHUNK : (last + 1) * CHUNK].astype(np.int32)
    if first:
        cumulated[0] += by_chunk[first - 1]
    _accumulate(cumulated)
    found = [first * CHUNK + (cumulated <= b).sum(axis=0, dtype=np.int32) for b in before]
    lower, upper = (ordered[np.minimum(positions, n - 1)] for positions in found)
    medians = (lower + upper) / 2
    medians[total == 0] = math.nan
    return medians


def _accumulate(rows: NDArray[np.int32]) -> None:
    """Sum rows up in place; with long rows several times as fast as np.cumsum."""
    for row in range(1, len(rows)):
        rows[row] += rows[row - 1]


def over_seeds(per_seed: Sequence[Array], seed_weights: Array) -> Array:
    """Return the mean over drawn seeds in each resample.

    Args:
        per_seed: one array (resamples, ...) a seed.
        seed_weights: (resamples, seeds).
    """
    stacked = np.asarray(per_seed)  # (seeds, resamples, ...)
    weights = seed_weights.T.reshape(seed_weights.T.shape + (1,) * (stacked.ndim - 2))
    if np.isfinite(stacked).all():
        return (weights * stacked).sum(axis=0) / weights.sum(axis=0)
    weights = np.where(np.isnan(stacked), 0.0, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        summed = np.where(weights > 0, weights * stacked, 0.0).sum(axis=0)
        return summed / weights.sum(axis=0)


def interval(replicates: Array, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of the replicates; NaN, NaN where there are none."""
    finite_or_infinite = replicates[~np.isnan(replicates)]
    if finite_or_infinite.size == 0:
        return math.nan, math.nan
    tail = (1 - level) / 2
    # The nearest replicates: between two of them, an infinite one would turn into NaN.
    ends = np.rint((finite_or_infinite.size - 1) * np.array([tail, 1 - tail])).astype(int)
    low, high = np.partition(finite_or_infinite, ends)[ends]
    return _stable(low), _stable(high)


def _stable(value: float) -> float:
    """Drop the last digits, which depend on how a matrix product is split over threads."""
    return float(f"{value:.9g}")
