"""Editors that change one weight matrix of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from grace_bench.editors.base import Editor
from grace_bench.errors import EditorError
from grace_bench.models.architecture import find_layer, layer_dims
from grace_bench.replay.recording import only_trainable


class WeightEditor(Editor):
    """Base class: owns the layer's weight and can restore the original.

    Attributes:
        module: the layer.
        dims: its widths.
        weight: (d_out, d_in), or (d_in, d_out) of a Conv1D.
        original: a copy of the weight before any edit.
    """

    def setup(self) -> None:
        """Find the layer and keep its original weight."""
        self.module = find_layer(self.model, self.layer)
        self.dims = layer_dims(self.module, self.layer)
        self.weight: nn.Parameter = self.module.weight
        self.original = self.weight.detach().clone()

    @contextmanager
    def training_weight(self) -> Iterator[None]:
        """Make the weight, and nothing else, trainable within the block."""
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
        """Return the edited weight."""
        return {"weight": self.weight.detach().clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load another editor's weight."""
        if "weight" not in state or state["weight"].shape != self.weight.shape:
            raise EditorError(
                f"the state is not for layer '{self.layer}', whose weight is "
                f"{tuple(self.weight.shape)}; load the state of the same layer and editor."
            )
        with torch.no_grad():
            self.weight.copy_(state["weight"])

    def remove(self) -> None:
        """Restore the original weight."""
        with torch.no_grad():
            self.weight.copy_(self.original)
