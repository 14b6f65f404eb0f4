"""FT + EWC: finetuning with a penalty on weights that past edits need (Kirkpatrick et al. 2017).

The penalty is lambda * sum(F * (w - anchor)^2), with F the diagonal Fisher information of the
latest edits. The released code crashes; `rules: released` is its behaviour with the one-line fix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from grace_bench.editors.base import EditBatch, EditResult
from grace_bench.editors.methods.ft.editor import HistoryEditor
from grace_bench.editors.methods.ft_ewc.hyperparameters import EwcHyperparameters
from grace_bench.editors.training import own_loss


class EwcEditor(HistoryEditor):
    """FT with elastic weight consolidation."""

    name: ClassVar[str] = "ft_ewc"
    hyperparameters: EwcHyperparameters

    def setup(self) -> None:
        """Begin with an empty memory."""
        super().setup()
        self._forwards: dict[int, Callable[[], Any]] = {}  # of the items in memory, by id

    def edit(self, batch: EditBatch) -> EditResult:
        """Finetune on the edit, restrained by the edits in memory."""
        settings, current = self.hyperparameters, dict(batch.inputs)
        items = [*self.history, current] if settings.include_current else self.history
        with self.training_weight():
            # The latest first: with accumulated gradients the order matters.
            penalty = self._penalty(items[::-1][: settings.memory])
            losses = self.finetune(current, penalty if items else None)
        self.history = [*self.history, current][-settings.memory :]
        kept = {id(item) for item in self.history}
        self._forwards = {key: run for key, run in self._forwards.items() if key in kept}
        return EditResult(losses=losses)

    def _penalty(self, items: Sequence[Mapping[str, Tensor]]) -> _Penalty:
        settings = self.hyperparameters
        fisher = torch.zeros_like(self.weight, requires_grad=False)
        for inputs in items:
            if settings.zero_gradients:
                self.weight.grad = None
            with torch.enable_grad():
                own_loss(self._forward(inputs)).backward()
            fisher += self.weight.grad**2
        self.weight.grad = None
        fisher /= max(1, len(items)) if settings.divide_by == "count" else settings.memory
        anchor = self.weight.detach().clone()
        if settings.anchor == "shrunken":
            anchor *= len(items) / settings.memory
        return _Penalty(self.weight, fisher, anchor, settings.ewc_lambda)

    def _forward(self, inputs: Mapping[str, Tensor]) -> Any:
        """Run the model on an item in memory, reusing what the weight can't change."""
        key = id(inputs)
        if key not in self._forwards:
            self._forwards[key] = self.replay.session(inputs)
        return self._forwards[key]()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load weight and memory."""
        super().load_state_dict(state)
        self._forwards = {}


class _Penalty:
    """lambda * sum(F * (w - anchor)^2)."""

    def __init__(self, weight: Tensor, fisher: Tensor, anchor: Tensor, strength: float) -> None:
        self.weight, self.fisher, self.anchor, self.strength = weight, fisher, anchor, strength

    def __call__(self) -> Tensor:
        """Return the penalty at the current weight."""
        return self.strength * (self.fisher * (self.weight - self.anchor) ** 2).sum()
