"""The seeds of one setting (model x data set x editor x variant), summarised. Torch-free."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from grace_bench import records
from grace_bench.metrics import METRICS
from grace_bench.reporting import statistics

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from grace_bench.reporting.run_folder import RunFolder

LOSS_MEASURES = ("perplexity_median", "perplexity_log_mean")
KEY_POINTS = 200  # of a codebook curve at most; more than a figure can show


@dataclass(frozen=True)
class _Scores:
    """Per-example scores of one seed: facts and one column a measure."""

    facts: list[str]
    values: np.ndarray  # (examples, measures)


@dataclass(frozen=True)
class _Point:
    """One measure of one metric at one probe, by seed."""

    values: list[float]
    draws: list[np.ndarray] = field(default_factory=list)  # replicates; none for counts
    counts: list[int] = field(default_factory=list)  # examples


def _aggregate(column: np.ndarray, measure: str) -> float:
    present = column[~np.isnan(column)]
    if not present.size:
        return math.nan
    with np.errstate(over="ignore"):
        if measure == "perplexity_median":
            return float(np.exp(np.median(present)))
        mean = present.mean()
        return float(np.exp(mean) if measure == "perplexity_log_mean" else mean)


class SeedGroup:
    """The seeds of one model x data set x editor x variant."""

    def __init__(self, runs: list[RunFolder]) -> None:
        """Read the predictions of all seeds and draw the resamples."""
        self.runs = runs
        first = runs[0]
        spec = first.spec
        self.keys = {
            "suite": spec["suite"],
            "model": spec["model"]["name"],
            "model_label": spec["model"]["label"],
            "dataset": spec["dataset"]["name"],
            "dataset_label": spec["dataset"]["label"],
            "task": spec["dataset"]["task"],
            "editor": spec["editor"]["name"],
            "editor_label": spec["editor"]["label"],
            "editor_class": spec["editor"]["editor"],
            "variant": first.record["variant"],
            "hyperparameters": first.hyperparameters,
            "in_sweep": first.in_sweep,
        }
        self.main = first.measure
        self._predictions = [_read_predictions(run) for run in runs]
        columns = [c for c in records.MEASURES if any(_has(p, c) for p in self._predictions)]
        derived = LOSS_MEASURES if {"loss", "perplexity"} <= set(columns) else ()
        self.measures = (*columns, *derived)
        # One stream of random numbers for each group of runs: seeds first, then facts by role.
        self._generator = statistics.generator_for(first.id.rsplit("/", 1)[0])
        self._seed_weights = statistics.draw_weights(self._generator, len(runs))
        self._keys_in_steps = [_read_keys(run) for run in runs]
        self._probes = self._shared_probes()
        self._estimates = list(self._estimate_metrics())

    def _scores(self, seed: int, role: str, step: int) -> _Scores:
        """Return the scores of a probe; edits right after being made accumulate up to it."""
        table = self._predictions[seed]
        chosen = table["role"] == role
        chosen &= (table["step"] <= step) if role == "edit" else (table["step"] == step)
        columns = [
            table["loss" if name in LOSS_MEASURES else name][chosen] for name in self.measures
        ]
        return _Scores(list(table["fact_id"][chosen]), np.stack(columns, axis=1))

    def _shared_probes(self) -> list[list[tuple[int, int]]]:
        """Return (step, n_edits) of the probes of each seed: those all seeds have, and the last.

        Seeds end after different numbers of edits; their last probes are one point.
        """
        per_seed = []
        for table in self._predictions:
            probing = table["role"] != "edit"
            pairs = set(zip(table["step"][probing], table["n_edits"][probing], strict=True))
            # A probe and the last one may share a number of edits: keep the later.
            per_seed.append({n: step for step, n in sorted(pairs)} or {0: 0})
        last = min(max(steps) for steps in per_seed)
        shared = sorted(n for n in set.intersection(*map(set, per_seed)) if n < last)
        return [
            [*((steps[n], n) for n in shared), (steps[max(steps)], max(steps))]
            for steps in per_seed
        ]

    def summary_rows(self) -> list[dict[str, Any]]:
        """Return the rows of summary.parquet: the state at the last probe, and what was spent."""
        rows: list[dict[str, Any]] = []
        retention = []
        for metric, measure, points in self._estimates:
            rows += self._rows(metric, measure, points[-1])
            if metric in ("trr", "err") and measure == self.main:
                retention.append(points[-1])
        if len(retention) == 2:
            trr, err = retention
            pairs = zip(trr.values, trr.draws, err.values, err.draws, strict=True)
            means = [((a + c) / 2, (b + d) / 2) for a, b, c, d in pairs]
            values, draws = (list(part) for part in zip(*means, strict=True))
            rows += self._rows("avg", self.main, _Point(values, draws))
        for metric, measure, values in self._counts():
            rows += self._rows(metric, measure, _Point(values))
        return rows

    def curve_rows(self) -> list[dict[str, Any]]:
        """Return the rows of curves.parquet: every probe, over all seeds."""
        rows: list[dict[str, Any]] = []
        for metric, measure, points in self._estimates:
            for position, point in enumerate(points):
                where = [probes[position] for probes in self._probes]
                rows += self._curve_row(metric, measure, where, point)
        for n_edits, steps, keys in self._codebook_points():
            where = [(step, n_edits) for step in steps]
            rows += self._curve_row("n_keys", None, where, _Point(keys))
        return rows

    def _estimate_metrics(self) -> Iterator[tuple[str, str, list[_Point]]]:
        """Yield (metric, measure, points): one point a probe, with the replicates of each seed."""
        for metric in METRICS.values():
            scores = [
                [self._scores(s, metric.role, step) for s, (step, _) in enumerate(probe)]
                for probe in zip(*self._probes, strict=True)
            ]
            if not any(score.facts for score in scores[-1]):
                continue
            everything = [score for row in scores for score in row]
            units, n_units = statistics.unit_indices(f for s in everything for f in s.facts)
            # One draw of facts for all probes, measures and seeds.
            weights = statistics.draw_weights(self._generator, n_units)
            split = iter(np.split(units, np.cumsum([len(s.facts) for s in everything])[:-1]))
            draws = [[self._replicates(s, next(split), weights) for s in row] for row in scores]
            for index, measure in enumerate(self.measures):
                yield (
                    metric.name,
                    measure,
                    [
                        _Point(
                            [_aggregate(score.values[:, index], measure) for score in row],
                            [draw[:, index] for draw in drawn],
                            [int((~np.isnan(score.values[:, index])).sum()) for score in row],
                        )
                        for row, drawn in zip(scores, draws, strict=True)
                    ],
                )

    def _replicates(self, scores: _Scores, units: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the replicates of each measure, (resamples, measures)."""
        replicates = statistics.weighted_means(scores.values, units, weights)
        with np.errstate(over="ignore"):
            for index, measure in enumerate(self.measures):
                if measure == "perplexity_log_mean":
                    replicates[:, index] = np.exp(replicates[:, index])
                elif measure == "perplexity_median":
                    column = scores.values[:, index]
                    medians = statistics.weighted_medians(column, units, weights)
                    replicates[:, index] = np.exp(medians)
        return replicates

    def _counts(self) -> Iterator[tuple[str, str | None, list[float]]]:
        """Yield what run.json counts, where any seed has it."""
        sources = (
            ("n_edits", None, "counts", "edits"),
            ("n_keys", None, "counts", "keys"),
            ("edits_per_key", None, "counts", "edits_per_key"),
            ("seconds_per_edit", "mean", "seconds", "per_edit_mean"),
            ("seconds_per_edit", "sd", "seconds", "per_edit_sd"),
            ("seconds_per_edit", "median", "seconds", "per_edit_median"),
        )
        for metric, measure, section, key in sources:
            values = [_number(run.record[section].get(key)) for run in self.runs]
            if not all(math.isnan(value) for value in values):
                yield metric, measure, values
        memory = [_number(run.record.get("peak_memory_mib")) for run in self.runs]
        if not all(math.isnan(value) for value in memory):
            yield "peak_memory_mib", None, memory

    def _rows(self, metric: str, measure: str | None, point: _Point) -> Iterator[dict[str, Any]]:
        """Yield a row over all seeds and one for each seed."""
        if all(math.isnan(value) for value in point.values):
            return
        common = {**self.keys, "metric": metric, "measure": measure}
        common["is_main"] = measure == self.main
        yield {
            **common,
            "seed": None,
            **_estimate(_mean(point.values), *self._interval(point)),
            "n": max(point.counts) if point.counts else None,
            "n_seeds": len(self.runs),
        }
        for index, run in enumerate(self.runs):
            single = statistics.interval(point.draws[index]) if point.draws else (None, None)
            yield {
                **common,
                "seed": run.spec["seed"],
                **_estimate(point.values[index], *single),
                "n": point.counts[index] if point.counts else None,
                "n_seeds": 1,
            }

    def _interval(self, point: _Point) -> tuple[float | None, float | None]:
        draws = point.draws
        if not draws:
            if len(point.values) < 2:
                return None, None
            # A count has no examples to draw: its interval is over seeds alone.
            draws = [np.full(len(self._seed_weights), value) for value in point.values]
        return statistics.interval(statistics.over_seeds(draws, self._seed_weights))

    def _curve_row(
        self, metric: str, measure: str | None, where: Sequence[tuple[int, int]], point: _Point
    ) -> Iterator[dict[str, Any]]:
        for row in itertools.islice(self._rows(metric, measure, point), 1):
            del row["seed"]
            step, n_edits = (round(sum(part) / len(where)) for part in zip(*where, strict=True))
            yield {**row, "step": step, "n_edits": n_edits}

    def _codebook_points(self) -> Iterator[tuple[int, list[int], list[float]]]:
        """Yield (edits, steps, keys) at up to KEY_POINTS numbers of edits that all seeds reach."""
        shared = sorted(set.intersection(*(set(keys) for keys in self._keys_in_steps)))
        if len(shared) > KEY_POINTS:
            chosen = np.linspace(0, len(shared) - 1, KEY_POINTS).round().astype(int)
            shared = [shared[i] for i in chosen]
        for n_edits in shared:
            found = [keys[n_edits] for keys in self._keys_in_steps]
            yield n_edits, [step for step, _ in found], [float(n) for _, n in found]


def _estimate(value: float, low: float | None, high: float | None) -> dict[str, float | None]:
    def known(number: float | None) -> float | None:
        return None if number is None or math.isnan(number) else number

    return {"value": known(value), "low": known(low), "high": known(high)}


def _mean(values: Sequence[float]) -> float:
    present = [value for value in values if not math.isnan(value)]
    return math.fsum(present) / len(present) if all(map(math.isfinite, present)) else math.inf


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _has(table: dict[str, np.ndarray], column: str) -> bool:
    return not np.isnan(table[column]).all()


def _read_predictions(run: RunFolder) -> dict[str, np.ndarray]:
    """Return the scores of a run as numpy columns; null becomes NaN."""
    table = run.table("predictions.parquet")
    columns = {
        name: np.asarray(table[name].to_pylist(), dtype=object) for name in ("role", "fact_id")
    }
    for name in ("step", "n_edits"):
        columns[name] = table[name].to_numpy()
    for name in records.MEASURES:
        columns[name] = np.asarray(table[name].to_numpy(zero_copy_only=False), dtype=np.float64)
    return columns


def _read_keys(run: RunFolder) -> dict[int, tuple[int, int]]:
    """Return {number of edits: (step, number of keys)} of an editor with a codebook."""
    table = run.table("steps.parquet")
    return {
        row["n_edits"]: (row["step"], row["n_keys"])
        for row in table.select(["step", "n_edits", "edited", "n_keys"]).to_pylist()
        if row["edited"] and row["n_keys"] is not None
    }
