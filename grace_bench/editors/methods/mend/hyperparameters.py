"""The hyperparameters of MEND."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from grace_bench.editors.hyperparameters import EditorHyperparameters


class MendHyperparameters(EditorHyperparameters):
    """MEND (Mitchell et al. 2022): a trained map of gradients to updates, on the run's layer."""

    ASSET_FIELDS: ClassVar[tuple[str, ...]] = (
        *("rank", "edit_lr", "learning_rate", "lr_lr", "c_edit"),
        *("training_steps", "accumulate", "check_every", "checks", "patience"),
        *("held_out", "normalise_over", "training_seed"),
    )

    rank: int = Field(
        1920, ge=1, description="Of the map's layers (released 1920); at most their width is used."
    )
    edit_lr: float = Field(
        1e-4, gt=0, description="Of the update, where its training starts (released 1e-4)."
    )
    learning_rate: float = Field(1e-6, gt=0, description="Of Adam on the map (released 1e-6).")
    lr_lr: float = Field(1e-4, gt=0, description="Of Adam on the rate (released 1e-4).")
    c_edit: float = Field(
        0.1, gt=0, description="Of the edit's loss beside the divergence elsewhere (paper .1)."
    )
    training_steps: int = Field(
        100_000, ge=1, description="Steps of Adam at most (released 1,000,000 edits)."
    )
    accumulate: int = Field(10, ge=1, description="Edits a step (released 10).")
    check_every: int = Field(500, ge=1, description="Steps between two looks at held-out edits.")
    checks: int = Field(100, ge=1, description="Held-out edits looked at.")
    patience: int = Field(
        2000, ge=1, description="Stop after so many steps without a better loss (released 20,000)."
    )
    held_out: float = Field(
        0.1, gt=0, lt=1, description="Share of the training facts that is held out."
    )
    normalise_over: int = Field(
        200, ge=1, description="Edits that mean and deviation of the map's inputs come from."
    )
    training_seed: int = Field(0, ge=0, description="Of the map's training, whatever the run's.")
