"""JSON records, checked as they are read. Torch-free.

    manifest = read_record(folder / "manifest.json", Manifest)

`records` describes them. Damage is reported in one sentence that names the file.
"""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from grace_bench.errors import DataError
from grace_bench.store.files import refuse_devices, write_json

Schema = TypeVar("Schema", bound=BaseModel)

LARGEST_FILE = 2**26
"""Largest size of a record, in bytes."""

PAUSE_SECONDS = 0.05

LONGEST_VALUE = 40
"""Most characters of a wrong value in a message."""

LONGEST_NAME = 255
"""Longest file name that file systems accept, in bytes."""

_MESSAGES = {
    "string_type": "must be a text",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "extra_forbidden": "is unknown",
}
"""By pydantic's type of mistake."""


def write_record(path: Path | str, record: BaseModel) -> None:
    """Write a record, completely or not at all; refuse NaN and infinity.

    Raises:
        ResultError: the record has such a number, or cannot be written.
    """
    write_json(path, record.model_dump())  # mode="json" would turn such numbers into null


def read_record(path: Path | str, schema: type[Schema]) -> Schema:
    """Read a record.

    Raises:
        DataError: the file is missing or damaged, or holds something else.
    """
    try:
        refuse_devices(path)
        return schema.model_validate_json(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; run the step that makes it first.") from error
    except ValidationError as error:
        raise DataError(f"{path}: {_first_mistake(error)}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot read ({error}); make it again.") from error


def try_read(path: Path, schema: type[Schema], tries: int = 1) -> Schema | None:
    """Return a record that another process may be writing; None if it is not intact.

    Args:
        path: of the file.
        schema: of the record.
        tries: number of attempts while the file exists but is incomplete.
    """
    for attempt in range(tries):
        if attempt:
            time.sleep(PAUSE_SECONDS)
        try:
            # Without O_NONBLOCK, opening a pipe would wait for its writer.
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
                found = os.fstat(stream.fileno())
                if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST_FILE:
                    return None
                return schema.model_validate_json(stream.read())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, MemoryError):  # a ValidationError is a ValueError
            continue
    return None


def _first_mistake(error: ValidationError) -> str:
    """Return the first mistake in a record as a sentence."""
    mistake = error.errors()[0]
    kind, found = mistake["type"], mistake["input"]
    place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in mistake["loc"]).strip(".")
    message = mistake["msg"].removeprefix("Value error, ")
    if kind == "json_invalid":
        return f"not readable as JSON ({message.removeprefix('Invalid JSON: ')}); make it again."
    if kind == "literal_error" and place in ("format", "version") and isinstance(found, int):
        return (
            f"written in format {found}, this version reads {mistake['ctx']['expected']}; make it "
            "again or use the version that wrote it."
        )
    if kind == "missing":
        return f"lacks '{place}'; make it again."
    if kind == "literal_error":
        message = f"must be {mistake['ctx']['expected']}"
    message = _MESSAGES.get(kind, message)
    if not place:
        return f"{message}; make it again."
    return f"'{place}' {message} (got {repr(found)[:LONGEST_VALUE]}); make it again."


def is_plain_name(name: Any) -> bool:
    """Return whether a name read from a file names a file in the same folder, not a path."""
    return (
        isinstance(name, str)
        and 0 < len(name.encode(errors="replace")) <= LONGEST_NAME
        and name not in (".", "..")
        and not any(c in "/\\" or ord(c) < 32 or "\ud800" <= c <= "\udfff" for c in name)
    )
