"""The seeds of one setting (model x data set x editor x variant), summarised. Torch-free."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from grace_bench.metrics import MEASURES, METRICS, Measure, averaged, per_example
from grace_bench.reporting.summary import statistics
from grace_bench.reporting.summary.run_folder import RunFolder
from grace_bench.suite.plan import canonical_json

Curve = dict[int, tuple[int, float]]
"""One seed's curve: by number of edits, the step and the value."""

CURVE_POINTS = 200  # the most between probes; a figure cannot show more


@dataclass(frozen=True)
class _Scores:
    """Per-example scores of one seed."""

    facts: np.ndarray  # (examples,) index of each one's fact
    values: np.ndarray  # (examples, columns) its measures


@dataclass(frozen=True)
class _Point:
    """One measure of one metric at one probe, by seed."""

    values: list[float]
    draws: Sequence[np.ndarray] = ()  # replicates; none for counts
    counts: Sequence[int] = ()  # examples
    bounded: bool = True  # whether an interval can be given


def _aggregate(present: np.ndarray, measure: Measure) -> float:
    if not present.size:
        return math.nan
    average = np.median(present) if measure.average == "median" else present.mean()
    with np.errstate(over="ignore"):
        return float(np.exp(average) if measure.exponential else average)


def setting_keys(run: RunFolder) -> dict[str, Any]:
    """Return the columns that all rows of a run's setting share."""
    spec = run.spec
    return {
        "suite": spec.suite,
        "model": spec.model.name,
        "model_label": spec.model.label,
        "dataset": spec.dataset.name,
        "dataset_label": spec.dataset.label,
        "task": spec.dataset.task,
        "editor": spec.editor.name,
        "editor_label": spec.editor.label,
        "editor_class": spec.editor.editor,
        "variant": run.record.variant,
        "hyperparameters": canonical_json(spec.editor.hyperparameters),
        "in_sweep": run.record.in_sweep,
    }


class SeedGroup:
    """The seeds of one model x data set x editor x variant.

    Args:
        runs: the seeds' runs.
        n_failed: number of further seeds whose runs failed.
    """

    def __init__(self, runs: list[RunFolder], n_failed: int = 0) -> None:
        """Read the predictions of all seeds and draw the resamples."""
        self.runs = runs
        self.n_failed = n_failed
        first = runs[0]
        self.keys = setting_keys(first)
        self.main = first.record.measure
        columns = ("step", "n_edits", "role", "fact_id", *per_example())
        tables = [run.table("predictions.parquet", columns) for run in runs]
        everything = pa.concat_tables(tables)
        self._columns = [c for c in per_example() if not np.isnan(_numbers(everything, c)).all()]
        self.measures = averaged(self._columns)
        facts, _ = statistics.unit_indices(everything["fact_id"].combine_chunks())
        self._fact_names = np.array(everything["fact_id"].unique().to_pylist(), dtype=object)
        ends = np.cumsum([table.num_rows for table in tables])[:-1]
        self._roles = [
            self._split(table, numbers)
            for table, numbers in zip(tables, np.split(facts, ends), strict=True)
        ]
        # One stream of random numbers for each group of runs: seeds first, then facts by role.
        self._generator = statistics.generator_for(first.id.rsplit("/", 1)[0])
        self._seed_weights = statistics.draw_weights(self._generator, len(runs))
        self._keys = [_read_keys(run) for run in runs]
        self._probes = _shared_probes(tables)
        self._estimates = list(self._estimate_metrics())

    def _split(self, table: pa.Table, facts: np.ndarray) -> dict[str, tuple[np.ndarray, _Scores]]:
        """Return the steps and the scores of each role of one seed, in the order of the steps."""
        steps = table["step"].to_numpy()
        values = np.empty((table.num_rows, len(self._columns)))
        for index, name in enumerate(self._columns):
            values[:, index] = _numbers(table, name)
        parts = {}
        for role in {metric.role for metric in METRICS.values()}:
            rows = np.flatnonzero(pc.equal(table["role"], role))
            rows = rows[np.argsort(steps[rows], kind="stable")]
            parts[role] = (steps[rows], _Scores(facts[rows], values[rows]))
        return parts

    def _scores(self, seed: int, role: str, step: int) -> _Scores:
        """Return the scores of a probe; of the role "edit", all scores up to it."""
        steps, scores = self._roles[seed][role]
        start = 0 if role == "edit" else np.searchsorted(steps, step, "left")
        end = np.searchsorted(steps, step, "right")
        return _Scores(scores.facts[start:end], scores.values[start:end])

    @property
    def experiment(self) -> str:
        """The model and the data set."""
        return f"{self.keys['model']}/{self.keys['dataset']}"

    def final_scores(self, metric: str, measure: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the facts and the values of each seed's examples at its last probe.

        Empty if the measure is not a mean over examples. A mean of losses orders editors as its
        exponential does.
        """
        name = MEASURES[measure].column
        if name not in self._columns or MEASURES[measure].average != "mean":
            return []
        found = []
        for seed, probes in enumerate(self._probes):
            scores = self._scores(seed, METRICS[metric].role, probes[-1][0])
            values = scores.values[:, self._columns.index(name)]
            known = ~np.isnan(values)
            found.append((self._fact_names[scores.facts[known]], values[known]))
        return found

    def summary_rows(self) -> list[dict[str, Any]]:
        """Return the rows of summary.parquet: scores at the last probe, and counts and seconds."""
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
        """Return the rows of curves.parquet, over all seeds.

        Probes have intervals; averages taken between them have values alone.
        """
        rows: list[dict[str, Any]] = []
        for metric, measure, points in self._estimates:
            for position, point in enumerate(points):
                where = [probes[position] for probes in self._probes]
                rows += self._curve_row(metric, measure, where, point)
        for metric, measure, n_edits, found in self._points_between():
            where = [(step, n_edits) for step, _ in found]
            point = _Point([value for _, value in found], bounded=metric == "n_keys")
            rows += self._curve_row(metric, measure, where, point)
        return rows

    def _estimate_metrics(self) -> Iterator[tuple[str, str, list[_Point]]]:
        """Yield (metric, measure, points), one point per probe with the replicates of each seed."""
        for metric in METRICS.values():
            scores = [
                [self._scores(s, metric.role, step) for s, (step, _) in enumerate(probe)]
                for probe in zip(*self._probes, strict=True)
            ]
            # A run that failed during a probe has only some of its roles.
            if not any(len(score.facts) for row in scores for score in row):
                continue
            everything = np.concatenate([score.facts for row in scores for score in row])
            units, n_units = statistics.unit_indices(everything)
            # One draw of facts for all probes, measures and seeds.
            weights = statistics.draw_weights(self._generator, n_units)
            ends = np.cumsum([sum(len(score.facts) for score in row) for row in scores])[:-1]
            drawn = np.asfortranarray(weights, dtype=np.int16)  # the layout that medians need
            points = [
                self._points(row, part, weights, drawn)
                for row, part in zip(scores, np.split(units, ends), strict=True)
            ]
            for index, measure in enumerate(self.measures):
                yield metric.name, measure.name, [point[index] for point in points]

    def _points(
        self, scores: list[_Scores], units: np.ndarray, weights: np.ndarray, drawn: np.ndarray
    ) -> list[_Point]:
        """Return the points of all measures of one metric at one probe."""
        sizes = [len(score.facts) for score in scores]
        ends = np.cumsum(sizes)[:-1]
        values = np.concatenate([score.values for score in scores])
        means = statistics.weighted_means(values, units, weights, sizes)
        points = []
        for measure in self.measures:
            column = self._columns.index(measure.column)
            draws = means[:, column]  # (seeds, resamples)
            seeds = np.split(values[:, column], ends)
            if measure.average == "median":
                pairs = zip(seeds, np.split(units, ends), strict=True)
                draws = np.array([statistics.weighted_medians(v, u, drawn) for v, u in pairs])
            if measure.exponential:
                with np.errstate(over="ignore"):
                    draws = np.exp(draws)
            present = [seed[~np.isnan(seed)] for seed in seeds]
            averages = [_aggregate(seed, measure) for seed in present]
            points.append(_Point(averages, list(draws), [seed.size for seed in present]))
        return points

    def _counts(self) -> Iterator[tuple[str, str | None, list[float]]]:
        """Yield the counts and seconds of run.json that any seed has."""
        sources = (
            ("n_edits", None, "counts", "edits"),
            ("n_keys", None, "counts", "keys"),
            ("edits_per_key", None, "counts", "edits_per_key"),
            ("seconds_per_edit", "mean", "seconds", "per_edit_mean"),
            ("seconds_per_edit", "sd", "seconds", "per_edit_sd"),
            ("seconds_per_edit", "median", "seconds", "per_edit_median"),
        )
        for metric, measure, section, key in sources:
            values = [_number(getattr(run.record, section).get(key)) for run in self.runs]
            if not all(math.isnan(value) for value in values):
                yield metric, measure, values
        memory = [_number(run.record.peak_memory_mib) for run in self.runs]
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
            "n_failed": self.n_failed,
        }
        for index, run in enumerate(self.runs):
            single = statistics.interval(point.draws[index]) if point.draws else (None, None)
            yield {
                **common,
                "seed": run.spec.seed,
                **_estimate(point.values[index], *single),
                "n": point.counts[index] if point.counts else None,
                "n_seeds": 1,
                "n_failed": 0,
            }

    def _interval(self, point: _Point) -> tuple[float | None, float | None]:
        draws = point.draws
        if not draws:
            if len(point.values) < 2 or not point.bounded:
                return None, None
            # A count has no examples to resample: its interval is over seeds alone.
            draws = [np.full(len(self._seed_weights), value) for value in point.values]
        return statistics.interval(statistics.over_seeds(draws, self._seed_weights))

    def _curve_row(
        self, metric: str, measure: str | None, where: Sequence[tuple[int, int]], point: _Point
    ) -> Iterator[dict[str, Any]]:
        for row in itertools.islice(self._rows(metric, measure, point), 1):
            step, n_edits = (round(sum(part) / len(where)) for part in zip(*where, strict=True))
            yield {**row, "step": step, "n_edits": n_edits}

    @property
    def _seeds(self) -> range:
        return range(len(self.runs))

    def _edit_scores(self, seed: int, measure: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the steps of a seed's edits, and how each scored right after it was made."""
        steps, scores = self._roles[seed]["edit"]
        return steps, scores.values[:, self._columns.index(measure)]

    def _points_between(self) -> Iterator[tuple[str, str | None, int, list[tuple[int, float]]]]:
        """Yield (metric, measure, edits, each seed's step and value), at most CURVE_POINTS.

        They lie at numbers of edits that all seeds reach and, except for keys, between probes.
        """
        probed = {n_edits for probes in self._probes for _, n_edits in probes}
        curves: dict[tuple[str, str | None], list[Curve]] = {("n_keys", None): self._keys}
        tables = [_read_averages(run) for run in self.runs]
        reached = [set(table["n_edits"].unique().to_pylist()) for table in tables]
        chosen = _spread(set.intersection(*reached) - probed)
        for seed, table in enumerate(tables):
            for row in table.filter(pc.field("n_edits").isin(chosen)).to_pylist():
                name = (row["metric"], row["measure"])
                seeds = curves.setdefault(name, [{} for _ in self.runs])
                seeds[seed][row["n_edits"]] = (row["step"], _number(row["value"]))
        # Edit success is known after every edit, whatever the probes.
        for measure in self._columns:
            seeds = [_running_means(*self._edit_scores(seed, measure)) for seed in self._seeds]
            between = set.intersection(*map(set, seeds)) - probed
            chosen = set(_spread(between))
            curves["es", measure] = [{n: found[n] for n in chosen} for found in seeds]
        for (metric, measure), seeds in curves.items():
            for n_edits in _spread(set.intersection(*map(set, seeds))):
                yield metric, measure, n_edits, [found[n_edits] for found in seeds]


def _running_means(steps: np.ndarray, values: np.ndarray) -> Curve:
    """Return the mean over the first n edits, by n."""
    numbers = np.arange(1, len(values) + 1)
    means = np.cumsum(values) / numbers
    return {int(n): (int(step), float(m)) for n, step, m in zip(numbers, steps, means, strict=True)}


def _spread(numbers: set[int]) -> list[int]:
    """Return the numbers in order, or CURVE_POINTS of them, evenly spread."""
    ordered = sorted(numbers)
    if len(ordered) <= CURVE_POINTS:
        return ordered
    return [ordered[i] for i in np.linspace(0, len(ordered) - 1, CURVE_POINTS).round().astype(int)]


def _estimate(value: float, low: float | None, high: float | None) -> dict[str, float | None]:
    def known(number: float | None) -> float | None:
        return None if number is None or math.isnan(number) else number

    return {"value": known(value), "low": known(low), "high": known(high)}


def _mean(values: Sequence[float]) -> float:
    present = [value for value in values if not math.isnan(value)]
    return math.fsum(present) / len(present) if all(map(math.isfinite, present)) else math.inf


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _numbers(table: pa.Table, column: str) -> np.ndarray:
    """Return a column as numbers; null becomes NaN."""
    return np.asarray(table[column].to_numpy(), dtype=np.float64)


def _shared_probes(tables: list[pa.Table]) -> list[list[tuple[int, int]]]:
    """Return (step, n_edits) of each seed's probes that all seeds have, and of the last one.

    Seeds may end after different numbers of edits; their last probes form one point.
    """
    per_seed = []
    for table in tables:
        probes = table.filter(pc.field("role") != "edit").group_by(["step", "n_edits"])
        pairs = zip(*(column.to_pylist() for column in probes.aggregate([])), strict=True)
        # Two probes may share a number of edits: keep the later.
        per_seed.append({n: step for step, n in sorted(pairs)} or {0: 0})
    last = min(max(steps) for steps in per_seed)
    shared = sorted(n for n in set.intersection(*map(set, per_seed)) if n < last)
    return [
        [*((steps[n], n) for n in shared), (steps[max(steps)], max(steps))] for steps in per_seed
    ]


def _read_averages(run: RunFolder) -> pa.Table:
    """Return the averages that a run recorded after its first edit."""
    table = run.table("probes.parquet", ("step", "n_edits", "metric", "measure", "value"))
    return table.filter(pc.field("n_edits") > 0)


def _read_keys(run: RunFolder) -> Curve:
    """Return the number of keys of an editor with a codebook."""
    table = run.table("steps.parquet", ("step", "n_edits", "edited", "n_keys"))
    table = table.filter(pc.field("edited") & pc.field("n_keys").is_valid())
    steps, n_edits, n_keys = (table[c].to_pylist() for c in ("step", "n_edits", "n_keys"))
    counts = map(float, n_keys)
    return dict(zip(n_edits, zip(steps, counts, strict=True), strict=True))
