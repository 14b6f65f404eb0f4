"""Bootstrap intervals against scipy, by coverage, and by how they must behave."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from grace_bench.reporting.summary.statistics import (
    draw_weights,
    generator_for,
    interval,
    over_seeds,
    unit_indices,
    weighted_means,
    weighted_medians,
)


def mean_interval(samples, units=None, key="", resamples=2000) -> tuple[float, float]:
    """The interval of the mean over seeds of the means over examples, as summaries draw it.

    Without units, the i-th values of all seeds are of one fact.
    """
    named = units or [range(len(sample)) for sample in samples]
    indices, n_units = unit_indices([name for names in named for name in names])
    generator = generator_for(key)
    seeds = draw_weights(generator, len(samples), resamples)
    facts = draw_weights(generator, n_units, resamples)
    values = np.concatenate(samples).astype(float)[:, None]
    means = weighted_means(values, indices, facts, [len(sample) for sample in samples])[:, 0]
    return interval(over_seeds(means, seeds))


def width(ends: tuple[float, float]) -> float:
    return ends[1] - ends[0]


def test_agrees_with_scipy_for_the_mean_of_one_seed():
    values = np.random.default_rng(0).gamma(2.0, 1.0, 300)
    wanted = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=1
    ).confidence_interval
    found = mean_interval([values], resamples=20_000)
    assert found == pytest.approx(tuple(wanted), abs=0.03 * width(wanted))


def test_interval_covers_the_true_mean_in_95_of_100_cases():
    rng = np.random.default_rng(2)
    cases = [
        mean_interval([rng.normal(1.0, 1.0, 80)], key=str(i), resamples=400) for i in range(400)
    ]
    covered = np.mean([low <= 1.0 <= high for low, high in cases])
    assert 0.91 <= covered <= 0.98


def test_interval_holds_the_mean_and_shrinks_with_more_examples():
    rng = np.random.default_rng(3)
    few, many = rng.random(50), rng.random(5000)
    for values in (few, many):
        low, high = mean_interval([values])
        assert low < values.mean() < high
    assert width(mean_interval([many])) < 0.2 * width(mean_interval([few]))


def test_examples_of_one_fact_are_not_independent():
    facts = np.random.default_rng(4).random(40)
    values, names = np.repeat(facts, 10), np.repeat(np.arange(40), 10)
    by_fact = width(mean_interval([values], [names.tolist()]))
    assert by_fact == pytest.approx(width(mean_interval([facts])), rel=0.15)
    assert by_fact > 2.5 * width(mean_interval([values]))


def test_the_same_answers_under_two_seeds_are_not_twice_the_evidence():
    values = np.random.default_rng(5).random(200)
    one, two = mean_interval([values]), mean_interval([values, values])
    assert width(two) == pytest.approx(width(one), rel=0.1)


def test_seeds_that_differ_widen_the_interval():
    values = np.random.default_rng(6).random(200)
    near, far = mean_interval([values, values]), mean_interval([values, values + 1])
    assert width(far) > 3 * width(near)


def test_same_key_same_numbers():
    values = np.random.default_rng(7).random(30)
    assert mean_interval([values], key="a") == mean_interval([values], key="a")
    assert mean_interval([values], key="a") != mean_interval([values], key="b")


def test_weighted_median_is_the_median_of_the_resample():
    generator = generator_for("medians")
    for n, per_unit in ((1, 1), (2, 1), (7, 1), (30, 3), (64, 1), (300, 1), (300, 25)):
        units = np.arange(n) // per_unit
        values = generator.normal(size=n) + units
        values[n // 2 : n // 2 + n // 10] = math.nan
        weights = draw_weights(generator, units.max() + 1, 50)
        drawn = [np.repeat(values, row[units].astype(int)) for row in weights]
        wanted = [np.median(x[~np.isnan(x)]) if (~np.isnan(x)).any() else math.nan for x in drawn]
        found = weighted_medians(values, units, weights)
        assert found == pytest.approx(wanted, nan_ok=True)


def test_weighted_means_are_the_means_of_the_resamples_of_each_sample():
    generator = generator_for("means")
    values = generator.normal(size=(30, 2))
    values[3, 1] = math.nan
    units = np.concatenate([np.arange(10), np.arange(20)]) // 2
    weights = draw_weights(generator, 10, 50)
    found = weighted_means(values, units, weights, [10, 20, 0])
    assert found.shape == (3, 2, 50)
    assert np.isnan(found[2]).all()
    for sample, part in enumerate((slice(0, 10), slice(10, 30))):
        for row, means in zip(weights, found[sample].T, strict=True):
            drawn = np.repeat(values[part], row[units[part]].astype(int), axis=0)
            if len(drawn):
                assert means == pytest.approx(np.nanmean(drawn, axis=0))


def test_missing_and_infinite_values():
    values = np.array([[1.0], [math.nan], [3.0], [math.inf]])
    weights = np.array([[1, 1, 1, 0], [0, 2, 0, 0], [1, 1, 1, 1]], dtype=float)
    means = weighted_means(values, np.arange(4), weights, [4])[0, 0]
    assert means[0] == 2.0
    assert math.isnan(means[1])
    assert means[2] == math.inf
    assert interval(means) == (2.0, math.inf)
    assert all(math.isnan(end) for end in interval(np.array([math.nan])))


def test_mean_over_drawn_seeds():
    per_seed = [np.array([1.0, 1.0, 1.0]), np.array([3.0, 3.0, math.nan])]
    weights = np.array([[1, 1], [2, 0], [1, 1]], dtype=float)
    assert over_seeds(per_seed, weights).tolist() == [2.0, 1.0, 1.0]


def test_weights_are_counts_of_draws():
    weights = draw_weights(generator_for("weights"), 9, 100)
    assert weights.shape == (100, 9)
    assert (weights.sum(axis=1) == 9).all()
    indices, n_units = unit_indices(["b", "a", "b"])
    assert indices.tolist() == [0, 1, 0]
    assert n_units == 2
