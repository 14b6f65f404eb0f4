"""Records of files, folders and hub data sets; a bad source is refused in one sentence.

    records = read_records(Source(path="zsre_3k.json"), "the zsRE questions")
    records.rows[0]["src"], records.entry["version"]     # "sha256:..."

A path that exists, or ends like a file, is local. Only a hub id with a revision uses the network.
Nothing is unpickled, and no code that comes with data is run.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from grace_bench.datasets.reading.fields import Row
from grace_bench.errors import DataError
from grace_bench.store.files import sha256_of

if TYPE_CHECKING:
    from grace_bench.datasets.options import Source

FORMATS = (".jsonl", ".json", ".csv", ".parquet", ".txt")
PARQUET_COPY = "refs/convert/parquet"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@cache
def load_templates(builder: str) -> dict[str, Any]:
    """Return the sentences and tables of a builder of this package, `builders/<builder>.yaml`."""
    path = Path(__file__).parents[1] / "builders" / f"{builder}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Records:
    """The records of a source, and its entry in the manifest.

    Attributes:
        rows: one mapping per record; the lines of a txt file are under "line".
        entry: name, version, licence and origin.
        path: the source's path, for messages.
    """

    rows: list[Row]
    entry: dict[str, str]
    path: str

    def form(self, forms: Mapping[str, Sequence[str]]) -> str:
        """Return the first form whose fields a record has.

        Raises:
            DataError: there are no records, or none has a known form.
        """
        for row in self.rows:
            for form, fields in forms.items():
                if set(fields) <= set(row):
                    return form
        if not self.rows:
            raise DataError(f"{self.path}: has no records; get the file again.")
        known = "; or ".join(", ".join(fields) for fields in forms.values())
        found = list(self.rows[0])
        if len(found) == 1 and (separator := next((c for c in ";\t|" if c in found[0]), "")):
            raise DataError(
                f"{self.path}: its columns are separated by {separator!r}; separate them with "
                "commas."
            )
        near = [
            f"'{match[0]}' for '{field}'"
            for field in dict.fromkeys(field for fields in forms.values() for field in fields)
            if field not in found and (match := get_close_matches(field, found, n=1, cutoff=0.6))
        ]
        hint = ", ".join(near) if near else f"only {', '.join(found)[:200]}"
        raise DataError(f"{self.path}: records need the fields {known} (it has {hint}).")


def read_records(source: Source, what: str) -> Records:
    """Read all records of a source.

    Args:
        source: where they are.
        what: what they are, for the message if they are missing: "the zsRE questions".

    Raises:
        DataError: they are missing, damaged, not UTF-8 or not what was expected.
    """
    path = Path(source.path)
    files = find_files(source, what)
    if not files:
        return _from_hub(source, what)
    digest = _digest(files)
    if source.sha256 is not None and digest != source.sha256.lower():
        raise DataError(
            f"{path}: its sha256 is {digest}, expected {source.sha256.lower()}; get the file "
            "again, or correct the option 'sha256'."
        )
    entry = {
        "name": path.name,
        "version": f"sha256:{digest}",
        "licence": source.licence,
        "origin": f"local folder, split {source.split}" if path.is_dir() else "local file",
    }
    saved = any(file.suffix == ".arrow" for file in files)
    rows = _rows_saved(files[0].parent) if saved else [row for f in files for row in _rows_of(f)]
    return Records(rows, entry, source.path)


def find_files(source: Source, what: str) -> list[Path]:
    """Return the files of a source; none if it is on the hub.

    Raises:
        DataError: they are missing, or have no known format.
    """
    if source.revision is not None and is_hub_id(source.path):
        return []
    path = Path(source.path)
    return _folder(path, source.split) if path.is_dir() else [_file(path, what)]


def is_hub_id(path: str) -> bool:
    """Whether a path looks like owner/name on the hub, and is not a local file or folder."""
    named = _HUB_ID.fullmatch(path) and Path(path).suffix.lower() not in FORMATS
    return bool(named) and not Path(path).exists()


def _file(path: Path, what: str) -> Path:
    if not path.is_file():
        hub = ""
        if is_hub_id(str(path)):
            hub = f", or give 'revision' if {path} is the id of a hub data set"
        raise DataError(
            f"{path}: no such file; put {what} there, or set the option 'path' to its location"
            f"{hub}."
        )
    if path.suffix.lower() not in FORMATS:
        raise DataError(
            f"{path}: {what} must be in a file that ends in {', '.join(FORMATS)}; convert it."
        )
    return path


def _folder(path: Path, split: str) -> list[Path]:
    """Find a split in a folder made by save_to_disk, or in one with files named after splits."""
    saved = path / split if (path / "dataset_dict.json").is_file() else path
    if (saved / "dataset_info.json").is_file():
        if arrows := sorted(saved.glob("*.arrow")):
            return arrows
        raise DataError(f"{saved}: the folder has lost its .arrow files; save it again.")
    found = [
        file
        for folder in (path, path / "data")
        for suffix in FORMATS
        for pattern in (f"{split}{suffix}", f"{split}-*{suffix}")
        for file in sorted(folder.glob(pattern))
    ]
    if not found:
        raise DataError(
            f"{path}: the folder has no split '{split}'; it should be made by save_to_disk, or "
            f"contain {split}.parquet, {split}.jsonl or {split}.csv."
        )
    return found


def _rows_saved(folder: Path) -> list[Row]:
    import datasets

    try:
        return datasets.load_from_disk(str(folder)).to_list()
    except Exception as error:  # whatever the library's readers raise
        raise DataError(f"{folder}: not readable ({_reason(error)}); save it again.") from error


def _from_hub(source: Source, what: str) -> Records:
    if source.sha256 is not None:
        raise DataError(
            f"{source.path}: a hub data set is pinned by its revision; remove the option 'sha256', "
            "or set 'path' to a local copy."
        )
    import datasets

    with no_progress_bars():
        try:
            table = datasets.load_dataset(source.path, revision=source.revision, split=source.split)
            rows = table.to_list()
            _check_revision(source, table.cache_files)
        except DataError:
            raise
        except Exception as error:  # whatever the library's readers and network code raise
            reason = _reason(error)
            remedy = (
                "go online once (HF_HUB_OFFLINE=0) to download it into "
                f"{datasets.config.HF_DATASETS_CACHE}"
            )
            if "scripts are no longer supported" in reason:
                remedy = f"set 'revision' to {PARQUET_COPY}, the hub's own copy without a script"
            raise DataError(
                f"{source.path}: neither a local file nor a hub data set that can be loaded "
                f"({reason}); put {what} on disk and set the option 'path' to it, or {remedy}."
            ) from error
    entry = {
        "name": source.path,
        "version": f"{source.revision}, rows sha256:{_rows_digest(rows)}",
        "licence": source.licence,
        "origin": f"Hugging Face hub, split {source.split}",
    }
    return Records(rows, entry, source.path)


def _check_revision(source: Source, cache_files: Sequence[dict[str, str]]) -> None:
    """Refuse any commit but the requested one: offline, the library uses whichever it has."""
    for file in cache_files:
        cached = Path(file["filename"]).parent.name
        wanted = source.revision or ""
        if _COMMIT.fullmatch(wanted) and _COMMIT.fullmatch(cached) and cached != wanted:
            raise DataError(
                f"{source.path}: the cache holds revision {cached}, but 'revision' is {wanted}; "
                "go online (HF_HUB_OFFLINE=0), or correct the option."
            )


def _digest(files: Sequence[Path]) -> str:
    """Hash a file, or the names and hashes of several."""
    if len(files) == 1:
        return sha256_of(files[0])
    lines = [f"{file.name} {sha256_of(file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _rows_digest(rows: list[Row]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def _rows_of(path: Path) -> list[Row]:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".parquet"):
        return _table_rows(path)
    text = _text_of(path)
    if suffix == ".txt":
        return [{"line": line.strip()} for line in text.rstrip().split("\n")]
    if suffix == ".jsonl":
        # Not splitlines, which also splits at separators that JSON strings may hold.
        lines = enumerate(text.split("\n"), start=1)
        return [_json(line, f"{path}: line {n}") for n, line in lines if line.strip()]
    value = _json(text, str(path), of=(dict, list))
    if isinstance(value, dict):
        return _columns_to_rows(value, path)
    for number, row in enumerate(value, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}: record {number} is not a JSON object; get the file again.")
    return value


def _text_of(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}: not UTF-8 (byte {error.start}, line {line}); get the file again, or convert "
            "it."
        ) from error


def _json(text: str, where: str, of: tuple[type, ...] = (dict,)) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: not valid JSON ({_reason(error)}); get the file again."
        ) from error
    if not isinstance(value, of):
        raise DataError(f"{where}: not a JSON object; get the file again.")
    return value


def _columns_to_rows(columns: dict[str, Any], path: Path) -> list[Row]:
    """Turn {"questions": [...], "answers": [...]} into one mapping per entry."""
    lengths = {name: len(v) for name, v in columns.items() if isinstance(v, list)}
    if len(lengths) < len(columns) or len(set(lengths.values())) != 1:
        found = ", ".join(f"{name}: {lengths.get(name, 'not a list')}" for name in columns)
        raise DataError(
            f"{path}: must be a list of records, or columns of equal length (has {found}); get "
            "the file again."
        )
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, values, strict=True)) for values in rows]


def _table_rows(path: Path) -> list[Row]:
    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            return pq.read_table(path).to_pylist()
        import pandas as pd

        with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):
            cells = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
        return cells.to_dict("records")
    except Exception as error:  # whatever the two libraries raise for damaged files
        raise DataError(
            f"{path}: not readable as a table ({_reason(error)}); get the file again."
        ) from error


def _reason(error: BaseException) -> str:
    return " ".join(str(error.__cause__ or error).split())[:300] or type(error).__name__


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep progress bars of the `datasets` library out of logs; restore its setting afterwards."""
    import datasets

    were_shown = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_shown:
            datasets.enable_progress_bars()
