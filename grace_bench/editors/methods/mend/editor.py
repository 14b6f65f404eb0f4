"""MEND: a trained network turns an edit's gradient into a weight update (Mitchell et al. 2022).

The gradient of a linear layer's weight is a sum of outer products, one per token, of the gradient
at the layer's output (delta) and the layer's input (u). MEND maps each pair (u, delta) to another;
the sum of their outer products, times a learned rate, is subtracted from the weight. The map is
trained before the run, on examples outside the stream (`training.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from grace_bench.editors.base import EditBatch, EditResult
from grace_bench.editors.methods.mend.hyperparameters import MendHyperparameters
from grace_bench.editors.training import own_loss
from grace_bench.editors.weight import WeightEditor
from grace_bench.errors import EditorError
from grace_bench.models.architecture import layer_name
from grace_bench.store.files import atomic_path

TRANSFORM = "mend.safetensors"
SMALLEST_DEVIATION = 1e-7
"""The smallest divisor of a feature, for one that never varies."""


class GradientTransform(nn.Module):
    """The map g of MEND (paper, Eq. 3), and the rate of its update.

    Two low-rank layers with residuals, on the normalised pair. Untrained, it is the identity: the
    update is a gradient step in normalised coordinates.

    Args:
        d_in: width of the layer's input u.
        d_out: width of the gradient delta at its output.
        rank: of both layers; at most their width.
        rate: initial rate of the update; trained too.
        generator: draws the initial weights (CPU).
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
        """Set mean and standard deviation from pairs (N, width) of the unedited model."""
        self.mean = pairs.mean(0)
        self.deviation = pairs.std(0).clamp(min=SMALLEST_DEVIATION)

    def forward(self, inputs: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Map inputs u (N, d_in) and gradients delta (N, d_out) to those of the update.

        The weight (d_out, d_in) loses delta^T u; delta includes the rate.
        """
        pairs = (torch.cat([inputs, gradients], 1) - self.mean) / self.deviation
        for down, up, bias in zip(self.down, self.up, self.bias, strict=True):
            # Unlike relu, clamp passes gradients at 0, where training starts.
            pairs = pairs + (pairs @ down @ up + bias).clamp(min=0)
        u, delta = pairs.split([self.d_in, pairs.shape[1] - self.d_in], 1)
        return u, self.rate * delta


class MendEditor(WeightEditor):
    """Updates one weight matrix, edit after edit, by a trained map of gradients."""

    name: ClassVar[str] = "mend"
    hyperparameters: MendHyperparameters

    def setup(self) -> None:
        """Build the transform, untrained."""
        super().setup()
        settings = self.hyperparameters
        self.transform = GradientTransform(
            self.dims.d_in, self.dims.d_out, settings.rank, settings.edit_lr, self.generator
        ).to(self.weight.device)

    def use_assets(self, folder: Path) -> None:
        """Load the transform trained for this model and layer."""
        load_transform(self.transform, folder, self.layer)

    def edit(self, batch: EditBatch) -> EditResult:
        """Map the edit's gradient and subtract the update from the weight."""
        found = token_gradients(self.model, self.module, batch.inputs, own_loss)
        with torch.no_grad():
            u, delta = self.transform(found.inputs, found.gradients)
            update = delta.T @ u
            if not update.isfinite().all():
                raise EditorError(
                    "the edit produced a non-finite update and was skipped; retrain the transform "
                    "with lower learning rates."
                )
            self.weight -= update if isinstance(self.module, nn.Linear) else update.T
        return EditResult(losses=[found.loss])


@dataclass(frozen=True)
class TokenGradients:
    """The factors of a linear layer's weight gradient, at the tokens that the loss depends on.

    Args:
        inputs: (N, d_in) of the layer.
        gradients: (N, d_out) of the loss at the layer's outputs.
        rows: (N,) each token's row in the batch, in order.
        loss: its value.
    """

    inputs: Tensor
    gradients: Tensor
    rows: Tensor
    loss: float


def token_gradients(
    model: nn.Module,
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    loss_of: Callable[[Any], Tensor],
) -> TokenGradients:
    """Return a linear layer's inputs, and a loss's gradients at its outputs, token by token.

    Args:
        model: in eval mode.
        module: the layer.
        inputs: of the model, labels included.
        loss_of: reduces the model's output to one number.

    Raises:
        EditorError: the loss does not depend on the layer, or not row by row.
    """
    seen: dict[str, Tensor] = {}

    def keep(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen["input"] = args[0].detach()
        seen["output"] = output.detach().requires_grad_(True)
        return seen["output"]

    handle = module.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            loss = loss_of(model(**inputs))
            [gradient] = torch.autograd.grad(loss, [seen["output"]], allow_unused=True)
    except KeyError:
        gradient = None
    finally:
        handle.remove()
    if gradient is None:
        raise EditorError("the model's loss does not depend on the edited layer; choose another.")
    if len(gradient) != len(inputs["input_ids"]):
        raise EditorError("the edited layer does not see the batch row by row; choose another.")
    reached = (gradient != 0).any(-1)
    return TokenGradients(
        seen["input"][reached].float(),
        gradient[reached].float(),
        reached.nonzero()[:, 0],
        loss.item(),
    )


def save_transform(transform: GradientTransform, folder: Path, layer: str) -> None:
    """Write a transform's tensors."""
    content = safetensors.torch.save(
        {name: tensor.contiguous().cpu() for name, tensor in transform.state_dict().items()},
        metadata={"layer": layer_name(layer)},
    )
    with atomic_path(folder / TRANSFORM) as temporary:
        temporary.write_bytes(content)


def load_transform(transform: GradientTransform, folder: Path, layer: str) -> None:
    """Load a transform's tensors.

    Raises:
        EditorError: the file is missing, damaged, or of another layer or shape.
    """
    path = folder / TRANSFORM
    try:
        with safe_open(path, "pt") as file:
            trained_for = (file.metadata() or {}).get("layer")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if trained_for == layer_name(layer):
            transform.load_state_dict(state)
            return
    except (OSError, SafetensorError, RuntimeError) as error:
        raise EditorError(f"{path}: no transform for layer '{layer}'; train it again.") from error
    raise EditorError(
        f"{path}: trained for layer '{trained_for}', not for '{layer}'; train it again."
    )
