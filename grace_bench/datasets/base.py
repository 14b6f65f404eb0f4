"""What a data set builder is, and how its rows become files.

A builder only makes rows. `prepare` checks them and writes one Parquet file per role; the manifest
comes last, so a folder with a manifest is a complete data set:

    manifest = prepare(builder, Path("data/facts_qa"), task="question_answering", config={})
    rows = load_role(Path("data/facts_qa"), "edits")
"""

from __future__ import annotations

import hashlib
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import pyarrow as pa

from grace_bench.datasets.checks import check_roles, count_taught
from grace_bench.datasets.options import DatasetOptions
from grace_bench.datasets.reading.fields import Roles, Row
from grace_bench.datasets.reading.files import no_progress_bars
from grace_bench.errors import ConfigError, DataError, GraceBenchError, ResultError
from grace_bench.store.files import (
    atomic_path,
    describe_os_error,
    hash_of_rows,
    read_parquet,
    sha256_of,
)
from grace_bench.store.json_records import read_record, write_record
from grace_bench.store.records import MANIFEST, Manifest, RoleFile
from grace_bench.store.schemas import EXAMPLES, ROLES

Options = TypeVar("Options", bound=DatasetOptions)
T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass
class BuiltDataset:
    """The rows of a data set before they are checked and written.

    Attributes:
        roles: role to rows with the columns of `schemas.EXAMPLES`; missing roles are empty.
        sources: where the rows come from; each has name, version, licence and origin.
        dropped: reason to number of candidate rows left out for it; zeros are removed.
        labels: the classes in the order of the model's outputs; None if there are none.
    """

    roles: Roles
    sources: list[dict[str, str]]
    dropped: dict[str, int] = field(default_factory=dict)
    labels: list[str] | None = None

    def __post_init__(self) -> None:
        self.dropped = {reason: n for reason, n in sorted(self.dropped.items()) if n}


class DatasetBuilder(ABC, Generic[Options]):
    """Makes the rows of one data set from its options; the same options give the same rows."""

    name: ClassVar[str]
    options_class: ClassVar[type[DatasetOptions]]
    tasks: ClassVar[tuple[str, ...]] = ()
    """Tasks the rows suit; empty means any."""

    def __init__(self, options: Options) -> None:
        """Keep the options; nothing is read before `build`."""
        self.options = options

    @abstractmethod
    def build(self) -> BuiltDataset:
        """Make all rows."""

    def rng(self, purpose: str) -> random.Random:
        """Return a generator that depends on the builder, the purpose and the seed alone."""
        return random.Random(f"{self.name}/{purpose}/{self.options.seed}")


def interleave(groups: list[list[T]], window: int, turns: int) -> tuple[list[T], list[T]]:
    """Return the first `turns` members of each group as a stream, and all other members.

    Within a window of groups come all first members, then all second ones, and so on.
    """
    stream: list[T] = []
    others: list[T] = []
    for start in range(0, len(groups), window):
        block = groups[start : start + window]
        stream += [group[turn] for turn in range(turns) for group in block]
        others += [member for group in block for member in group[turns:]]
    return stream, others


def prepare(
    builder: DatasetBuilder[Any],
    folder: Path | str,
    *,
    task: str,
    config: Mapping[str, Any],
    made_from: str | None = None,
) -> Manifest:
    """Build, check and write a data set; return its manifest.

    An older manifest is removed first and the new one written last. The bytes depend only on the
    builder's options and the installed sources, so a second call writes the same files.

    Args:
        builder: makes the rows.
        folder: where `<role>.parquet` and `manifest.json` go.
        task: the task the data set is prepared for; recorded in the manifest.
        config: the data set's part of the suite; recorded in the manifest.
        made_from: hash of everything the data set depends on; recorded in the manifest.

    Raises:
        ConfigError: the task does not fit the builder.
        DataError: a source cannot be used, or a row fails one of the checks.
        ResultError: the folder cannot be written, or the disk is full.
    """
    folder = Path(folder)
    if builder.tasks and task not in builder.tasks:
        raise ConfigError(
            f"data set builder '{builder.name}' makes data for {' or '.join(builder.tasks)}, "
            f"not for '{task}'; choose another task or another builder."
        )
    built = _build(builder)
    if unknown := sorted(set(built.roles) - set(ROLES)):
        raise DataError(f"{builder.name}: the builder makes unknown roles {unknown}.")
    roles = {role: built.roles.get(role, []) for role in ROLES}
    check_roles(builder.name, roles, built.labels)
    _remove(folder / MANIFEST)
    files = {}
    for role, rows in roles.items():
        path = folder / f"{role}.parquet"
        _write_role(path, rows)
        files[role] = _describe_role(path, rows)
    manifest = Manifest(
        dataset=builder.name,
        task=task,
        options=builder.options.model_dump(mode="json"),
        config=dict(config),
        roles=files,
        data_hash=_data_hash(files),
        made_from=made_from,
        sources=built.sources,
        dropped=built.dropped,
        also_in_train=count_taught(roles),
        labels=built.labels,
    )
    _log_counts(manifest)
    write_record(folder / MANIFEST, manifest)
    return manifest


def _build(builder: DatasetBuilder[Any]) -> BuiltDataset:
    """Make the rows; an error of a builder's code is one sentence that names the builder."""
    try:
        return builder.build()
    except (GraceBenchError, OSError):
        raise
    except Exception as error:
        raise DataError(
            f"data set builder '{builder.name}' fails ({type(error).__name__}: {error}); fix its "
            "code (--debug shows where)."
        ) from error


def _remove(manifest: Path) -> None:
    try:
        manifest.unlink(missing_ok=True)
    except OSError as error:
        raise ResultError(describe_os_error(manifest, error)) from error


def _log_counts(manifest: Manifest) -> None:
    """Log how many rows were made, what was left out and what the base model is trained on."""
    name, roles = manifest.dataset, manifest.roles
    logger.info("%s: %s", name, ", ".join(f"{r} {roles[r].rows}" for r in ROLES))
    for reason, count in manifest.dropped.items():
        logger.info("%s: dropped %d: %s", name, count, reason)
    for role, count in manifest.also_in_train.items():
        if count:
            level = logging.INFO if role in ("upstream", "accurate") else logging.WARNING
            message = "%s: %d of %d rows of %s also appear in train, with their labels"
            logger.log(level, message, name, count, roles[role].rows, role)


def read_manifest(folder: Path | str) -> Manifest:
    """Return the manifest of a prepared data set.

    Raises:
        DataError: it is missing, damaged or not a manifest.
    """
    return read_record(Path(folder) / MANIFEST, Manifest)


def load_role(folder: Path | str, role: str) -> list[Row]:
    """Read the rows of one role, in order.

    Raises:
        DataError: the role is unknown, or its file is missing, truncated or in another format.
    """
    if role not in ROLES:
        raise DataError(f"{folder}: unknown role '{role}'; the roles are {', '.join(ROLES)}.")
    table = read_parquet(Path(folder) / f"{role}.parquet", EXAMPLES)
    rows: list[Row] = table.select(EXAMPLES.names).to_pylist()
    return rows


def load_evaluated(folder: Path | str) -> list[Row]:
    """Read the rows of all roles that predictions are made for."""
    return [row for role in ROLES if role != "train" for row in load_role(folder, role)]


def _data_hash(files: Mapping[str, RoleFile]) -> str:
    lines = [f"{role} {entry.rows_sha256}\n" for role, entry in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _write_role(path: Path, rows: list[Row]) -> None:
    import datasets

    columns = {name: [row.get(name) for row in rows] for name in EXAMPLES.names}
    text = datasets.Value("string")
    features = datasets.Features(
        {
            column.name: datasets.List(text) if pa.types.is_list(column.type) else text
            for column in EXAMPLES
        }
    )
    # From columns: Dataset.from_list refuses an empty list of rows.
    with atomic_path(path) as temporary, no_progress_bars():
        datasets.Dataset.from_dict(columns, features=features).to_parquet(str(temporary))


def _describe_role(path: Path, rows: list[Row]) -> RoleFile:
    return RoleFile(
        file=path.name,
        rows=len(rows),
        facts=len({row["fact_id"] for row in rows}),
        sha256=sha256_of(path),
        rows_sha256=hash_of_rows({n: row.get(n) for n in EXAMPLES.names} for row in rows),
    )
