"""Copies what runs were made from along with them: data sets, baselines, models and assets."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from grace_bench.errors import DataError
from grace_bench.results.copying import Piece, is_file, is_folder, place_folder
from grace_bench.store.files import read_json
from grace_bench.store.json_records import check_record, is_plain_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path


def copy_inputs(
    places: Sequence[Path],
    target: Path,
    agreed: Mapping[tuple[str, str], str],
    with_models: bool,
    problems: list[str],
) -> int:
    """Copy what the runs were made from and the target lacks; return the number of folders.

    Args:
        places: folders of one suite that the runs came from.
        target: the suite's folder to copy to.
        agreed: the hash of the data of each ("data set", name) and of the weights of each
            ("model", name) that the runs were made from; everything else is left out.
        with_models: whether to copy weights and assets, too.
        problems: receives a sentence about each folder that is damaged.
    """
    wanted: list[tuple[str, Callable[[Path, str], list[Piece]], str]] = []
    for (kind, name), sha256 in agreed.items():
        if kind == "data set":
            wanted.append((f"data/{name}", _data, sha256))
            continue
        wanted.append((f"baselines/{name}", _baseline, sha256))
        if with_models:
            wanted.append((f"models/{name}", _model, sha256))
            folders = [place / "assets" / name for place in places]
            assets = {asset for folder in folders for asset in _names(folder, os.DirEntry.is_dir)}
            wanted += [(f"assets/{name}/{asset}", _assets, sha256) for asset in assets]
    return sum(
        _copy(places, target, *item, problems) for item in sorted(wanted, key=lambda w: w[0])
    )


def _copy(
    places: Sequence[Path],
    target: Path,
    inside: str,
    pieces_of: Callable[[Path, str], list[Piece]],
    expected: str,
    problems: list[str],
) -> bool:
    folder = target / inside
    for source in (place / inside for place in places if _is_plain(place, inside)):
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
    """Return a data set's files, its record last; none if it is other data."""
    manifest = _record(folder / "manifest.json", "data_hash", expected, roles=dict)
    roles = sorted(manifest["roles"].items()) if manifest else []
    for role, entry in roles:
        place = f"{folder / 'manifest.json'}: roles.{role[:20]}"
        check_record(place, entry, file=str, sha256=str)
    hashes = {entry["file"]: entry["sha256"] for _, entry in roles}
    if len(hashes) < len(roles):
        raise DataError(f"{folder}: lists a file twice.")
    return _listed(folder, hashes, manifest, "manifest.json")


def _baseline(folder: Path, expected: str) -> list[Piece]:
    """Return a baseline's files, its record last; none if it is of other weights."""
    if _record(folder / "baseline.json", "model_hash", expected) is None:
        return []
    return [Piece(folder / "predictions.parquet", optional=True), Piece(folder / "baseline.json")]


def _model(folder: Path, expected: str) -> list[Piece]:
    """Return a model's files, its record last; none if they are other weights."""
    if _record(folder / "training.json", "sha256", expected) is None:
        return []
    left_out = ("model.safetensors", "training.json", "lease.json")
    others = [n for n in sorted(_names(folder, os.DirEntry.is_file)) if n not in left_out]
    pieces = [Piece(folder / "model.safetensors", expected)]
    return [*pieces, *(Piece(folder / n) for n in (*others, "training.json"))]


def _assets(folder: Path, expected: str) -> list[Piece]:
    """Return the files of an editor's assets, their record last; none if of other weights."""
    assets = _record(folder / "assets.json", "model_hash", expected, files=dict)
    return _listed(folder, assets["files"] if assets else {}, assets, "assets.json")


def _listed(folder: Path, hashes: Mapping[str, Any], record: Any, record_name: str) -> list[Piece]:
    """Return the files that a record lists, and the record itself; none without a record."""
    if record is None:
        return []
    for name, sha256 in hashes.items():
        if not is_plain_name(name) or name.startswith(".") or not isinstance(sha256, str):
            raise DataError(f"{folder}: lists a file that it cannot have.")
    pieces = [Piece(folder / name, sha256) for name, sha256 in sorted(hashes.items())]
    return [*pieces, Piece(folder / record_name)]


def _record(path: Path, key: str, expected: str, **wanted: type) -> dict[str, Any] | None:
    """Return a record whose `key` is as expected; None if there is none."""
    if not is_file(path):
        return None
    record = check_record(path, read_json(path), **{key: str}, **wanted)
    return record if record[key] == expected else None


def _is_plain(place: Path, inside: str) -> bool:
    """Say whether a folder is there, and no link on the way to it."""
    steps = inside.split("/")
    return all(is_folder(place.joinpath(*steps[:n])) for n in range(1, len(steps) + 1))


def _names(folder: Path, is_wanted: Callable[..., bool]) -> set[str]:
    """Return the names of a folder's files or folders: no links, no hidden ones."""
    if not is_folder(folder):
        return set()
    with os.scandir(folder) as entries:
        found = {entry.name for entry in entries if is_wanted(entry, follow_symlinks=False)}
    return {name for name in found if not name.startswith(".")}
