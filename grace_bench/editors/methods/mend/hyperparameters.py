"""The hyperparameters of MEND."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from grace_bench.editors.hyperparameters import EditorHyperparameters


class MendHyperparameters(EditorHyperparameters):
    """MEND (Mitchell et al. 2022): a trained map of gradients to updates, on the run's layer."""

    ASSET_FIELDS: ClassVar = (
        *("rank", "edit_lr", "learning_rate", "lr_lr", "c_edit"),
        *("training_steps", "accumulate", "check_every", "checks", "patience"),
        *("held_out", "normalise_over", "training_seed"),
    )

    rank: int = Field(
        1920, ge=1, description="Of the map's layers (released 1920), limited to their width."
    )
    edit_lr: float = Field(
        1e-4, gt=0, description="Initial rate of the update, trained with the map (released 1e-4)."
    )
    learning_rate: float = Field(1e-6, gt=0, description="Of Adam on the map (released 1e-6).")
    lr_lr: float = Field(1e-4, gt=0, description="Of Adam on edit_lr (released 1e-4).")
    c_edit: float = Field(
        0.1,
        gt=0,
        description="Weight of the edit's loss; the divergence has 1 (paper .1).",
    )
    training_steps: int = Field(
        100_000, ge=1, description="Limit on steps of Adam (released 1,000,000 edits)."
    )
    accumulate: int = Field(10, ge=1, description="Edits per step (released 10).")
    check_every: int = Field(500, ge=1, description="Steps between evaluations on held-out edits.")
    checks: int = Field(100, ge=1, description="Held-out edits per evaluation.")
    patience: int = Field(
        2000,
        ge=1,
        description="Stop after this many steps without improvement (released 20,000).",
    )
    held_out: float = Field(0.1, gt=0, lt=1, description="Share of the training facts to hold out.")
    normalise_over: int = Field(
        200, ge=1, description="Edits that give the mean and deviation of the map's inputs."
    )
    training_seed: int = Field(
        0, ge=0, description="Of the map's training; independent of the run's seed."
    )
