"""The steps of the workflow as functions; the command line calls nothing else.

Heavy packages are imported inside the steps that need them, so that planning stays fast.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from grace_bench.errors import ConfigError
from grace_bench.jobs.lease import Lease
from grace_bench.jobs.refusals import kept
from grace_bench.jobs.resumable import CheckpointPolicy
from grace_bench.steps.single import result_there
from grace_bench.store.files import write_json
from grace_bench.store.records import RunRecord
from grace_bench.suite.outdated import (
    assets_made_from,
    baseline_made_from,
    check_parts,
    data_made_from,
    model_made_from,
    parts_of,
)
from grace_bench.suite.plan import Run, find_builder, with_asset_settings

logger = logging.getLogger(__name__)


def prepare_dataset(run: Run) -> None:
    """Write the roles and the manifest of a run's data set."""
    from grace_bench.datasets.base import prepare

    dataset = run.spec.dataset
    made_from = data_made_from(dataset)
    with kept(run.dataset_folder, made_from):
        prepare(
            find_builder(dataset),
            run.dataset_folder,
            task=dataset.task,
            config=dataset.model_dump(mode="json"),
            made_from=made_from,
        )


def prepare_model(run: Run) -> None:
    """Build or load, train and save the base model of a run."""
    from grace_bench.steps.model import prepare_model as prepare

    check_parts(run, "data set")
    spec, made_from = run.spec, model_made_from(run.spec)
    with Lease(run.model_folder) as lease:
        if lease.waited and _is_made(run, "model"):
            logger.info("model %s was made by the other process.", spec.model.name)
            return
        folders = run.dataset_folder, run.model_folder
        with kept(run.model_folder, made_from):
            prepare(spec.model, spec.dataset, *folders, spec.compute, made_from)


def baseline(run: Run) -> None:
    """Predict every role with the unedited model of a run."""
    from grace_bench.steps.baseline import run_baseline

    check_parts(run, "data set", "model")
    folders = run.dataset_folder, run.model_folder, run.baseline_folder
    run_baseline(run.spec, *folders, baseline_made_from(run.spec))


def prepare_editor(run: Run, policy: CheckpointPolicy = CheckpointPolicy()) -> None:
    """Make what the editor of a run needs before its first edit."""
    from grace_bench.steps.precompute import make_assets

    spec, editor = run.spec, run.spec.editor
    if run.assets_folder is None:
        raise ConfigError(f"editor '{editor.editor}' needs nothing before a run.")
    check_parts(run, "data set", "model")
    made_from = assets_made_from(spec)
    with Lease(run.assets_folder) as lease:
        if lease.waited and _is_made(run, "assets"):
            logger.info("the assets of %s were made by the other process.", editor.name)
            return
        folders = run.dataset_folder, run.model_folder, run.assets_folder
        with kept(run.assets_folder, made_from):
            make_assets(with_asset_settings(spec), *folders, made_from, policy)


def _is_made(run: Run, kind: str) -> bool:
    return next(part for part in parts_of(run) if part.kind == kind).is_current()


def edit(
    run: Run, policy: CheckpointPolicy = CheckpointPolicy(), prepare_missing: bool = False
) -> RunRecord:
    """Do one run; if another process is doing it, wait and return its result.

    Args:
        run: to do.
        policy: when to write checkpoints.
        prepare_missing: make its data set, model, baseline and assets first where needed.

    Raises:
        ConfigError: with `prepare_missing`, what exists was made with other settings.
    """
    from grace_bench.steps.edit import do_run

    if prepare_missing:
        if (found := result_there(run)) is not None:
            return found
        ensure_prepared(run, policy)
    check_parts(run, "data set", "model", "baseline", "assets")
    return do_run(run, policy)


def edit_bundle(
    runs: Sequence[Run], output: Path, policy: CheckpointPolicy = CheckpointPolicy()
) -> None:
    """Do several runs of one base model in this process, and list them in `output`."""
    from grace_bench.steps.bundle import run_bundle

    for run in runs:
        check_parts(run, "data set", "model", "baseline", "assets")
    write_json(output, run_bundle(runs, policy))


def ensure_prepared(run: Run, policy: CheckpointPolicy) -> None:
    """Make what a run depends on, where it is missing or was made from something else."""
    makers: dict[str, Callable[[], None]] = {
        "data set": lambda: prepare_dataset(run),
        "model": lambda: prepare_model(run),
        "baseline": lambda: baseline(run),
        "assets": lambda: prepare_editor(run, policy),
    }
    again: set[str] = set()
    for part in parts_of(run):
        upstream = {"data set", "model"} & again
        if upstream or not part.is_current():
            logger.info("preparing %s %s", part.kind, part.record.parent)
            makers[part.kind]()
            again.add(part.kind)
