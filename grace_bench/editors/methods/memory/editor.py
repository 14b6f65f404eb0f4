"""Memory: soft attention over a fixed number of trained values replaces the layer.

As in the released code, the memory answers every input, edited or not.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from grace_bench.editors.adapter import at_column, replace_columns
from grace_bench.editors.methods.memory.hyperparameters import MemoryHyperparameters
from grace_bench.editors.parametric import ParametricAdapter, ParametricEditor, new_linear


class MemoryAdapter(ParametricAdapter):
    """Value softmax(Linear(query)) V, with V (size, d_out)."""

    settings: MemoryHyperparameters
    attention: nn.Linear
    values: nn.Parameter

    def forward(self, hidden: Tensor) -> Tensor:
        """Replace the layer's output by the memory's, always or from the first edit on."""
        output = self.base_layer(hidden)
        if not self.edited and self.settings.original_layer == "until_edited":
            return output
        view = self.view(hidden)
        if not view.continues:
            query = at_column(hidden, view.column).float()
            view.memo["value"] = torch.softmax(self.attention(query), -1) @ self.values
        if "value" not in view.memo:
            return output
        return replace_columns(output, view.memo["value"], view.replaced)


class MemoryEditor(ParametricEditor):
    """Lets a trained memory answer in the layer's place."""

    name: ClassVar[str] = "memory"
    hyperparameters: MemoryHyperparameters

    def make_adapter(self, base_layer: nn.Module) -> MemoryAdapter:
        """Return the adapter with a memory drawn from the editor's generator, V from U[0, 1)."""
        adapter = MemoryAdapter(base_layer, self.locator, self.hyperparameters)
        like, size = base_layer.weight, self.hyperparameters.size
        values = torch.rand(size, self.dims.d_out, generator=self.generator)
        adapter.values = nn.Parameter(values.to(like.device))
        adapter.attention = new_linear(self.dims.d_in, size, self.generator, like)
        return adapter
