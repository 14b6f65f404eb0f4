"""Editors that change one weight matrix of the model itself."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from grace_bench.editors.base import Editor
from grace_bench.errors import EditorError
from grace_bench.models.architecture import find_layer, layer_dims
from grace_bench.replay.recording import only_trainable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from grace_bench.editors.hyperparameters import EditorHyperparameters


class WeightEditor(Editor):
    """Base class: owns the layer's weight, and can put the original one back.

    Attributes:
        module: the layer.
        dims: its widths.
        weight: (d_out, d_in), or (d_in, d_out) of a Conv1D.
        original: a copy of the weight before any edit.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str,
        hyperparameters: EditorHyperparameters,
        generator: torch.Generator,
    ) -> None:
        super().__init__(model, layer, hyperparameters, generator)
        self.module = find_layer(model, layer)
        self.dims = layer_dims(self.module, layer)
        self.weight: nn.Parameter = self.module.weight
        self.original = self.weight.detach().clone()

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
