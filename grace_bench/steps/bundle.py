"""Several runs of one model on one data set in one process: the model is loaded once.

    record = run_bundle(runs)

Each run has its own folder, log, checkpoints and failure, and gives the same results as it would
alone. Finished runs are also kept, as links, in `<run folder>/kept/`: Snakemake removes outputs
before it makes them again, yet a bundle that was interrupted or extended must not repeat its
finished runs. To repeat a run, remove its folder.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grace_bench.errors import GraceBenchError, Interrupted, ResultError
from grace_bench.jobs.resumable import CheckpointPolicy
from grace_bench.models.device import set_up
from grace_bench.models.loading import LoadedModel, load_model
from grace_bench.steps.edit import do_run, finished_record
from grace_bench.store.files import describe_os_error
from grace_bench.store.records import RUN, RunRecord
from grace_bench.suite.plan import Run

logger = logging.getLogger(__name__)

KEPT = "kept"
LOG = "run.log"


def run_bundle(
    runs: Sequence[Run], policy: CheckpointPolicy = CheckpointPolicy()
) -> dict[str, Any]:
    """Do all unfinished runs, one after another; return the bundle's record.

    A misconfigured run (e.g. a wrong layer) does not stop the others.

    Args:
        runs: of one base model.
        policy: when a run writes checkpoints.

    Raises:
        GraceBenchError: the first error of a run, raised once the others are done.
        ResultError: the machine is in trouble; no further run was tried.
        Interrupted: it was asked to stop; called again, finished runs are kept.
    """
    started = time.perf_counter()
    loaded: LoadedModel | None = None
    done: list[str] = []
    problem: GraceBenchError | None = None
    spec = runs[0].spec
    for run in runs:
        if take_over(run):
            logger.info("%s is already done.", run.id)
            continue
        with logged(run.folder / LOG):
            try:
                if loaded is None:
                    loaded = load_model(run.model_folder, spec.dataset.task, set_up(spec.compute))
                record = do_run(run, policy, loaded)
            except (Interrupted, ResultError):
                raise
            except GraceBenchError as error:
                logger.error("error: %s", error)
                problem, loaded = problem or error, None
                continue
        if record.status != "complete":
            loaded = None  # the editor may have left it in any state
        done.append(run.id)
        link_files(run.folder, run.folder / KEPT, record)
    if problem is not None:
        raise problem
    return {
        "format": "grace-bench bundle",
        "version": 1,
        "runs": [run.id for run in runs],
        "done_now": done,
        "seconds": time.perf_counter() - started,
    }


def take_over(run: Run) -> bool:
    """Return whether a run is done, by this bundle or by a job of its own; restore its files.

    Snakemake removes a run's files before it takes them from the bundle again.
    """
    kept = run.folder / KEPT
    if (found := finished_record(run, kept)) is not None:
        link_files(kept, run.folder, found)
    elif (found := finished_record(run, run.folder)) is not None:
        link_files(run.folder, kept, found)
    return found is not None


def link_files(source: Path, target: Path, record: RunRecord) -> None:
    """Link a finished run's files into another folder, `run.json` last."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in (*record.files, RUN):
            temporary = target / f".{name}.{uuid.uuid4().hex[:8]}.tmp"
            try:
                os.link(source / name, temporary)
            except OSError:  # some file systems lack links
                shutil.copy2(source / name, temporary)
            os.replace(temporary, target / name)
            temporary.unlink(missing_ok=True)  # two links to one file: nothing was renamed
    except OSError as error:
        raise ResultError(describe_os_error(target, error)) from error


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Also write the block's log messages to a run's own log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
