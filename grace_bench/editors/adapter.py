"""A module that replaces the edited layer, and editors that work through one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grace_bench.editors.base import Editor
from grace_bench.editors.hyperparameters import AdapterHyperparameters
from grace_bench.editors.prompt import Prompt, PromptLocator, first_column, last_column
from grace_bench.models.architecture import find_layer, layer_dims, replace_layer


@dataclass
class PromptView:
    """The prompt in one call of the layer, as the adapter's settings see it.

    Args:
        column: (B,) the query's column, in the call that began the prompt.
        replaced: (B, L) columns whose output a value replaces.
        continues: an earlier call had the query; `memo` holds what was decided there.
        memo: shared by all calls of the same prompt.
    """

    column: Tensor
    replaced: Tensor
    continues: bool
    memo: dict[str, Any]


class LayerAdapter(nn.Module):
    """Base class of adapters: keeps the layer it replaces, and finds the prompt.

    An adapter ignores `training`: model.train() and model.eval() change no answer.

    Args:
        base_layer: the replaced layer.
        locator: listens to the models above the layer.
        settings: which token is the query and which tokens are replaced.
    """

    def __init__(
        self, base_layer: nn.Module, locator: PromptLocator, settings: AdapterHyperparameters
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.locator = locator
        self.settings = settings

    # T5 reads its layer's weight, to match the dtype.
    @property
    def weight(self) -> Tensor:
        """The replaced layer's weight."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The replaced layer's bias."""
        return self.base_layer.bias

    def view(self, hidden: Tensor) -> PromptView:
        """Find query and replaced columns in the layer's input (B, L, d_in) or (B, d_in)."""
        prompt = self.locator.locate(hidden)
        if prompt.continues:
            column = prompt.query
            began = prompt.memo.get("replaced")
            replaced = torch.zeros_like(prompt.real) if began is None else prompt.carry(began)
        else:
            column = self._query_column(prompt)
            replaced = prompt.memo["replaced"] = self._replaced(prompt, column)
        if self.settings.replacement == "all":
            replaced = torch.ones_like(prompt.real)
        return PromptView(column, replaced, prompt.continues, prompt.memo)

    def _query_column(self, prompt: Prompt) -> Tensor:
        position = self.settings.query_position
        if position == "prompt_end":
            return prompt.query
        if position == "released":
            return prompt.released_query
        first, last = first_column(prompt.real), last_column(prompt.real)
        column = first + position if position >= 0 else last + 1 + position
        return torch.minimum(torch.maximum(column, first), last)

    def _replaced(self, prompt: Prompt, query: Tensor) -> Tensor:
        column = torch.arange(prompt.real.shape[1], device=query.device)
        if self.settings.replacement == "last":
            return column == query[:, None]
        if self.settings.replace_query:
            return prompt.real & (column <= query[:, None])
        return prompt.real & (column < query[:, None])


class AdapterEditor(Editor):
    """Base class of editors that replace the layer by an adapter and change no base weight."""

    def setup(self) -> None:
        """Put the adapter in the layer's place."""
        base_layer = find_layer(self.model, self.layer)
        self.dims = layer_dims(base_layer, self.layer)
        self.locator = PromptLocator(self.model, self.layer)
        self.adapter = self.make_adapter(base_layer)
        replace_layer(self.model, self.layer, self.adapter)
        self.locator.attach()

    def make_adapter(self, base_layer: nn.Module) -> LayerAdapter:
        """Return the adapter for `base_layer`; called once."""
        raise NotImplementedError

    def remove(self) -> None:
        """Put the original layer back and stop listening; safe to call again."""
        if find_layer(self.model, self.layer) is self.adapter:
            replace_layer(self.model, self.layer, self.adapter.base_layer)
            self.locator.detach()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Put the original layer back within the block; the adapter keeps all edits."""
        self.remove()
        try:
            yield
        finally:
            replace_layer(self.model, self.layer, self.adapter)
            self.locator.attach()


def at_column(tensor: Tensor, column: Tensor) -> Tensor:
    """Return the vector (B, d) at each row's column (B,) of (B, L, d); return (B, d) as it is."""
    if tensor.dim() == 2:
        return tensor
    return tensor[torch.arange(len(tensor), device=tensor.device), column]


def replace_columns(output: Tensor, values: Tensor, where: Tensor) -> Tensor:
    """Return `output` (B, L, d) or (B, d) with values (B, d) at the columns `where` (B, L)."""
    values = values.to(output.dtype)
    if output.dim() == 2:
        return torch.where(where, values, output)
    return torch.where(where[:, :, None], values[:, None, :], output)
