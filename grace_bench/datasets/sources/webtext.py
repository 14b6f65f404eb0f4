"""Web texts, {text} per record: what a language model is to retain (OpenWebText)."""

from __future__ import annotations

import re
from collections import Counter

from pydantic import Field

from grace_bench.datasets.options import SOURCE_KEYS, DatasetOptions, Source
from grace_bench.datasets.reading.fields import (
    Roles,
    complete,
    repeated,
    row_of,
    same_text,
    unfit,
)
from grace_bench.datasets.reading.files import read_records

_END_OF_TEXT = "<|endoftext|>"
_WORD = re.compile(r"\S+")
_MIN_WORDS = 4


class WebTextOptions(DatasetOptions):
    """Options of builders whose upstream rows are web texts."""

    web: Source | None = Field(
        default=None,
        description="Web texts to be retained, {text}; null = the locality pairs of the editing "
        f"form {SOURCE_KEYS}.",
    )
    upstream_texts: int = Field(
        default=1000, ge=1, description="Web texts in `upstream`: the first N usable ones."
    )
    train_texts: int = Field(default=200, ge=0, description="Web texts in `train`.")
    train_texts_apart: bool = Field(
        default=True,
        description="Whether web texts of `train` follow those of `upstream`, rather than being "
        "the first of them, as released.",
    )
    web_prompt_words: int = Field(
        default=32,
        ge=1,
        description="The prompt is the first N words of a web text, at most a third of it; 1 "
        "approximates the released perplexity of the whole text.",
    )
    web_words: int = Field(
        default=700, ge=4, description="Maximum words of a web text; the rest is cut off."
    )


def read_web_texts(
    source: Source, words: int, dropped: Counter[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the usable texts by id, cut to `words` words, and the source's manifest entry."""
    records = read_records(source, "the web texts (a jsonl of {text})")
    records.form({"web": ("text",)})
    texts: dict[str, str] = {}
    seen: dict[str, str] = {}
    for number, record in complete(records.rows, ("text",), dropped):
        # One text per record: GPT-2 wrote this mark around and between the texts of its web pages.
        parts = [part.strip() for part in str(record["text"]).split(_END_OF_TEXT)]
        text, *others = [part for part in parts if part] or [""]
        dropped["web text after the first of its record"] += len(others)
        reason = unfit(text, "web text")
        if reason is None and len(text.split()) < _MIN_WORDS:
            reason = f"web text of fewer than {_MIN_WORDS} words"
        reason = reason or repeated(seen, same_text(text), "", "web text")
        if reason is not None:
            dropped[reason] += 1
            continue
        ends = _word_ends(text)
        if len(ends) > words:
            dropped["end of a web text longer than web_words"] += 1
            text = text[: ends[words - 1]]
        texts[f"web:{number}"] = text
    return texts, records.entry


def web_roles(texts: dict[str, str], options: WebTextOptions, dropped: Counter[str]) -> Roles:
    """Make `upstream` and the web texts of `train`."""
    ids = list(texts)
    upstream = ids[: options.upstream_texts]
    rest = ids[len(upstream) :] if options.train_texts_apart else upstream
    train = rest[: options.train_texts]
    dropped["web text not requested"] += len(texts) - len({*upstream, *train})
    return {
        "train": [row_of("train", i, i, "", texts[i]) for i in train],
        "upstream": [
            row_of("upstream", i, i, *split_at(texts[i], options.web_prompt_words))
            for i in upstream
        ],
    }


def split_at(text: str, words: int) -> tuple[str, str]:
    """Split a text after `words` words or its first third, whichever comes first.

    White space inside the parts stays. The space between them is removed and comes back as one
    when a task joins them.
    """
    ends = _word_ends(text)
    cut = ends[max(1, min(words, len(ends) // 3)) - 1]
    return text[:cut], text[cut:].strip()


def _word_ends(text: str) -> list[int]:
    return [match.end() for match in _WORD.finditer(text)]
