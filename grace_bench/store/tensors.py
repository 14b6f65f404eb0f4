"""Tensor files: safetensors with a JSON header. The same content gives the same bytes.

    write_tensors(path, {"keys": keys}, "grace_bench.codebook", {"format": 1, "layer": "..."})
    with reading(path, "codebook"):  # damage is one DataError
        header, tensors = read_tensors(path, "grace_bench.codebook", 1)

Reading a file never runs code from it, and takes memory in proportion to the file's size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from grace_bench.errors import DataError
from grace_bench.store.files import atomic_path, refuse_devices

# Limits that no header of ours reaches; a file beyond them is damaged or hostile.
MOST_PARTS = 2**22  # lists and objects
LONGEST_INT = 20  # digits

DAMAGE = (
    *(OSError, KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError),
    AttributeError,  # a tensor type unknown to torch
)


def write_tensors(
    path: Path | str, tensors: Mapping[str, Tensor], entry: str, header: Mapping[str, Any]
) -> None:
    """Write tensors with a header, completely or not at all.

    Args:
        path: of the file.
        tensors: on any device.
        entry: name of the header; a single entry, as the order of several is not reproducible.
        header: JSON values.
    """
    # Clones, as safetensors refuses views or writes their whole storage.
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(header, sort_keys=True, allow_nan=False)
    content = safetensors.torch.save(plain, metadata={entry: text})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def read_tensors(
    path: Path | str, entry: str, version: int | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the header and the tensors of a file; call it inside `reading`.

    Args:
        path: of the file.
        entry: name of the header.
        version: of its format; None: it has none.

    Raises:
        ValueError: it lacks the header or has another format version.
    """
    refuse_devices(path)
    with safetensors.safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(entry)
        if text is None:
            raise ValueError(f"it has no {entry.rpartition('.')[2]} header")
        header = parse_header(text)
        if header.get("format") != version:
            raise ValueError(f"this version reads format {version} only")
        return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def part_of(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Return the tensors called "<kind>.<name>", by name."""
    names = (name for name in tensors if name.startswith(f"{kind}."))
    return {name.removeprefix(f"{kind}."): tensors[name] for name in names}


@contextmanager
def reading(path: Path | str, what: str) -> Iterator[None]:
    """Turn what a missing or damaged file raises into one DataError that names it.

    Args:
        path: of the file.
        what: it should be: "codebook".
    """
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; run the step that writes it first.") from error
    except DAMAGE as error:
        raise DataError(
            f"{path}: not a complete {what} ({error}); rerun the step that writes it."
        ) from error


def parse_header(text: str) -> dict[str, Any]:
    """Return a header's JSON object.

    Raises:
        ValueError: it is not one, or is larger, deeper or of more parts than any header of ours.
    """
    # An empty list takes two bytes here and thirty times as many once it is parsed.
    if text.count("[") + text.count("{") > MOST_PARTS:
        raise ValueError("its header has too many parts")
    try:
        header = json.loads(text, parse_int=_parse_int)
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    return header


def _parse_int(digits: str) -> int:
    if len(digits) > LONGEST_INT:
        raise ValueError("its header has a number with too many digits")
    return int(digits)
