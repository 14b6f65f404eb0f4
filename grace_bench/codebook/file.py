"""Codebooks as tensors and as files: `codebook.safetensors` with a JSON header.

    save_codebook(path, codebook, layer=name, model="t5-small@1f2e...", settings={...})
    codebook = load_codebook(path, layer=name, model="t5-small@1f2e...")

The same codebook gives the same bytes. Reading a file never runs code from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grace_bench.codebook.codebook import Codebook
from grace_bench.codebook.keys import KeyInfo, Label
from grace_bench.errors import DataError, EditorError
from grace_bench.store.files import read_parquet, write_parquet
from grace_bench.store.schemas import CODEBOOK_EXPORT
from grace_bench.store.tensors import parse_header, read_tensors, reading, write_tensors

FORMAT_VERSION = 1
_ENTRY = "grace_bench.codebook"
_TENSORS = ("keys", "values", "radii")

# Limits that no codebook reaches; a file beyond them is damaged or hostile.
WIDEST = 2**24  # numbers in a key or a value
LARGEST_ID = 2**63 - 1
LARGEST_STEP = 2**31 - 1


def codebook_state(codebook: Codebook) -> dict[str, Tensor]:
    """Return a codebook as tensors only; its texts are JSON, as bytes."""
    text = json.dumps(_info_to_json(codebook), sort_keys=True, allow_nan=False)
    header = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    return {**_tensors(codebook), "header": header}


def codebook_from_state(state: Mapping[str, Tensor]) -> Codebook:
    """Return the codebook of `codebook_state`.

    Raises:
        EditorError: it is not a codebook's state.
    """
    try:
        header = state["header"]
        if header.dtype != torch.uint8 or header.dim() != 1:
            raise ValueError("its header is not text")
        info = _info_from_json(parse_header(header.cpu().numpy().tobytes().decode()))
        return _assemble({name: state[name] for name in _TENSORS}, info)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EditorError(
            f"this is not a codebook's state ({error}); load what state_dict() returned."
        ) from error


def save_codebook(
    path: Path | str,
    codebook: Codebook,
    *,
    layer: str,
    model: str,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write `codebook` to `path`, whole or not at all.

    Args:
        path: the file, usually codebook.safetensors.
        codebook: what to write.
        layer: dotted name of the edited module.
        model: identity of the base model, which `load_codebook` checks.
        settings: the editor's switches, as JSON values.
    """
    header = {
        "format": FORMAT_VERSION,
        "layer": layer,
        "model": model,
        "settings": dict(settings or {}),
        **_info_to_json(codebook),
    }
    write_tensors(path, _tensors(codebook), _ENTRY, header)


def load_codebook(
    path: Path | str, *, layer: str | None = None, model: str | None = None
) -> Codebook:
    """Read a codebook, and check its layer and model if they are given.

    Raises:
        DataError: the file is missing, damaged or not a codebook.
        EditorError: the codebook is for another layer or model.
    """
    if Path(path).is_dir():
        raise DataError(f"{path}: is a folder; give the codebook.safetensors in it.")
    with reading(path, "codebook"):
        header, tensors = read_tensors(path, _ENTRY, FORMAT_VERSION)
        if sorted(tensors) != sorted(_TENSORS):
            raise ValueError(f"its tensors are not {', '.join(_TENSORS)}")
        made_for = {"layer": _typed(header["layer"], str), "model": _typed(header["model"], str)}
        _typed(header["settings"], dict)
        codebook = _assemble(tensors, _info_from_json(header))
    for what, given in (("layer", layer), ("model", model)):
        if given is not None and given != made_for[what]:
            raise EditorError(
                f"{path}: made for {what} '{made_for[what]}', not for '{given}'; "
                f"choose that {what} or another codebook."
            )
    return codebook


def export_codebook(path: Path | str, codebook: Codebook) -> None:
    """Write all of a codebook as Parquet, a row per key, for tools that read no safetensors."""
    vectors = zip(codebook.rows(), codebook.info, codebook.keys, codebook.values, strict=True)
    rows = [
        {
            **row,
            "label_ids": list(info.label.ids),
            "label_mean": info.label.mean,
            "vector": vector.tolist(),
            "value": value.tolist(),
        }
        for row, info, vector, value in vectors
    ]
    write_parquet(path, rows, CODEBOOK_EXPORT)


def import_codebook(path: Path | str) -> Codebook:
    """Read what `export_codebook` wrote.

    Raises:
        DataError: the file is missing or damaged, or has no keys.
    """
    rows = read_parquet(path, CODEBOOK_EXPORT).to_pylist()
    if not rows:
        raise DataError(f"{path}: has no keys, so the layer's size is unknown; make a Codebook.")
    with reading(path, "codebook"):
        tensors = {
            name: torch.tensor([row[column] for row in rows])
            for name, column in (("keys", "vector"), ("values", "value"), ("radii", "radius"))
        }
        return _assemble(tensors, _info_from_json({"keys": rows}))


def _tensors(codebook: Codebook) -> dict[str, Tensor]:
    return {name: getattr(codebook, name).detach().cpu().clone() for name in _TENSORS}


def _info_to_json(codebook: Codebook) -> dict[str, Any]:
    return {
        "keys": [
            {
                "label": info.label.text,
                "label_ids": list(info.label.ids),
                "label_mean": info.label.mean,
                "example_ids": list(info.example_ids),
                "made_at_step": info.made_at_step,
                "changed_at_step": info.changed_at_step,
            }
            for info in codebook.info
        ]
    }


def _info_from_json(header: Any) -> list[KeyInfo]:
    return [
        KeyInfo(
            Label(
                tuple(_whole(i, LARGEST_ID) for i in _typed(key["label_ids"], list)),
                float(_typed(key["label_mean"], float, int)),
                _text(key["label"]),
            ),
            tuple(_text(name) for name in _typed(key["example_ids"], list)),
            _whole(key["made_at_step"], LARGEST_STEP),
            _whole(key["changed_at_step"], LARGEST_STEP),
        )
        for key in _typed(header["keys"], list)
    ]


def _assemble(tensors: Mapping[str, Tensor], info: list[KeyInfo]) -> Codebook:
    keys, values, radii = (tensors[name] for name in _TENSORS)
    for name, tensor, dims in (("keys", keys, 2), ("values", values, 2), ("radii", radii, 1)):
        if tensor.dim() != dims or len(tensor) != len(info) or tensor.dtype != torch.float32:
            raise ValueError(
                f"{name} are {tuple(tensor.shape)} {tensor.dtype} for {len(info)} keys"
            )
        # Without keys, any width fits into a small file.
        if any(size > WIDEST for size in tensor.shape[1:]):
            raise ValueError(f"{name} are {tuple(tensor.shape)}, wider than any layer")
    if not (torch.isfinite(keys).all() and torch.isfinite(radii).all()):
        raise ValueError("keys or radii are not finite")
    return Codebook.of(keys, values, radii, info)


def _whole(value: Any, largest: int) -> int:
    if not 0 <= _typed(value, int) <= largest:
        raise ValueError(f"its header has {value}, which must be from 0 to {largest}")
    return value


def _text(value: Any) -> str:
    _typed(value, str).encode()  # a lone surrogate is valid JSON but not text: ValueError
    return value


def _typed(value: Any, *types: type) -> Any:
    if not isinstance(value, types) or isinstance(value, bool):
        raise ValueError(f"its header has {type(value).__name__} instead of {types[0].__name__}")
    return value
