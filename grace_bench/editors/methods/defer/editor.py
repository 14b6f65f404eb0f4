"""Defer: a gate decides per input between the layer and a trained linear map of the query.

After SERAC (Mitchell et al. 2022); docs/reference/quirks.md describes the released code's version.
It is trained only on edits, so nothing teaches the gate to stay shut for other inputs.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from grace_bench.editors.adapter import at_column, replace_columns
from grace_bench.editors.methods.defer.hyperparameters import DeferHyperparameters
from grace_bench.editors.parametric import ParametricAdapter, ParametricEditor, new_linear

RELEASED_THRESHOLD = 0.5


class DeferAdapter(ParametricAdapter):
    """Gate sigmoid(Linear(query)) and value Linear(query), one pair for all edits."""

    settings: DeferHyperparameters
    gate: nn.Linear
    predict_values: nn.Linear

    def forward(self, hidden: Tensor) -> Tensor:
        """Mix layer and value while learning; otherwise choose one of them per row."""
        output = self.base_layer(hidden)
        if not self.edited:
            return output
        view = self.view(hidden)
        if not view.continues:
            query = at_column(hidden, view.column).float()
            gate = torch.sigmoid(self.gate(query))  # (B, 1)
            view.memo.update(gate=gate, value=self.predict_values(query))
        if "gate" not in view.memo:
            return output
        gate, value = view.memo["gate"], view.memo["value"]
        if self.learning:
            shape = (len(gate), *[1] * (output.dim() - 2), -1)
            mixed = gate.view(shape) * value.view(shape) + (1 - gate.view(shape)) * output
            where = view.replaced if output.dim() == 2 else view.replaced[:, :, None]
            return torch.where(where, mixed.to(output.dtype), output)
        honoured = self.settings.honour_threshold
        threshold = self.settings.threshold if honoured else RELEASED_THRESHOLD
        return replace_columns(output, value, view.replaced & (gate >= threshold))


class DeferEditor(ParametricEditor):
    """Defers to a trained map where its gate opens."""

    name: ClassVar[str] = "defer"
    hyperparameters: DeferHyperparameters

    def make_adapter(self, base_layer: nn.Module) -> DeferAdapter:
        """Return the adapter with gate and map drawn from the editor's generator."""
        adapter = DeferAdapter(base_layer, self.locator, self.hyperparameters)
        like, dims = base_layer.weight, self.dims
        adapter.gate = new_linear(dims.d_in, 1, self.generator, like)
        adapter.predict_values = new_linear(dims.d_in, dims.d_out, self.generator, like)
        return adapter
