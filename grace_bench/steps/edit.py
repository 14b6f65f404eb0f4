"""One run from its inputs to its folder: interrupted or not, failed or not.

    record = run_stream(spec, RunFolders(data, model, baseline, output))

During the run its checkpoints lie in the output folder. At the end all results are written there,
`run.json` last: a folder that has one is complete. An editor that raises, diverges or runs out of
memory ends its run, not the suite: the record says so, and the steps before it are kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from grace_bench.datasets.base import load_evaluated, load_role, read_manifest
from grace_bench.editors import create_editor
from grace_bench.errors import DataError, Diverged, EditorError, GraceBenchError
from grace_bench.jobs.checkpoints import Checkpoints
from grace_bench.jobs.lease import Lease
from grace_bench.jobs.refusals import kept
from grace_bench.jobs.resumable import CheckpointPolicy, ResumableLoop
from grace_bench.models.device import is_out_of_memory, resolve_device, set_up
from grace_bench.models.loading import LoadedModel, load_model
from grace_bench.run.stream import StreamRun, load_probed_roles, select_stream
from grace_bench.steps.baseline import load_baseline
from grace_bench.steps.precompute import check_assets
from grace_bench.store import provenance
from grace_bench.store.files import hash_of_rows, read_parquet, sha256_of, write_parquet
from grace_bench.store.json_records import read_record, write_record
from grace_bench.store.records import (
    ASSETS,
    RUN,
    TRAINING,
    AssetsRecord,
    FailureRecord,
    RunRecord,
    TrainingRecord,
)
from grace_bench.store.schemas import JOURNAL, LATENCY, PROBES, STEPS, predictions_schema
from grace_bench.suite.plan import Run, content_hash, origins
from grace_bench.suite.schema import RunSpec
from grace_bench.tasks import create_task

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"

STATE_VERSION = 3
"""Version of the state that `StreamRun` writes into checkpoints."""


def do_run(
    run: Run, policy: CheckpointPolicy = CheckpointPolicy(), loaded: LoadedModel | None = None
) -> RunRecord:
    """Do one run under its lease; if another process is doing it, wait and return its result."""
    with Lease(run.folder) as lease:
        if lease.waited and (found := finished_record(run, run.folder)) is not None:
            logger.info("%s was done by the other process.", run.id)
            return found
        with kept(run.folder, run.content_hash):
            return run_stream(run.spec, RunFolders.of(run), policy, lease, loaded)


def finished_record(run: Run, folder: Path) -> RunRecord | None:
    """Return the record in `folder` if it is intact and of this run with its current inputs."""
    try:
        record = read_record(folder / RUN, RunRecord)
        assets = run.assets_folder and read_record(run.assets_folder / ASSETS, AssetsRecord).files
        of = fingerprint(
            run.spec,
            read_manifest(run.dataset_folder).data_hash,
            read_record(run.model_folder / TRAINING, TrainingRecord).sha256,
            assets,
        )
        same = record.fingerprint == of and all(
            sha256_of(folder / name) == expected for name, expected in record.files.items()
        )
    except (GraceBenchError, OSError, ValueError):
        return None  # missing or damaged: the run is done again
    return record if same else None


@dataclass(frozen=True)
class RunFolders:
    """Where a run's inputs are and its results go.

    Args:
        data: of the prepared data set.
        model: of the base model.
        baseline: of the unedited model's predictions.
        output: of the run.
        assets: of what the editor needs before the run; None: it needs nothing.
    """

    data: Path
    model: Path
    baseline: Path
    output: Path
    assets: Path | None = None

    @classmethod
    def of(cls, run: Run) -> RunFolders:
        """Return the folders of a run of a suite."""
        inputs = run.dataset_folder, run.model_folder, run.baseline_folder
        return cls(*inputs, run.folder, run.assets_folder)


class PreparedRun:
    """A run with its inputs loaded and checked, before its first step.

    Args:
        spec: the run.
        folders: its inputs.
        loaded: the base model, if it is already in memory.

    Raises:
        GraceBenchError: the inputs do not fit the run.
    """

    def __init__(self, spec: RunSpec, folders: RunFolders, loaded: LoadedModel | None) -> None:
        self.device = set_up(spec.compute)
        self.manifest = read_manifest(folders.data)
        roles = load_probed_roles(folders.data, spec.probes)
        self.stream = select_stream(list(load_role(folders.data, "edits")), spec.stream, spec.seed)
        if not self.stream:
            raise DataError(f"{folders.data}: the edit stream is empty; prepare it again.")
        loaded = loaded or load_model(folders.model, spec.dataset.task, self.device)
        self.model_hash = loaded.sha256
        self.baseline = load_baseline(folders.baseline, self.manifest.data_hash, loaded.sha256)
        task = create_task(
            *(spec.dataset, spec.model, loaded.tokenizer, loaded.model.config),
            load_evaluated(folders.data),
        )
        self.editor = create_editor(
            spec.editor.editor,
            loaded.model,
            spec.model.layer,
            spec.editor.hyperparameters,
            torch.Generator().manual_seed(spec.seed),
            spec.compute.engine,
        )
        self.assets = None
        if folders.assets is not None:
            self.assets = check_assets(folders.assets, loaded.sha256)
            self.editor.use_assets(folders.assets)
        self.run = StreamRun(spec, task, self.editor, roles)
        files = self.assets and self.assets.files
        self.fingerprint = fingerprint(spec, self.manifest.data_hash, loaded.sha256, files)


def run_stream(
    spec: RunSpec,
    folders: RunFolders,
    policy: CheckpointPolicy = CheckpointPolicy(),
    lease: Lease | None = None,
    loaded: LoadedModel | None = None,
) -> RunRecord:
    """Do one run and write its folder; return the content of `run.json`.

    Args:
        spec: the run.
        folders: where its inputs are and its results go.
        policy: when to write checkpoints.
        lease: on the output folder; the run reports its progress there.
        loaded: the base model, if it is already in memory; restored afterwards unless the run
            fails.

    Raises:
        GraceBenchError: the inputs do not fit the run, or the results cannot be written.
        Interrupted: it was asked to stop; called again, the run resumes after its last step.
    """
    began = datetime.now(UTC)
    made_from, sources = content_hash(spec), origins(spec)  # before any of it can change
    started = time.perf_counter()
    prepared = PreparedRun(spec, folders, loaded)
    run, stream, output = prepared.run, prepared.stream, folders.output
    checkpoints = Checkpoints(output / CHECKPOINTS, prepared.fingerprint)
    loop = ResumableLoop(run, checkpoints, policy, len(stream), "the run", started)
    loop.restore(stream)
    loading_seconds = time.perf_counter() - started
    run.start(prepared.baseline, stream)
    failure = _run_steps(run, stream, loop, lease)
    files = write_run(run, output, prepared.model_hash, failure is None)
    record = RunRecord(
        **describe_run(spec, prepared, failure),
        content_hash=made_from,
        restarts=loop.restarts,
        seconds={
            "load": loading_seconds,
            **run.watch.seconds,
            **summarise_seconds(run),
            "checkpoints": loop.checkpoint_seconds,
            "total": loop.seconds,
        },
        files=files,
        rows=hashes_of_rows(output, files),
        provenance=_provenance(prepared.device, sources, began),
    )
    if lease is not None:
        lease.check()
    write_record(output / RUN, record)
    checkpoints.remove()
    if failure is None:
        prepared.editor.remove()
    logger.info("%s: %s", "done" if failure is None else "failed", record.id)
    return record


def _provenance(
    device: torch.device, sources: Mapping[str, Any], began: datetime
) -> dict[str, Any]:
    return {
        **provenance.describe(),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "origins": sources,
        "started": began.isoformat(timespec="seconds"),
    }


def _run_steps(
    run: StreamRun, stream: Sequence[Mapping[str, Any]], loop: ResumableLoop, lease: Lease | None
) -> FailureRecord | None:
    """Make all remaining steps; return how the run failed, or None."""
    report = _progress_reporter(run, loop, lease)
    with loop.guard() as after_step:

        def after_each() -> None:
            report()
            if lease is not None:
                lease.check()
            after_step()

        report()
        try:
            run.run(stream, after_each)
        except Exception as error:
            if not is_of_the_editor(error):
                raise
            logger.exception("the run failed at step %d", run.done + 1)
            return describe_failure(error, run.done + 1, stream)
    if not run.edited:
        logger.warning(
            "no edit was made: the model was right on all %d examples of the stream; use a longer "
            "or harder stream, or edit: all.",
            len(stream),
        )
    return None


def _progress_reporter(
    run: StreamRun, loop: ResumableLoop, lease: Lease | None
) -> Callable[[], None]:
    """Return the function that writes the run's progress into its lease."""
    first, began = run.done, time.perf_counter()

    def report() -> None:
        if lease is None:
            return
        made = run.done - first
        per_step = (time.perf_counter() - began) / made if made else None
        lease.report(
            state="running",
            step=run.done,
            steps=loop.steps,
            edits=len(run.edited),
            seconds_left=None if per_step is None else round(per_step * (loop.steps - run.done)),
            restarts=loop.restarts[-1] if loop.restarts else 0,
        )

    return report


def describe_run(
    spec: RunSpec, prepared: PreparedRun, failure: FailureRecord | None
) -> dict[str, Any]:
    """Return the part of a run's record that needs neither its files nor its times."""
    run, assets, device = prepared.run, prepared.assets, prepared.device
    on_gpu = device.type == "cuda"
    return {
        "format": "grace-bench run",
        "version": 1,
        "id": Run(spec).id,
        "variant": Run(spec).variant,
        "fingerprint": prepared.fingerprint,
        "spec": spec.model_dump(mode="json"),
        "status": "complete" if failure is None else "failed",
        "failure": failure,
        "counts": count(run),
        "peak_memory_mib": provenance.peak_memory_mib(),
        "evaluation_batch": run.evaluator.batch_size,
        "measure": run.task.main_measure,
        "data_hash": prepared.manifest.data_hash,
        "model_hash": prepared.model_hash,
        "assets": assets and assets.as_used(),
        "peak_gpu_mib": torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else None,
    }


def fingerprint(
    spec: RunSpec, data_hash: str, model_hash: str, assets: Mapping[str, str] | None
) -> str:
    """Return the hash of everything that a run's course depends on, plug-in code included.

    Args:
        spec: the run.
        data_hash: of the data set's manifest.
        model_hash: of the base model's weights.
        assets: hashes of the files that the editor needs before the run.
    """
    parts = {
        "state": STATE_VERSION,
        "packages": provenance.package_versions(("torch", "transformers")),
        "run": content_hash(spec),
        "inputs": [data_hash, model_hash, assets],
        "device": [resolve_device(spec.compute.device).type, spec.compute.threads],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def is_of_the_editor(error: Exception) -> bool:
    """Return whether an error is the editor's rather than the user's or the machine's."""
    return isinstance(error, EditorError) or not isinstance(error, GraceBenchError | OSError)


def describe_failure(
    error: Exception, step: int, stream: Sequence[Mapping[str, Any]]
) -> FailureRecord:
    """Return the entry of a failed run's record."""
    kind = "out_of_memory" if is_out_of_memory(error) else "error"
    lines = str(error).strip().splitlines() or ["no message"]
    return FailureRecord(
        kind="diverged" if isinstance(error, Diverged) else kind,
        step=step,
        example_id=stream[step - 1]["example_id"],
        type=type(error).__name__,
        message=lines[0][:300],
    )


def count(run: StreamRun) -> dict[str, Any]:
    """Return the numbers of steps, edits, keys and edits per key."""
    n_keys, n_edits = run.editor.n_keys, len(run.edited)
    return {
        "steps": len(run.records.steps),
        "edits": n_edits,
        "keys": n_keys,
        "edits_per_key": n_edits / n_keys if n_keys else None,
    }


def summarise_seconds(run: StreamRun) -> dict[str, float | None]:
    """Return the mean, standard deviation and median of the seconds per edit."""
    edits = [r["edit_seconds"] for r in run.records.steps if r.get("edit_seconds") is not None]
    return {
        "per_edit_mean": statistics.fmean(edits) if edits else None,
        "per_edit_sd": statistics.stdev(edits) if len(edits) > 1 else None,
        "per_edit_median": statistics.median(edits) if edits else None,
    }


def write_run(run: StreamRun, output: Path, model_hash: str, complete: bool) -> dict[str, str]:
    """Write all files of a run except `run.json`; return their hashes.

    The state of a failed editor is undefined and is not written.
    """
    output.mkdir(parents=True, exist_ok=True)
    write_parquet(output / "steps.parquet", run.records.steps, STEPS)
    write_parquet(output / "probes.parquet", run.records.probes, PROBES)
    write_parquet(output / "predictions.parquet", run.records.predictions, predictions_schema())
    names = ["steps.parquet", "probes.parquet", "predictions.parquet"]
    if run.records.latency:
        write_parquet(output / "latency.parquet", run.records.latency, LATENCY)
        names.append("latency.parquet")
    if complete:
        if run.records.journal:
            write_parquet(output / "journal.parquet", run.records.journal, JOURNAL)
            names.append("journal.parquet")
        names += run.editor.save(output, model_hash)
    return {name: sha256_of(output / name) for name in names}


def hashes_of_rows(output: Path, files: Iterable[str]) -> dict[str, str]:
    """Return the hashes of the rows of a run's tables: equal for equal results."""
    tables = [name for name in files if name.endswith(".parquet")]
    return {name: hash_of_rows(read_parquet(output / name).to_pylist()) for name in tables}
