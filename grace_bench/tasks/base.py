"""The task contract.

    task = QuestionAnswering(tokenizer, model.config, max_length=64)
    batch = task.encode([example])              # what model(**batch) takes, labels included
    [prediction] = task.predict(model, [example])
    prediction.text, prediction.scores["f1"]

Tasks call models as any user would: `model(**batch)` and `model.generate(**prompt)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from grace_bench.errors import ConfigError
from grace_bench.models.positions import usable_positions
from grace_bench.tasks.tokens import Texts

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

IGNORED = -100
"""Label of positions that losses ignore, by Hugging Face's convention."""

Example = Mapping[str, Any]


@dataclass(frozen=True)
class Prediction:
    """What the model says to one example.

    Args:
        text: None if no text was asked for.
        scores: by measure.
        key: of the editor's codebook, that answered; None if none did.
    """

    text: str | None
    scores: Mapping[str, float]
    key: int | None = None


@dataclass(frozen=True)
class Truncation:
    """How many tokens of an example are lost.

    Args:
        text: of its text, cut by `max_length`.
        label: of its label, cut by `max_length` or by the length of generated answers.
    """

    text: int = 0
    label: int = 0


class Task(ABC):
    """Base class of tasks.

    Args:
        tokenizer: the model's tokenizer.
        config: the model's configuration.
        max_length: longest sequence in tokens. Generative tasks cut longer ones at the beginning,
            as the prompt's end matters most; other tasks cut the end.
        start_token: first token of texts; None: the tokenizer's own (`Texts`).
        end_token: last token of answers; None: the tokenizer's own.

    Attributes:
        texts: turns texts into tokens.

    Raises:
        ConfigError: the model has fewer positions than `max_length`, or the tokenizer lacks
            `start_token` or `end_token`.
    """

    name: ClassVar[str]
    main_measure: ClassVar[str]
    classifies: ClassVar[bool] = False  # whether the model predicts classes, not text
    generates: bool = True  # whether a generative task predicts text

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: PretrainedConfig,
        max_length: int,
        start_token: str | None = None,
        end_token: str | None = None,
    ) -> None:
        positions = usable_positions(config)
        if positions is not None and max_length > positions:
            raise ConfigError(
                f"max_length {max_length} is more than the model's {positions} positions; "
                "lower the model's max_length."
            )
        self.texts = Texts(tokenizer, start_token, end_token)
        self.config = config
        self.max_length = max_length
        self.fit_to_model()

    def fit_to_model(self) -> None:  # noqa: B027
        """Check that the model can do the task, and complete its configuration.

        Raises:
            ConfigError: the model cannot do the task.
        """

    @abstractmethod
    def encode(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return model inputs with labels, right-padded, on the CPU; shapes (batch, length)."""

    def make_room(self, examples: Iterable[Example]) -> None:  # noqa: B027
        """Learn which examples will have answers generated, before the first prediction."""

    def truncation(self, example: Example, asked: bool = True) -> Truncation:
        """Return how much of an example is cut off.

        Args:
            example: a row.
            asked: whether an answer to it is generated, as for all roles but `train`.
        """
        return Truncation()

    def is_sayable(self, example: Example) -> bool:
        """Say whether the label survives tokenising; if not, its tokenised form counts too."""
        return True

    def subject_span(self, example: Example) -> tuple[int, int] | None:
        """Return the subject's columns [start, end) in `encode([example])["input_ids"]`, if any."""
        return None

    @abstractmethod
    def predict(self, model: nn.Module, examples: Sequence[Example]) -> list[Prediction]:
        """Return one prediction per example, in order."""

    @abstractmethod
    def is_error(self, prediction: Prediction) -> bool:
        """Say whether a prediction calls for an edit."""


def pad(rows: Sequence[Sequence[int]], value: int, left: bool = False) -> Tensor:
    """Return rows of token ids as one tensor (rows, longest), padded with `value`."""
    width = max(len(row) for row in rows)
    fill = [[value] * (width - len(row)) for row in rows]
    return torch.tensor(
        [[*f, *row] if left else [*row, *f] for row, f in zip(rows, fill, strict=True)],
        dtype=torch.long,
    )


def attention(rows: Sequence[Sequence[int]], left: bool = False) -> Tensor:
    """Return the attention mask of `pad(rows)`."""
    return pad([[1] * len(row) for row in rows], 0, left)


def to_device(batch: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the batch on the model's device."""
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in batch.items()}
