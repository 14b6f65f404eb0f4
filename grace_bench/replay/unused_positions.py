"""Skip the positions that no logit reads, in gradient steps.

A classifier reads one token of its last block; a language model asked for some logits reads only
their tokens. What the block's linear layers, norms and activations compute for the other tokens
changes nothing.

    with watched(model) as seen:
        output = model(**inputs)
    columns = read_columns(seen, output.logits)
    with only_columns(columns):
        model(**inputs)             # the same logits, but for rounding
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

WORTH_IT = 0.5
"""A module is computed in full if more than this share of its positions is read."""

IDLE = (nn.Dropout, nn.Identity)
"""Modules that cost nothing."""

Columns = dict[nn.Module, Tensor]
"""The positions (K,) read of each module where skipping the others saves much."""


@contextmanager
def watched(model: nn.Module) -> Iterator[dict[nn.Module, Tensor]]:
    """Collect the outputs (B, L, d) of leaf modules that run once, on one tensor (B, L, ...)."""
    seen: dict[nn.Module, Tensor] = {}
    calls: dict[nn.Module, int] = {}

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        if len(args) == 1 and not kwargs and _by_position(args[0], output):
            seen[module] = output

    parts = [m for m in model.modules() if not isinstance(m, IDLE) and not any(m.children())]
    handles = [part.register_forward_hook(leave, with_kwargs=True) for part in parts]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
    for module, count in calls.items():
        if count > 1:
            seen.pop(module, None)


def _by_position(given: Any, output: Any) -> bool:
    both = isinstance(given, Tensor) and isinstance(output, Tensor)
    return both and given.dim() == output.dim() == 3 and given.shape[:2] == output.shape[:2]


def read_columns(seen: Mapping[nn.Module, Tensor], logits: Tensor) -> Columns:
    """Return the positions of the modules' outputs that the logits depend on, by gradients.

    A gradient that happens to be zero may hide a dependence: check with `same_logits`.

    Args:
        seen: outputs (B, L, d) that `watched` collected; the graph is kept.
        logits: what the model returned in the same call.
    """
    reached = {module: output for module, output in seen.items() if output.requires_grad}
    if not reached or not logits.requires_grad:
        return {}
    gradients = torch.autograd.grad(
        logits.float().sum(), list(reached.values()), retain_graph=True, allow_unused=True
    )
    columns = {}
    for module, gradient in zip(reached, gradients, strict=True):
        if gradient is None:
            continue
        read = (gradient != 0).any(-1).any(0).nonzero().flatten()
        if 0 < len(read) <= WORTH_IT * gradient.shape[1]:
            columns[module] = read
    return columns


@contextmanager
def only_columns(columns: Columns, elsewhere: float = 0.0) -> Iterator[None]:
    """Let modules compute only these positions, and fill the others with `elsewhere`."""
    try:
        for module, read in columns.items():
            module.__dict__["forward"] = _on_columns(module.forward, read, elsewhere)
        yield
    finally:
        for module in columns:
            del module.__dict__["forward"]


def _on_columns(
    forward: Callable[[Tensor], Tensor], columns: Tensor, elsewhere: float
) -> Callable[[Tensor], Tensor]:
    def stand_in(hidden: Tensor) -> Tensor:
        part = forward(hidden[:, columns])
        whole = part.new_full((*hidden.shape[:2], part.shape[-1]), elsewhere)
        return whole.index_copy(1, columns, part)

    return stand_in


@torch.no_grad()
def same_logits(
    model: nn.Module, inputs: Mapping[str, Any], columns: Columns, logits: Tensor, tolerance: float
) -> bool:
    """Say whether NaN in all other positions leaves the logits unchanged, except for rounding.

    If so, nothing reads those positions (NaN times 0 is NaN), and the modules treat each position
    on its own.
    """
    with only_columns(columns, torch.nan):
        found = model(**inputs).logits
    return torch.allclose(found, logits, rtol=0.0, atol=tolerance * logits.abs().max().item())
