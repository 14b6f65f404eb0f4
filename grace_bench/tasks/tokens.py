"""Turn texts into tokens, in the same way for training, scores, edits and covariances.

    texts = Texts(tokenizer)
    prompt = texts.ids("Who wrote Emma?", ends=False)
    answer = texts.continuation("Who wrote Emma?", " Jane Austen")
    texts.decode(answer)                # "Jane Austen"

Special tokens go where the tokenizer puts them; one that is written in a text is plain text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from grace_bench.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBES = ("a", "0", ".", "A a")
_SENTENCEPIECE_SPACE = "\u2581"


class Texts:
    """Converts texts to one model's tokens, and back.

    Args:
        tokenizer: the model's tokenizer.
        start_token: first token of texts; "": none; None: the tokenizer's own.
        end_token: last token of answers; None: the tokenizer's end-of-sequence token, or else the
            last token that it appends to a text.

    Attributes:
        given: `start_token` and `end_token`.
        starts: ids before a text.
        ends: ids that the tokenizer appends to a text.
        end: id after an answer; None if the tokenizer has none.
        pad: id for padding; 0 if the tokenizer has neither a padding nor an end token.

    Raises:
        ConfigError: the tokenizer lacks `start_token` or `end_token`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        start_token: str | None = None,
        end_token: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.given = start_token, end_token
        self.starts, self.ends = self._around()
        if start_token is not None:
            self.starts = [self._id(start_token, "start_token")] if start_token else []
        end = tokenizer.eos_token_id
        if end_token is not None:
            end = self._id(end_token, "end_token")
        elif end is None and self.ends:
            end = self.ends[-1]
        self.end: int | None = end
        pad = tokenizer.pad_token_id
        self.pad: int = pad if pad is not None else end or 0
        self._hidden = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id} | {end}

    def plain(self, text: str) -> list[int]:
        """Return the ids of a text without special tokens."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]

    def ids(
        self, text: str, limit: int | None = None, *, ends: bool = True, keep: str = "beginning"
    ) -> list[int]:
        """Return the ids of a text with the special tokens around it, at least one.

        Where there would be none, it is the token that begins or else ends sequences.

        Args:
            text: any text.
            limit: most ids; the text is cut, the special tokens stay.
            ends: append the closing tokens; False for a text to be continued.
            keep: which side of a long text to keep, "beginning" or "end".
        """
        plain, last = self.plain(text), self.ends if ends else []
        if limit is not None:
            room = max(0, limit - len(self.starts) - len(last))
            plain = plain[:room] if keep == "beginning" else plain[max(0, len(plain) - room) :]
        whole = [*self.starts, *plain, *last]
        return whole if whole else [self._something()]

    def continuation(self, prompt: str, text: str) -> list[int]:
        """Return the ids of `text` after a prompt: tokenised as one, split at its end.

        The prompt's ids are always those of the prompt alone, as the model sees them when asked and
        a codebook's keys are read at their end. If a token spans the border, the text is tokenised
        after another prompt.
        """
        for before in (prompt, *_PROBES):
            own, whole = self.plain(before), self.plain(before + text)
            if whole[: len(own)] == own:
                return whole[len(own) :]
        return self.plain(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens except the unknown one."""
        return self.tokenizer.decode([i for i in ids if i not in self._hidden]).strip()

    def offsets(self, text: str) -> list[tuple[int, int]] | None:
        """Return the characters [start, end) of each of `plain(text)`; None if unknown."""
        if not self.tokenizer.is_fast:
            return None
        return self.tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
        )["offset_mapping"]

    def _around(self) -> tuple[list[int], list[int]]:
        """Return the ids that the tokenizer puts before and after a text."""
        for probe in _PROBES:
            own, whole = self.plain(probe), self.tokenizer(probe)["input_ids"]
            for start in range(len(whole) - len(own) + 1) if own else ():
                if whole[start : start + len(own)] == own:
                    starts, ends = whole[:start], whole[start + len(own) :]
                    return (starts, ends) if starts or ends else (self._unsaid_start(), [])
        return [], []

    def _unsaid_start(self) -> list[int]:
        """Return the start token for a tokenizer that puts nothing around texts.

        A SentencePiece model (Llama 2, Mistral) expects one even if its file lost the template that
        adds it; a byte-level one (GPT-2, SmolLM2) omits it on purpose.
        """
        tokenizer = self.tokenizer
        known = tokenizer.convert_tokens_to_ids(_SENTENCEPIECE_SPACE)
        if known in (None, tokenizer.unk_token_id) or "add_bos_token" in tokenizer.init_kwargs:
            return []
        return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]

    def _something(self) -> int:
        first = self.tokenizer.bos_token_id
        return first if first is not None else self.pad if self.end is None else self.end

    def _id(self, token: str, setting: str) -> int:
        found = self.tokenizer.convert_tokens_to_ids(token)
        if found is None or (found == self.tokenizer.unk_token_id and token != "<unk>"):
            raise ConfigError(
                f"{setting}: the model's tokenizer has no token {token!r}; use one that it has, or "
                "null for its default."
            )
        return found
