"""Reads what `write` wrote: experiments, editors, settings and their values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa

from grace_bench.errors import DataError
from grace_bench.metrics import MEASURES
from grace_bench.registry import editor_spec
from grace_bench.reporting.comparison.differences import Difference
from grace_bench.reporting.summary import failures
from grace_bench.reporting.summary.failures import Failure
from grace_bench.reporting.summary.write import COMPARISONS_NAME, CURVES, PROVENANCE, SUMMARY
from grace_bench.store import files, schemas
from grace_bench.suite.section import is_name


@dataclass(frozen=True)
class Experiment:
    """One model on one data set."""

    model: str
    dataset: str
    model_label: str
    dataset_label: str
    task: str
    measure: str  # the task's main one

    @property
    def title(self) -> str:
        """Its name in tables and figures."""
        return f"{self.dataset_label}, {self.model_label}"

    @property
    def is_perplexity(self) -> bool:
        """Whether its main measure is a perplexity: lower is better, logarithmic axes."""
        return self.measure == "perplexity"


@dataclass(frozen=True)
class Setting:
    """One editor with its hyperparameters on one experiment."""

    experiment: Experiment
    editor: str
    editor_label: str
    editor_class: str
    variant: str
    hyperparameters: str  # canonical JSON
    in_sweep: bool

    @cached_property
    def values(self) -> dict[str, Any]:
        """The hyperparameters."""
        return json.loads(self.hyperparameters)


@dataclass(frozen=True)
class Estimate:
    """One value over all seeds, with its interval."""

    value: float | None
    low: float | None
    high: float | None
    n: int | None
    n_seeds: int
    is_best: bool = False  # as good as the best editor in a paired comparison

    @property
    def is_finite(self) -> bool:
        """Whether it has a value that can be drawn."""
        return self.value is not None and math.isfinite(self.value)

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval's ends; the value itself in place of an end that is missing or infinite."""
        ends = (self.low, self.high)
        low, high = (self.value if e is None or not math.isfinite(e) else e for e in ends)
        return low, high

    @property
    def reach(self) -> tuple[float, float]:
        """How far the interval goes below and above the value, which it need not contain."""
        low, high = self.bounds
        return max(0.0, self.value - low), max(0.0, high - self.value)


@dataclass(frozen=True)
class Point:
    """One point of a curve."""

    n_edits: int
    estimate: Estimate


MISSING = Estimate(None, None, None, None, 0)


class Summary:
    """The estimates over all seeds of a summary.parquet."""

    def __init__(self, path: Path | str) -> None:
        """Read the file.

        Raises:
            DataError: it is missing, damaged or empty, or has invalid names.
        """
        table = files.read_parquet(path, SUMMARY)
        if table.num_rows == 0:
            raise DataError(f"{path}: holds no results; run the summarise step again.")
        self.provenance = read_provenance(table)
        rows = table.to_pylist()
        for name in sorted({row[key] for row in rows for key in ("model", "dataset", "editor")}):
            if not is_name(name):  # files are called by them
                raise DataError(
                    f"{path}: {name!r} is not a valid name; run the summarise step again."
                )
        measures = {(r["model"], r["dataset"]): r["measure"] for r in rows if r["is_main"]}
        if unknown := sorted(set(measures.values()) - set(MEASURES)):
            raise DataError(
                f"{path}: the measure '{unknown[0]}' does not exist; install the package that "
                "has it."
            )
        self._values: dict[tuple[Setting, str, str | None], Estimate] = {}
        self._failures: dict[Setting, list[Failure]] = {}
        settings: dict[Setting, None] = {}
        for row in rows:
            is_failure = row["metric"] == failures.METRIC
            if row["seed"] is not None and not is_failure:
                continue
            setting = _setting(row, measures.get((row["model"], row["dataset"]), ""))
            if row["seed"] is None:
                settings[setting] = None
                self._values[setting, row["metric"], row["measure"]] = _estimate(row)
            else:
                self._failures.setdefault(setting, []).append(failures.failure_of_row(row))
        self.settings = sorted(settings, key=_order)
        self._path = Path(path)

    @cached_property
    def comparisons(self) -> list[Difference]:
        """The reference editor against the others; empty if an earlier version wrote the summary.

        Raises:
            DataError: the file is damaged or belongs to another summary.
        """
        path = self._path.with_name(COMPARISONS_NAME)
        if not path.exists():
            return []
        table = files.read_parquet(path, schemas.COMPARISONS)
        if read_provenance(table) != self.provenance:
            raise DataError(f"{path}: belongs to another summary; run the summarise step again.")
        places = {
            (s.experiment.model, s.experiment.dataset, s.editor, s.variant): place
            for place, s in enumerate(self.settings)
        }
        found = [Difference(**row) for row in table.to_pylist()]
        return sorted(found, key=lambda d: places[d.model, d.dataset, d.second, d.second_variant])

    @property
    def experiments(self) -> list[Experiment]:
        """All experiments, by task in the paper's order."""
        return sorted({s.experiment for s in self.settings}, key=_experiment_order)

    def get(self, setting: Setting | None, metric: str, measure: str | None = None) -> Estimate:
        """Return an estimate; one without values if there is none."""
        if setting is None:
            return MISSING
        return self._values.get((setting, metric, measure), MISSING)

    def main(self, setting: Setting, metric: str) -> Estimate:
        """Return an estimate by the main measure of the setting's task."""
        return self.get(setting, metric, setting.experiment.measure)

    def n_base_models(self, experiment: Experiment) -> int:
        """Return the number of base models that were edited: one, or one per seed."""
        name = f"{experiment.model}-{experiment.dataset}:"
        return sum(one.startswith(name) for one in self.provenance["model_hashes"].split())

    def failures(self, setting: Setting | None) -> list[Failure]:
        """Return the failed seeds of a setting, which are in none of its values."""
        return [] if setting is None else self._failures.get(setting, [])

    def n_whole(self, setting: Setting) -> int:
        """Return the number of completed seeds of a setting that has failed ones."""
        return self.get(setting, failures.METRIC, setting.experiment.measure).n_seeds

    def footnote(self, setting: Setting | None) -> str:
        """Return the footnote on a setting's failed seeds; empty: none failed."""
        failed = self.failures(setting)
        return failures.footnote(failed, self.n_whole(setting)) if setting and failed else ""

    def failed_settings(self, experiment: Experiment) -> list[str]:
        """Return the configured editors that have failed seeds: "FT (1 of 3 seeds)"."""
        return [
            failures.short(setting.editor_label, failed, self.n_whole(setting))
            for setting in self.configured(experiment)
            if (failed := self.failures(setting))
        ]

    def measures(self, experiment: Experiment) -> list[str]:
        """Return the measures that an experiment's predictions have, in the order of MEASURES."""
        found = {
            measure
            for setting, metric, measure in self._values
            if setting.experiment == experiment and metric in ("trr", "err") and measure
        }
        return [measure for measure in MEASURES if measure in found]

    def configured(self, experiment: Experiment) -> list[Setting]:
        """Return the settings that were configured, without those that only a sweep reached.

        Choosing a sweep's best point by its test score would flatter the swept editor.
        """
        return [s for s in self.settings if s.experiment == experiment and not s.in_sweep]

    def sweeps(self) -> dict[str, dict[Experiment, list[Setting]]]:
        """Return the settings of editors that have several, by editor and experiment."""
        found: dict[str, dict[Experiment, list[Setting]]] = {}
        for setting in self.settings:
            found.setdefault(setting.editor, {}).setdefault(setting.experiment, []).append(setting)
        several = {
            editor: {e: settings for e, settings in cells.items() if len(settings) > 1}
            for editor, cells in found.items()
        }
        return {editor: cells for editor, cells in several.items() if cells}


def read_provenance(table: pa.Table) -> dict[str, str]:
    """Return what a table's metadata says about where its numbers come from."""
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    return {
        key.removeprefix(PROVENANCE): value
        for key, value in sorted(metadata.items())
        if key.startswith(PROVENANCE) and not key.endswith("schema_version")
    }


@dataclass(frozen=True)
class Curves:
    """What curves.parquet holds: the main measure of every metric, and the number of keys.

    Args:
        whole: by setting and metric, over the seeds that were completed.
        failed: by setting and metric, the curve of each failed seed: how far it came.
    """

    whole: Mapping[tuple[Setting, str], list[Point]]
    failed: Mapping[tuple[Setting, str], dict[int, list[Point]]]

    def of(self, setting: Setting, metric: str) -> list[Point]:
        """Return the curve over completed seeds; empty if there is none."""
        return self.whole.get((setting, metric), [])

    def failed_of(self, setting: Setting, metric: str) -> dict[int, list[Point]]:
        """Return the curves of failed seeds, by seed."""
        return self.failed.get((setting, metric), {})

    def lines(self, setting: Setting, metric: str) -> list[list[Point]]:
        """Return the curve over completed seeds, then those of failed seeds."""
        return [self.of(setting, metric), *self.failed_of(setting, metric).values()]


def read_curves(path: Path | str, summary: Summary) -> Curves:
    """Read the curves that belong to a summary.

    Raises:
        DataError: the file is missing or damaged, or belongs to another summary.
    """
    by_name = {
        (s.experiment.model, s.experiment.dataset, s.editor, s.variant): s for s in summary.settings
    }
    whole: dict[tuple[Setting, str], list[Point]] = {}
    failed: dict[tuple[Setting, str], dict[int, list[Point]]] = {}
    for row in sorted(files.read_parquet(path, CURVES).to_pylist(), key=itemgetter("n_edits")):
        if not (row["is_main"] or row["metric"] == "n_keys"):
            continue
        setting = by_name.get((row["model"], row["dataset"], row["editor"], row["variant"]))
        if setting is None:
            raise DataError(f"{path}: belongs to another summary; run the summarise step again.")
        key, point = (setting, row["metric"]), Point(row["n_edits"], _estimate(row))
        if row["seed"] is None:
            whole.setdefault(key, []).append(point)
        else:
            failed.setdefault(key, {}).setdefault(row["seed"], []).append(point)
    return Curves(whole, failed)


def editor_rank(editor_class: str, editor: str) -> tuple[int, str]:
    """Return the sort key of an editor in tables and figures."""
    return editor_spec(editor_class).order, editor


def varying(settings: Sequence[Setting]) -> list[str]:
    """Return the hyperparameters in which settings differ, sorted."""
    names = sorted({name for setting in settings for name in setting.values})
    return [name for name in names if len({json.dumps(s.values.get(name)) for s in settings}) > 1]


def _setting(row: dict[str, Any], measure: str) -> Setting:
    experiment = Experiment(
        row["model"], row["dataset"], row["model_label"], row["dataset_label"], row["task"], measure
    )
    names = ("editor", "editor_label", "editor_class", "variant", "hyperparameters", "in_sweep")
    return Setting(experiment, *(row[name] for name in names))


def _estimate(row: dict[str, Any]) -> Estimate:
    values = (row[key] for key in ("value", "low", "high", "n", "n_seeds"))
    return Estimate(*values, bool(row.get("is_best")))


def _experiment_order(experiment: Experiment) -> tuple[int, str, str]:
    tasks = ("question_answering", "classification", "language_modelling")
    known = experiment.task in tasks
    rank = tasks.index(experiment.task) if known else len(tasks)
    return rank, experiment.dataset, experiment.model


def _order(setting: Setting) -> tuple[Any, ...]:
    def sortable(value: Any) -> tuple[int, float, str]:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return (0, float(value), "") if number else (1, 0.0, json.dumps(value))

    return (
        _experiment_order(setting.experiment),
        editor_rank(setting.editor_class, setting.editor),
        [(name, sortable(value)) for name, value in sorted(setting.values.items())],
    )
