"""Editors whose adapter has its own parameters, all trained on every edit (Defer, Memory)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from grace_bench.editors.adapter import AdapterEditor, LayerAdapter
from grace_bench.editors.base import EditBatch, EditResult
from grace_bench.editors.hyperparameters import (
    AdapterHyperparameters,
    ParametricHyperparameters,
)
from grace_bench.editors.prompt import PromptLocator
from grace_bench.editors.training import train_on_edit
from grace_bench.errors import EditorError
from grace_bench.replay.recording import only_trainable


class ParametricAdapter(LayerAdapter):
    """Base class of adapters with trained parameters.

    Attributes:
        edited: whether any edit was made.
        learning: whether an edit is being made; this, not `training`, marks gradient steps.
    """

    def __init__(
        self, base_layer: nn.Module, locator: PromptLocator, settings: AdapterHyperparameters
    ) -> None:
        super().__init__(base_layer, locator, settings)
        self.edited = False
        self.learning = False

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the adapter's own parameters by name."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if not name.startswith("base_layer.")
        }


class ParametricEditor(AdapterEditor):
    """Base class: an edit trains all of the adapter's parameters, which all edits share."""

    hyperparameters: ParametricHyperparameters
    adapter: ParametricAdapter

    def edit(self, batch: EditBatch) -> EditResult:
        """Train the adapter on the edit."""
        adapter, parameters = self.adapter, self.trained
        adapter.edited = adapter.learning = True
        try:
            with only_trainable(self.model, parameters):
                losses = train_on_edit(self.replay, batch.inputs, parameters, self.hyperparameters)
        finally:
            adapter.learning = False
            for parameter in parameters:
                parameter.grad = None
        return EditResult(losses=losses)

    @property
    def trained(self) -> list[nn.Parameter]:
        """The adapter's own parameters."""
        return list(self.adapter.trained().values())

    def state_dict(self) -> dict[str, Tensor]:
        """Return the adapter's parameters and whether any edit was made."""
        parameters = self.adapter.trained().items()
        state = {name: parameter.detach().clone() for name, parameter in parameters}
        return {**state, "edited": torch.tensor(self.adapter.edited)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load another editor's parameters."""
        mine = self.adapter.trained()
        fits = all(n in state and state[n].shape == p.shape for n, p in mine.items())
        if not fits or "edited" not in state:
            raise EditorError(
                f"the state does not fit editor '{self.name}' on layer '{self.layer}'; "
                "load the state of the same layer, editor and hyperparameters."
            )
        with torch.no_grad():
            for name, parameter in mine.items():
                parameter.copy_(state[name])
        self.adapter.edited = bool(state["edited"])


def new_linear(d_in: int, d_out: int, generator: torch.Generator, like: Tensor) -> nn.Linear:
    """Return a Linear as PyTorch initialises it, but drawn from `generator`, placed as `like`."""
    linear = nn.utils.skip_init(nn.Linear, d_in, d_out)
    nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5), generator=generator)
    bound = 1 / math.sqrt(d_in)
    nn.init.uniform_(linear.bias, -bound, bound, generator=generator)
    return linear.to(like.device)
