"""The gradient steps of an edit, the same for all editors that take some."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grace_bench.codebook.codebook import IGNORED
from grace_bench.editors.early_stop import NEVER, EarlyStop, aligned
from grace_bench.errors import EditorError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from grace_bench.replay.steps import Prefix


def train_on_edit(
    prefix: Prefix,
    inputs: Mapping[str, Tensor],
    parameters: Sequence[nn.Parameter],
    *,
    learning_rate: float,
    steps: int,
    early_stop: EarlyStop = NEVER,
    shift_labels: bool = True,
    penalty: Callable[[], Tensor] | None = None,
    within: Callable[[], AbstractContextManager[None]] = nullcontext,
    after_step: Callable[[], None] | None = None,
) -> list[float]:
    """Fit `parameters` to one edit by Adam on the model's own loss.

    Whether to stop is asked before each step, at no further cost.

    Args:
        prefix: runs the model, which must return a loss.
        inputs: one edit, labels included.
        parameters: what is trained, in place; the rest must be frozen.
        learning_rate: of Adam, whose moments are new for each edit (as released).
        steps: gradient steps at most.
        early_stop: when to stop before `steps`.
        shift_labels: compare a causal model's argmax with the next token; see `EarlyStop`.
        penalty: added to the loss.
        within: the model runs in such a context, the penalty does not.
        after_step: done after each step, without gradients.

    Returns:
        The loss before each step taken.

    Raises:
        EditorError: the model returns no loss for the edit.
    """
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    shifted = shift_labels and is_causal(prefix.model)
    forward = prefix.on(inputs, all_logits=not shift_labels)
    losses: list[float] = []
    in_a_row = 0
    for _ in range(steps):
        with torch.enable_grad():
            with within():
                output = forward()
            loss = own_loss(output) if penalty is None else own_loss(output) + penalty()
        holds = early_stop.holds(loss, output.logits, inputs["labels"], shifted).all()
        in_a_row = in_a_row + 1 if holds else 0
        if in_a_row >= early_stop.steps:
            break
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if after_step is not None:
            with torch.no_grad():
                after_step()
    return losses


def train_rows(
    prefix: Prefix,
    inputs: Mapping[str, Tensor],
    values: Tensor,
    place: Callable[[nn.Parameter], None],
    *,
    learning_rate: float,
    steps: int,
    early_stop: EarlyStop = NEVER,
) -> list[list[float]]:
    """Fit row b of `values` to row b of a batch, in place, each row as if it were alone.

    Rows that are done leave the batch once they are half of it. Padding and the batch regroup
    sums, so that a row's losses equal those of `train_on_edit` but for rounding.

    Args:
        prefix: runs the model.
        inputs: B edits, padded, labels included.
        values: (B, d), where training starts, and ends.
        place: told of the parameter (R, d) that is to answer the R rows still in the batch.
        learning_rate: as for `train_on_edit`.
        steps: as for `train_on_edit`.
        early_stop: as for `train_on_edit`, for each row.

    Returns:
        For each row the loss before each of its steps.
    """
    causal = is_causal(prefix.model)
    losses: list[list[float]] = [[] for _ in values]
    rows = torch.arange(len(values), device=values.device)
    in_a_row = torch.zeros_like(rows)
    moments: dict[str, Tensor] = {}
    taken = 0
    while taken < steps and len(rows):
        batch = {name: tensor[rows] for name, tensor in inputs.items()}
        parameter = nn.Parameter(values[rows].clone())
        place(parameter)
        optimizer = torch.optim.Adam([parameter], lr=learning_rate)
        optimizer.state[parameter].update(moments)
        forward = prefix.on(_without_own_loss(prefix.model, batch))
        going = torch.ones(len(rows), dtype=torch.bool, device=values.device)
        while taken < steps and 2 * int(going.sum()) > len(rows):
            with torch.enable_grad():
                output = forward()
                found = row_losses(output.logits, batch["labels"], causal)
            holds = early_stop.holds(found, output.logits, batch["labels"], causal)
            in_a_row[rows] = torch.where(holds, in_a_row[rows] + 1, 0)
            done = going & (in_a_row[rows] >= early_stop.steps)
            values[rows[done]] = parameter.detach()[done]
            going &= ~done
            if not going.any():
                break
            for row, loss in zip(rows[going].tolist(), found[going].tolist(), strict=True):
                losses[row].append(loss)
            optimizer.zero_grad()
            found[going].sum().backward()
            optimizer.step()
            taken += 1
        values[rows[going]] = parameter.detach()[going]
        moments = {
            name: part[going] if part.dim() else part
            for name, part in optimizer.state[parameter].items()
        }
        rows = rows[going]
    return losses


def _without_own_loss(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave the labels out where the model needs them for nothing but its loss over all rows."""
    if is_causal(model):
        return dict(inputs)  # they say where the prompt ends
    batch = {name: tensor for name, tensor in inputs.items() if name != "labels"}
    if getattr(model.config, "is_encoder_decoder", False):
        batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(inputs["labels"])
    return batch


def row_losses(logits: Tensor, labels: Tensor, causal: bool) -> Tensor:
    """Return each row's mean loss (B,) over its labels."""
    if labels.dim() == 1:
        return nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    logits, labels = aligned(logits, labels, causal)
    losses = nn.functional.cross_entropy(
        logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
    )
    return losses.sum(1) / (labels != IGNORED).sum(1)


def is_causal(model: nn.Module) -> bool:
    """Say whether logits at t are for label t + 1: a language model without an encoder."""
    config = getattr(model, "config", None)
    generates = getattr(model, "can_generate", lambda: False)()
    return bool(config is not None and not config.is_encoder_decoder and generates)


def own_loss(output: Any) -> Tensor:
    """Return the model's own loss."""
    loss = getattr(output, "loss", None)
    if loss is None:
        raise EditorError("the model returns no loss for the edit; give it 'labels'.")
    return loss
