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

    facts = draw_weights(generator, n_units=200)            # (resamples, facts)
    replicates = weighted_means(values, units, facts)       # (resamples, columns)
    low, high = interval(replicates[:, 0])
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

Array = NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95
SEED = 20231210


@dataclass(frozen=True)
class Interval:
    """An estimate with its bootstrap interval."""

    value: float
    low: float
    high: float


def generator_for(key: str) -> np.random.Generator:
    """Return a generator that depends on `key` only, so that no order of work moves a number."""
    return np.random.default_rng([SEED, int(hashlib.sha256(key.encode()).hexdigest()[:16], 16)])


def unit_indices(names: Iterable[Hashable]) -> tuple[NDArray[np.int64], int]:
    """Return the number of each name's unit, in order of first appearance, and how many."""
    known: dict[Hashable, int] = {}
    indices = [known.setdefault(name, len(known)) for name in names]
    return np.asarray(indices, dtype=np.int64), len(known)


def draw_weights(generator: np.random.Generator, n_units: int, resamples: int = RESAMPLES) -> Array:
    """Return how often each unit is drawn in each resample, (resamples, n_units)."""
    if n_units == 0:
        return np.zeros((resamples, 0))
    drawn = generator.integers(0, n_units, size=(resamples, n_units))
    drawn += np.arange(resamples)[:, None] * n_units
    counts = np.bincount(drawn.ravel(), minlength=resamples * n_units)
    return counts.reshape(resamples, n_units).astype(np.float64)


def weighted_means(values: Array, units: NDArray[np.int64], weights: Array) -> Array:
    """Return the means of the columns of `values` in each resample.

    Missing values (NaN) count neither in the sum nor in the number of examples; a resample that
    holds an infinite value has an infinite mean, one that holds no value has NaN.

    Args:
        values: (examples, columns).
        units: (examples,) the unit of each example.
        weights: (resamples, units).

    Returns:
        (resamples, columns).
    """
    n_units = weights.shape[1]
    infinite = np.isinf(values)
    present = ~np.isnan(values)
    # Summed per unit first: the matrix product is then over facts, not over examples.
    sums = _sum_by_unit(np.where(present & ~infinite, values, 0.0), units, n_units)
    counts = _sum_by_unit(present.astype(np.float64), units, n_units)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (weights @ sums) / (weights @ counts)
    if infinite.any():
        means[weights @ _sum_by_unit(infinite.astype(np.float64), units, n_units) > 0] = math.inf
    return means


def _sum_by_unit(values: Array, units: NDArray[np.int64], n_units: int) -> Array:
    sums = np.zeros((n_units, values.shape[1]))
    np.add.at(sums, units, values)
    return sums


def weighted_medians(values: Array, units: NDArray[np.int64], weights: Array) -> Array:
    """Return the median of `values` in each resample; NaN where a resample holds none.

    Args:
        values: (examples,).
        units: (examples,) the unit of each example.
        weights: (resamples, units).
    """
    kept = ~np.isnan(values)
    if not kept.any():
        return np.full(len(weights), math.nan)
    order = np.argsort(values[kept], kind="stable")
    ordered = values[kept][order]
    cumulated = np.cumsum(weights[:, units[kept][order]], axis=1)  # (resamples, examples)
    total = cumulated[:, -1]
    # Positions of the two middle elements of the resample; they agree when its size is odd.
    lower = (cumulated > (np.ceil(total / 2) - 1)[:, None]).argmax(axis=1)
    upper = (cumulated > np.floor(total / 2)[:, None]).argmax(axis=1)
    medians = (ordered[lower] + ordered[upper]) / 2
    medians[total == 0] = math.nan
    return medians


def over_seeds(per_seed: Sequence[Array], seed_weights: Array) -> Array:
    """Return the mean over drawn seeds in each resample.

    Args:
        per_seed: one array (resamples, ...) a seed.
        seed_weights: (resamples, seeds).
    """
    stacked = np.stack(per_seed)  # (seeds, resamples, ...)
    weights = seed_weights.T.reshape(seed_weights.T.shape + (1,) * (stacked.ndim - 2))
    present = ~np.isnan(stacked) & (weights > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        summed = np.where(present, weights * np.where(present, stacked, 0.0), 0.0).sum(axis=0)
        return summed / np.where(present, weights, 0.0).sum(axis=0)


def interval(replicates: Array, level: float = LEVEL) -> tuple[float, float]:
    """Return the percentile interval of the replicates; NaN, NaN where there are none."""
    finite_or_infinite = replicates[~np.isnan(replicates)]
    if finite_or_infinite.size == 0:
        return math.nan, math.nan
    tail = (1 - level) / 2
    # "nearest" never interpolates, so that an infinite replicate cannot turn into NaN.
    low, high = np.quantile(finite_or_infinite, [tail, 1 - tail], method="nearest")
    return _stable(low), _stable(high)


def _stable(value: float) -> float:
    """Drop the last digits, which depend on how a matrix product is split over threads."""
    return float(f"{value:.9g}")


def mean_interval(
    samples: Sequence[Sequence[float]],
    units: Sequence[Sequence[Hashable]] | None = None,
    key: str = "",
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Return the mean over seeds of the means over examples, with its interval.

    Args:
        samples: the values of each seed.
        units: the unit (fact) of each value; None: the i-th values of all seeds are one unit.
        key: chooses the random numbers.
        resamples: how many resamples.
        level: of the interval.
    """
    columns = [np.asarray(sample, dtype=np.float64)[:, None] for sample in samples]
    named = units or [range(len(sample)) for sample in samples]
    indices, n_units = unit_indices(name for names in named for name in names)
    generator = generator_for(key)
    seeds = draw_weights(generator, len(columns), resamples)
    facts = draw_weights(generator, n_units, resamples)
    split = np.split(indices, np.cumsum([len(column) for column in columns])[:-1])
    replicates = [
        weighted_means(column, unit, facts) for column, unit in zip(columns, split, strict=True)
    ]
    low, high = interval(over_seeds(replicates, seeds)[:, 0], level)
    value = float(np.mean([np.nanmean(column) for column in columns]))
    return Interval(value, low, high)
