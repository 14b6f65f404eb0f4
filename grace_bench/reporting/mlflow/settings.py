"""What MLflow gets of a setting over all its seeds: the parent run of the seeds' runs.

A setting is an editor with its hyperparameters on one model and data set. Its numbers are those of
summary.parquet and curves.parquet, so that MLflow, tables and figures never disagree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grace_bench.errors import DataError
from grace_bench.metrics import METRICS
from grace_bench.reporting.mlflow.records import TAG, MetricPoint, ended_ms, run_params, started_ms
from grace_bench.reporting.summary import failures
from grace_bench.reporting.summary.read import read_provenance
from grace_bench.reporting.summary.run_folder import RunFolder, suite_provenance
from grace_bench.reporting.summary.write import CURVES, CURVES_NAME, SUMMARY
from grace_bench.store import files
from grace_bench.suite.plan import digest

SCORES = (*METRICS, "avg")
COLUMNS = (*SCORES, "n_edits", "n_keys", "seconds_per_edit_mean")
"""Final metrics by which settings are compared, in the order of their columns."""


@dataclass(frozen=True)
class Setting:
    """The runs of one setting, and its rows of summary.parquet and curves.parquet over all seeds.

    Args:
        id: `model/dataset/editor/variant`.
    """

    id: str
    runs: list[RunFolder] = field(default_factory=list)
    summary: list[dict[str, Any]] = field(default_factory=list)
    curves: list[dict[str, Any]] = field(default_factory=list)

    @property
    def experiment(self) -> str:
        """`model/dataset`."""
        return "/".join(self.id.split("/")[:2])

    @property
    def failures(self) -> list[failures.Failure]:
        """How seeds failed."""
        return [run.failure for run in self.runs if run.failure is not None]

    @property
    def status(self) -> str:
        """MLflow's: FAILED if there is no number, as all seeds failed."""
        return "FAILED" if len(self.failures) == len(self.runs) else "FINISHED"

    @property
    def started(self) -> int:
        """When its first run started, in milliseconds since 1970."""
        return min(started_ms(run) for run in self.runs)

    @property
    def ended(self) -> int:
        """When its last run ended, in milliseconds since 1970."""
        return max(ended_ms(run) for run in self.runs)

    @property
    def params(self) -> dict[str, str]:
        """The parameters that all its runs share."""
        first, *others = (run_params(run) for run in self.runs)
        return {
            key: value for key, value in first.items() if all(o.get(key) == value for o in others)
        }

    @property
    def tags(self) -> dict[str, str]:
        """The tags by which it is searched and grouped."""
        spec = self.runs[0].spec
        return {
            "model": spec.model.name,
            "dataset": spec.dataset.name,
            "editor": spec.editor.name,
            "mlflow.source.name": "grace-bench",
            "mlflow.source.type": "LOCAL",
            TAG + "kind": "setting",
            TAG + "suite": spec.suite,
            TAG + "measure": self.runs[0].record.measure,
            TAG + "n_seeds": str(len(self.runs)),
            TAG + "n_failed": str(len(self.failures)),
        }

    @property
    def note(self) -> str:
        """What its numbers are means of."""
        whole = len(self.runs) - len(self.failures)
        said = [f"Means over {whole} seed{'s' if whole > 1 else ''}."] if whole else []
        if self.failures:
            said.append(failures.footnote(self.failures, whole))
        return " ".join(said)

    @property
    def files_hash(self) -> str:
        """Hash of everything that its MLflow run shows."""
        points = [list(map(str, point)) for point in self.metrics]
        return digest([self.params, self.note, points, self.started, self.ended], 16)

    @property
    def metrics(self) -> list[MetricPoint]:
        """All finite points: final means, ends of the main scores' intervals, mean curves."""
        end, points = self.ended, []
        for row in self.summary:
            if row["metric"] == failures.METRIC:
                continue
            name = _name(row)
            points.append((f"final/{name}", row["value"], end, 0))
            if row["is_main"] and row["metric"] in SCORES:
                points += [(f"interval/{name}.{side}", row[side], end, 0) for side in SIDES]
        for row in self.curves:
            kind = "edit" if row["metric"] == "n_keys" else "probe"
            points.append((f"{kind}/{_name(row)}", row["value"], end, row["n_edits"]))
        return [point for point in points if point[1] is not None and math.isfinite(point[1])]


SIDES = ("low", "high")


def _name(row: Mapping[str, Any]) -> str:
    """Return how the runs of the seeds call the metric of a row."""
    if row["is_main"] or row["measure"] is None:
        return row["metric"]
    return f"{row['metric']}{'.' if row['metric'] in SCORES else '_'}{row['measure']}"


def read_settings(runs: Sequence[RunFolder], folder: Path) -> list[Setting]:
    """Return the settings of a suite's runs, with their rows of the folder's summary.

    Raises:
        DataError: the summary is missing or damaged, or is of other runs.
    """
    found: dict[str, Setting] = {}
    for run in runs:
        key = setting_id(run)
        found.setdefault(key, Setting(key)).runs.append(run)
    wanted = suite_provenance(runs)["runs_hash"]
    for name, schema in (("summary.parquet", SUMMARY), (CURVES_NAME, CURVES)):
        table = files.read_parquet(folder / name, schema)
        if read_provenance(table).get("runs_hash") != wanted:
            raise DataError(f"{folder / name}: is of other runs; run the summarise step again.")
        for row in table.to_pylist():
            if row["seed"] is None:
                key = "/".join(row[part] for part in ("model", "dataset", "editor", "variant"))
                setting = found[key]
                (setting.summary if name == "summary.parquet" else setting.curves).append(row)
    return list(found.values())


def setting_id(run: RunFolder) -> str:
    """Return `model/dataset/editor/variant` of a run."""
    return run.id.rpartition("/")[0]
