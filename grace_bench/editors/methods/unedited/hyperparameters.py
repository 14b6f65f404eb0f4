"""Nothing to set."""

from __future__ import annotations

from grace_bench.editors.hyperparameters import EditorHyperparameters


class UneditedHyperparameters(EditorHyperparameters):
    """The unedited model has nothing to set."""
