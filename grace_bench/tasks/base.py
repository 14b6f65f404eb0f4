"""What a task is, and what the generative ones share.

    task = QuestionAnswering(tokenizer, model.config, max_length=64)
    batch = task.encode([example])              # what model(**batch) takes, labels included
    [prediction] = task.predict(model, [example])
    prediction.text, prediction.scores["f1"]

Tasks see models only as any user does: `model(**batch)` and `model.generate(**prompt)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from grace_bench import metrics
from grace_bench.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

IGNORED = -100
"""Label of positions that no loss reads, by Hugging Face's convention."""

Example = Mapping[str, Any]


@dataclass(frozen=True)
class Prediction:
    """What the model says to one example (None: it was not asked to), its scores by measure."""

    text: str | None
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Truncation:
    """How many tokens of an example do not fit `max_length`: of its text, of its label."""

    text: int = 0
    label: int = 0


class Task(ABC):
    """Base class of tasks.

    Args:
        tokenizer: the model's tokenizer.
        config: the model's configuration.
        max_length: longest sequence in tokens; longer ones are cut at their beginning for
            generative tasks (the prompt's end is what matters), at their end otherwise.

    Raises:
        ConfigError: the model has fewer positions than `max_length`.
    """

    name: ClassVar[str]
    main_measure: ClassVar[str]
    generates: bool = True  # whether predictions of a generative task have text

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: PretrainedConfig,
        max_length: int,
    ) -> None:
        positions = getattr(config, "max_position_embeddings", None)
        if positions is not None and max_length > positions:
            raise ConfigError(
                f"max_length {max_length} is more than the model's {positions} positions; "
                "lower the model's max_length."
            )
        self.tokenizer = tokenizer
        self.config = config
        self.max_length = max_length

    @abstractmethod
    def encode(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return model inputs with labels, right-padded, on the CPU; shapes (batch, length)."""

    def truncation(self, example: Example) -> Truncation:
        """Return how much of an example `encode` cuts off; tasks that cut say so here."""
        return Truncation()

    def subject_span(self, example: Example) -> tuple[int, int] | None:
        """Return where the example's subject stands in its encoded input, if it has one there.

        As columns [start, end) of `encode([example])["input_ids"]`.
        """
        return None

    @abstractmethod
    def predict(self, model: nn.Module, examples: Sequence[Example]) -> list[Prediction]:
        """Return one prediction an example, in order."""

    @abstractmethod
    def is_error(self, prediction: Prediction) -> bool:
        """Say whether a prediction calls for an edit."""


def pad(rows: Sequence[Sequence[int]], value: int, left: bool = False) -> Tensor:
    """Return rows of token ids as one tensor (rows, longest), filled up with `value`."""
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


class GenerativeTask(Task):
    """A prompt, an answer after it: by an encoder-decoder or by a causal model.

    Both decodings are scored, under names of their own: `token_accuracy`, `loss` and
    `perplexity` under teacher forcing; `f1`, `exact_match` and `f1_released` on text generated
    greedily until the model stops by itself or `max_new_tokens` is reached.
    """

    max_new_tokens: ClassVar[int] = 20
    separator: ClassVar[str] = " "

    def prompt_ids(self, example: Example) -> list[int]:
        """Return the prompt's token ids; a causal model's begin with the start token.

        Texts it was trained on began with it too, and an empty prompt is that token alone.
        A long prompt loses its beginning. A causal model's leaves room for an answer, the same
        for every answer, so that the prompt is the same tokens whether scored or continued.
        """
        room = self.max_length
        if not self.config.is_encoder_decoder:
            room -= min(self.max_new_tokens, self.max_length // 2)
        return self._whole_prompt_ids(example)[-room:]

    def _whole_prompt_ids(self, example: Example) -> list[int]:
        if self.config.is_encoder_decoder:
            return self.tokenizer(example["text"])["input_ids"]
        ids = self.tokenizer(example["text"], add_special_tokens=False)["input_ids"]
        start = self.tokenizer.bos_token_id
        if start is None:
            start = self.tokenizer.eos_token_id
        return [start, *ids]

    def answer_ids(self, example: Example) -> list[int]:
        """Return the answer's token ids, the end-of-sequence token included."""
        text = example["label"]
        if not self.config.is_encoder_decoder and example["text"]:
            text = self.separator + text
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids or not example["label"].strip():
            raise DataError(f"example '{example['example_id']}' has an empty answer; give it one.")
        return [*ids, self.tokenizer.eos_token_id]

    def encode(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return input_ids, attention_mask and labels; (batch, length) each."""
        prompts = [self.prompt_ids(example) for example in examples]
        answers = [self._kept_answer(e, p) for e, p in zip(examples, prompts, strict=True)]
        if self.config.is_encoder_decoder:
            rows, labels = prompts, answers
        else:
            rows = [[*p, *a] for p, a in zip(prompts, answers, strict=True)]
            labels = [[*[IGNORED] * len(p), *a] for p, a in zip(prompts, answers, strict=True)]
        return {
            "input_ids": pad(rows, self._pad_id),
            "attention_mask": attention(rows),
            "labels": pad(labels, IGNORED),
        }

    def _kept_answer(self, example: Example, prompt: Sequence[int]) -> list[int]:
        """Return the answer's tokens that fit: a long answer loses its end.

        Raises:
            DataError: none do, so that there is nothing to learn or to score.
        """
        taken = 1 if self.config.is_encoder_decoder else len(prompt)  # 1: the decoder's start
        kept = self.answer_ids(example)[: max(0, self.max_length - taken)]
        if not kept:
            raise DataError(
                f"example '{example['example_id']}': max_length {self.max_length} leaves no room "
                "for its label; raise the model's max_length."
            )
        return kept

    def truncation(self, example: Example) -> Truncation:
        """Return how much of the prompt's beginning and of the label's end is cut off."""
        prompt = self.prompt_ids(example)
        return Truncation(
            text=len(self._whole_prompt_ids(example)) - len(prompt),
            label=len(self.answer_ids(example)) - len(self._kept_answer(example, prompt)),
        )

    def subject_span(self, example: Example) -> tuple[int, int] | None:
        """Find the last mention of the row's `subject` in the prompt's tokens."""
        text, subject = example["text"], (example.get("subject") or "").strip()
        first = max(text.rfind(subject), text.lower().rfind(subject.lower()))
        if not subject or first < 0:
            return None
        special = self.config.is_encoder_decoder
        encoded = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        last = first + len(subject)
        inside = [
            column
            for column, (start, end) in enumerate(encoded["offset_mapping"])
            if start < last and end > first and end > start
        ]
        # A causal model's prompt has a start token more; a long one loses its beginning.
        lost = len(encoded["input_ids"]) - len(self.prompt_ids(example))
        if not inside or inside[0] < lost:
            return None
        return inside[0] - lost, inside[-1] + 1 - lost

    @property
    def _pad_id(self) -> int:
        pad_id = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad_id is None else pad_id

    def generate(self, model: nn.Module, examples: Sequence[Example]) -> list[list[int]]:
        """Return greedily generated token ids, each up to its end-of-sequence token, included."""
        left = not self.config.is_encoder_decoder
        prompts = [self.prompt_ids(example) for example in examples]
        batch = {
            "input_ids": pad(prompts, self._pad_id, left),
            "attention_mask": attention(prompts, left),
        }
        output = model.generate(
            **to_device(batch, model),
            max_new_tokens=self._room_to_generate(batch["input_ids"].shape[1]),
            do_sample=False,
            num_beams=1,
            pad_token_id=self._pad_id,
            eos_token_id=self.tokenizer.eos_token_id,
        )
        skip = 1 if self.config.is_encoder_decoder else batch["input_ids"].shape[1]
        return [self._until_end(row) for row in output[:, skip:].tolist()]

    def _room_to_generate(self, width: int) -> int:
        """Return how many tokens may follow a prompt: fewer than wanted if positions run out."""
        positions = getattr(self.config, "max_position_embeddings", None)
        if positions is None or self.config.is_encoder_decoder:
            return self.max_new_tokens
        return min(self.max_new_tokens, positions - width)

    def _until_end(self, ids: list[int]) -> list[int]:
        end = self.tokenizer.eos_token_id
        return ids[: ids.index(end) + 1] if end in ids else ids

    @torch.no_grad()
    def predict(self, model: nn.Module, examples: Sequence[Example]) -> list[Prediction]:
        """Generate an answer to each example, if wanted, and score it both ways."""
        forced = self.score_forced(model, examples)
        if not self.generates:
            return [Prediction(None, scores) for scores in forced]
        generated = self.generate(model, examples)
        predictions = []
        for example, ids, scores in zip(examples, generated, forced, strict=True):
            text = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
            scores["f1"] = metrics.squad_f1(text, example["label"])
            scores["exact_match"] = metrics.exact_match(text, example["label"])
            scores["f1_released"] = metrics.f1_released(ids, self.answer_ids(example))
            predictions.append(Prediction(text, scores))
        return predictions

    def score_forced(self, model: nn.Module, examples: Sequence[Example]) -> list[dict[str, float]]:
        """Return loss, perplexity and token accuracy of each label under teacher forcing."""
        batch = to_device(self.encode(examples), model)
        logits, labels = model(**batch).logits, batch["labels"]
        if not self.config.is_encoder_decoder:
            logits, labels = (
                logits[:, :-1],
                labels[:, 1:],
            )  # the token at i is predicted at i - 1
        losses = nn.functional.cross_entropy(
            logits.float().transpose(1, 2),
            labels,
            ignore_index=IGNORED,
            reduction="none",
        )  # (batch, length)
        labelled = labels != IGNORED
        counts = labelled.sum(dim=1)
        means = (losses.sum(dim=1) / counts).tolist()
        right = ((logits.argmax(dim=-1) == labels) & labelled).sum(dim=1)
        accuracies = (right / counts).tolist()
        return [
            {
                "loss": loss,
                "perplexity": metrics.perplexity(loss),
                "token_accuracy": accuracy,
            }
            for loss, accuracy in zip(means, accuracies, strict=True)
        ]
