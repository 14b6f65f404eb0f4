"""One run from its inputs to its folder, interrupted or not, failed or not.

    record = run_stream(spec, data_folder, model_folder, baseline_folder, output)

While the run lasts, checkpoints stand in `output`; at the end all that happened is written there,
`run.json` last: a folder with one is whole. An editor that raises, diverges or runs out of memory
ends its run, not the suite: the record says so, and the steps before it are kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import statistics
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch

from grace_bench.datasets.base import load_evaluated, load_role, read_manifest
from grace_bench.editors import create_editor
from grace_bench.errors import (
    DataError,
    Diverged,
    EditorError,
    GraceBenchError,
    Interrupted,
    ResultError,
)
from grace_bench.jobs.checkpoints import Checkpoints, stop_requests
from grace_bench.jobs.lease import Lease
from grace_bench.jobs.refusals import kept
from grace_bench.models.device import is_out_of_memory, resolve_device, set_up
from grace_bench.models.loading import load_model
from grace_bench.run.stream import StreamRun, load_probed_roles, select_stream
from grace_bench.steps.baseline import load_baseline
from grace_bench.steps.precompute import check_assets
from grace_bench.store import provenance
from grace_bench.store.files import (
    hash_of_rows,
    read_json,
    read_parquet,
    sha256_of,
    write_json,
    write_parquet,
)
from grace_bench.store.schemas import LATENCY, PREDICTIONS, PROBES, STEPS
from grace_bench.suite.plan import Run, content_hash, origins
from grace_bench.suite.schema import CHECKPOINT_MINUTES
from grace_bench.tasks import create_task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from grace_bench.models.loading import LoadedModel
    from grace_bench.suite.schema import RunSpec

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"

STATE_VERSION = 2
"""Of what `StreamRun.checkpoint` holds."""

LARGEST_SHARE = 0.02
"""Of a run's time that checkpoints may take."""


@dataclass(frozen=True)
class Saving:
    """How often a run writes a checkpoint.

    Args:
        minutes: between two; more where writing one takes so long that it would cost more than
            `LARGEST_SHARE` of the run. 0: only when the run is asked to stop.
        steps: at most so many between two, whatever it costs; None: no matter how many.
    """

    minutes: float = CHECKPOINT_MINUTES
    steps: int | None = None


def do_run(
    run: Run,
    saving: Saving | None = None,
    loaded: LoadedModel | None = None,
) -> dict[str, Any]:
    """Do one run under its lease; if another process is doing it, wait, and take its result."""
    with Lease(run.folder) as lease:
        if lease.waited and (found := finished_record(run, run.folder)) is not None:
            logger.info("%s was done by the other process.", run.id)
            return found
        with kept(run.folder, run.content_hash):
            return run_stream(
                run.spec,
                run.dataset_folder,
                run.model_folder,
                run.baseline_folder,
                run.folder,
                run.assets_folder,
                saving or Saving(),
                lease,
                loaded,
            )


def finished_record(run: Run, folder: Path) -> dict[str, Any] | None:
    """Return the record in `folder`, if it is this run's, with these inputs, and whole."""
    if not (folder / "run.json").is_file():
        return None
    try:
        record = read_json(folder / "run.json")
        assets = run.assets_folder and read_json(run.assets_folder / "assets.json")["files"]
        of = fingerprint(
            run.spec,
            read_json(run.dataset_folder / "manifest.json")["data_hash"],
            read_json(run.model_folder / "training.json")["sha256"],
            assets,
        )
        same = record["fingerprint"] == of and all(
            sha256_of(folder / name) == expected for name, expected in record["files"].items()
        )
    except (GraceBenchError, OSError, LookupError, TypeError, AttributeError):
        return None  # not whole: it is done again
    return record if same else None


def run_stream(
    spec: RunSpec,
    data_folder: Path,
    model_folder: Path,
    baseline_folder: Path,
    output: Path,
    assets_folder: Path | None = None,
    saving: Saving = Saving(),
    lease: Lease | None = None,
    loaded: LoadedModel | None = None,
) -> dict[str, Any]:
    """Do one run and write its folder; return the content of `run.json`.

    Args:
        spec: the run.
        data_folder: of the prepared data set.
        model_folder: of the base model.
        baseline_folder: of the unedited predictions.
        output: the run's folder.
        assets_folder: of what the editor needs before the run, if it needs anything.
        saving: how often there is a checkpoint.
        lease: on the folder; is told how far the run is.
        loaded: the base model, where it is in memory already; unless the run fails, it is given
            back as it was.

    Raises:
        GraceBenchError: the inputs do not fit the run, or the results cannot be written.
        Interrupted: it was asked to stop; called again, the run goes on after the step it was at.
    """
    started, began = time.perf_counter(), datetime.now(UTC)
    made_from, sources = content_hash(spec), origins(spec)  # before anything of it can change
    device = set_up(spec.compute)
    manifest = read_manifest(data_folder)
    roles = load_probed_roles(data_folder, spec.probes)
    stream = select_stream(list(load_role(data_folder, "edits")), spec.stream, spec.seed)
    if not stream:
        raise DataError(f"{data_folder}: the edit stream is empty; prepare the data set again.")
    loaded = loaded or load_model(model_folder, spec.dataset.task, device)
    baseline = load_baseline(baseline_folder, manifest["data_hash"], loaded.sha256)
    task = create_task(
        *(spec.dataset, spec.model, loaded.tokenizer, loaded.model.config),
        load_evaluated(data_folder),
    )
    editor = create_editor(
        spec.editor.editor,
        loaded.model,
        spec.model.layer,
        spec.editor.hyperparameters,
        torch.Generator().manual_seed(spec.seed),
        spec.compute.engine,
    )
    assets = None
    if assets_folder is not None:
        assets = check_assets(assets_folder, loaded.sha256)
        editor.use_assets(assets_folder)
    run = StreamRun(spec, task, editor, roles)
    of = fingerprint(spec, manifest["data_hash"], loaded.sha256, assets and assets["files"])
    checkpoints = Checkpoints(output / CHECKPOINTS, of)
    keeper = Keeper(run, checkpoints, saving, lease, len(stream), started)
    keeper.go_back(stream)
    loading_seconds = time.perf_counter() - started
    run.start(baseline, stream)
    failure = keeper.go(stream)
    if failure is None and not run.edited:
        logger.warning(
            "no edit was made: the model was right on all %d examples of the stream; take a "
            "longer stream, a harder one, or edit: all.",
            len(stream),
        )
    files = write_run(run, output, loaded.sha256, failure is None)
    record = {
        "format": "grace-bench run",
        "version": 1,
        "id": Run(spec).id,
        "variant": Run(spec).variant,
        "content_hash": made_from,
        "fingerprint": of,
        "spec": spec.model_dump(mode="json"),
        "status": "complete" if failure is None else "failed",
        "failure": failure,
        "restarts": keeper.restarts,
        "counts": count(run),
        "seconds": {
            "load": loading_seconds,
            **run.watch.seconds,
            **summarise_seconds(run),
            "checkpoints": keeper.seconds,
            "total": keeper.seconds_before + time.perf_counter() - started,
        },
        "peak_memory_mib": provenance.peak_memory_mib(),
        "evaluation_batch": run.evaluator.batch_size,
        "measure": task.main_measure,
        "data_hash": manifest["data_hash"],
        "model_hash": loaded.sha256,
        "assets": assets and {key: assets[key] for key in ("told", "files", "seconds")},
        "files": files,
        "rows": hashes_of_rows(output, files),
        "provenance": {
            **provenance.describe(),
            "origins": sources,
            "device": device.type,
            "threads": torch.get_num_threads(),
            "started": began.isoformat(timespec="seconds"),
        },
    }
    if device.type == "cuda":
        record["peak_gpu_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    if lease is not None:
        lease.check()
    write_json(output / "run.json", record)
    checkpoints.remove()
    if failure is None:
        editor.remove()
    logger.info("%s: %s", "done" if failure is None else "failed", record["id"])
    return record


class Keeper:
    """Keeps a run safe while it goes: its lease, its checkpoints, its failure.

    Args:
        run: with its editor as it was made.
        checkpoints: of this run.
        saving: how often one is written.
        lease: on the run's folder.
        n_steps: of the stream.
        started: when this process began with the run, by `time.perf_counter`.

    Attributes:
        restarts: the steps of the checkpoints that the run went on from.
        seconds: that all checkpoints took.
        seconds_before: that the run took in processes before this one.
    """

    def __init__(
        self,
        run: StreamRun,
        checkpoints: Checkpoints,
        saving: Saving,
        lease: Lease | None,
        n_steps: int,
        started: float,
    ) -> None:
        self.run = run
        self.checkpoints = checkpoints
        self.saving = saving
        self.lease = lease
        self.n_steps = n_steps
        self.restarts: list[int] = []
        self.seconds = 0.0
        self.seconds_before = 0.0
        self._started = started
        self._written = self._went = time.perf_counter()
        self._written_at = self._first = 0
        self._last_cost = 0.0

    def go_back(self, stream: Sequence[Mapping[str, Any]]) -> None:
        """Let the run go on from its newest checkpoint, if there is one."""
        found = self.checkpoints.latest()
        if found is None:
            return
        with self.checkpoints.taking_over(found):
            self.run.restore(found, stream)
            own = found.state["keeper"]
            self.restarts = [*own["restarts"], self.run.done]
            self.seconds, self.seconds_before = own["seconds"], own["total"]
        self._written_at = self._first = self.run.done
        logger.info("going on from the checkpoint of step %d", self.run.done)

    def go(self, stream: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        """Run to the end; return how the run failed, or None."""
        self._went = self._written = time.perf_counter()
        with stop_requests() as stop_requested:
            self._tell()
            try:
                self.run.run(stream, lambda: self._after_step(stop_requested))
            except Exception as error:
                if not is_of_the_editor(error):
                    raise
                logger.exception("the run failed at step %d", self.run.done + 1)
                return describe_failure(error, self.run.done + 1, stream)
        return None

    def write(self) -> None:
        """Write a checkpoint of the last step."""
        before = time.perf_counter()
        made = self.run.checkpoint()
        state = {
            **made.state,
            "keeper": {
                "restarts": self.restarts,
                "seconds": self.seconds,
                "total": self.seconds_before + before - self._started,
            },
        }
        self.checkpoints.write(made.number, made.tensors, state, made.records)
        self._written = time.perf_counter()
        self._written_at = self.run.done
        self._last_cost = self._written - before
        self.seconds += self._last_cost

    def _after_step(self, stop_requested: Callable[[], bool]) -> None:
        self._tell()
        if self.lease is not None:
            self.lease.check()
        if stop_requested():
            self.write()
            raise Interrupted(
                f"the run was asked to stop and did after step {self.run.done} of "
                f"{self.n_steps}; run the same command again and it goes on from there."
            )
        if not self.run.finished and self._is_due():
            try:
                self.write()
            except ResultError as error:
                logger.warning("no checkpoint at step %d, going on: %s", self.run.done, error)
                self._written, self._written_at = time.perf_counter(), self.run.done

    def _is_due(self) -> bool:
        saving = self.saving
        if saving.steps is not None and self.run.done - self._written_at >= saving.steps:
            return True
        pause = max(60 * saving.minutes, self._last_cost / LARGEST_SHARE)
        return saving.minutes > 0 and time.perf_counter() - self._written >= pause

    def _tell(self) -> None:
        if self.lease is None:
            return
        done, made = self.run.done, self.run.done - self._first
        seconds = time.perf_counter() - self._went
        self.lease.tell(
            state="running",
            step=done,
            steps=self.n_steps,
            edits=len(self.run.edited),
            seconds_left=round(seconds / made * (self.n_steps - done)) if made else None,
            restarts=self.restarts[-1] if self.restarts else 0,
        )


def fingerprint(
    spec: RunSpec, data_hash: str, model_hash: str, assets: Mapping[str, str] | None
) -> str:
    """Return the hash of all that a run's course depends on, its plug-ins' code included.

    Args:
        spec: the run.
        data_hash: of the data set's manifest.
        model_hash: of the base model's weights.
        assets: the hashes of what the editor needs before the run, by file.
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
    """Say whether an error is the editor's, and not the user's or the machine's."""
    return isinstance(error, EditorError) or not isinstance(error, GraceBenchError | OSError)


def describe_failure(
    error: Exception, step: int, stream: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return what a record says about a run that failed."""
    kind = "out_of_memory" if is_out_of_memory(error) else "error"
    lines = str(error).strip().splitlines() or ["no message"]
    return {
        "kind": "diverged" if isinstance(error, Diverged) else kind,
        "step": step,
        "example_id": stream[step - 1]["example_id"],
        "type": type(error).__name__,
        "message": lines[0][:300],
    }


def count(run: StreamRun) -> dict[str, Any]:
    """Return the run's counts: steps, edits, keys, edits per key."""
    n_keys, n_edits = run.editor.n_keys, len(run.edited)
    return {
        "steps": len(run.records.steps),
        "edits": n_edits,
        "keys": n_keys,
        "edits_per_key": n_edits / n_keys if n_keys else None,
    }


def summarise_seconds(run: StreamRun) -> dict[str, float | None]:
    """Return mean, sd and median of the seconds of an edit."""
    edits = [r["edit_seconds"] for r in run.records.steps if r.get("edit_seconds") is not None]
    return {
        "per_edit_mean": statistics.fmean(edits) if edits else None,
        "per_edit_sd": statistics.stdev(edits) if len(edits) > 1 else None,
        "per_edit_median": statistics.median(edits) if edits else None,
    }


def write_run(run: StreamRun, output: Path, model_hash: str, whole: bool) -> dict[str, str]:
    """Write all files of a run but `run.json`; return their hashes.

    What a failed editor holds may be anything, and is not written.
    """
    output.mkdir(parents=True, exist_ok=True)
    write_parquet(output / "steps.parquet", run.records.steps, STEPS)
    write_parquet(output / "probes.parquet", run.records.probes, PROBES)
    write_parquet(output / "predictions.parquet", run.records.predictions, PREDICTIONS)
    names = ["steps.parquet", "probes.parquet", "predictions.parquet"]
    if run.records.latency:
        write_parquet(output / "latency.parquet", run.records.latency, LATENCY)
        names.append("latency.parquet")
    if whole:
        names += run.editor.save(output, model_hash)
    return {name: sha256_of(output / name) for name in names}


def hashes_of_rows(output: Path, files: Iterable[str]) -> dict[str, str]:
    """Return the hashes of the rows of a run's tables: equal where results are."""
    tables = [name for name in files if name.endswith(".parquet")]
    return {name: hash_of_rows(read_parquet(output / name).to_pylist()) for name in tables}
