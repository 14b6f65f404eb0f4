"""JSON from files, checked before anything looks into it. Torch-free.

    manifest = read_record(folder / "manifest.json", data_hash=str, labels=(list, type(None)))

Damage is one sentence that names the file.
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
"""Levels of lists and objects that a record of ours may have; none has more than eight."""

LARGEST_FILE = 2**26
"""Bytes of a record."""

PAUSE_SECONDS = 0.05

LONGEST_NAME = 255
"""Bytes of a file's name that file systems take."""

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
    """Read a JSON object that has these keys, each of its type; others may stand beside them.

    A key that may be null may be missing.

    Raises:
        DataError: the file is missing or damaged, or is no such object.
    """
    return check_record(path, read_json(path), **wanted)


def try_read(path: Path, tries: int = 1) -> dict[str, Any] | None:
    """Return a JSON object that others may be writing; None if there is no whole one.

    Args:
        path: of the file.
        tries: to read it, while it is there but not whole.
    """
    for attempt in range(tries):
        if attempt:
            time.sleep(PAUSE_SECONDS)
        try:
            # Not to wait for ever for somebody who writes to a pipe.
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
    """Return `value` if it is a JSON object with these keys, each of its type.

    Raises:
        DataError: it is not; the message begins with `place`.
    """
    if not isinstance(value, dict):
        raise DataError(f"{place}: must be an object with keys and values; make it again.")
    for key, types in wanted.items():
        types = types if isinstance(types, tuple) else (types,)
        if key not in value and type(None) not in types:
            raise DataError(f"{place}: lacks '{key}'; make it again.")
        found = value.get(key)
        # True is an int to Python only.
        if not isinstance(found, types) or (isinstance(found, bool) and bool not in types):
            names = " or ".join(_JSON_NAMES.get(kind, kind.__name__) for kind in types)
            raise DataError(f"{place}: '{key}' must be {names}; make it again.")
    if is_deeper(value, DEEPEST):
        raise DataError(f"{place}: is nested too deeply to be a record; make it again.")
    return value


def is_deeper(value: Any, levels: int) -> bool:
    """Say whether lists and objects stand in each other more than `levels` deep."""
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
    """Say whether a name from a file is that of a file in the same folder, and no path."""
    return (
        isinstance(name, str)
        and 0 < len(name.encode(errors="replace")) <= LONGEST_NAME
        and name not in (".", "..")
        and not any(c in "/\\" or ord(c) < 32 or "\ud800" <= c <= "\udfff" for c in name)
    )
