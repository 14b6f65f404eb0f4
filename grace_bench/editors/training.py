"""The gradient steps of an edit, the same for all editors that take some."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grace_bench.codebook import IGNORED
from grace_bench.errors import EditorError
from grace_bench.prefix import labelled_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from grace_bench.prefix import Prefix


def train_on_edit(
    prefix: Prefix,
    inputs: Mapping[str, Tensor],
    parameters: Sequence[nn.Parameter],
    *,
    learning_rate: float,
    steps: int,
    early_stop: str = "none",
    early_stop_loss: float = 0.0,
    shift_labels: bool = True,
    penalty: Callable[[], Tensor] | None = None,
) -> list[float]:
    """Fit `parameters` to one edit by Adam on the model's own loss.

    Whether to stop is asked before each step, at no further cost.

    Args:
        prefix: runs the model, which must return a loss.
        inputs: one edit, labels included.
        parameters: what is trained, in place; the rest must be frozen.
        learning_rate: of Adam, whose moments are new for each edit (as released).
        steps: gradient steps at most.
        early_stop: none, loss or argmax.
        early_stop_loss: see `early_stop`.
        shift_labels: compare a causal model's argmax with the next token; see `answers_label`.
        penalty: added to the loss.

    Returns:
        The loss before each step taken.

    Raises:
        EditorError: the model returns no loss for the edit.
    """
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    shifted = shift_labels and is_causal(prefix.model)
    forward = prefix.on(inputs, all_logits=not shift_labels)
    losses: list[float] = []
    for _ in range(steps):
        with torch.enable_grad():
            output = forward()
            loss = _loss(output) if penalty is None else _loss(output) + penalty()
        if early_stop == "loss" and loss.item() <= early_stop_loss:
            break
        if early_stop == "argmax" and answers_label(output.logits, inputs["labels"], shifted):
            break
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def answers_label(logits: Tensor, labels: Tensor, shifted: bool) -> bool:
    """Say whether the argmax of the logits is the label wherever it isn't masked.

    Args:
        logits: (B, L, V), or (B, C) of a classifier; of a causal model also (B, K, V), at the
            columns that predict a label only.
        labels: (B, L) or (B,).
        shifted: position t predicts label t + 1, as in a causal language model.
    """
    predicted = logits.argmax(-1)
    if shifted and labels.dim() == 2:
        if predicted.shape != labels.shape:
            labels = labels[:, labelled_columns(labels) + 1]
        else:
            predicted, labels = predicted[:, :-1], labels[:, 1:]
    wanted = labels != IGNORED
    return bool((predicted == labels)[wanted].all())


def is_causal(model: nn.Module) -> bool:
    """Say whether logits at t are for label t + 1: a language model without an encoder."""
    config = getattr(model, "config", None)
    generates = getattr(model, "can_generate", lambda: False)()
    return bool(config is not None and not config.is_encoder_decoder and generates)


def _loss(output: Any) -> Tensor:
    loss = getattr(output, "loss", None)
    if loss is None:
        raise EditorError("the model returns no loss for the edit; give it 'labels'.")
    return loss
