"""Fields of records: cleaned strings, and why a record cannot be used.

unfit(text, "question")      # None, or "empty question" / "undecodable question"
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from grace_bench.errors import DataError

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Mapping, Sequence

    from grace_bench.datasets.files import Records

UNDECODABLE = "\ufffd"


def text_of(value: Any) -> str:
    """Return a value as a string with single spaces; None is empty."""
    return "" if value is None else " ".join(str(value).split())


def unfit(text: str, what: str) -> str | None:
    """Return why a text cannot be used: it is empty, or bytes of it were lost."""
    if not text.strip():
        return f"empty {what}"
    if UNDECODABLE in text or any("\ud800" <= c <= "\udfff" for c in text):
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
    rows: list[dict[str, Any]], fields: Sequence[str], dropped: Counter[str]
) -> list[tuple[int, dict[str, Any]]]:
    """Return the records that have all fields, with their numbers from 0; count the others."""
    kept = []
    for number, row in enumerate(rows):
        missing = next((field for field in fields if row.get(field) is None), None)
        if missing is None:
            kept.append((number, row))
        else:
            dropped[f"record without '{missing}'"] += 1
    return kept


def row_of(
    role: str, number: str, fact_id: str, text: str, label: str, subject: str | None = None
) -> dict[str, Any]:
    """Return a row with the columns of `records.EXAMPLES`."""
    return {
        "example_id": f"{role}/{number}",
        "fact_id": fact_id,
        "text": text,
        "label": label,
        "subject": subject,
        "relation": None,
    }
