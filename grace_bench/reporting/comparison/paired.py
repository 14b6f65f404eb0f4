"""The difference between two editors on the same examples, with its interval and its p-values.

    by_seed = [(fact_ids, first - second), ...]       # one pair of arrays per seed
    found = paired_difference(by_seed, key="t5/facts-qa/trr")
    found.value, (found.low, found.high), found.p_facts, found.p_seeds

The value is the mean over seeds of the mean over examples, as in the tables. Two questions are
answered apart, because few seeds answer them so differently:

* Other *facts*, the same base models and streams: a sign-flip permutation test. If the editors are
  alike, each fact's difference (over all its examples and seeds) is as likely to be negative. It
  says nothing about other seeds, and rejects far too often if it is read so.
* Other facts *and* other seeds: a t-test. The variance is that of two-way clustering (Cameron,
  Gelbach and Miller 2011): facts + seeds - cells. Its quantile weighs those of facts and seeds by
  their variances (Cochran and Cox 1950), since two seeds know one degree of freedom about theirs,
  however many facts there are.

`p_facts` answers the first question. `p_seeds`, the larger one of both tests' p, answers the
second; one seed cannot. The interval is the tables' bootstrap over facts and seeds, extended to the
t-interval where that reaches further. `workflow/scripts/calibrate_comparison.py` measures all this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import stdtrit

from grace_bench.reporting.summary import statistics
from grace_bench.reporting.summary.comparison import paired_replicates
from grace_bench.reporting.summary.statistics import Array

FLIPS = 19_999
"""Draws of signs: the smallest p is 1 / 20,000, small enough for a thousand comparisons."""

ALPHA = 1 - statistics.LEVEL
FLIPS_AT_ONCE = 1000
SMALLEST_P = 1e-9  # that is told from 0; that of the flips is larger

BySeed = Sequence[tuple[NDArray[np.object_], Array]]
"""For each seed, the facts of its examples and a value for each example."""


@dataclass(frozen=True)
class PairedDifference:
    """A mean difference; its ends are None if there is only one fact.

    Args:
        value: the mean over seeds of means over examples.
        low: the lower end of the 95% interval.
        high: the upper end.
        p_facts: for other facts under the same seeds.
        p_seeds: for other facts and other seeds; None: there is only one seed.
        n: examples of all seeds.
        n_facts: facts of all seeds.
    """

    value: float
    low: float | None
    high: float | None
    p_facts: float
    p_seeds: float | None
    n: int
    n_facts: int


@dataclass(frozen=True)
class _Spread:
    """The variance of a mean difference, and what of it seeds explain."""

    total: float
    seeds: float
    n_facts: int
    n_seeds: int

    def quantile(self, p: float) -> float:
        """Return the two-sided quantile of the statistic (Cochran and Cox 1950)."""
        by_facts = -stdtrit(self.n_facts - 1, p / 2)
        if not self.seeds:
            return by_facts
        share = self.seeds / self.total
        return (1 - share) * by_facts - share * stdtrit(self.n_seeds - 1, p / 2)

    def p_value(self, difference: float) -> float:
        """Return the p at which the quantile is the statistic."""
        if not self.total:
            return float(difference == 0)
        wanted = abs(difference) / math.sqrt(self.total)
        if self.quantile(SMALLEST_P) < wanted:
            return 0.0
        log_p = brentq(lambda x: self.quantile(10**x) - wanted, math.log10(SMALLEST_P), 0)
        return 10**log_p


def paired_difference(by_seed: BySeed, key: str) -> PairedDifference:
    """Return the difference, its interval and its p-values.

    Args:
        by_seed: the difference on each example; no seed is empty.
        key: seeds the random numbers.
    """
    facts, n_facts = statistics.unit_indices(np.concatenate([facts for facts, _ in by_seed]))
    sizes = [len(values) for _, values in by_seed]
    seeds = np.repeat(np.arange(len(sizes)), sizes)
    weights = 1 / (len(sizes) * np.array(sizes)[seeds])
    sums, shares = np.zeros((2, n_facts, len(sizes)))
    np.add.at(sums, (facts, seeds), weights * np.concatenate([values for _, values in by_seed]))
    np.add.at(shares, (facts, seeds), weights)
    value = float(sums.sum())
    p_facts = sign_flip_p(sums.sum(axis=1), key)
    common = {
        "value": statistics.stable(value),
        "p_facts": p_facts,
        "n": sum(sizes),
        "n_facts": n_facts,
    }
    one_seed = len(sizes) == 1
    if n_facts == 1:
        return PairedDifference(low=None, high=None, p_seeds=None if one_seed else 1.0, **common)
    spread = _spread(sums - value * shares, shares > 0)
    reach = spread.quantile(ALPHA) * math.sqrt(spread.total)
    low, high = statistics.interval(paired_replicates([by_seed], key)[0])
    return PairedDifference(
        low=statistics.stable(min(low, value - reach)),
        high=statistics.stable(max(high, value + reach)),
        p_seeds=None if one_seed else statistics.stable(max(p_facts, spread.p_value(value))),
        **common,
    )


def _spread(residuals: Array, is_there: NDArray[np.bool_]) -> _Spread:
    """Return the two-way clustered variance.

    Args:
        residuals: (facts, seeds), summed over the examples of a fact under a seed.
        is_there: (facts, seeds), whether there are any.
    """

    def variance(parts: Array) -> float:
        return len(parts) / (len(parts) - 1) * float(parts @ parts)

    n_facts, n_seeds = residuals.shape
    facts = variance(residuals.sum(axis=1))
    if n_seeds == 1:
        return _Spread(facts, 0.0, n_facts, n_seeds)
    seeds = variance(residuals.sum(axis=0))
    total = max(facts + seeds - variance(residuals[is_there]), facts, seeds)
    return _Spread(total, seeds, n_facts, n_seeds)


def sign_flip_p(differences: Array, key: str) -> float:
    """Return the two-sided p of the sum of `differences` if each might have the other sign.

    Args:
        differences: (facts,).
        key: seeds the random numbers.
    """
    differences = differences[differences != 0]
    observed = abs(differences.sum()) * (1 - 1e-6)  # sums of equal parts differ by rounding
    generator = statistics.generator_for(f"{key}/flips")
    as_far, left = 1, FLIPS
    while left:
        n = min(left, FLIPS_AT_ONCE)
        bits = np.unpackbits(
            generator.integers(0, 256, (n, len(differences) // 8 + 1), np.uint8), 1
        )
        signed = 2.0 * (bits[:, : len(differences)] @ differences) - differences.sum()
        as_far += int((np.abs(signed) >= observed).sum())
        left -= n
    return as_far / (FLIPS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number, in their order (Holm 1979).

    >>> holm([0.01, 0.04, 0.02])
    [0.03, 0.04, 0.04]
    """
    order = np.argsort(p_values, kind="stable")
    stepped = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(stepped))
    return adjusted.tolist()
