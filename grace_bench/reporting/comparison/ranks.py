"""Mean ranks of editors over data sets, with Friedman's and Nemenyi's tests (Demsar 2006)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import friedmanchisquare, rankdata, studentized_range

from grace_bench.metrics import MEASURES, METRICS
from grace_bench.reporting.comparison.paired import ALPHA
from grace_bench.reporting.summary.read import Summary
from grace_bench.reporting.summary.write import UNEDITED
from grace_bench.reporting.tables.rows import editor_rows

ENOUGH = 6
"""Data sets: with five, an editor that wins on each one has p = 2 / 2^5 = .06 in a sign test."""

FEWEST_EDITORS = 3  # that Friedman's test compares; of two, the paired differences say more


@dataclass(frozen=True)
class Ranks:
    """How editors rank in one metric.

    Args:
        metric: its name.
        editors: their labels, best first.
        means: their mean ranks; 1 is the best.
        n_datasets: number of data sets.
        p: of Friedman's test, that all rank alike.
        critical_difference: mean ranks that differ by less are not told apart (Nemenyi, 5%).
    """

    metric: str
    editors: Sequence[str]
    means: Sequence[float]
    n_datasets: int
    p: float
    critical_difference: float

    @property
    def alike(self) -> list[tuple[int, int]]:
        """The largest groups of editors that are not told apart: first and last, by place."""
        n = len(self.means)
        if not self.p < ALPHA:
            return [(0, n - 1)]
        reach = [
            max(j for j in range(n) if self.means[j] - mean < self.critical_difference)
            for mean in self.means
        ]
        return [(i, r) for i, r in enumerate(reach) if r > i and (i == 0 or r > reach[i - 1])]


def rank_editors(summary: Summary) -> list[Ranks]:
    """Return the ranks in each metric that enough editors have on enough data sets.

    An editor that lacks a value on any experiment is left out, and so is the control. Models of one
    data set are no data sets of their own: ranks are averaged over them first.
    """
    return [found for metric in METRICS if (found := _ranks(summary, metric)) is not None]


def too_few(summary: Summary) -> str:
    """Return the sentence that stands in place of ranks; empty: there are enough data sets."""
    n = len({experiment.dataset for experiment in summary.experiments})
    if n >= ENOUGH:
        return ""
    return (
        f"Ranks over data sets need at least {ENOUGH} of them; this suite has {n}. With fewer, "
        f"even an editor that wins on each one has p > {ALPHA:.2f} in a sign test."
    )


def _ranks(summary: Summary, metric: str) -> Ranks | None:
    experiments = [
        e
        for e in summary.experiments
        if any(summary.main(s, metric).is_finite for s in summary.configured(e))
    ]
    datasets = sorted({e.dataset for e in experiments})
    editors = [
        row
        for row in editor_rows(summary)
        if row.editor_class != UNEDITED
        and row.settings.keys() >= set(experiments)
        and all(summary.main(row.settings[e], metric).value is not None for e in experiments)
    ]
    if len(datasets) < ENOUGH or len(editors) < FEWEST_EDITORS:
        return None
    by_dataset = []
    for dataset in datasets:
        of_models = []
        for experiment in (e for e in experiments if e.dataset == dataset):
            sign = -1 if MEASURES[experiment.measure].higher_is_better else 1
            values = [summary.main(row.settings[experiment], metric).value for row in editors]
            of_models.append(rankdata(sign * np.array(values, dtype=float)))
        by_dataset.append(rankdata(np.mean(of_models, axis=0)))
    ranks = np.array(by_dataset)  # (data sets, editors)
    n, k = ranks.shape
    means = ranks.mean(axis=0)
    order = np.argsort(means, kind="stable")
    return Ranks(
        metric=metric,
        editors=[editors[i].label for i in order],
        means=means[order].tolist(),
        n_datasets=n,
        p=friedman_p(ranks),
        critical_difference=critical_difference(k, n),
    )


def friedman_p(ranks: NDArray[np.float64]) -> float:
    """Return the p of Friedman's test, that all rank alike; ranks: (data sets, editors)."""
    with np.errstate(invalid="ignore"):
        p = float(friedmanchisquare(*ranks.T).pvalue)
    return 1.0 if math.isnan(p) else p  # all tie everywhere


def critical_difference(n_editors: int, n_datasets: int) -> float:
    """Return the critical difference of Nemenyi's test (Demsar 2006, section 3.2.2)."""
    quantile = float(studentized_range.ppf(1 - ALPHA, n_editors, math.inf)) / math.sqrt(2)
    return quantile * math.sqrt(n_editors * (n_editors + 1) / (6 * n_datasets))
