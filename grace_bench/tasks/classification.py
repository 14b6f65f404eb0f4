"""Classification: `text` is the document, `label` the name of its class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from grace_bench.errors import DataError
from grace_bench.tasks.base import Example, Prediction, Task, Truncation, attention, pad, to_device

if TYPE_CHECKING:
    from collections.abc import Sequence


class Classification(Task):
    """The class predicted is the argmax; the main measure is accuracy."""

    name = "classification"
    main_measure = "accuracy"

    def encode(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return input_ids and attention_mask (batch, length) and labels (batch,)."""
        rows = [
            self.tokenizer(example["text"], truncation=True, max_length=self.max_length)[
                "input_ids"
            ]
            for example in examples
        ]
        return {
            "input_ids": pad(rows, self.tokenizer.pad_token_id),
            "attention_mask": attention(rows),
            "labels": torch.tensor([self._class_of(example) for example in examples]),
        }

    def truncation(self, example: Example) -> Truncation:
        """Return how much of the text's end is cut off; a class has no length."""
        return Truncation(
            text=max(0, len(self.tokenizer(example["text"])["input_ids"]) - self.max_length)
        )

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
        chosen = logits.argmax(dim=-1)
        right = (chosen == batch["labels"]).tolist()
        return [
            Prediction(
                self.config.id2label[index],
                {"accuracy": float(ok), "loss": loss},
            )
            for index, ok, loss in zip(chosen.tolist(), right, losses, strict=True)
        ]

    def is_error(self, prediction: Prediction) -> bool:
        """Wrong when another class is predicted."""
        return prediction.scores["accuracy"] < 1.0
