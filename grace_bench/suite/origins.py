"""What results depend on besides settings: local files, weights, code of plug-ins.

    origins_of_dataset(spec.dataset)  # {"cases.csv": "9f86...", "data set builder": "mine 1.2 0b"}

Only contents are hashed: moving, copying or touching a folder changes nothing. Torch-free: used
while a workflow is planned.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from grace_bench.errors import ResultError
from grace_bench.metrics import MEASURES
from grace_bench.registry import DATASETS, EDITORS, TASKS
from grace_bench.store.files import sha256_of, write_json
from grace_bench.suite.schema import DatasetConfig, ModelConfig, PretrainedSource

KNOWN_HASHES = Path("results/.cache/hashes.json")
LARGE = 2**26
"""Size in bytes from which a file's hash is cached: every job of a workflow plans it again."""

MODEL_FILES = (".safetensors", ".gguf", ".json", ".txt", ".model", ".jinja")

_known: dict[str, list[Any]] = {}


def origins_of_dataset(dataset: DatasetConfig) -> dict[str, str | None]:
    """Return the hashes of a data set's source files and of its plug-ins' code."""
    paths = _paths_of(dataset.builder, json.dumps(dataset.options, sort_keys=True, default=str))
    found = {path: hash_of_path(Path(path)) for path in paths if _is_here(path)}
    for registry, name in ((DATASETS, dataset.builder), (TASKS, dataset.task)):
        if plugin := registry.origin(name):
            found[registry.kind] = plugin
    return found


def origins_of_model(model: ModelConfig) -> dict[str, str | None]:
    """Return the hashes of the local files of a pretrained model."""
    source, found = model.source, {}
    if not isinstance(source, PretrainedSource):
        return {}
    folder = None
    if source.kind == "folder":
        folder = Path(source.id) / source.subfolder
    elif source.kind == "package" and source.id.isidentifier():
        spec = importlib.util.find_spec(source.id)  # finds the package without running it
        if spec is not None and spec.submodule_search_locations:
            folder = Path(spec.submodule_search_locations[0]) / source.subfolder
    if folder is not None:
        found["weights"] = _hash_of_model(folder)
    if source.tokenizer is not None and _is_here(source.tokenizer):
        found["tokenizer"] = _hash_of_model(Path(source.tokenizer))
    return found


def origins_of_editor(editor: str) -> dict[str, str | None]:
    """Return version and code hash of an editor from a plug-in."""
    plugin = EDITORS.origin(editor)
    return {"editor": plugin} if plugin else {}


def origins_of_measures() -> dict[str, str]:
    """Return the versions and hashes of all measures that plug-ins bring: every run records them.

    So installing or changing one makes runs and baselines outdated.
    """
    found = _plugins_of_measures()
    return {"measures": found} if found else {}


@cache  # to look for entry points takes long, and each run of a plan asks
def _plugins_of_measures() -> str:
    return ", ".join(sorted(set(MEASURES.added.origins().values())))


@lru_cache(256)
def _paths_of(builder: str, options: str) -> tuple[str, ...]:
    checked = DATASETS.get(builder).options_class.model_validate(json.loads(options))
    return tuple(local_paths(checked))


def local_paths(options: BaseModel) -> Iterator[str]:
    """Yield the values of all fields named `path` or `..._path`, nested sections included."""
    for name in type(options).model_fields:
        value = getattr(options, name)
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(item, BaseModel):
                yield from local_paths(item)
            elif isinstance(item, Path) or (name.endswith("path") and isinstance(item, str)):
                yield str(item)


def hash_of_path(path: Path) -> str | None:
    """Return the hash of a file, or of the names and hashes of all files in a folder."""
    if not path.is_dir():
        return _hash_of_file(path)
    return _hash_of_files(path, sorted(p for p in path.rglob("*") if p.is_file()))


def _hash_of_model(folder: Path) -> str | None:
    if not folder.is_dir():
        return None
    files = sorted(p for p in folder.iterdir() if p.suffix in MODEL_FILES and p.is_file())
    return _hash_of_files(folder, files)


def _hash_of_files(folder: Path, files: list[Path]) -> str:
    lines = [f"{p.relative_to(folder).as_posix()} {_hash_of_file(p)}\n" for p in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _hash_of_file(path: Path) -> str | None:
    """Return a file's hash, cached until the file changes; None if it cannot be read."""
    try:
        found, key = os.stat(path), str(path.resolve())
        state = [found.st_size, found.st_mtime_ns]
        known = _known.get(key)
        if known is None and found.st_size >= LARGE:
            known = _remembered().get(key)
        if known is None or known[:2] != state:
            known = [*state, sha256_of(path)]
            if found.st_size >= LARGE:
                _remember(key, known)
        _known[key] = known
        return known[2]
    except OSError:
        return None


def _remembered() -> dict[str, list[Any]]:
    try:
        found = json.loads(KNOWN_HASHES.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    items = found.items() if isinstance(found, dict) else ()
    return {k: v for k, v in items if isinstance(v, list) and len(v) == 3}


def _remember(key: str, known: list[Any]) -> None:
    if not KNOWN_HASHES.parents[1].is_dir():
        return  # without results there is nothing to remember
    with suppress(ResultError):  # it is hashed again next time
        write_json(KNOWN_HASHES, {**_remembered(), key: known})


def _is_here(path: str) -> bool:
    """Return whether a text is the path of a file rather than a hub id."""
    return os.path.exists(path) or Path(path).suffix != ""
