"""What the runs of a suite share, copied beside them: data sets, baselines, models and assets."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from grace_bench.errors import DataError
from grace_bench.results.copying import Piece, is_file, place_folder
from grace_bench.store.json_records import check_record, is_plain_name
from grace_bench.store.files import read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

Record = dict[str, Any]
Agreed = dict[tuple[str, str], str]
"""The hash of the data of each ("data set", name), of the weights of each ("model", name)."""


def copy_inputs(
    places: Sequence[Path],
    target: Path,
    agreed: Agreed,
    with_models: bool,
    problems: list[str],
) -> int:
    """Copy what the runs were made from, and is not there yet; return how many folders.

    Args:
        places: folders of one suite, from which the runs came.
        target: the suite's folder to copy to.
        agreed: what the runs were made from; all else is left where it is.
        with_models: weights too.
        problems: is told what is damaged.
    """
    copied = 0
    models = {name for kind, name in agreed if kind == "model"}
    wanted = [("data", name, _data, agreed[kind, name]) for kind, name in agreed if kind != "model"]
    wanted += [("baselines", name, _baseline, agreed["model", name]) for name in models]
    if with_models:
        wanted += [("models", name, _model, agreed["model", name]) for name in models]
        for name in models:
            assets = {asset for place in places for asset in _names(place / "assets" / name)}
            wanted += [
                (f"assets/{name}", asset, _assets, agreed["model", name])
                for asset in sorted(assets)
            ]
    for home, name, pieces_of, expected in sorted(wanted, key=lambda w: w[:2]):
        copied += _copy(places, target, f"{home}/{name}", pieces_of, expected, problems)
    return copied


def _copy(
    places: Sequence[Path],
    target: Path,
    inside: str,
    pieces_of: Callable[[Path, str], list[Piece]],
    expected: str,
    problems: list[str],
) -> bool:
    folder = target / inside
    found = [place / inside for place in places if _is_plain(place, inside)]
    for source in found:
        try:
            pieces = pieces_of(source, expected)
            if not pieces:
                continue
            if is_file(folder / pieces[-1].source.name):
                if not pieces_of(folder, expected):
                    raise DataError(f"{folder}: is not what the runs were made from, and stays.")
                return False
            place_folder(pieces, folder)
        except DataError as error:
            problems.append(f"{error} {source} is not copied.")
        else:
            return True
    return False


def _data(folder: Path, expected: str) -> list[Piece]:
    """Return a data set's files, manifest.json last; none if it is other data."""
    path = folder / "manifest.json"
    manifest = _record(path, data_hash=str, roles=dict)
    if manifest is None or manifest["data_hash"] != expected:
        return []
    pieces = []
    for role, entry in sorted(manifest["roles"].items()):
        check_record(f"{path}: roles.{role[:20]}", entry, file=str, sha256=str)
        pieces.append(_piece(folder, entry["file"], entry["sha256"]))
    return [*pieces, Piece(path)]


def _baseline(folder: Path, expected: str) -> list[Piece]:
    """Return a baseline's files; none if it is of other weights."""
    path = folder / "baseline.json"
    baseline = _record(path, model_hash=str)
    if baseline is None or baseline["model_hash"] != expected:
        return []
    return [Piece(folder / "predictions.parquet", optional=True), Piece(path)]


def _model(folder: Path, expected: str) -> list[Piece]:
    """Return a model's files; none if they are other weights."""
    path = folder / "training.json"
    training = _record(path, sha256=str)
    if training is None or training["sha256"] != expected:
        return []
    names = sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_file(follow_symlinks=False) and not entry.name.startswith(".")
    )
    others = [n for n in names if n not in ("model.safetensors", path.name, "lease.json")]
    pieces = [Piece(folder / "model.safetensors", expected)]
    return [*pieces, *(Piece(folder / name) for name in others), Piece(path)]


def _assets(folder: Path, expected: str) -> list[Piece]:
    """Return the files of an editor's assets; none if they are of other weights."""
    path = folder / "assets.json"
    assets = _record(path, model_hash=str, files=dict)
    if assets is None or assets["model_hash"] != expected:
        return []
    pieces = [_piece(folder, name, sha256) for name, sha256 in sorted(assets["files"].items())]
    return [*pieces, Piece(path)]


def _piece(folder: Path, name: str, sha256: Any) -> Piece:
    if not is_plain_name(name) or name.startswith(".") or not isinstance(sha256, str):
        raise DataError(f"{folder}: lists a file that it cannot have.")
    return Piece(folder / name, sha256)


def _record(path: Path, **wanted: type) -> Record | None:
    return check_record(path, read_json(path), **wanted) if is_file(path) else None


def _is_plain(place: Path, inside: str) -> bool:
    """Say whether a folder is there, and no link on the way to it."""
    folder = place
    for name in inside.split("/"):
        folder = folder / name
        if not folder.is_dir() or folder.is_symlink():
            return False
    return True


def _names(folder: Path) -> Iterator[str]:
    if folder.is_dir() and not folder.is_symlink():
        with os.scandir(folder) as entries:
            yield from (
                entry.name
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
            )
