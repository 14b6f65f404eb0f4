"""Copies a suite's runs to MLflow; a repeated call changes only what has changed.

    track(run_folders, Path("results/smoke"))                     # results/smoke/mlflow.db
    track(run_folders, Path("results/smoke"), "http://host:5000")

A suite is an MLflow experiment. It has one MLflow run per run; as their parents, one per setting
(model, data set, editor, hyperparameters) with the means over its seeds; and one called
"suite <name>" with the summary, tables and figures. Editing jobs never talk to MLflow; this is the
only writer, so parallel jobs cannot race for a database, and it can be made again from the files.

Only this module imports mlflow. It uses MlflowClient and explicit run ids, never the fluent
functions, whose active run and experiment are global.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grace_bench import __version__
from grace_bench.errors import DataError, ResultError
from grace_bench.jobs.locks import exclusive
from grace_bench.reporting.mlflow.moved import ARTIFACTS, follow
from grace_bench.reporting.mlflow.records import (
    TAG,
    MlflowExport,
    flatten,
    mean_metrics,
    run_inputs,
    run_metrics,
    run_params,
    run_tags,
    setting_id,
    setting_params,
    setting_tags,
    short_names,
    started_ms,
)
from grace_bench.reporting.mlflow.ui import QUIET
from grace_bench.reporting.summary.run_folder import RunFolder, read_run_folders
from grace_bench.store.files import sha256_of
from grace_bench.store.json_records import read_record, write_record
from grace_bench.suite.plan import digest

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

DATABASE = "mlflow.db"
EXPORT = "mlflow-export.json"
LOCK = ".track.lock"
METRICS_A_CALL, PARAMS_A_CALL, TAGS_A_CALL = 1000, 100, 100  # limits of MLflow's server
SUITE_FILES = ("summary.parquet", "curves.parquet", "comparisons.parquet", "report.html")
SUITE_FOLDERS = ("tables", "figures", "paper-figures")

logger = logging.getLogger(__name__)


def track(
    run_folders: Path | Sequence[Path], summary_folder: Path, tracking_uri: str | None = None
) -> MlflowExport:
    """Bring MLflow in line with the runs of a suite.

    An MLflow run of unchanged files is left as it is, including notes; one whose files changed is
    deleted (MLflow keeps it in its bin) and made again; one that left the suite is tagged
    `grace_bench.stale`. A failed run has the status FAILED, the reason in its tags, and series up
    to the failure. Two calls for one folder take turns.

    Args:
        run_folders: folders of all runs of one suite, complete or failed, or the path of its
            plan.json.
        summary_folder: the suite's folder; its summary, tables and figures become artifacts.
        tracking_uri: default: $MLFLOW_TRACKING_URI, or a SQLite file in the folder.

    Returns:
        The content of mlflow-export.json in the suite's folder: where the runs are.

    Raises:
        DataError: a run is missing, damaged or of another suite.
        ResultError: the server or the database cannot be reached or written, or another process
            has been exporting this folder for a minute.
    """
    runs = read_run_folders(run_folders)
    with exclusive(Path(summary_folder) / LOCK, "exporting this folder to MLflow"):
        return _export(runs, Path(summary_folder), tracking_uri)


def _export(
    runs: Sequence[RunFolder], summary_folder: Path, tracking_uri: str | None
) -> MlflowExport:
    uri = tracking_uri_for(summary_folder, tracking_uri)
    suite = runs[0].spec.suite
    with _mlflow_errors(uri):
        follow(uri)
        client = _client(uri)
        experiment_id = _experiment(client, suite, uri, summary_folder)
        known = _known_runs(client, experiment_id)

        def ensure(entry: _Entry) -> dict[str, str]:
            return _ensure(client, experiment_id, known, entry)

        suite_entry = _suite_entry(client, runs, summary_folder)
        exported = {suite_entry.name: ensure(suite_entry)}
        whole = exported[suite_entry.name]["mlflow_run_id"]
        report = f"#/experiments/{experiment_id}/runs/{whole}/artifacts/report.html"
        titles = short_names(runs)
        for setting, seeds in _by_setting(runs).items():
            links = {TAG + "report": report}
            exported[setting] = ensure(_setting_entry(client, setting, titles, seeds, links))
            links["mlflow.parentRunId"] = exported[setting]["mlflow_run_id"]
            for run in seeds:
                exported[run.id] = ensure(_run_entry(client, titles[run.id], run, links))
        _mark_stale(client, known, exported)
    export = MlflowExport(
        tracking_uri=uri, experiment=suite, experiment_id=experiment_id, runs=exported
    )
    write_record(summary_folder / EXPORT, export)
    return export


def tracking_uri_for(summary_folder: Path, tracking_uri: str | None = None) -> str:
    """Return the given tracking URI, else $MLFLOW_TRACKING_URI, else the suite's SQLite file."""
    given = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    return given or f"sqlite:///{Path(summary_folder).resolve() / DATABASE}"


def experiment_of(summary_folder: Path) -> str | None:
    """Return the id of the MLflow experiment that a suite was exported to; None: not yet."""
    path = Path(summary_folder) / EXPORT
    return read_record(path, MlflowExport).experiment_id if path.is_file() else None


def _client(uri: str) -> MlflowClient:
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.tracking", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    from mlflow.tracking import MlflowClient

    # Importing MLflow turns alembic's messages on again.
    logging.getLogger("alembic").setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri)


@contextmanager
def _mlflow_errors(uri: str) -> Iterator[None]:
    """Turn errors of the tracking store, and on the way to it, into one sentence."""
    try:
        yield
    except (DataError, ResultError):
        raise
    except Exception as error:
        # The store behind a URI raises its own errors: MLflow's, SQLAlchemy's or an OS error.
        kinds = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
        if not (kinds & {"mlflow", "sqlalchemy", "requests"} or isinstance(error, OSError)):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ResultError(
            f"{uri}: cannot write to MLflow ({reason}); check that the address is right and that "
            "the server runs, or that the folder is writable."
        ) from error


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
    links: Mapping[str, str] = field(default_factory=dict)  # tags that a kept run gets, too


def _by_setting(runs: Sequence[RunFolder]) -> dict[str, list[RunFolder]]:
    found: dict[str, list[RunFolder]] = {}
    for run in runs:
        found.setdefault(setting_id(run), []).append(run)
    return found


def _run_entry(
    client: MlflowClient, title: str, run: RunFolder, links: Mapping[str, str]
) -> _Entry:
    files = _run_artifacts(run)
    return _Entry(
        run.id,
        title,
        run.files_hash,
        started_ms(run),
        run_tags(run),
        lambda mlflow_id: _fill(client, mlflow_id, run, files),
        "FINISHED" if run.failure is None else "FAILED",
        links,
    )


def _setting_entry(
    client: MlflowClient,
    name: str,
    titles: Mapping[str, str],
    seeds: Sequence[RunFolder],
    links: Mapping[str, str],
) -> _Entry:
    """Return the MLflow run with the means over a setting's seeds."""
    first = seeds[0]
    complete = [run for run in seeds if run.failure is None]

    def fill(mlflow_id: str) -> int:
        from mlflow.entities import Metric, Param

        params = [Param(*item) for item in sorted(setting_params(seeds).items())]
        for start in range(0, len(params), PARAMS_A_CALL):
            client.log_batch(mlflow_id, params=params[start : start + PARAMS_A_CALL])
        at = started_ms(first)
        metrics = [Metric(key, value, at, 0) for key, value in mean_metrics(complete).items()]
        client.log_batch(mlflow_id, metrics=metrics)
        return at

    return _Entry(
        name,
        titles[first.id].rpartition(", seed ")[0],
        digest([run.files_hash for run in seeds], 16),
        started_ms(first),
        setting_tags(seeds),
        fill,
        "FINISHED" if complete else "FAILED",
        links,
    )


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
        if TAG + "stale" in kept.data.tags:
            client.delete_tag(kept.info.run_id, TAG + "stale")
        if kept.info.run_name != entry.title:
            client.update_run(kept.info.run_id, name=entry.title)
        for key, value in entry.links.items():
            if kept.data.tags.get(key) != value:
                client.set_tag(kept.info.run_id, key, value)
        return {"mlflow_run_id": kept.info.run_id, "files_hash": entry.files_hash}
    made = client.create_run(
        experiment_id,
        start_time=entry.started_ms,
        run_name=entry.title,
        tags={
            **entry.tags,
            **entry.links,
            TAG + "run_id": entry.name,
            TAG + "files_hash": entry.files_hash,
        },
    )
    end = entry.fill(made.info.run_id)
    client.set_terminated(made.info.run_id, entry.status, end_time=end)
    logger.info("%s: tracked as %s", entry.name, made.info.run_id)
    return {"mlflow_run_id": made.info.run_id, "files_hash": entry.files_hash}


def _fill(client: MlflowClient, mlflow_id: str, run: RunFolder, files: Sequence[Path]) -> int:
    """Write parameters, metrics, data sets and files of a run; return when it ended."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

    params = [Param(key, value) for key, value in sorted(run_params(run).items())]
    for start in range(0, len(params), PARAMS_A_CALL):
        client.log_batch(mlflow_id, params=params[start : start + PARAMS_A_CALL])
    points, dropped = run_metrics(run)
    metrics = [Metric(*point) for point in points]
    for start in range(0, len(metrics), METRICS_A_CALL):
        client.log_batch(mlflow_id, metrics=metrics[start : start + METRICS_A_CALL])
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
    return started_ms(run) + round(1000 * float(run.record.seconds.get("total") or 0.0))


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
    """Return the MLflow run that holds the summary, tables and figures of all runs."""
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
        "mlflow.note.content": "Summary, tables and figures over all runs of the suite.",
    }

    def fill(mlflow_id: str) -> int:
        from mlflow.entities import Param

        described = {"n_runs": len(runs), "seeds": sorted({run.spec.seed for run in runs})}
        params = [Param(key, value) for key, value in flatten(described).items()]
        client.log_batch(mlflow_id, params=params)
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
