"""Files: JSON, Parquet, hashes; written completely or not at all.

Every writer creates a temporary file beside its target and renames it, so a reader never sees half
a file and a failed write leaves the old file untouched. Torch-free.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError

from grace_bench.errors import DataError, ResultError
from grace_bench.store.schemas import SCHEMA_VERSION, later_columns


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it when the block succeeds, else remove it.

    Raises:
        ResultError: the folder is not writable or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise ResultError(describe_os_error(path, as_os_error(error))) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def discard(path: Path) -> None:
    """Remove a folder, a file or a link if it exists; never what a link points to."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def remove_leftovers(folder: Path, except_for: str = "") -> None:
    """Remove the temporary files that killed writers left in a folder.

    Args:
        folder: nobody else may be writing there.
        except_for: names that contain this text are kept.
    """
    for left in folder.glob(".*.tmp"):
        if not except_for or except_for not in left.name:
            with suppress(OSError):
                discard(left)


def as_os_error(error: OSError | SafetensorError) -> OSError:
    """Return the system's error; safetensors only mentions its number in the message."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), str(error)) if number else OSError(str(error))


def describe_os_error(path: Path | str, error: OSError) -> str:
    """Return the message for a failed write to `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path}: the disk is full; free some space and rerun."
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"{path}: the folder is not writable; check its permissions or choose another."
    return f"{path}: cannot write ({error.strerror or error}); fix the problem and rerun."


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys; refuse NaN and infinity."""
    try:
        text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise ResultError(f"{path}: NaN or infinity cannot be written as JSON.") from error
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path | str) -> Any:
    """Read a JSON file; raise DataError with the reason if it cannot be read."""
    try:
        refuse_devices(path)
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; run the step that makes it first.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}); make it again.") from error
    except RecursionError as error:
        raise DataError(f"{path}: is nested too deeply for a record; make it again.") from error


def refuse_devices(path: Path | str) -> None:
    """Raise OSError for a pipe or a device: reading one may never return."""
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError("it is not a regular file")


def write_parquet(
    path: Path | str,
    rows: Iterable[Mapping[str, Any]],
    schema: pa.Schema,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write rows with exactly the columns of `schema`; missing nullable values become null."""
    rows = list(rows)
    known = set(schema.names)
    for row in rows:
        if extra := set(row) - known:
            raise ResultError(f"{path}: a record has unknown columns {sorted(extra)}.")
    columns = [_column(path, field, [row.get(field.name) for row in rows]) for field in schema]
    table = pa.Table.from_arrays(columns, schema=schema)
    for field in schema:
        if not field.nullable and table[field.name].null_count:
            raise ResultError(f"{path}: column '{field.name}' has records without a value.")
    if metadata:
        table = table.replace_schema_metadata({**(schema.metadata or {}), **metadata})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _column(path: Path | str, field: pa.Field, values: list[Any]) -> pa.Array:
    try:
        return pa.array(values, type=field.type)
    except (pa.ArrowException, OverflowError, ValueError, TypeError) as error:
        raise ResultError(
            f"{path}: column '{field.name}' cannot hold its records ({error})."
        ) from error


def read_parquet(
    path: Path | str, schema: pa.Schema | None = None, columns: Sequence[str] | None = None
) -> pa.Table:
    """Read a Parquet file, or some of its columns, and check it against `schema`.

    Raises:
        DataError: the file is missing, truncated or damaged, has a newer format or other columns,
            or lacks required values.
    """
    try:
        refuse_devices(path)
        # ParquetFile reads only this file and infers no partitions from folder names.
        with pq.ParquetFile(path) as file:
            if schema is not None:
                check_schema(path, file.schema_arrow, schema)
            table = file.read(columns)
        table.validate(full=True)  # Arrow checks neither text encoding nor list offsets
        if schema is not None:
            table = _with_later_columns(table, schema.names if columns is None else columns)
            _check_nulls(path, table, schema)
        return table
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; run the step that makes it first.") from error
    except _NOT_PARQUET as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{path}: not an intact Parquet file ({reason}); "
            "delete it and run the step that makes it again."
        ) from error


_NOT_PARQUET = (OSError, pa.ArrowException, ValueError, LookupError, ArithmeticError, MemoryError)
"""What Arrow raises on damaged files, undecodable names and absurd sizes included."""


def _check_nulls(path: Path | str, table: pa.Table, schema: pa.Schema) -> None:
    for name in table.column_names:
        if name in schema.names and not schema.field(name).nullable and table[name].null_count:
            raise DataError(
                f"{path}: column '{name}' has rows without a value; delete it and run the step "
                "that makes it again."
            )


def _with_later_columns(table: pa.Table, wanted: Sequence[str]) -> pa.Table:
    for field in later_columns():
        if field.name in wanted and field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table


def check_schema(path: Path | str, found: pa.Schema, wanted: pa.Schema) -> None:
    """Raise DataError if `found` lacks columns of `wanted` or has them with another type."""
    known = found.metadata or {}
    version = known.get(b"grace_bench.schema_version", b"1").decode(errors="replace")
    if version != str(SCHEMA_VERSION):
        raise DataError(
            f"{path}: written in format {version}, this version reads {SCHEMA_VERSION}; "
            "make it again or use the version that wrote it."
        )
    later = [field.name for field in later_columns() if field in list(wanted)]
    missing = [name for name in wanted.names if name not in (*found.names, *later)]
    if missing:
        raise DataError(
            f"{path}: lacks the columns {missing}; it has {found.names}. Make it again."
        )
    names = found.names
    if twice := sorted({name for name in wanted.names if names.count(name) > 1}):
        raise DataError(f"{path}: has the columns {twice} more than once. Make it again.")
    for field in wanted:
        if field.name in names and found.field(field.name).type != field.type:
            raise DataError(
                f"{path}: column '{field.name}' is {found.field(field.name).type}, "
                f"must be {field.type}. Make it again."
            )


def hash_of_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the sha256 of rows: versions of Parquet write different bytes for equal rows."""
    found = hashlib.sha256()
    for row in rows:
        line = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        found.update(f"{line}\n".encode())
    return found.hexdigest()


def sha256_of(path: Path | str) -> str:
    """Return the sha256 of a file's bytes as hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
