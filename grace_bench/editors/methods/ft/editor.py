"""FT: finetune the weight of one layer on each edit alone, in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from torch import Tensor

from grace_bench.editors.base import EditBatch, EditResult
from grace_bench.editors.methods.ft.hyperparameters import FinetuneHyperparameters
from grace_bench.editors.training import train_on_edit
from grace_bench.editors.weight import WeightEditor


class FinetuneEditor(WeightEditor):
    """Adam on one weight matrix until the model answers the edit (docs/reference/quirks.md)."""

    name: ClassVar[str] = "ft"
    hyperparameters: FinetuneHyperparameters

    def edit(self, batch: EditBatch) -> EditResult:
        """Finetune on the edit."""
        with self.training_weight():
            return EditResult(losses=self.finetune(batch.inputs))

    def finetune(
        self, inputs: Mapping[str, Tensor], penalty: Callable[[], Tensor] | None = None
    ) -> list[float]:
        """Take the edit's gradient steps within `training_weight`; return their losses."""
        settings = self.hyperparameters
        return train_on_edit(
            self.replay,
            inputs,
            [self.weight],
            settings,
            shift_labels=settings.shift_labels,
            penalty=penalty,
        )


class HistoryEditor(FinetuneEditor):
    """Base class of finetuning with past edits.

    Attributes:
        history: the inputs of past edits, oldest first.
    """

    def setup(self) -> None:
        """Begin with an empty history."""
        super().setup()
        self.history: list[dict[str, Tensor]] = []

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weight, and the history as history/00000/input_ids, ..."""
        history = {
            f"history/{index:05d}/{name}": tensor.clone()
            for index, inputs in enumerate(self.history)
            for name, tensor in sorted(inputs.items())
        }
        return {**super().state_dict(), **history}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load weight and history."""
        super().load_state_dict(state)
        history: dict[str, dict[str, Tensor]] = {}
        for key in sorted(key for key in state if key.startswith("history/")):
            _, index, name = key.split("/", 2)
            history.setdefault(index, {})[name] = state[key].to(self.weight.device)
        self.history = list(history.values())
