"""What MLflow gets of a run, as plain values: parameters, metrics, tags, data sets.

Time stamps follow from the run's start and the seconds its edits took, not from a clock: MLflow
keeps two points that differ only in their time, so a second export would double every series.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field

from grace_bench.metrics import METRICS
from grace_bench.reporting.summary.run_folder import RunFolder
from grace_bench.store.records import Record
from grace_bench.suite.plan import dataset_folder

TAG = "grace_bench."
DIGEST_LENGTH = 36  # MLflow's limit
VALUE_LENGTH = 6000  # MLflow cuts longer ones silently
STEP_COLUMNS = ("step", "n_edits", "edited", "n_keys", "loss_last", "edit_seconds", "es")

MetricPoint = tuple[str, float, int, int]
"""Name, value, time in milliseconds, step."""


def started_ms(run: RunFolder) -> int:
    """Return when the run started, in milliseconds since 1970; 0 if unknown."""
    text = run.provenance.get("started")
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return 0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def ended_ms(run: RunFolder) -> int:
    """Return when the run ended, in milliseconds since 1970."""
    return started_ms(run) + round(1000 * float(run.record.seconds.get("total") or 0.0))


class MlflowExport(Record):
    """`mlflow-export.json`: where a suite was exported to, and MLflow's ids of its runs.

    `views` are the saved views of the experiment's page, by title.
    """

    format: Literal["grace-bench mlflow export"] = "grace-bench mlflow export"
    version: Literal[1] = 1
    tracking_uri: str
    experiment: str
    experiment_id: str
    runs: dict[str, Any]
    views: dict[str, str] = Field(default={})


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings with dotted names and values as text.

    >>> flatten({"stream": {"facts": 8, "max_edits": None}, "seed": 0})
    {'stream.facts': '8', 'stream.max_edits': 'null', 'seed': '0'}
    """
    flat: dict[str, str] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = (value if isinstance(value, str) else json.dumps(value))[:VALUE_LENGTH]
    return flat


def run_params(run: RunFolder) -> dict[str, str]:
    """Return the run's settings; hyperparameters are directly under `editor.`."""
    spec = run.spec.model_dump(mode="json")
    editor = spec.pop("editor")
    hyperparameters = editor.pop("hyperparameters")
    own = {"variant": run.record.variant, "in_sweep": run.record.in_sweep}
    params = flatten({**spec, **own})
    # The editor's own keys second: no hyperparameter may hide its name.
    params |= flatten(hyperparameters, "editor.")
    return params | flatten(editor, "editor.")


def short_names(runs: Sequence[RunFolder]) -> dict[str, str]:
    """Return a short name for each run's setting, by the run's id: "GRACE radius=3, Facts QA".

    It has the hyperparameters in which an editor's runs differ, and the model if a data set has
    several.
    """
    settings: dict[tuple[str, str, str], dict[str, set[str]]] = {}
    models: dict[str, set[str]] = {}
    for run in runs:
        values = settings.setdefault(run.spec.names, {})
        for key, value in flatten(run.spec.editor.hyperparameters).items():
            values.setdefault(key, set()).add(value)
        models.setdefault(run.spec.dataset.name, set()).add(run.spec.model.name)
    names = {}
    for run in runs:
        spec = run.spec
        several = settings[spec.names]
        own = flatten(spec.editor.hyperparameters).items()
        varied = [f"{key}={value}" for key, value in own if len(several[key]) > 1]
        model = [spec.model.label] if len(models[spec.dataset.name]) > 1 else []
        editor = " ".join([spec.editor.label, *varied])
        names[run.id] = ", ".join([editor, *model, spec.dataset.label])
    return names


def run_tags(run: RunFolder) -> dict[str, str]:
    """Return the tags by which runs are searched and grouped."""
    spec, provenance = run.spec, run.provenance
    tags = {
        "model": spec.model.name,
        "dataset": spec.dataset.name,
        "editor": spec.editor.name,
        "device": provenance.get("device"),
        "mlflow.source.name": "grace-bench",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": provenance.get("git_commit"),
        TAG + "kind": "run",
        TAG + "suite": spec.suite,
        TAG + "content_hash": run.record.content_hash,
        TAG + "version": provenance.get("grace_bench"),
        TAG + "git_dirty": provenance.get("git_dirty"),
        TAG + "data_hash": run.record.data_hash or None,
        TAG + "model_hash": run.record.model_hash or None,
        TAG + "measure": run.record.measure,
        TAG + "status": run.record.status,
    }
    if run.failure is not None:
        tags |= {
            TAG + "failure.kind": run.failure.kind,
            TAG + "failure.type": run.failure.type,
            TAG + "failure.step": run.failure.step,
            TAG + "failure.example_id": run.failure.example_id,
            TAG + "failure.message": run.failure.message[:VALUE_LENGTH],
            "mlflow.note.content": f"Failed {run.failure.place}: {run.failure.reason}.",
        }
    return {key: str(value) for key, value in tags.items() if value is not None}


def run_inputs(run: RunFolder) -> Iterator[tuple[str, str, str, str]]:
    """Yield (name, digest, source, role) of each role that the run was evaluated on."""
    dataset = run.spec.dataset.name
    folder = dataset_folder(run.spec.suite, dataset)
    roles = set(run.table("predictions.parquet", ["role"])["role"].unique().to_pylist())
    # Predictions called "edit" and "edits" are both of the data set's role `edits`.
    for role in sorted({"edits", *(metric.role for metric in METRICS.values())} - {"edit"}):
        if role == "edits" or role in roles:
            data_hash = (run.record.data_hash or "unknown")[:DIGEST_LENGTH]
            source = json.dumps({"uri": (folder / f"{role}.parquet").as_posix()})
            yield f"{dataset}/{role}", data_hash, source, role


def run_metrics(run: RunFolder) -> tuple[list[MetricPoint], list[str]]:
    """Return all finite points of all series, and the names of series with other values.

    The step of a series is the number of edits, so that runs can be compared. A failed run has no
    final scores: its series end where it failed.
    """
    start = started_ms(run)
    elapsed: dict[int, float] = {0: 0.0}
    points: list[MetricPoint] = []
    seconds = 0.0
    for row in run.table("steps.parquet", STEP_COLUMNS).to_pylist():
        seconds += row["edit_seconds"] or 0.0
        elapsed[row["step"]] = seconds
        if row["edited"]:
            values = {
                "edit/loss_last": row["loss_last"],
                "edit/n_keys": row["n_keys"],
                "edit/seconds": row["edit_seconds"],
                "edit/es": row["es"],
            }
            when = start + round(1000 * seconds)
            points += [
                (name, float(value), when, row["n_edits"])
                for name, value in values.items()
                if value is not None
            ]
    last = max(elapsed)
    probes = run.table("probes.parquet").to_pylist()
    final = max((row["step"] for row in probes), default=0)
    end = ended_ms(run) if run.record.seconds.get("total") else start + round(1000 * seconds)
    for row in probes:
        if row["value"] is None:
            continue
        main = row["measure"] == run.record.measure
        name = row["metric"] if main else f"{row['metric']}.{row['measure']}"
        when = start + round(1000 * elapsed.get(row["step"], elapsed[last]))
        points.append((f"probe/{name}", row["value"], when, row["n_edits"]))
        if row["step"] == final and run.failure is None:
            points.append((f"final/{name}", row["value"], end, 0))
    spent = {f"seconds_{key}": value for key, value in run.record.seconds.items()}
    counted = {
        key if key == "edits_per_key" else f"n_{key}": value
        for key, value in run.record.counts.items()
    }
    spent["peak_memory_mib"] = run.record.peak_memory_mib
    points += [
        (f"final/{name}", float(value), end, 0)
        for name, value in sorted({**spent, **counted}.items())
        if value is not None
    ]
    dropped = sorted({name for name, value, _, _ in points if not math.isfinite(value)})
    return [point for point in points if math.isfinite(point[1])], dropped
