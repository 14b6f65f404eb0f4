"""Find and measure a module of a model by its dotted name.

    name = layer_name("encoder.block[4].layer[1].DenseReluDense.wo.weight")
    layer = find_layer(model, name)

A name may contain brackets and end in `.weight`, as in the released configurations.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from grace_bench.errors import ModelError, unknown_name

_INDEX = re.compile(r"\[(\d+)\]")


@dataclass(frozen=True)
class LayerDims:
    """Sizes of a linear layer: `d_in` of its input (the key), `d_out` of its output (the value)."""

    d_in: int
    d_out: int


def layer_name(name: str) -> str:
    """Return `name` as PyTorch writes it: dots for brackets, without a final .weight or .bias.

    >>> layer_name("encoder.block[4].layer[1].DenseReluDense.wo.weight")
    'encoder.block.4.layer.1.DenseReluDense.wo'
    """
    return re.sub(r"\.(weight|bias)$", "", _INDEX.sub(r".\1", name))


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """Return the module called `name`, dotted or bracketed, with or without .weight.

    Raises:
        ModelError: there is none; the message names the nearest that exist.
    """
    wanted = layer_name(name)
    modules = dict(model.named_modules())
    if not wanted or wanted not in modules:
        linear = [known for known, module in modules.items() if _dims_or_none(module)]
        raise ModelError(unknown_name("layer", wanted, linear, type(model).__name__))
    return modules[wanted]


def replace_layer(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Replace the layer called `name` by `module` and return the old one."""
    before = find_layer(model, name)
    parent, _, child = layer_name(name).rpartition(".")
    setattr(model.get_submodule(parent), child, module)
    return before


def layer_dims(layer: nn.Module, name: str = "the layer") -> LayerDims:
    """Return the sizes of a Linear, or of GPT-2's Conv1D, whose weight is transposed.

    Raises:
        ModelError: the module is neither.
    """
    dims = _dims_or_none(layer)
    if dims is None:
        raise ModelError(
            f"layer '{name}' is a {type(layer).__name__}, which cannot be edited; "
            "name a linear layer inside it."
        )
    return dims


class _LayerReached(Exception):
    """Stops a forward pass at the layer."""


@torch.no_grad()
def layer_inputs(
    model: nn.Module,
    layer: nn.Module,
    inputs: Mapping[str, Any],
    read: Callable[[Tensor], Any] = lambda hidden: hidden,
) -> Any:
    """Return what `layer` receives in `model(**inputs)`; the model runs no further than that.

    Args:
        model: in eval mode.
        layer: one of its modules.
        inputs: of the model.
        read: called with the layer's input (B, L, d_in) or (B, d_in), while the call lasts; its
            result is returned.

    Returns:
        What `read` returns, or None if the model never calls the layer.
    """
    found: list[Any] = []

    def stop(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(read(args[0]))
        raise _LayerReached

    handle = layer.register_forward_pre_hook(stop)
    try:
        model(**inputs)
    except _LayerReached:
        return found[0]
    finally:
        handle.remove()
    return None


def _dims_or_none(layer: nn.Module) -> LayerDims | None:
    if isinstance(layer, nn.Linear):
        return LayerDims(layer.in_features, layer.out_features)
    if isinstance(layer, Conv1D):
        return LayerDims(layer.nx, layer.nf)
    return None


def hash_of_weights(model: nn.Module) -> str:
    """Return the sha256 of a model's tensors with their names, types and shapes."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(content.numpy().data)
    return found.hexdigest()
