"""Classification: `text` is the document, `label` the name of its class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from grace_bench.errors import DataError
from grace_bench.metrics import Answer, score
from grace_bench.models.positions import is_roberta_like
from grace_bench.tasks.base import (
    Example,
    Prediction,
    Task,
    Truncation,
    attention,
    pad,
    to_device,
)


class Classification(Task):
    """Predicts the class with the largest logit; the main measure is accuracy."""

    name = "classification"
    main_measure = "accuracy"
    classifies = True

    def fit_to_model(self) -> None:
        """Set the padding token: a decoder classifies at its last other token."""
        config = self.config
        if not is_roberta_like(config):
            config.pad_token_id = config.get_text_config().pad_token_id = self.texts.pad

    def encode(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return input_ids and attention_mask (batch, length) and labels (batch,)."""
        rows = [self.texts.ids(example["text"], self.max_length) for example in examples]
        return {
            "input_ids": pad(rows, self.texts.pad),
            "attention_mask": attention(rows),
            "labels": torch.tensor([self._class_of(example) for example in examples]),
        }

    def truncation(self, example: Example, asked: bool = True) -> Truncation:
        """Return how many tokens the text's end loses; a class has no length."""
        return Truncation(text=max(0, len(self.texts.ids(example["text"])) - self.max_length))

    def _class_of(self, example: Example) -> int:
        try:
            return self.config.label2id[example["label"]]
        except KeyError as error:
            raise DataError(
                f"example '{example['example_id']}': the model has no class "
                f"'{example['label']}'; its classes are {sorted(self.config.label2id)}."
            ) from error

    @torch.no_grad()
    def predict(self, model: nn.Module, examples: Sequence[Example]) -> list[Prediction]:
        """Return the most likely class of each example."""
        batch = to_device(self.encode(examples), model)
        logits = model(**batch).logits.float()  # (batch, classes)
        losses = nn.functional.cross_entropy(logits, batch["labels"], reduction="none").tolist()
        predictions = []
        for example, index, loss in zip(
            examples, logits.argmax(dim=-1).tolist(), losses, strict=True
        ):
            name = self.config.id2label[index]
            answer = Answer(name, [example["label"]], is_class=True)
            predictions.append(Prediction(name, {**score(answer), "loss": loss}))
        return predictions

    def is_error(self, prediction: Prediction) -> bool:
        """Call another class an error."""
        return prediction.scores["accuracy"] < 1.0


TASK = Classification
