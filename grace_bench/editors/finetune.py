"""FT: finetune the weight of one layer on each edit alone, in place."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from grace_bench.editors.base import EditBatch, Editor, EditResult
from grace_bench.editors.early_stop import EarlyStop
from grace_bench.editors.training import train_on_edit
from grace_bench.errors import EditorError
from grace_bench.models.layers import find_layer, layer_dims
from grace_bench.replay import only_trainable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from grace_bench.editors.hyperparameters import FinetuneHyperparameters


class FinetuneEditor(Editor):
    """Adam on one weight matrix until the edit is answered (facts, section 4)."""

    name: ClassVar[str] = "ft"
    hyperparameters: FinetuneHyperparameters

    def __init__(
        self,
        model: nn.Module,
        layer: str,
        hyperparameters: FinetuneHyperparameters,
        generator: torch.Generator,
    ) -> None:
        super().__init__(model, layer, hyperparameters, generator)
        module = find_layer(model, layer)
        layer_dims(module, layer)
        self.weight: nn.Parameter = module.weight
        self.original = module.weight.detach().clone()

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
            self.prefix,
            inputs,
            [self.weight],
            learning_rate=settings.learning_rate,
            steps=settings.steps,
            early_stop=EarlyStop.of(settings),
            shift_labels=settings.shift_labels,
            penalty=penalty,
        )

    @contextmanager
    def training_weight(self) -> Iterator[None]:
        """Let the weight, and nothing else, take gradients while the block lasts."""
        with only_trainable(self.model, self.trained):
            try:
                yield
            finally:
                self.weight.grad = None

    @property
    def trained(self) -> list[nn.Parameter]:
        """The weight."""
        return [self.weight]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weight as edited."""
        return {"weight": self.weight.detach().clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put another editor's weight in place."""
        if "weight" not in state or state["weight"].shape != self.weight.shape:
            raise EditorError(
                f"the state is not one of layer '{self.layer}', whose weight is "
                f"{tuple(self.weight.shape)}; load the state of the same layer and editor."
            )
        with torch.no_grad():
            self.weight.copy_(state["weight"])

    def remove(self) -> None:
        """Put the original weight back."""
        with torch.no_grad():
            self.weight.copy_(self.original)


def history_state(history: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return past edits as flat tensors: history/00000/input_ids, ..."""
    return {
        f"history/{index:05d}/{name}": tensor.clone()
        for index, inputs in enumerate(history)
        for name, tensor in sorted(inputs.items())
    }


def history_from_state(
    state: Mapping[str, Tensor], device: torch.device
) -> list[dict[str, Tensor]]:
    """Return the past edits of `history_state`, in order."""
    history: dict[str, dict[str, Tensor]] = {}
    for key in sorted(key for key in state if key.startswith("history/")):
        _, index, name = key.split("/", 2)
        history.setdefault(index, {})[name] = state[key].to(device)
    return list(history.values())
