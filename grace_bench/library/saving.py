"""The folder of a saved edited model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from grace_bench.codebook.codebook import Codebook
from grace_bench.codebook.file import load_codebook
from grace_bench.editors.base import Editor
from grace_bench.editors.weight import WeightEditor
from grace_bench.errors import ModelError, ResultError
from grace_bench.library.records import RECORD, SavedModel
from grace_bench.models.architecture import hash_of_weights
from grace_bench.models.loading import load_pretrained
from grace_bench.registry import TASKS
from grace_bench.store.files import (
    as_os_error,
    describe_os_error,
    read_parquet,
    write_parquet,
)
from grace_bench.store.json_records import read_record, write_record
from grace_bench.store.schemas import JOURNAL
from grace_bench.store.tensors import read_tensors, reading, write_tensors
from grace_bench.suite.schema import PretrainedSource
from grace_bench.tasks.base import Task

STATE = "state.safetensors"
JOURNAL_FILE = "journal.parquet"
ENTRY = "grace_bench.edited_model"

State = tuple[dict[str, Tensor], dict[str, Any]]


def write(
    folder: Path,
    saved: SavedModel,
    editor: Editor,
    tokenizer: PreTrainedTokenizerBase,
    state: State,
    journal: Sequence[Mapping[str, Any]],
) -> None:
    """Write an edited model, its record last.

    Raises:
        ResultError: the folder cannot be written.
    """
    tensors, replay = state
    try:
        (folder / RECORD).unlink(missing_ok=True)
        write_tensors(folder / STATE, tensors, ENTRY, {"format": 1, "replay": replay})
        write_parquet(folder / JOURNAL_FILE, journal, JOURNAL)
        if isinstance(editor, WeightEditor):
            editor.model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        else:
            editor.save(folder, saved.base_hash)
    except (OSError, SafetensorError) as error:
        raise ResultError(describe_os_error(folder, as_os_error(error))) from error
    write_record(folder / RECORD, saved)


def read(
    folder: Path, model: nn.Module | None, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[SavedModel, nn.Module, PreTrainedTokenizerBase]:
    """Return a folder's record and the unedited model, which is loaded if it is not given.

    Raises:
        DataError: the folder has no record.
        ModelError: the model cannot be loaded, or is another one.
    """
    saved = read_record(folder / RECORD, SavedModel)
    if model is None or tokenizer is None:
        if not saved.base:
            raise ModelError(
                f"{folder}: does not say where the unedited model came from; give model and "
                "tokenizer."
            )
        kind: Literal["folder", "hub"] = "folder" if Path(saved.base).is_dir() else "hub"
        source = PretrainedSource(kind=kind, id=saved.base)
        model, tokenizer = load_pretrained(source, saved.task, None)
    if hash_of_weights(model) != saved.base_hash:
        raise ModelError(
            f"{folder}: the edits were made to other weights than this model's; give the "
            "unedited model that was edited."
        )
    return saved, model, tokenizer


def make_task(saved: SavedModel, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Task:
    """Return the task that the edits were made with."""
    kind: type[Task] = TASKS.get(saved.task)
    task: Any = kind(tokenizer, model.config, saved.max_length, saved.start_token, saved.end_token)
    if saved.max_new_tokens is not None:
        task.max_new_tokens = saved.max_new_tokens
    return task


def read_state(folder: Path) -> State:
    """Return the editor's state.

    Raises:
        DataError: it is missing or damaged.
    """
    with reading(folder / STATE, "editor's state"):
        header, tensors = read_tensors(folder / STATE, ENTRY, 1)
        return tensors, header["replay"]


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """Return what the edits changed in the codebook.

    Raises:
        DataError: it is missing or damaged.
    """
    return read_parquet(folder / JOURNAL_FILE, JOURNAL).to_pylist()


def read_codebook(
    folder: Path, base_hash: str, layer: str
) -> tuple[SavedModel, Codebook, list[dict[str, Any]]]:
    """Return the record, the codebook and the journal of a folder, without its model.

    Raises:
        DataError: the folder is incomplete or damaged.
        EditorError: the codebook is another model's or layer's.
    """
    saved = read_record(folder / RECORD, SavedModel)
    codebook = load_codebook(folder / "codebook.safetensors", layer=layer, model=base_hash)
    return saved, codebook, read_journal(folder)
