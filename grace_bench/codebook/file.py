"""Codebooks as tensors and as files: `codebook.safetensors`, with a JSON header and no pickle.

    save_codebook(path, codebook, layer=name, model="t5-small@1f2e...", settings={...})
    codebook = load_codebook(path, layer=name, model="t5-small@1f2e...")

The same codebook gives the same bytes. Whatever a file holds, reading it runs no code of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from grace_bench.codebook.codebook import Codebook, KeyInfo, Label
from grace_bench.errors import DataError, EditorError
from grace_bench.store.files import atomic_path, refuse_devices

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT_VERSION = 1
_ENTRY = "grace_bench.codebook"  # one entry only: the order of several is not reproducible
_TENSORS = ("keys", "values", "radii")

# More than any codebook has; what a file says beyond it is a lie or a mistake.
WIDEST = 2**24  # numbers of a key or a value
MOST_PARTS = 2**22  # lists and objects of a header
LONGEST_INT = 20  # digits
LARGEST_ID = 2**63 - 1
LARGEST_STEP = 2**31 - 1


@dataclass(frozen=True)
class CodebookHeader:
    """What a codebook file says about itself.

    Args:
        layer: dotted name of the edited module.
        model: identity of the base model, as the writer gave it.
        settings: the editor's switches.
        info: what is known about each key.
    """

    layer: str
    model: str
    settings: dict[str, Any]
    info: list[KeyInfo]


def codebook_state(codebook: Codebook) -> dict[str, Tensor]:
    """Return a codebook as tensors alone; what is text is JSON in bytes."""
    text = json.dumps(_info_to_json(codebook), sort_keys=True, allow_nan=False)
    header = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    return {**_tensors(codebook), "header": header}


def codebook_from_state(state: Mapping[str, Tensor]) -> Codebook:
    """Return the codebook of `codebook_state`.

    Raises:
        EditorError: it is not the state of a codebook.
    """
    try:
        header = state["header"]
        if header.dtype != torch.uint8 or header.dim() != 1:
            raise ValueError("its header is no text")
        info = _info_from_json(_parsed(header.cpu().numpy().tobytes().decode()))
        return _assemble({name: state[name] for name in _TENSORS}, info)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EditorError(
            f"this is not the state of a codebook ({error}); load what state_dict() gave."
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
        model: identity of the base model; asked for again by `load_codebook`.
        settings: the editor's switches, JSON values.
    """
    header = {
        "format": FORMAT_VERSION,
        "layer": layer,
        "model": model,
        "settings": dict(settings or {}),
        **_info_to_json(codebook),
    }
    text = json.dumps(header, sort_keys=True, allow_nan=False)
    content = safetensors.torch.save(_tensors(codebook), metadata={_ENTRY: text})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def load_codebook(
    path: Path | str, *, layer: str | None = None, model: str | None = None
) -> Codebook:
    """Read a codebook, and check that it is for this layer and model where they are given.

    Raises:
        DataError: the file is missing, damaged or not a codebook.
        EditorError: the codebook is for another layer or model.
    """
    codebook, header = _read(path)
    for what, given, found in (("layer", layer, header.layer), ("model", model, header.model)):
        if given is not None and given != found:
            raise EditorError(
                f"{path}: made for {what} '{found}', not for '{given}'; "
                f"choose that {what} or another codebook."
            )
    return codebook


def read_header(path: Path | str) -> CodebookHeader:
    """Return what a codebook file says about itself; raises as `load_codebook` does."""
    return _read(path)[1]


def _read(path: Path | str) -> tuple[Codebook, CodebookHeader]:
    if Path(path).is_dir():
        raise DataError(f"{path}: is a folder; give its file codebook.safetensors.")
    try:
        refuse_devices(path)
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_ENTRY)
            if text is None:
                raise ValueError("it has no codebook header")
            header = _parsed(text)
            if header.get("format") != FORMAT_VERSION:
                raise ValueError(f"this version reads format {FORMAT_VERSION} only")
            if sorted(file.keys()) != sorted(_TENSORS):
                raise ValueError(f"it holds other tensors than {', '.join(_TENSORS)}")
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
        info = _info_from_json(header)
        described = CodebookHeader(
            _typed(header["layer"], str),
            _typed(header["model"], str),
            _typed(header["settings"], dict),
            info,
        )
        return _assemble(tensors, info), described
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; run the step that makes it first.") from error
    except (
        OSError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,  # a type of tensors that torch does not know
        RuntimeError,
        safetensors.SafetensorError,
    ) as error:
        raise DataError(
            f"{path}: not a whole codebook ({error}); make it again with the step that writes it."
        ) from error


def _tensors(codebook: Codebook) -> dict[str, Tensor]:
    # Clones: views of a larger storage would be written with it, or refused.
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


def _parsed(text: str) -> dict[str, Any]:
    """Return a header's JSON object.

    Raises:
        ValueError: it is none, or is larger, deeper or of more parts than any codebook's.
    """
    # A list of nothing takes two bytes here and thirty times as many once it is parsed.
    if text.count("[") + text.count("{") > MOST_PARTS:
        raise ValueError("its header has more parts than any codebook's")
    try:
        return _typed(json.loads(text, parse_int=_parse_int), dict)
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error


def _parse_int(digits: str) -> int:
    if len(digits) > LONGEST_INT:
        raise ValueError("its header has a number of too many digits")
    return int(digits)


def _assemble(tensors: Mapping[str, Tensor], info: list[KeyInfo]) -> Codebook:
    keys, values, radii = (tensors[name] for name in _TENSORS)
    for name, tensor, dims in (("keys", keys, 2), ("values", values, 2), ("radii", radii, 1)):
        if tensor.dim() != dims or len(tensor) != len(info) or tensor.dtype != torch.float32:
            raise ValueError(
                f"{name} are {tuple(tensor.shape)} {tensor.dtype} for {len(info)} keys"
            )
        # Without keys a width takes no room in the file.
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
    _typed(value, str).encode()  # half a pair of surrogates is JSON, but no text: ValueError
    return value


def _typed(value: Any, *types: type) -> Any:
    if not isinstance(value, types) or isinstance(value, bool):
        raise ValueError(f"its header has {type(value).__name__} in place of {types[0].__name__}")
    return value
