"""MEND: a trained network turns an edit's gradient into a weight update (Mitchell et al. 2022).

The gradient of a linear layer's weight is a sum of outer products, one a token, of the gradient at
the layer's output (delta) and the layer's input (u). MEND maps each pair (u, delta) to another one;
the sum of their outer products, times a learned rate, is taken off the weight. The map is trained
before the run on other examples than the stream's (`mend_training.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from grace_bench.editors.base import EditBatch, EditResult
from grace_bench.editors.weight import WeightEditor
from grace_bench.errors import EditorError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from grace_bench.editors.hyperparameters import MendHyperparameters

SMALLEST_DEVIATION = 1e-7
"""A feature that never varies is divided by this much at least."""


class GradientTransform(nn.Module):
    """The map g of MEND (paper, Eq. 3), and the rate of its update.

    Two low-rank layers with residuals on the normalised pair. Untrained it is the identity: the
    update is a gradient step in normalised coordinates.

    Args:
        d_in: width of the layer's input u.
        d_out: width of the gradient delta at its output.
        rank: of both layers; at most their width.
        rate: of the update at first; it is trained, too.
        generator: draws the first weights (CPU).
    """

    def __init__(
        self, d_in: int, d_out: int, rank: int, rate: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        width = d_in + d_out
        rank = min(rank, width)
        self.d_in = d_in
        self.rate = nn.Parameter(torch.tensor(rate))
        self.down = nn.Parameter(torch.randn(2, width, rank, generator=generator) / width**0.5)
        self.up = nn.Parameter(torch.zeros(2, rank, width))
        self.bias = nn.Parameter(torch.zeros(2, width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def normalise_by(self, pairs: Tensor) -> None:
        """Take mean and standard deviation (width,) from pairs (N, width) of the unedited model."""
        self.mean = pairs.mean(0)
        self.deviation = pairs.std(0).clamp(min=SMALLEST_DEVIATION)

    def forward(self, inputs: Tensor, gradients: Tensor) -> Tensor:
        """Map inputs (N, d_in) and gradients (N, d_out) to what the weight (d_out, d_in) loses."""
        pairs = (torch.cat([inputs, gradients], 1) - self.mean) / self.deviation
        for down, up, bias in zip(self.down, self.up, self.bias, strict=True):
            # Unlike relu, clamp lets gradients through at 0, where training starts.
            pairs = pairs + (pairs @ down @ up + bias).clamp(min=0)
        u, delta = pairs.split([self.d_in, pairs.shape[1] - self.d_in], 1)
        return self.rate * delta.T @ u


class MendEditor(WeightEditor):
    """A trained map of gradients to updates of one weight matrix, applied edit after edit."""

    name: ClassVar[str] = "mend"
    hyperparameters: MendHyperparameters

    def __init__(
        self,
        model: nn.Module,
        layer: str,
        hyperparameters: MendHyperparameters,
        generator: torch.Generator,
    ) -> None:
        super().__init__(model, layer, hyperparameters, generator)
        self.transform = GradientTransform(
            self.dims.d_in, self.dims.d_out, hyperparameters.rank, hyperparameters.rate, generator
        ).to(self.weight.device)

    def use_assets(self, folder: Path) -> None:
        """Take over the transform that was trained for this model and layer."""
        from grace_bench.editors.mend_training import load_transform

        load_transform(self.transform, folder, self.layer)

    def edit(self, batch: EditBatch) -> EditResult:
        """Map the edit's gradient and take the update off the weight."""
        inputs, gradients, loss = token_gradients(self.model, self.module, batch.inputs)
        with torch.no_grad():
            update = self.transform(inputs, gradients)
            self.weight -= update.T if is_transposed(self.module) else update
        return EditResult(losses=[loss])


def is_transposed(module: nn.Module) -> bool:
    """Say whether a linear module keeps its weight as (d_in, d_out), as Conv1D does."""
    return not isinstance(module, nn.Linear)


def token_gradients(
    model: nn.Module, module: nn.Module, inputs: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, float]:
    """Return a linear layer's inputs, and the loss's gradients at its outputs, token by token.

    Args:
        model: in eval mode.
        module: the layer.
        inputs: of the model, labels included.

    Returns:
        Inputs (N, d_in), gradients (N, d_out) of the tokens that the loss depends on, the loss.

    Raises:
        EditorError: the model's loss does not depend on the layer.
    """
    seen: dict[str, Tensor] = {}

    def keep(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen["input"] = args[0].detach()
        seen["output"] = output.detach().requires_grad_(True)
        return seen["output"]

    handle = module.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            loss = model(**inputs).loss
            [gradient] = torch.autograd.grad(loss, [seen["output"]], allow_unused=True)
    except KeyError:
        gradient = None
    finally:
        handle.remove()
    if gradient is None:
        raise EditorError("the model's loss does not depend on the edited layer; choose another.")
    rows = seen["input"].flatten(0, -2).float()
    gradients = gradient.flatten(0, -2).float()
    reached = (gradients != 0).any(1)
    return rows[reached], gradients[reached], loss.item()
