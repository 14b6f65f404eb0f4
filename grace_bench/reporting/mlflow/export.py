"""Copies a suite's runs to MLflow; a repeated call changes only what has changed.

    track(run_folders, Path("results/smoke"))                     # results/smoke/mlflow.db
    track(run_folders, Path("results/smoke"), "http://host:5000")

A suite is an MLflow experiment. A setting (an editor with its hyperparameters on a model and a data
set) is a parent run with the means over seeds, and its children are the runs of the seeds. One more
run, "suite <name>", has the summary, tables, figures and report. Editing jobs never talk to MLflow;
this is the only writer, so parallel jobs cannot race for a database, and the database can be made
again from the files.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grace_bench import __version__
from grace_bench.errors import DataError
from grace_bench.jobs.locks import exclusive
from grace_bench.reporting.mlflow.moved import ARTIFACTS, follow
from grace_bench.reporting.mlflow.records import (
    TAG,
    MetricPoint,
    MlflowExport,
    ended_ms,
    flatten,
    run_inputs,
    run_metrics,
    run_params,
    run_tags,
    short_names,
    started_ms,
)
from grace_bench.reporting.mlflow.settings import Setting, read_settings
from grace_bench.reporting.mlflow.store import connect, mlflow_errors, tracking_uri_for
from grace_bench.reporting.mlflow.views import OWN, PREFIX, saved_views
from grace_bench.reporting.summary.run_folder import RunFolder, read_run_folders
from grace_bench.store.files import sha256_of
from grace_bench.store.json_records import read_record, write_record
from grace_bench.suite.plan import digest

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

EXPORT = "mlflow-export.json"
LOCK = ".track.lock"
METRICS_A_CALL, PARAMS_A_CALL = 1000, 100  # limits of MLflow's server
REPORT = "report.html"
SUITE_FILES = ("summary.parquet", "curves.parquet", REPORT)
SUITE_FOLDERS = ("tables", "figures", "paper-figures")
NOTE = "mlflow.note.content"
PARENT = "mlflow.parentRunId"

logger = logging.getLogger(__name__)


def track(
    run_folders: Path | Sequence[Path], summary_folder: Path, tracking_uri: str | None = None
) -> MlflowExport:
    """Bring MLflow in line with the runs of a suite.

    An MLflow run of unchanged files is left as it is, including notes; one whose files changed is
    deleted (MLflow keeps it in its bin) and made again; one that left the suite is tagged
    `grace_bench.stale`. So a store of an earlier version, which had no parents, gets them. A failed
    run has the status FAILED, the reason in its tags, and series up to the failure. Two calls for
    one folder take turns.

    Args:
        run_folders: folders of all runs of one suite, complete or failed, or the path of its
            plan.json.
        summary_folder: the suite's folder, with a summary of these runs; it, tables, figures and
            report become artifacts.
        tracking_uri: default: $MLFLOW_TRACKING_URI, or a SQLite file in the folder.

    Returns:
        The content of mlflow-export.json in the suite's folder: where the runs are.

    Raises:
        DataError: a run is missing, damaged or of another suite, or the summary is of other runs.
        ResultError: the server or the database cannot be reached or written, or another process
            has been exporting this folder for a minute.
    """
    runs = read_run_folders(run_folders)
    with exclusive(Path(summary_folder) / LOCK, "exporting this folder to MLflow"):
        return _export(runs, Path(summary_folder), tracking_uri)


def exported_to(summary_folder: Path) -> MlflowExport | None:
    """Return where a suite was exported to; None: not yet."""
    path = Path(summary_folder) / EXPORT
    return read_record(path, MlflowExport) if path.is_file() else None


def _export(runs: Sequence[RunFolder], folder: Path, tracking_uri: str | None) -> MlflowExport:
    uri = tracking_uri_for(folder, tracking_uri)
    suite = runs[0].spec.suite
    settings = read_settings(runs, folder)
    with mlflow_errors(uri):
        follow(uri)
        client = connect(uri)
        experiment = _experiment(client, suite, uri, folder)
        known = _known_runs(client, experiment)
        titles = short_names(runs)
        whole = _suite_entry(client, runs, folder)
        exported = {whole.name: _ensure(client, experiment, known, whole)}
        page = f"#/experiments/{experiment}/runs/{exported[whole.name]['mlflow_run_id']}/artifacts"
        report = f"{page}/{REPORT}" if (folder / REPORT).is_file() else ""
        for setting in settings:
            title = titles[setting.runs[0].id]
            entry = _setting_entry(client, setting, title, report)
            exported[setting.id] = _ensure(client, experiment, known, entry)
            for run in setting.runs:
                entry = _run_entry(client, run, title, report)
                entry.tags[PARENT] = exported[setting.id]["mlflow_run_id"]
                exported[run.id] = _ensure(client, experiment, known, entry)
        _mark_stale(client, known, exported)
        views = _save_views(client, experiment, settings)
    export = MlflowExport(
        tracking_uri=uri,
        experiment=suite,
        experiment_id=experiment,
        runs=exported,
        views=views,
    )
    write_record(folder / EXPORT, export)
    return export


def _experiment(client: MlflowClient, suite: str, uri: str, folder: Path) -> str:
    found = client.get_experiment_by_name(suite)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return found.experiment_id
    # A server decides where its artifacts belong; those of a file lie beside it.
    local = uri.startswith("sqlite:///")
    location = (folder.resolve() / ARTIFACTS).as_uri() if local else None
    # The interface shows an experiment of this kind by its curves, not by LLM traces.
    tags = {TAG + "suite": suite, "mlflow.experimentKind": "custom_model_development"}
    return client.create_experiment(suite, artifact_location=location, tags=tags)


def _known_runs(client: MlflowClient, experiment_id: str) -> dict[str, list[Run]]:
    """Return the active MLflow runs of earlier calls, by our run id."""
    known: dict[str, list[Run]] = {}
    token = None
    while True:
        page = client.search_runs([experiment_id], max_results=500, page_token=token)
        for found in page:
            if run_id := found.data.tags.get(TAG + "run_id"):
                known.setdefault(run_id, []).append(found)
        token = page.token
        if not token:
            return known


@dataclass(frozen=True)
class _Entry:
    """An MLflow run as it should be."""

    name: str
    title: str
    files_hash: str
    started_ms: int
    tags: dict[str, str]
    fill: Callable[[str], int]  # fills the MLflow run of this id; returns when the run ended
    status: str = "FINISHED"  # or FAILED


def _ensure(
    client: MlflowClient, experiment_id: str, known: Mapping[str, list[Run]], entry: _Entry
) -> dict[str, str]:
    """Keep the MLflow run of these files, or make it; delete all others of the same name."""
    kept: Run | None = None
    for found in known.get(entry.name, []):
        same = found.data.tags.get(TAG + "files_hash") == entry.files_hash
        # An unfinished one was being written when an earlier call was killed.
        if kept is None and same and found.info.status == entry.status:
            kept = found
        else:
            client.delete_run(found.info.run_id)
    if kept is not None:
        _correct(client, kept, entry)
        return {"mlflow_run_id": kept.info.run_id, "files_hash": entry.files_hash}
    made = client.create_run(
        experiment_id,
        start_time=entry.started_ms,
        run_name=entry.title,
        tags={**entry.tags, TAG + "run_id": entry.name, TAG + "files_hash": entry.files_hash},
    )
    end = entry.fill(made.info.run_id)
    client.set_terminated(made.info.run_id, entry.status, end_time=end)
    logger.info("%s: tracked as %s", entry.name, made.info.run_id)
    return {"mlflow_run_id": made.info.run_id, "files_hash": entry.files_hash}


def _correct(client: MlflowClient, kept: Run, entry: _Entry) -> None:
    """Correct the name and the tags of a run that is kept; of its note only the report's link."""
    if TAG + "stale" in kept.data.tags:
        client.delete_tag(kept.info.run_id, TAG + "stale")
    if kept.info.run_name != entry.title:
        client.update_run(kept.info.run_id, name=entry.title)
    for key, value in entry.tags.items():
        now = kept.data.tags.get(key)
        if key == NOTE and now is not None:
            link = _LINK.search(value)
            value = now if link is None else _LINK.sub(link[0], now)
        if value != now:
            client.set_tag(kept.info.run_id, key, value)


_LINK = re.compile(r"\(#/experiments/[^)]*\)")


def _with_report(note: str, report: str) -> str:
    """Return a note that ends with a link to the report, if there is one."""
    return f"{note} [Report of the suite]({report})".strip() if report else note


def _setting_entry(client: MlflowClient, setting: Setting, title: str, report: str) -> _Entry:
    """Return the parent of the runs of a setting's seeds."""

    def fill(mlflow_id: str) -> int:
        _log(client, mlflow_id, setting.params, setting.metrics)
        return setting.ended

    tags = {**setting.tags, NOTE: _with_report(setting.note, report)}
    return _Entry(
        *(setting.id, title, setting.files_hash, setting.started, tags, fill, setting.status)
    )


def _run_entry(client: MlflowClient, run: RunFolder, title: str, report: str) -> _Entry:
    files = _run_artifacts(run)
    tags = run_tags(run)
    if note := _with_report(tags.get(NOTE, ""), report):
        tags[NOTE] = note
    return _Entry(
        run.id,
        f"{title}, seed {run.spec.seed}",
        run.files_hash,
        started_ms(run),
        tags,
        lambda mlflow_id: _fill(client, mlflow_id, run, files),
        "FINISHED" if run.failure is None else "FAILED",
    )


def _fill(client: MlflowClient, mlflow_id: str, run: RunFolder, files: Sequence[Path]) -> int:
    """Write parameters, metrics, data sets and files of a run; return when it ended."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    points, dropped = run_metrics(run)
    _log(client, mlflow_id, run_params(run), points)
    if dropped:
        client.set_tag(mlflow_id, TAG + "not_finite", ", ".join(dropped))
    inputs = [
        DatasetInput(
            Dataset(name, digest_, source_type="local", source=source),
            [InputTag("mlflow.data.context", role)],
        )
        for name, digest_, source, role in run_inputs(run)
    ]
    client.log_inputs(mlflow_id, datasets=inputs)
    for path in files:
        client.log_artifact(mlflow_id, str(path))
    return ended_ms(run)


def _log(
    client: MlflowClient, mlflow_id: str, params: Mapping[str, str], points: Sequence[MetricPoint]
) -> None:
    from mlflow.entities import Metric, Param

    settings = [Param(key, value) for key, value in sorted(params.items())]
    for start in range(0, len(settings), PARAMS_A_CALL):
        client.log_batch(mlflow_id, params=settings[start : start + PARAMS_A_CALL])
    metrics = [Metric(*point) for point in points]
    for start in range(0, len(metrics), METRICS_A_CALL):
        client.log_batch(mlflow_id, metrics=metrics[start : start + METRICS_A_CALL])


def _run_artifacts(run: RunFolder) -> list[Path]:
    """Return run.json and the files it lists, except for the predictions, which are large."""
    names = [name for name in sorted(run.record.files) if name != "predictions.parquet"]
    paths = [run.folder / "run.json", *(run.folder / name for name in names)]
    for path in paths:
        if not path.is_file():
            raise DataError(
                f"{path}: no such file, but run.json lists it; run the edit step again."
            )
    return paths


def _suite_entry(client: MlflowClient, runs: Sequence[RunFolder], folder: Path) -> _Entry:
    """Return the MLflow run that holds the summary, tables, figures and report of all runs."""
    parts = (*SUITE_FILES, *SUITE_FOLDERS)
    present = [folder / part for part in parts if (folder / part).exists()]
    files = sorted(
        path
        for part in present
        for path in (part.rglob("*") if part.is_dir() else [part])
        if path.is_file() and not path.name.startswith(".")
    )
    hashes = {str(path.relative_to(folder)): sha256_of(path) for path in files}
    last = max(started_ms(run) for run in runs) + 1  # MLflow lists what began last first
    suite = runs[0].spec.suite
    tags = {
        TAG + "kind": "suite",
        TAG + "suite": suite,
        TAG + "version": __version__,
        TAG + "n_failed": str(sum(run.failure is not None for run in runs)),
        NOTE: "Summary, tables, figures and report over all runs of the suite.",
    }

    def fill(mlflow_id: str) -> int:
        described = {"n_runs": len(runs), "seeds": sorted({run.spec.seed for run in runs})}
        _log(client, mlflow_id, flatten(described), [])
        for path in files:
            inside = path.relative_to(folder).parent.as_posix()
            client.log_artifact(mlflow_id, str(path), None if inside == "." else inside)
        return last

    name = f"suite {suite}"
    return _Entry(name, name, digest(hashes, 16), last, tags, fill)


def _mark_stale(
    client: MlflowClient, known: Mapping[str, list[Run]], exported: Mapping[str, Any]
) -> None:
    for name in sorted(set(known) - set(exported)):
        for found in known[name]:
            if TAG + "stale" not in found.data.tags:
                client.set_tag(found.info.run_id, TAG + "stale", "true")


def _save_views(
    client: MlflowClient, experiment: str, settings: Sequence[Setting]
) -> dict[str, str]:
    """Save the views of the experiment's page and remove earlier ones; return them by title."""
    tags = client.get_experiment(experiment).tags
    views = list(saved_views(settings))
    for key in sorted(tags.keys() - {key for _, key, _ in views}):
        if key.startswith(OWN):
            client.delete_experiment_tag(experiment, key)
    for _, key, value in views:
        if tags.get(key) != value:
            client.set_experiment_tag(experiment, key, value)
    return {title: key.removeprefix(PREFIX) for title, key, _ in views}
