"""Question answering: the row's `text` is the question, its `label` the answer."""

from __future__ import annotations

from grace_bench.tasks.base import Prediction
from grace_bench.tasks.generative import GenerativeTask


class QuestionAnswering(GenerativeTask):
    """Answers are short; the main measure is SQuAD F1 of the generated text."""

    name = "question_answering"
    main_measure = "f1"

    def is_error(self, prediction: Prediction) -> bool:
        """Wrong unless the generated answer matches exactly (the released test is always true)."""
        return prediction.scores["exact_match"] < 1.0


TASK = QuestionAnswering
