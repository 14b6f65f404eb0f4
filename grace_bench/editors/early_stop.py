"""When to stop an edit's training before its last gradient step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from grace_bench.codebook.codebook import IGNORED
from grace_bench.replay.steps import labelled_columns

if TYPE_CHECKING:
    from grace_bench.editors.hyperparameters import TrainedHyperparameters


@dataclass(frozen=True)
class EarlyStop:
    """A rule that is checked before each step, on that step's own forward pass.

    Args:
        rule: none, loss (it is at most `loss`) or argmax (every label token's logit is the
            largest, by `margin`).
        loss: see `rule`.
        margin: see `rule`.
        steps: consecutive steps before which the rule must hold.
    """

    rule: str = "none"
    loss: float = 0.0
    margin: float = 0.0
    steps: int = 1

    @classmethod
    def of(cls, settings: TrainedHyperparameters) -> EarlyStop:
        """Return the rule in an editor's hyperparameters."""
        return cls(
            settings.early_stop,
            settings.early_stop_loss,
            settings.early_stop_margin,
            settings.early_stop_steps,
        )

    def holds(self, losses: Tensor, logits: Tensor, labels: Tensor, shifted: bool) -> Tensor:
        """Say for each row (B,) whether the rule holds now.

        Args:
            losses: (B,), or one for the whole batch.
            logits: (B, L, V), or (B, C) of a classifier; of a causal model also (B, K, V), at only
                the columns that predict a label.
            labels: (B, L) or (B,), masked ones -100.
            shifted: position t predicts label t + 1, as in a causal language model.
        """
        if self.rule == "none":
            return torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
        if self.rule == "loss":
            return (losses.detach() <= self.loss).expand(len(labels))
        logits, labels = aligned(logits.detach(), labels, shifted)
        masked = labels == IGNORED
        right = masked | (logits.argmax(-1) == labels)
        if self.margin > 0:
            best = logits.topk(2, dim=-1).values
            right &= masked | (best[..., 0] - best[..., 1] >= self.margin)
        return right.flatten(1).all(1) if right.dim() > 1 else right


NEVER = EarlyStop()


def aligned(logits: Tensor, labels: Tensor, shifted: bool) -> tuple[Tensor, Tensor]:
    """Return logits and the labels they predict, column by column."""
    if not shifted or labels.dim() == 1:
        return logits, labels
    if logits.shape[1] != labels.shape[1]:
        return logits, labels[:, labelled_columns(labels) + 1]
    return logits[:, :-1], labels[:, 1:]
