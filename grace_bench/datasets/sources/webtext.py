"""Web texts, {text} a record: what a language model is to retain (OpenWebText)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from grace_bench.datasets.options import SOURCE_KEYS, DatasetOptions, Source
from grace_bench.datasets.reading.fields import complete, form_of, row_of, same_text, unfit
from grace_bench.datasets.reading.files import read_records

if TYPE_CHECKING:
    from collections import Counter

_END_OF_TEXT = "<|endoftext|>"
_WORD = re.compile(r"\S+")
_MIN_WORDS = 4


class WebTextOptions(DatasetOptions):
    """Options of builders whose upstream rows are web texts."""

    web: Source | None = Field(
        default=None,
        description="Web texts to be retained, {text}; null: the locality pairs of the editing "
        f"form {SOURCE_KEYS}.",
    )
    upstream_texts: int = Field(
        default=1000, ge=1, description="Web texts in `upstream`: the first so many that are fit."
    )
    train_texts: int = Field(default=200, ge=0, description="Web texts in `train`.")
    train_texts_apart: bool = Field(
        default=True,
        description="Whether web texts of `train` come after those of `upstream` rather than "
        "being the first of them, as released.",
    )
    web_prompt_words: int = Field(
        default=32,
        ge=1,
        description="First words of a web text that are its prompt, but at most a third of it; "
        "1 comes near the released perplexity of the whole text.",
    )
    web_words: int = Field(
        default=700, ge=4, description="Most words of a web text; what follows is cut and counted."
    )


@dataclass(frozen=True)
class WebText:
    """A text and its place in the source."""

    number: int
    text: str


def read_web_texts(
    source: Source, words: int, dropped: Counter[str]
) -> tuple[list[WebText], dict[str, str]]:
    """Return the usable texts, none of more than `words` words, and the manifest's entry."""
    records = read_records(source, "the web texts (a jsonl of {text})")
    form_of(records, {"web": ("text",)})
    texts: list[WebText] = []
    seen: set[str] = set()
    for number, record in complete(records.rows, ("text",), dropped):
        # One text a record: GPT-2 wrote this mark around and between the texts of its web pages.
        parts = [part.strip() for part in str(record["text"]).split(_END_OF_TEXT)]
        text, *others = [part for part in parts if part] or [""]
        dropped["web text after the first of its record"] += len(others)
        reason = unfit(text, "web text")
        key = same_text(text)
        if reason is None and key in seen:
            reason = "web text repeated"
        if reason is None and len(text.split()) < _MIN_WORDS:
            reason = f"web text of fewer than {_MIN_WORDS} words"
        if reason is not None:
            dropped[reason] += 1
            continue
        seen.add(key)
        texts.append(WebText(number, text))
    return [WebText(t.number, _cut(t.text, words, dropped)) for t in texts], records.entry


def web_roles(
    texts: list[WebText], options: WebTextOptions, dropped: Counter[str]
) -> dict[str, list[dict[str, Any]]]:
    """Make `upstream` and the web texts of `train`."""
    upstream = texts[: options.upstream_texts]
    rest = texts[len(upstream) :] if options.train_texts_apart else upstream
    train = rest[: options.train_texts]
    used = {text.number for text in [*upstream, *train]}
    dropped["web text not asked for"] += len(texts) - len(used)
    rows = {"train": [], "upstream": []}
    for text in train:
        rows["train"].append(row_of("train", _id(text), _id(text), "", text.text))
    for text in upstream:
        prompt, rest_of_text = split_at(text.text, options.web_prompt_words)
        rows["upstream"].append(row_of("upstream", _id(text), _id(text), prompt, rest_of_text))
    return rows


def split_at(text: str, words: int) -> tuple[str, str]:
    """Split a text after so many words, but not after its first third; white space inside stays.

    The space between the two is lost and comes back as one when a task joins them.
    """
    ends = [match.end() for match in _WORD.finditer(text)]
    cut = ends[max(1, min(words, len(ends) // 3)) - 1]
    return text[:cut], text[cut:].strip()


def _id(text: WebText) -> str:
    return f"web:{text.number}"


def _cut(text: str, words: int, dropped: Counter[str]) -> str:
    ends = [match.end() for match in _WORD.finditer(text)]
    if len(ends) <= words:
        return text
    dropped["end of a web text longer than web_words"] += 1
    return text[: ends[words - 1]]
