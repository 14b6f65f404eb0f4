"""Copies what runs were made from along with them: data sets, baselines, models and assets."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from grace_bench.errors import DataError
from grace_bench.results.copying import Piece, is_file, is_folder, place_folder
from grace_bench.store.json_records import Schema, is_plain_name, read_record
from grace_bench.store.records import (
    ASSETS,
    BASELINE,
    MANIFEST,
    TRAINING,
    AssetsRecord,
    BaselineRecord,
    Manifest,
    TrainingRecord,
)


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
    manifest = _read(folder / MANIFEST, Manifest)
    if manifest is None or manifest.data_hash != expected:
        return []
    hashes = {entry.file: entry.sha256 for entry in manifest.roles.values()}
    if len(hashes) < len(manifest.roles):
        raise DataError(f"{folder}: lists a file twice.")
    return _listed(folder, hashes, MANIFEST)


def _baseline(folder: Path, expected: str) -> list[Piece]:
    """Return a baseline's files, its record last; none if it is of other weights."""
    baseline = _read(folder / BASELINE, BaselineRecord)
    if baseline is None or baseline.model_hash != expected:
        return []
    return [Piece(folder / "predictions.parquet", optional=True), Piece(folder / BASELINE)]


def _model(folder: Path, expected: str) -> list[Piece]:
    """Return a model's files, its record last; none if they are other weights."""
    training = _read(folder / TRAINING, TrainingRecord)
    if training is None or training.sha256 != expected:
        return []
    left_out = ("model.safetensors", TRAINING, "lease.json")
    others = [n for n in sorted(_names(folder, os.DirEntry.is_file)) if n not in left_out]
    pieces = [Piece(folder / "model.safetensors", expected)]
    return [*pieces, *(Piece(folder / n) for n in (*others, TRAINING))]


def _assets(folder: Path, expected: str) -> list[Piece]:
    """Return the files of an editor's assets, their record last; none if of other weights."""
    assets = _read(folder / ASSETS, AssetsRecord)
    if assets is None or assets.model_hash != expected:
        return []
    return _listed(folder, assets.files, ASSETS)


def _listed(folder: Path, hashes: Mapping[str, str], record_name: str) -> list[Piece]:
    """Return the files that a record lists, and the record itself."""
    for name in hashes:
        if not is_plain_name(name) or name.startswith("."):
            raise DataError(f"{folder}: lists a file that it cannot have.")
    pieces = [Piece(folder / name, sha256) for name, sha256 in sorted(hashes.items())]
    return [*pieces, Piece(folder / record_name)]


def _read(path: Path, schema: type[Schema]) -> Schema | None:
    """Return a record; None if there is none."""
    return read_record(path, schema) if is_file(path) else None


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
