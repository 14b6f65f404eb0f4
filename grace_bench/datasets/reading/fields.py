"""Fields of records: cleaned strings, and why a record cannot be used.

unfit(text, "question")      # None, or "empty question" / "undecodable question"
"""

from __future__ import annotations

import difflib
import json
import math
import unicodedata
from typing import TYPE_CHECKING, Any

from grace_bench.errors import DataError

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Mapping, Sequence

    from grace_bench.datasets.reading.files import Records

UNDECODABLE = "\ufffd"
_END_MARKS = " ?.!"


def text_of(value: Any) -> str:
    """Return a value as a string with single spaces; what is missing or no text is empty."""
    if _missing(value) or isinstance(value, list | dict):
        return ""
    return json.dumps(value) if isinstance(value, bool) else " ".join(str(value).split())


def answers_of(values: Any) -> tuple[str, ...]:
    """Return the right answers of a field that holds one or a list, each once; empty ones go."""
    values = values if isinstance(values, list) else [values]
    texts = dict.fromkeys(text for value in values if (text := text_of(value)))
    first, *others = texts or [""]
    return (first, *filter(is_decodable, others))


def same_text(text: str) -> str:
    """Return what texts that differ in case, white space or end marks only have in common.

    >>> same_text("Who  is he?") == same_text("who is he")
    True
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return folded.rstrip(_END_MARKS) or folded


def is_decodable(text: str) -> bool:
    """Say whether no bytes of a text were lost, neither before nor when it is written."""
    return UNDECODABLE not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def unfit(text: str, what: str) -> str | None:
    """Return why a text cannot be used: it is empty, or bytes of it were lost."""
    if not text.strip():
        return f"empty {what}"
    if not is_decodable(text):
        return f"undecodable {what}"
    return None


def form_of(records: Records, forms: Mapping[str, Sequence[str]]) -> str:
    """Return the first form whose fields a record has.

    Raises:
        DataError: there are no records, or none is of a known form.
    """
    for row in records.rows:
        for form, fields in forms.items():
            if set(fields) <= set(row):
                return form
    if not records.rows:
        raise DataError(f"{records.path}: has no records; get the file again.")
    known = "; or ".join(", ".join(fields) for fields in forms.values())
    found = list(records.rows[0])
    wanted = [field for fields in forms.values() for field in fields if field not in found]
    near = [
        f"'{match[0]}' for '{field}'"
        for field in wanted
        if (match := difflib.get_close_matches(field, found, n=1, cutoff=0.6))
    ]
    hint = f" (it has {', '.join(near)})" if near else f" (it has: {', '.join(found)[:200]})"
    raise DataError(f"{records.path}: records need the fields {known}{hint}.")


def complete(
    rows: list[dict[str, Any]],
    fields: Sequence[str],
    dropped: Counter[str],
    lists: Sequence[str] = (),
) -> list[tuple[int, dict[str, Any]]]:
    """Return the records that have all fields, with their numbers from 0; count the others.

    Fields hold one value each; those named in `lists` may hold lists and mappings too.
    """
    kept = []
    for number, row in enumerate(rows):
        missing = next((field for field in fields if _missing(row.get(field))), None)
        odd = next(
            (f for f in fields if f not in lists and isinstance(row.get(f), list | dict)), None
        )
        if missing is not None:
            dropped[f"record without '{missing}'"] += 1
        elif odd is not None:
            dropped[f"record whose '{odd}' is no text"] += 1
        else:
            kept.append((number, row))
    return kept


def _missing(value: Any) -> bool:
    """Say whether a value is none at all; tables write an empty number as NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def row_of(
    role: str,
    number: str,
    fact_id: str,
    text: str,
    label: str | Sequence[str],
    subject: str | None = None,
) -> dict[str, Any]:
    """Return a row with the columns of `schemas.EXAMPLES`; the first label is the one taught."""
    answers = [label] if isinstance(label, str) else list(label)
    return {
        "example_id": f"{role}/{number}",
        "fact_id": fact_id,
        "text": text,
        "label": answers[0],
        "subject": subject,
        "relation": None,
        "answers": answers if len(answers) > 1 else None,
    }
