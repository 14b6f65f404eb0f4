"""Rows and the fields of records: cleaned strings, and why a record cannot be used.

unfit(text, "question")      # None, or "empty question" / "undecodable question"
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
Roles = dict[str, list[Row]]

UNDECODABLE = "\ufffd"
_END_MARKS = " ?.!"


def text_of(value: Any) -> str:
    """Return a value as a string with single spaces; "" for what is missing or not a text."""
    if is_missing(value) or isinstance(value, list | dict):
        return ""
    return json.dumps(value) if isinstance(value, bool) else " ".join(str(value).split())


def texts_of(value: Any) -> list[str]:
    """Return the texts of a field that holds one value or a list."""
    return [text_of(item) for item in (value if isinstance(value, list) else [value])]


def answers_of(values: Any) -> tuple[str, ...]:
    """Return the distinct right answers of a field that holds one or a list; never empty.

    The first answer, which is taught, is "" if there is none; it may be undecodable.
    """
    first, *others = dict.fromkeys(filter(None, texts_of(values))) or [""]
    return (first, *filter(is_decodable, others))


def same_text(text: str) -> str:
    """Return a form shared by texts that differ only in case, white space or end marks.

    >>> same_text("Who  is he?") == same_text("who is he")
    True
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return folded.rstrip(_END_MARKS) or folded


def is_decodable(text: str) -> bool:
    """Whether no bytes of a text were lost in reading, and none would be lost in writing."""
    return UNDECODABLE not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def is_missing(value: Any) -> bool:
    """Whether a field has no value; tables hold an empty number as NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def unfit(text: str, what: str) -> str | None:
    """Return why a text cannot be used: it is empty, or bytes of it were lost."""
    if not text.strip():
        return f"empty {what}"
    return None if is_decodable(text) else f"undecodable {what}"


def repeated(
    seen: dict[str, str], key: str, label: str, what: str, other: str = "label"
) -> str | None:
    """Return why a text cannot be used because `seen` has it; remember it and its label if not."""
    if key not in seen:
        seen[key] = label
        return None
    return f"{what} repeated" if seen[key] == label else f"{what} repeated with another {other}"


def complete(
    rows: list[Row], fields: Sequence[str], dropped: Counter[str], lists: Sequence[str] = ()
) -> list[tuple[int, Row]]:
    """Return the records that have all fields, numbered from 0; count the others.

    Only the fields named in `lists` may hold lists or mappings.
    """
    kept = []
    for number, row in enumerate(rows):
        missing = next((field for field in fields if is_missing(row.get(field))), None)
        single = (field for field in fields if field not in lists)
        nested = next((field for field in single if isinstance(row.get(field), list | dict)), None)
        if missing is not None:
            dropped[f"record without '{missing}'"] += 1
        elif nested is not None:
            dropped[f"record whose '{nested}' is not text"] += 1
        else:
            kept.append((number, row))
    return kept


def row_of(
    role: str,
    number: str,
    fact_id: str,
    text: str,
    label: str | Sequence[str],
    subject: str | None = None,
    relation: str | None = None,
) -> Row:
    """Return a row with the columns of `schemas.EXAMPLES`; the first label is the one taught."""
    answers = [label] if isinstance(label, str) else list(label)
    return {
        "example_id": f"{role}/{number}",
        "fact_id": fact_id,
        "text": text,
        "label": answers[0],
        "subject": subject,
        "relation": relation,
        "answers": answers if len(answers) > 1 else None,
    }
