"""One editor on one model, fed by hand: the mechanics below `EditedModel`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from grace_bench.editors import create_editor
from grace_bench.editors.base import EditBatch
from grace_bench.errors import ConfigError
from grace_bench.library.records import Receipt
from grace_bench.models.architecture import hash_of_weights
from grace_bench.models.device import autocast
from grace_bench.models.positions import usable_positions
from grace_bench.registry import EDITORS, TASKS
from grace_bench.suite.schema import ComputeConfig
from grace_bench.tasks.base import Example, Task

LONGEST = 512

State = tuple[dict[str, Tensor], dict[str, Any]]
"""What `Editor.snapshot` returns, in memory of its own."""

Made = tuple[Receipt, list[dict[str, Any]]]
"""An edit's receipt, and its rows of the journal."""


class Session:
    """Makes edits, goes back to earlier states, and undoes what fails; arguments of EditedModel."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        method: str,
        *,
        layer: str,
        assets: Path | str | None,
        task: str | Task | None,
        seed: int,
        max_length: int | None,
        compute: ComputeConfig | None,
        hyperparameters: Mapping[str, Any],
    ) -> None:
        if EDITORS.get(method).assets and assets is None:
            raise ConfigError(
                f"method '{method}' needs assets of this model; give their folder as `assets`, "
                "which `grace-bench prepare-editor` makes."
            )
        self.model, self.tokenizer = model.eval(), tokenizer
        self.method, self.seed, self.compute = method, seed, compute or ComputeConfig()
        if not isinstance(task, Task):
            kind: type[Task] = TASKS.get(task or _task_of(model))
            longest = max_length or min(LONGEST, usable_positions(model.config) or LONGEST)
            task = kind(tokenizer, model.config, longest)
        self.task = task
        self.base_hash = hash_of_weights(model)
        engine = self.compute.engine
        self.editor = create_editor(method, model, layer, hyperparameters, seed, engine)
        if assets is not None:
            with self._unchanged_on_error():
                self.editor.use_assets(Path(assets))
        self.receipts: list[Receipt] = []
        self.journal: list[dict[str, Any]] = []
        self.next_number = 1
        self._start = self._state()

    def _edit(self, wanted: Receipt) -> Made:
        """Make the edit of a receipt, and return what it did this time."""
        began = time.perf_counter()
        example = self._example(wanted.prompt, wanted.answer, wanted.subject, wanted.example)
        batch = EditBatch.of(self.task, self.model, example, wanted.number)
        with self._precision():
            result = self.editor.edit(batch)
        self.editor.check_finite(wanted.number, result.losses)
        receipt = wanted.model_copy(
            update={
                "branch": result.branch,
                "key": result.key,
                "nearest_key": result.nearest_key,
                "distance": result.distance,
                "losses": tuple(result.losses),
                "seconds": time.perf_counter() - began,
            }
        )
        return receipt, result.changes

    def _make_again(
        self,
        wanted: Sequence[Receipt],
        trained: Mapping[int, tuple[Tensor, Sequence[float]]] = MappingProxyType({}),
    ) -> None:
        """Go back to the unedited model and make these edits, with what they trained before."""
        with self._undone_on_error():
            self._restore(self._start)
            self.editor.reuse(trained)
            made = [self._edit(receipt) for receipt in wanted]
        self.receipts = [receipt for receipt, _ in made]
        self.journal = [row for _, changes in made for row in changes]

    def _example(
        self, prompt: str, answer: str | None = None, subject: str | None = None, name: str = "?"
    ) -> Example:
        """Return a row; without an answer, one whose label plays no part in what is asked."""
        if answer is None:
            answer = self.model.config.id2label[0] if self.task.classifies else "?"
        row = {"example_id": name, "fact_id": name, "text": prompt, "label": answer}
        return {**row, "subject": subject, "answers": None}

    def _precision(self) -> AbstractContextManager[None]:
        return autocast(self.compute, next(self.model.parameters()).device)

    def _state(self) -> State:
        tensors, replay = self.editor.snapshot()
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}, replay

    def _restore(self, state: State) -> None:
        tensors, replay = state
        self.editor.restore({name: tensor.clone() for name, tensor in tensors.items()}, replay)

    @contextmanager
    def _undone_on_error(self) -> Iterator[State]:
        """Yield the present state, and go back to it if the block raises."""
        before = self._state()
        try:
            yield before
        except BaseException:
            self._restore(before)
            raise

    @contextmanager
    def _unchanged_on_error(self) -> Iterator[None]:
        """Give the model back as it was if the block, which prepares it, raises."""
        try:
            yield
        except BaseException:
            self.editor.remove()
            raise


def _task_of(model: nn.Module) -> str:
    is_classifier = type(model).__name__.endswith("ForSequenceClassification")
    return "classification" if is_classifier else "question_answering"
