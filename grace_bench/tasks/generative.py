"""Tasks whose answer is generated text, scored under teacher forcing as well."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING, PretrainedConfig

from grace_bench import metrics
from grace_bench.errors import ConfigError, DataError
from grace_bench.tasks.base import (
    IGNORED,
    Example,
    Prediction,
    Task,
    Truncation,
    attention,
    pad,
    to_device,
)
from grace_bench.tasks.subject import last_mention


class GenerativeTask(Task):
    """A prompt and the answer to it, from an encoder-decoder or a causal model.

    Teacher forcing gives `token_accuracy`, `loss` and `perplexity`; text generated greedily until
    the model stops or `max_new_tokens` is reached gives `f1`, `exact_match` and `f1_released`.

    A causal model continues the prompt: both are tokenised as one text and split at the prompt's
    end. An encoder-decoder's answer is a separate text.
    """

    max_new_tokens: int = 20
    """Limit on generated tokens; `make_room` raises it to what the longest answer needs."""

    most_new_tokens: ClassVar[int | None] = None  # the highest limit that `make_room` sets
    separator: ClassVar[str] = " "

    def fit_to_model(self) -> None:
        """Refuse a model that cannot generate, and a tokenizer without an end token."""
        if _reads_both_ways(self.config):
            raise ConfigError(
                f"a {self.config.model_type} model cannot generate text; use one that can (such as "
                f"t5 or gpt2) for the task {self.name}."
            )
        if self.texts.end is None:
            raise ConfigError(
                "the model's tokenizer has no end-of-sequence token, so answers would never end; "
                "set the model's end_token."
            )

    @property
    def answer_room(self) -> int:
        """Tokens generated per answer; for a causal model at most half of `max_length`.

        It is the same for every example, so no answer depends on its batch.
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
        """Return the prompt's token ids, at least one.

        A long prompt loses its beginning, except for the start token. A causal model's prompt
        leaves the same room for every answer, so scoring and generating see the same tokens.
        """
        room = self.max_length
        if not self.config.is_encoder_decoder:
            room -= self.answer_room
        return self._prompt_ids(example, room)

    def _prompt_ids(self, example: Example, limit: int | None = None) -> list[int]:
        ends = self.config.is_encoder_decoder
        return self.texts.ids(example["text"], limit, ends=ends, keep="end")

    def answer_ids(self, example: Example) -> list[int]:
        """Return the label's token ids, including the end-of-sequence token."""
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
        """Return prompt and answer as the single text that a causal model reads."""
        text, label = example["text"], example["label"]
        return f"{text}{self.separator}{label}" if text else label

    def is_sayable(self, example: Example) -> bool:
        """Say whether the label's tokens decode to a text that counts as the label.

        They don't if the tokenizer lacks a letter or normalises it ("x\u00b2" to "x2"); `accepted`
        then includes the tokenised form.
        """
        said = self.texts.decode(self.answer_ids(example))
        return metrics.exact_match(said, example["label"]) == 1.0

    def accepted(self, example: Example) -> list[str]:
        """Return all right answers, the label first, each also in its tokenised form."""
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
        """Return the answer's tokens that fit; a long answer loses its end.

        Raises:
            DataError: none fit, so there is nothing to learn or to score.
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
        """Return how many tokens the prompt's beginning and the label's end lose."""
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
        """Return greedily generated token ids, up to and including the end-of-sequence token."""
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
        """Score each label under teacher forcing and, if wanted, a generated answer."""
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
            logits, labels = logits[:, :-1], labels[:, 1:]  # token i is predicted at i - 1
        losses = nn.functional.cross_entropy(
            logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
        )  # (batch, length)
        labelled = labels != IGNORED
        counts = labelled.sum(dim=1)
        means = (losses.sum(dim=1) / counts).tolist()
        right = ((logits.argmax(dim=-1) == labels) & labelled).sum(dim=1)
        accuracies = (right / counts).tolist()
        return [
            {"loss": loss, "perplexity": metrics.perplexity(loss), "token_accuracy": accuracy}
            for loss, accuracy in zip(means, accuracies, strict=True)
        ]


def _reads_both_ways(config: PretrainedConfig) -> bool:
    """Say whether a model is a bare encoder such as BERT, which transformers would take as causal.

    Both marks are needed, as GPT-NeoX's configuration has the first one too.
    """
    encoder = getattr(config, "is_decoder", None) is False and not config.is_encoder_decoder
    return encoder and type(config) in MODEL_FOR_MASKED_LM_MAPPING
