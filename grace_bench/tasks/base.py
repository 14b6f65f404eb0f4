"""What a task is, and what the generative ones share.

    task = QuestionAnswering(tokenizer, model.config, max_length=64)
    batch = task.encode([example])              # what model(**batch) takes, labels included
    [prediction] = task.predict(model, [example])
    prediction.text, prediction.scores["f1"]

Tasks see models only as any user does: `model(**batch)` and `model.generate(**prompt)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING

from grace_bench import metrics
from grace_bench.errors import ConfigError, DataError
from grace_bench.models.positions import usable_positions
from grace_bench.tasks.subject import last_mention
from grace_bench.tasks.tokens import Texts

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

IGNORED = -100
"""Label of positions that no loss reads, by Hugging Face's convention."""

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
        text: of its text, which `max_length` cuts.
        label: of its label, which `max_length` cuts or which are more than what is generated.
    """

    text: int = 0
    label: int = 0


class Task(ABC):
    """Base class of tasks.

    Args:
        tokenizer: the model's tokenizer.
        config: the model's configuration.
        max_length: longest sequence in tokens; longer ones are cut at their beginning for
            generative tasks (the prompt's end is what matters), at their end otherwise.
        start_token: what texts begin with; None: what the tokenizer puts there (`Texts`).
        end_token: what answers end with; None: the tokenizer's own.

    Attributes:
        texts: how texts become tokens.

    Raises:
        ConfigError: the model has fewer positions than `max_length`, or the tokenizer lacks a
            token that is set.
    """

    name: ClassVar[str]
    main_measure: ClassVar[str]
    classifies: ClassVar[bool] = False  # whether the model has classes, not text, to say
    generates: bool = True  # whether predictions of a generative task have text

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
        """Check that the model is fit for the task, and tell its configuration what it needs.

        Raises:
            ConfigError: the model is not fit for the task.
        """

    @abstractmethod
    def encode(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return model inputs with labels, right-padded, on the CPU; shapes (batch, length)."""

    def make_room(self, examples: Iterable[Example]) -> None:  # noqa: B027
        """Take note of all examples whose answers are to be generated, before any is asked."""

    def truncation(self, example: Example, asked: bool = True) -> Truncation:
        """Return how much of an example is cut off; tasks that cut say so here.

        Args:
            example: a row.
            asked: whether an answer to it is generated; to those of the role `train` none is.
        """
        return Truncation()

    def is_sayable(self, example: Example) -> bool:
        """Say whether the label comes back from its tokens; if not, its other form counts too."""
        return True

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

    A causal model continues the prompt: both are tokenised as one text and cut at the prompt's
    end. An encoder-decoder's answer is a text of its own.
    """

    max_new_tokens: int = 20
    """Tokens generated at most; `make_room` raises it to what the longest answer needs."""

    most_new_tokens: ClassVar[int | None] = None  # `make_room` goes no further
    separator: ClassVar[str] = " "

    def fit_to_model(self) -> None:
        """Refuse a model that cannot write, and a tokenizer with which no answer would end."""
        if _reads_both_ways(self.config):
            raise ConfigError(
                f"a {self.config.model_type} model reads a text as a whole and writes none; take "
                f"one that generates (such as t5 or gpt2) for the task {self.name}."
            )
        if self.texts.end is None:
            raise ConfigError(
                "the model's tokenizer names no end-of-sequence token, so that no answer would "
                "end; set the model's end_token."
            )

    @property
    def answer_room(self) -> int:
        """Tokens of an answer that are generated: of a causal model half of `max_length` at most.

        It is the same for every example, so that no answer hangs on what it is batched with.
        """
        limit = self.max_length if self.config.is_encoder_decoder else self.max_length // 2
        return min(self.max_new_tokens, limit)

    def make_room(self, examples: Iterable[Example]) -> None:
        """Raise `max_new_tokens` to the longest right answer, up to `most_new_tokens`."""
        if not self.generates:
            return
        longest = max((len(self.answer_ids(e)) for e in examples), default=0)
        if self.most_new_tokens is not None:
            longest = min(longest, self.most_new_tokens)
        self.max_new_tokens = max(self.max_new_tokens, longest)

    def prompt_ids(self, example: Example) -> list[int]:
        """Return the prompt's token ids, of which there is always one.

        A long prompt loses its beginning, except for the start token. A causal model's leaves room
        for an answer, the same for every answer, so that the prompt is the same tokens whether
        scored or continued.
        """
        room = self.max_length
        if not self.config.is_encoder_decoder:
            room -= self.answer_room
        return self._prompt_ids(example, room)

    def _prompt_ids(self, example: Example, limit: int | None = None) -> list[int]:
        ends = self.config.is_encoder_decoder
        return self.texts.ids(example["text"], limit, ends=ends, keep="end")

    def answer_ids(self, example: Example) -> list[int]:
        """Return the label's token ids, the end-of-sequence token included."""
        return self._ids_of(example, example["label"])

    def _ids_of(self, example: Example, answer: str) -> list[int]:
        if not answer.strip():
            raise DataError(f"example '{example['example_id']}' has an empty answer; give it one.")
        if self.config.is_encoder_decoder or not example["text"]:
            ids = self.texts.plain(answer)
        else:
            ids = self.texts.continuation(example["text"], self.separator + answer)
        return [*ids, self.texts.end]

    def whole_text(self, example: Example) -> str:
        """Return prompt and answer as the one text that a causal model reads."""
        text, label = example["text"], example["label"]
        return f"{text}{self.separator}{label}" if text else label

    def is_sayable(self, example: Example) -> bool:
        """Say whether the label's tokens decode to a text that counts as the label.

        They do not where the tokenizer lacks a letter or writes it in another way ("x\u00b2" as
        "x2"). `accepted` has the form that can be said.
        """
        said = self.texts.decode(self.answer_ids(example))
        return metrics.exact_match(said, example["label"]) == 1.0

    def accepted(self, example: Example) -> list[str]:
        """Return all right answers, the label first, each also as the tokenizer can say it."""
        answers = example.get("answers") or [example["label"]]
        said = [self.texts.decode(self._ids_of(example, answer)) for answer in answers]
        return list(dict.fromkeys([*answers, *filter(None, said)]))

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
            "input_ids": pad(rows, self.texts.pad),
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

    def truncation(self, example: Example, asked: bool = True) -> Truncation:
        """Return how much of the prompt's beginning and of the label's end is lost."""
        prompt, answer = self.prompt_ids(example), self.answer_ids(example)
        kept = len(self._kept_answer(example, prompt))
        if asked and self.generates:
            kept = min(kept, self.answer_room)
        return Truncation(
            text=len(self._prompt_ids(example)) - len(prompt), label=len(answer) - kept
        )

    def subject_span(self, example: Example) -> tuple[int, int] | None:
        """Find the last mention of the row's `subject` in the prompt's tokens."""
        text = example["text"]
        found = last_mention(text, (example.get("subject") or "").strip())
        offsets = self.texts.offsets(text)
        if found is None or offsets is None:
            return None
        first, last = found
        inside = [
            column
            for column, (start, end) in enumerate(offsets)
            if start < last and end > first and end > start
        ]
        lost = len(self._prompt_ids(example)) - len(self.prompt_ids(example))
        if not inside or inside[0] < lost:
            return None
        moved = len(self.texts.starts) - lost
        return inside[0] + moved, inside[-1] + 1 + moved

    def generate(self, model: nn.Module, examples: Sequence[Example]) -> list[list[int]]:
        """Return greedily generated token ids, each up to its end-of-sequence token, included."""
        left = not self.config.is_encoder_decoder
        prompts = [self.prompt_ids(example) for example in examples]
        batch = {
            "input_ids": pad(prompts, self.texts.pad, left),
            "attention_mask": attention(prompts, left),
        }
        output = model.generate(
            **to_device(batch, model),
            max_new_tokens=self.answer_room,
            do_sample=False,
            num_beams=1,
            pad_token_id=self.texts.pad,
            eos_token_id=self.texts.end,
        )
        skip = 1 if self.config.is_encoder_decoder else batch["input_ids"].shape[1]
        return [self._until_end(row) for row in output[:, skip:].tolist()]

    def _until_end(self, ids: list[int]) -> list[int]:
        end = self.texts.end
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
            text, label_ids = self.texts.decode(ids), self.answer_ids(example)
            answer = metrics.Answer(text, self.accepted(example), ids=ids, label_ids=label_ids)
            predictions.append(Prediction(text, scores | metrics.score(answer)))
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


def _reads_both_ways(config: PretrainedConfig) -> bool:
    """Say whether a model is an encoder alone, such as BERT, which transformers takes for causal.

    Both marks are needed: GPT-NeoX's configuration has the first one, too.
    """
    encoder = getattr(config, "is_decoder", None) is False and not config.is_encoder_decoder
    return encoder and type(config) in MODEL_FOR_MASKED_LM_MAPPING
