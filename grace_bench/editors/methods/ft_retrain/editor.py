"""FT + Retrain: finetuning, with a round of training on past edits every few edits.

The released code crashes; `rules: released` is its behaviour with the missing argument passed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from grace_bench.editors.base import EditBatch, EditResult
from grace_bench.editors.methods.ft.editor import HistoryEditor
from grace_bench.editors.methods.ft_retrain.hyperparameters import RetrainHyperparameters


class RetrainEditor(HistoryEditor):
    """FT with periodic retraining."""

    name: ClassVar[str] = "ft_retrain"
    hyperparameters: RetrainHyperparameters

    def setup(self) -> None:
        """Begin with an empty memory."""
        super().setup()
        self.n_edits = 0

    def edit(self, batch: EditBatch) -> EditResult:
        """Retrain if due, then finetune on the edit."""
        settings, current = self.hyperparameters, dict(batch.inputs)
        past, self.n_edits = self.history, self.n_edits + 1
        keep = len(past) + 1 if settings.memory is None else settings.memory
        self.history = [*past, current][-keep:]
        with self.training_weight():
            if self.n_edits % settings.retrain_every == 0:
                self._retrain(self.history if settings.include_current else past)
            return EditResult(losses=self.finetune(current))

    def _retrain(self, items: Sequence[Mapping[str, Tensor]]) -> None:
        if self.hyperparameters.retrain_from == "original":
            self.remove()
        optimizer = torch.optim.Adam([self.weight], lr=self.hyperparameters.learning_rate)
        for _ in range(self.hyperparameters.epochs):
            for inputs in items:
                optimizer.zero_grad()
                with torch.enable_grad():
                    self.model(**inputs).loss.backward()
                optimizer.step()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weight, the past edits and their number."""
        return {**super().state_dict(), "n_edits": torch.tensor([self.n_edits])}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the weight, the past edits and their number."""
        super().load_state_dict(state)
        self.n_edits = int(state["n_edits"])
