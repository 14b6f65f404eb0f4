"""A run of a suite as an edited model, as it was after any of its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from grace_bench.codebook.file import load_codebook
from grace_bench.codebook.journal import rewind
from grace_bench.datasets.base import load_evaluated, load_role, read_manifest
from grace_bench.editors.base import STATE_FILE
from grace_bench.errors import DataError
from grace_bench.library.edited_model import EditedModel
from grace_bench.library.records import Receipt
from grace_bench.library.saving import JOURNAL_FILE
from grace_bench.models.device import set_up
from grace_bench.models.loading import LoadedModel, load_model
from grace_bench.steps.precompute import check_assets
from grace_bench.store.files import read_parquet, sha256_of
from grace_bench.store.json_records import read_record
from grace_bench.store.records import RUN, RunRecord
from grace_bench.store.schemas import JOURNAL, STEPS
from grace_bench.store.tensors import read_tensors, reading
from grace_bench.suite.plan import Run
from grace_bench.suite.schema import RunSpec
from grace_bench.suite.section import validate
from grace_bench.tasks import create_task


def load_run(folder: Path | str, step: int | None = None) -> EditedModel:
    """Return the edited model of a run as it was after a step, with its edits until then.

    - A codebook is taken back to the step by the run's journal, bit for bit, in no time.
    - Weights after the last step are read from the run's folder.
    - Weights after an earlier step, and any state of a failed run, come from making the run's edits
      again, which takes their time. On the machine of the run they are the same bit for bit.

    The settings of the run's `compute` are used, threads and device included, for this process.

    Args:
        folder: of the run, in a results folder that has its data set and base model.
        step: of the edit stream, from 1; 0: before the first; None: the last one.

    Raises:
        DataError: the run has no such step, or its folder or inputs are damaged or moved.
        ModelError: the base model is missing or another one.
    """
    folder = Path(folder)
    record = read_record(folder / RUN, RunRecord)
    spec = validate(RunSpec, record.spec.model_dump(mode="json"), f"{folder / RUN}: spec")
    run = _find_run(folder, spec)
    steps = _read(folder, record, "steps.parquet", STEPS).to_pylist()
    last = len(steps) if step is None else step
    if not 0 <= last <= len(steps):
        raise DataError(f"{folder}: has no step {step}; its steps are 1 to {len(steps)}.")
    loaded = load_model(run.model_folder, spec.dataset.task, set_up(spec.compute))
    assets = run.assets_folder and check_assets(run.assets_folder, loaded.sha256).files
    made_of = read_manifest(run.dataset_folder).data_hash, loaded.sha256, assets
    if made_of != (record.data_hash, record.model_hash, record.assets and record.assets.files):
        raise DataError(
            f"{folder}: its data set, base model or assets were made again since; run the edit "
            "step again."
        )
    edited = _unedited(run, loaded)
    rows = {row["example_id"]: row for row in load_role(run.dataset_folder, "edits")}
    receipts = [_receipt(one, rows[one["example_id"]]) for one in steps[:last] if one["edited"]]
    complete = record.status == "complete"
    if complete and "codebook.safetensors" in record.files and _has_journal(record, steps):
        _load_codebook(edited, folder, record, last)
    elif complete and last == len(steps) and STATE_FILE in record.files:
        with reading(folder / STATE_FILE, "editor's state"):
            _, tensors = read_tensors(folder / STATE_FILE, "grace_bench.editor", None)
        edited.editor.load_state_dict(tensors)
    else:
        edited._make_again(receipts)
    edited.receipts = receipts
    edited.next_number = last + 1
    return edited


def _find_run(folder: Path, spec: RunSpec) -> Run:
    """Return the run with the results folder that it lies in."""
    place = folder.resolve()
    depth = len(Run(spec).folder.parts) - 2  # below the results folder
    run = Run(spec, place.parents[depth]) if depth < len(place.parents) else Run(spec)
    if run.folder != place:
        raise DataError(
            f"{folder}: lies outside its results folder, so its data set and base model are not "
            f"found; put it back to <results>/{Run(spec, Path('.')).folder}."
        )
    return run


def _unedited(run: Run, loaded: LoadedModel) -> EditedModel:
    spec = run.spec
    task = create_task(
        *(spec.dataset, spec.model, loaded.tokenizer, loaded.model.config),
        load_evaluated(run.dataset_folder),
    )
    return EditedModel(
        *(loaded.model, loaded.tokenizer, spec.editor.editor),
        layer=spec.model.layer,
        assets=run.assets_folder,
        task=task,
        seed=spec.seed,
        compute=spec.compute,
        **spec.editor.hyperparameters,
    )


def _receipt(step: Mapping[str, Any], example: Mapping[str, Any]) -> Receipt:
    losses = (step["loss_first"], step["loss_last"])
    return Receipt(
        number=step["step"],
        prompt=example["text"],
        answer=example["label"],
        subject=example["subject"],
        branch=step["branch"],
        key=step["key"],
        nearest_key=step["nearest_key"],
        distance=step["distance"],
        losses=tuple(loss for loss in losses if loss is not None),
        seconds=step["edit_seconds"],
        example_id=step["example_id"],
    )


def _has_journal(record: RunRecord, steps: Sequence[Mapping[str, Any]]) -> bool:
    return JOURNAL_FILE in record.files or not any(step["edited"] for step in steps)


def _load_codebook(edited: EditedModel, folder: Path, record: RunRecord, step: int) -> None:
    codebook = load_codebook(folder / "codebook.safetensors", model=record.model_hash)
    journal = []
    if JOURNAL_FILE in record.files:
        journal = _read(folder, record, JOURNAL_FILE, JOURNAL).to_pylist()
    with reading(folder / JOURNAL_FILE, "journal"):
        rewind(codebook, journal, step)
    edited.editor.codebook = codebook
    edited.journal = [row for row in journal if row["step"] <= step]


def _read(folder: Path, record: RunRecord, name: str, schema: pa.Schema) -> pa.Table:
    table = read_parquet(folder / name, schema)
    if sha256_of(folder / name) != record.files.get(name):
        raise DataError(
            f"{folder / name}: is not the file that run.json lists; run the edit step again."
        )
    return table
