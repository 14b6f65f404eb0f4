"""Bootstrap intervals over facts and seeds, vectorised and repeatable.

What is resampled:

* *Facts*, not examples: ten phrasings of one fact tend to be right or wrong together, so treating
  them as ten independent observations gives intervals that are too narrow. If every example has a
  fact of its own (upstream questions), this is the ordinary bootstrap over examples.
* *Seeds*, if there are several.

Facts and seeds are crossed (every seed meets the same upstream examples and largely the same
edits), so one draw of facts serves all seeds. Drawing facts anew for each seed would count the
unedited model's TRR, the same under k seeds, as k independent values and make its interval sqrt(k)
times too narrow. This is the pigeonhole bootstrap (Owen, "The pigeonhole bootstrap", Annals of
Applied Statistics 2007), which errs on the wide side. With two or three seeds no bootstrap knows
much about the spread between seeds, and if all examples score alike the interval is a point;
captions print the numbers of examples and seeds.

A resample is a vector of integer weights, so that every mean of every measure at every probe is
one matrix product:

    facts = draw_weights(generator, n_units=200)                # (resamples, facts)
    replicates = weighted_means(values, units, facts, [1000])   # (samples, columns, resamples)
    low, high = interval(replicates[0, 0])
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95
SEED = 20231210
CHUNK = 32  # examples per step of the search for a median


def generator_for(key: str) -> np.random.Generator:
    """Return a generator that depends only on `key`, so that the order of work changes nothing."""
    return np.random.default_rng([SEED, int(hashlib.sha256(key.encode()).hexdigest()[:16], 16)])


def unit_indices(names: Sequence[str | int] | NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Return the index of each name, by first appearance, and the number of distinct names."""
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

    Missing values (NaN) are skipped; a resample with an infinite value has an infinite mean, one
    without any value has NaN.

    Args:
        values: (examples, columns), one sample (such as a seed's) after the other.
        units: (examples,) the unit of each example.
        weights: (resamples, units).
        sizes: (samples,) number of examples in each sample.

    Returns:
        (samples, columns, resamples).
    """
    n_samples, n_columns = len(sizes), values.shape[1]
    infinite = np.isinf(values)
    present = ~np.isnan(values)
    # If nothing is missing, all columns have the same counts.
    parts = [np.where(present & ~infinite, values, 0.0), present[:, : 1 if present.all() else None]]
    if infinite.any():
        parts.append(infinite)
    columns = np.hstack(parts)
    # Sum per unit first: the matrix product is then over facts, not over examples.
    n_units = units.max(initial=-1) + 1  # later units do not occur
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
    """Return the median of `values` in each resample; NaN if a resample has none.

    Args:
        values: (examples,).
        units: (examples,) the unit of each example.
        weights: (resamples, units); int16 in Fortran order are not copied.
    """
    kept = ~np.isnan(values)
    if not kept.any():
        return np.full(len(weights), math.nan)
    order = np.argsort(values[kept], kind="stable")
    ordered, units = values[kept][order], units[kept][order]
    n, n_chunks = len(ordered), math.ceil(len(ordered) / CHUNK)
    # (examples, resamples); the sum of a chunk fits into int16.
    drawn = np.empty((n_chunks * CHUNK, len(weights)), dtype=np.int16)
    np.take(np.asarray(weights.T, dtype=np.int16), units, axis=0, out=drawn[:n], mode="clip")
    drawn[n:] = 0
    by_chunk = drawn.reshape(n_chunks, CHUNK, -1).sum(axis=1, dtype=np.int16).astype(np.int32)
    _accumulate(by_chunk)
    total = by_chunk[-1]
    # Number of draws before the two middle elements, which are one if the total is odd.
    before = ((total - 1) // 2, total // 2)
    # The middles of all resamples lie in few chunks: only these are searched.
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
    """Accumulate rows in place; for long rows, several times as fast as np.cumsum."""
    for row in range(1, len(rows)):
        rows[row] += rows[row - 1]


def over_seeds(per_seed: Sequence[Array], seed_weights: Array) -> Array:
    """Return the mean over drawn seeds in each resample.

    Args:
        per_seed: one array (resamples, ...) per seed.
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


def interval(replicates: Array) -> tuple[float, float]:
    """Return the 95% percentile interval of the replicates; NaN, NaN if there are none."""
    finite_or_infinite = replicates[~np.isnan(replicates)]
    if finite_or_infinite.size == 0:
        return math.nan, math.nan
    tail = (1 - LEVEL) / 2
    # Take the nearest replicates: interpolating with an infinite one would give NaN.
    ends = np.rint((finite_or_infinite.size - 1) * np.array([tail, 1 - tail])).astype(int)
    low, high = np.partition(finite_or_infinite, ends)[ends]
    return stable(low), stable(high)


def stable(value: float) -> float:
    """Drop the last digits, which depend on how threads split a matrix product."""
    return float(f"{value:.9g}")
