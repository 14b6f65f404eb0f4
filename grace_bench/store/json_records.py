"""JSON records, checked as they are read. Torch-free.

    manifest = read_record(folder / "manifest.json", data_hash=str, labels=(list, type(None)))

Damage is reported in one sentence that names the file.
"""

from __future__ import annotations

import json
import os
import stat
import time
from typing import TYPE_CHECKING, Any

from grace_bench.errors import DataError
from grace_bench.store.files import read_json

if TYPE_CHECKING:
    from pathlib import Path

DEEPEST = 64
"""Most levels of nested lists and objects in a record; ours have at most eight."""

LARGEST_FILE = 2**26
"""Largest size of a record, in bytes."""

PAUSE_SECONDS = 0.05

LONGEST_NAME = 255
"""Longest file name that file systems accept, in bytes."""

_JSON_NAMES = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def read_record(path: Path | str, **wanted: type | tuple[type, ...]) -> dict[str, Any]:
    """Read a JSON object that has these keys with these types; further keys are allowed.

    A key that may be null may be missing.

    Raises:
        DataError: the file is missing or damaged, or holds something else.
    """
    return check_record(path, read_json(path), **wanted)


def try_read(path: Path, tries: int = 1) -> dict[str, Any] | None:
    """Return a JSON object that another process may be writing; None if it is not intact.

    Args:
        path: of the file.
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
                value = json.loads(stream.read())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, dict) else None
    return None


def check_record(
    place: Path | str, value: Any, **wanted: type | tuple[type, ...]
) -> dict[str, Any]:
    """Return `value` if it is a JSON object that has these keys with these types.

    Raises:
        DataError: it is not; the message starts with `place`.
    """
    if not isinstance(value, dict):
        raise DataError(f"{place}: must be an object with keys and values; make it again.")
    for key, types in wanted.items():
        types = types if isinstance(types, tuple) else (types,)
        if key not in value and type(None) not in types:
            raise DataError(f"{place}: lacks '{key}'; make it again.")
        found = value.get(key)
        # In Python, but not in JSON, True is an int.
        if not isinstance(found, types) or (isinstance(found, bool) and bool not in types):
            names = " or ".join(_JSON_NAMES.get(kind, kind.__name__) for kind in types)
            raise DataError(f"{place}: '{key}' must be {names}; make it again.")
    if is_deeper(value, DEEPEST):
        raise DataError(f"{place}: is nested too deeply for a record; make it again.")
    return value


def is_deeper(value: Any, levels: int) -> bool:
    """Return whether lists and objects are nested more than `levels` deep."""
    layer = [value]
    for _ in range(levels + 1):
        inner: list[Any] = []
        for item in layer:
            if isinstance(item, dict):
                inner += item.values()
            elif isinstance(item, list):
                inner += item
        layer = [item for item in inner if isinstance(item, (dict, list))]
        if not layer:
            return False
    return True


def is_plain_name(name: Any) -> bool:
    """Return whether a name read from a file names a file in the same folder, not a path."""
    return (
        isinstance(name, str)
        and 0 < len(name.encode(errors="replace")) <= LONGEST_NAME
        and name not in (".", "..")
        and not any(c in "/\\" or ord(c) < 32 or "\ud800" <= c <= "\udfff" for c in name)
    )
