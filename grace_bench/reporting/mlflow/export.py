"""Copies a suite's runs to MLflow; a repeated call changes only what has changed.

    track(run_folders, Path("results/smoke"))                     # results/smoke/mlflow.db
    track(run_folders, Path("results/smoke"), "http://host:5000")

A suite is an MLflow experiment with one MLflow run per run, and one called "suite <name>" with the
summary, tables and figures. Editing jobs never talk to MLflow; this is the only writer, so parallel
jobs cannot race for a database, and the database can be made again from the files.

Only this module imports mlflow. It uses MlflowClient and explicit run ids, never the fluent
functions, whose active run and experiment are global.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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
    run_inputs,
    run_metrics,
    run_params,
    run_tags,
    short_names,
    started_ms,
)
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

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # MLflow's defaults wait for minutes for a server that is not there.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    # Nobody here uses the server's job queue, which would start several more processes.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}

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
        exported: dict[str, Any] = {}
        titles = short_names(runs)
        for run in runs:
            files = _run_artifacts(run)
            entry = _Entry(
                run.id,
                titles[run.id],
                run.files_hash,
                started_ms(run),
                run_tags(run),
                lambda mlflow_id, run=run, files=files: _fill(client, mlflow_id, run, files),
                "FINISHED" if run.failure is None else "FAILED",
            )
            exported[run.id] = _ensure(client, experiment_id, known, entry)
        entry = _suite_entry(client, runs, summary_folder)
        exported[entry.name] = _ensure(client, experiment_id, known, entry)
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


def ui(tracking_uri: str, host: str = "127.0.0.1", port: int = 5000) -> int:
    """Run MLflow's web interface until it is interrupted, and return its exit code.

    Raises:
        DataError: the URI is a server's, which has its own interface, or a SQLite file's that does
            not exist; or the port is taken.
    """
    command = ui_command(tracking_uri, host, port)
    _check_port(host, port)
    server: subprocess.Popen[bytes] | None = None
    requests: list[object] = []

    def stop(*request: object) -> None:
        requests.extend(request)
        with suppress(ProcessLookupError):
            if server is not None:
                os.killpg(server.pid, signal.SIGTERM)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        # In its own session: MLflow starts further processes, which must all end with this one.
        server = subprocess.Popen(command, env=ui_environment(), start_new_session=True)
        if requests:  # a signal arrived while the server was being started
            stop()
        return max(0, server.wait())
    finally:
        stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_port(host: str, port: int) -> None:
    if not 0 < port < 2**16:
        raise DataError(f"--port {port}: must be between 1 and 65535.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise DataError(
                f"{host}:{port}: cannot be used ({error.strerror}); choose another port with "
                "--port."
            ) from error


def ui_command(tracking_uri: str, host: str = "127.0.0.1", port: int = 5000) -> list[str]:
    """Return the command that serves a tracking database to one user, with one worker."""
    if tracking_uri.startswith(("http://", "https://")):
        raise DataError(f"{tracking_uri}: is a server already; open it in a browser.")
    if tracking_uri.startswith("sqlite:///"):
        path = Path(tracking_uri.removeprefix("sqlite:///"))
        if not path.is_file():
            raise DataError(f"{path}: no such file; run the suite first, or `grace-bench track`.")
        follow(tracking_uri)
    options = ["--backend-store-uri", tracking_uri, "--host", host, "--port", str(port)]
    return [sys.executable, "-m", "mlflow", "ui", *options, "--workers", "1"]


def ui_environment() -> dict[str, str]:
    """Return the environment of the web interface: no telemetry, no further processes."""
    return {**os.environ, **_QUIET}


def _client(uri: str) -> MlflowClient:
    for key, value in _QUIET.items():
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
