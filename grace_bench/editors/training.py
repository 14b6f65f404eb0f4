"""The gradient steps of an edit, shared by all editors that take some."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grace_bench.codebook.keys import IGNORED
from grace_bench.errors import EditorError
from grace_bench.replay.steps import StepReplay, labelled_columns

if TYPE_CHECKING:
    from grace_bench.editors.hyperparameters import TrainedHyperparameters


def train_on_edit(
    replay: StepReplay,
    inputs: Mapping[str, Tensor],
    parameters: Sequence[nn.Parameter],
    settings: TrainedHyperparameters,
    *,
    shift_labels: bool = True,
    penalty: Callable[[], Tensor] | None = None,
    within: Callable[[], AbstractContextManager[None]] = nullcontext,
    after_step: Callable[[], None] | None = None,
) -> list[float]:
    """Fit `parameters` to one edit by Adam on the model's own loss.

    Args:
        replay: runs the model, which must return a loss.
        inputs: one edit, labels included.
        parameters: trained in place; all others must be frozen.
        settings: learning rate of Adam, whose moments are new for each edit (as released), limit
            on steps, and the early stop, checked before each step at no extra cost.
        shift_labels: let the early stop compare a causal model's argmax with the next token.
        penalty: added to the loss.
        within: context of the model's forward pass, not of the penalty.
        after_step: called after each step, without gradients.

    Returns:
        The loss before each step taken.

    Raises:
        EditorError: the model returns no loss for the edit.
    """
    optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate)
    shifted = shift_labels and is_causal(replay.model)
    forward = replay.session(inputs, all_logits=not shift_labels)
    losses: list[float] = []
    in_a_row = 0
    for _ in range(settings.steps):
        with torch.enable_grad():
            with within():
                output = forward()
            loss = own_loss(output) if penalty is None else own_loss(output) + penalty()
        holds = early_stop_holds(settings, loss, output.logits, inputs["labels"], shifted).all()
        in_a_row = in_a_row + 1 if holds else 0
        if in_a_row >= settings.early_stop_steps:
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
    replay: StepReplay,
    inputs: Mapping[str, Tensor],
    values: Tensor,
    answering_with: Callable[[nn.Parameter], AbstractContextManager[None]],
    settings: TrainedHyperparameters,
) -> list[list[float]]:
    """Fit row b of `values` (B, d) to row b of a padded batch, in place, each as if it were alone.

    Finished rows leave the batch once they are half of it. Padding and batching regroup sums, so a
    row's losses equal those of `train_on_edit` except for rounding.

    Args:
        replay: runs the model.
        inputs: B edits, labels included.
        values: the initial values; trained in place.
        answering_with: context in which a parameter (R, d) answers the R rows still in the batch.
        settings: as for `train_on_edit`; the early stop is each row's own.

    Returns:
        For each row the loss before each of its steps.
    """
    losses: list[list[float]] = [[] for _ in values]
    rows = torch.arange(len(values), device=values.device)
    in_a_row = torch.zeros_like(rows)
    moments: dict[str, Tensor] = {}
    taken = 0
    while taken < settings.steps and len(rows):
        batch = {name: tensor[rows] for name, tensor in inputs.items()}
        parameter = nn.Parameter(values[rows].clone())
        optimizer = torch.optim.Adam([parameter], lr=settings.learning_rate)
        optimizer.state[parameter].update(moments)
        forward = _row_losses_of(replay, batch, settings)
        going = torch.ones(len(rows), dtype=torch.bool, device=values.device)
        with answering_with(parameter):
            while taken < settings.steps and 2 * int(going.sum()) > len(rows):
                found, holds = forward()
                in_a_row[rows] = torch.where(holds, in_a_row[rows] + 1, 0)
                done = going & (in_a_row[rows] >= settings.early_stop_steps)
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
        state = optimizer.state[parameter].items()
        moments = {name: part[going] if part.dim() else part for name, part in state}
        rows = rows[going]
    return losses


def _row_losses_of(
    replay: StepReplay, batch: Mapping[str, Tensor], settings: TrainedHyperparameters
) -> Callable[[], tuple[Tensor, Tensor]]:
    """Return a function that gives each row's loss (B,) now, and whether its early stop holds."""
    causal = is_causal(replay.model)
    forward = replay.session(_without_own_loss(replay.model, batch))

    def losses_and_holds() -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            output = forward()
            losses = row_losses(output.logits, batch["labels"], causal)
        return losses, early_stop_holds(settings, losses, output.logits, batch["labels"], causal)

    return losses_and_holds


def _without_own_loss(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave the labels out if the model needs them only for its loss over all rows."""
    if is_causal(model):
        return dict(inputs)  # the labels also say where the prompt ends
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


def early_stop_holds(
    settings: TrainedHyperparameters, losses: Tensor, logits: Tensor, labels: Tensor, shifted: bool
) -> Tensor:
    """Say for each row (B,) whether the early-stop rule holds in this forward pass.

    Args:
        settings: hold the rule, `early_stop`.
        losses: (B,), or one for the whole batch.
        logits: (B, L, V), or (B, C) of a classifier; of a causal model also (B, K, V), at only the
            columns that predict a label.
        labels: (B, L) or (B,), masked ones -100.
        shifted: position t predicts label t + 1, as in a causal language model.
    """
    if settings.early_stop == "none":
        return torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    if settings.early_stop == "loss":
        return (losses.detach() <= settings.early_stop_loss).expand(len(labels))
    logits, labels = aligned(logits.detach(), labels, shifted)
    masked = labels == IGNORED
    right = masked | (logits.argmax(-1) == labels)
    if settings.early_stop_margin > 0:
        best = logits.topk(2, dim=-1).values
        right &= masked | (best[..., 0] - best[..., 1] >= settings.early_stop_margin)
    return right.flatten(1).all(1) if right.dim() > 1 else right


def aligned(logits: Tensor, labels: Tensor, shifted: bool) -> tuple[Tensor, Tensor]:
    """Return logits and the labels they predict, column by column."""
    if not shifted or labels.dim() == 1:
        return logits, labels
    if logits.shape[1] != labels.shape[1]:
        return logits, labels[:, labelled_columns(labels) + 1]
    return logits[:, :-1], labels[:, 1:]


def is_causal(model: nn.Module) -> bool:
    """Say whether logits at t predict label t + 1: a language model without an encoder."""
    config = getattr(model, "config", None)
    generates = getattr(model, "can_generate", lambda: False)()
    return bool(config is not None and not config.is_encoder_decoder and generates)


def own_loss(output: Any) -> Tensor:
    """Return the model's own loss."""
    loss = getattr(output, "loss", None)
    if loss is None:
        raise EditorError("the model returns no loss for the edit; give it 'labels'.")
    return loss
