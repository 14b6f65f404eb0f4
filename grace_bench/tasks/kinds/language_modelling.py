"""Language modelling: `text` is the passage so far, `label` the sentence that should follow."""

from __future__ import annotations

from grace_bench.tasks.base import Prediction
from grace_bench.tasks.generative import GenerativeTask


class LanguageModelling(GenerativeTask):
    """The main measure is the perplexity of the label given the passage."""

    name = "language_modelling"
    main_measure = "perplexity"
    max_new_tokens = 24
    most_new_tokens = 64

    def is_error(self, prediction: Prediction) -> bool:
        """Call every prediction an error: edits replace sentences known to be false (GRACE, 4)."""
        return True


TASK = LanguageModelling
