"""Which editors a paired comparison cannot distinguish from the best one: bold in tables.

All editors of an experiment meet the same examples and, seed by seed, the same base model, so their
scores are compared example by example. All are resampled by the same draws of facts and of seeds
(`statistics.py`); an editor counts as good as the best one if the 95% interval of its difference
from it does not exclude 0 on the worse side. Overlapping intervals would say less: they include
what facts and base models do to both editors alike. With few seeds, no difference that rests on one
seed of three is ever significant, however large; so an editor must also lie within the best one's
own interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from grace_bench.metrics import MEASURES, METRICS
from grace_bench.reporting.summary import statistics
from grace_bench.reporting.summary.statistics import Array

if TYPE_CHECKING:
    from grace_bench.reporting.summary.seed_group import SeedGroup


def as_good_as_the_best(groups: Sequence[SeedGroup]) -> set[tuple[int, str, str]]:
    """Return (index of the group, metric, measure) where a group is as good as the best.

    Args:
        groups: the competing settings of one experiment, all with the same seeds.
    """
    return {
        (index, metric, measure)
        for metric in METRICS
        for measure in MEASURES
        for index in _not_worse(groups, metric, measure)
    }


def _not_worse(groups: Sequence[SeedGroup], metric: str, measure: str) -> list[int]:
    scores = [group.final_scores(metric, measure) for group in groups]
    present = [i for i, seeds in enumerate(scores) if seeds and all(len(v) for _, v in seeds)]
    if not present:
        return []
    values = {i: float(np.mean([v.mean() for _, v in scores[i]])) for i in present}
    finite = [i for i in present if np.isfinite(values[i])]
    if not finite or (len(finite) > 1 and len(set(values.values())) == 1):
        return []  # if all are equal, none is best
    sign = 1 if MEASURES[measure].higher_is_better else -1
    best = max(finite, key=lambda i: sign * values[i])
    replicates = paired_replicates([scores[i] for i in finite], f"{groups[0].experiment}/{metric}")
    of_best = replicates[finite.index(best)]
    worst = statistics.interval(sign * of_best)[0]
    differences = zip(finite, sign * (replicates - of_best), strict=True)
    return [
        i
        for i, row in differences
        if i == best or (sign * values[i] >= worst and statistics.interval(row)[1] >= 0)
    ]


def paired_replicates(scores: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]], key: str) -> Array:
    """Return each setting's mean over seeds in each resample, (settings, resamples).

    Args:
        scores: by setting and seed, the facts of the examples and their values.
        key: seeds the random numbers.
    """
    names = [facts for seeds in scores for facts, _ in seeds]
    units, n_units = statistics.unit_indices(np.concatenate(names))
    parts = iter(np.split(units, np.cumsum([len(facts) for facts in names])[:-1]))
    generator = statistics.generator_for(key)
    seed_weights = statistics.draw_weights(generator, len(scores[0]))
    fact_weights = statistics.draw_weights(generator, n_units)
    replicates = []
    for seeds in scores:
        values = np.concatenate([value for _, value in seeds])[:, None]
        mine = np.concatenate([next(parts) for _ in seeds])
        sizes = [len(value) for _, value in seeds]
        means = statistics.weighted_means(values, mine, fact_weights, sizes)[:, 0]
        replicates.append(statistics.over_seeds(list(means), seed_weights))
    return np.array(replicates)
