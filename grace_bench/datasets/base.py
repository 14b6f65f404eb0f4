"""What a data set builder is, and how its rows become files.

A builder only makes rows; `prepare` checks them, writes one Parquet file per role and, last, the
manifest, so that a folder with a manifest is a whole data set:

    manifest = prepare(builder, Path("data/facts_qa"), task="question_answering",
                       config={"seed": 0})
    rows = load_role(Path("data/facts_qa"), "edits")
"""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import pyarrow as pa

from grace_bench.datasets.checks import check_roles, count_taught
from grace_bench.datasets.options import DatasetOptions
from grace_bench.datasets.reading.files import no_progress_bars
from grace_bench.errors import ConfigError, DataError, ResultError
from grace_bench.store.files import (
    atomic_path,
    describe_os_error,
    hash_of_rows,
    read_parquet,
    sha256_of,
    write_json,
)
from grace_bench.store.json_records import check_record, read_record
from grace_bench.store.schemas import EXAMPLES, MANIFEST, ROLES

if TYPE_CHECKING:
    from collections.abc import Mapping

Options = TypeVar("Options", bound=DatasetOptions)
Row = dict[str, Any]

MANIFEST_FORMAT = 1

logger = logging.getLogger(__name__)


@dataclass
class BuiltDataset:
    """The rows of a data set before they are checked and written.

    Attributes:
        roles: role to rows with the columns of `schemas.EXAMPLES`; missing roles are empty.
        sources: where the rows come from; each has name, version, licence and origin.
        dropped: reason to how many candidate rows were left out for it.
        labels: the classes in the order of the model's outputs; None when there are none.
    """

    roles: dict[str, list[Row]]
    sources: list[dict[str, str]]
    dropped: dict[str, int] = field(default_factory=dict)
    labels: list[str] | None = None


class DatasetBuilder(ABC, Generic[Options]):
    """Makes the rows of one data set from its options; the same options give the same rows."""

    name: ClassVar[str]
    options_class: ClassVar[type[DatasetOptions]]
    tasks: ClassVar[tuple[str, ...]] = ()
    """Tasks the rows are fit for; empty means any."""

    def __init__(self, options: Options) -> None:
        """Keep the options; nothing is read before `build`."""
        self.options = options

    @abstractmethod
    def build(self) -> BuiltDataset:
        """Make all rows."""


def prepare(
    builder: DatasetBuilder[Any],
    folder: Path | str,
    *,
    task: str,
    config: Mapping[str, Any],
    made_from: str | None = None,
) -> dict[str, Any]:
    """Build, check and write a data set; return its manifest.

    An older manifest is removed first and the new one written last. The bytes depend on the
    builder's options and the installed sources only, so a second call writes the same.

    Args:
        builder: makes the rows.
        folder: where `<role>.parquet` and `manifest.json` go.
        task: the task the data set is prepared for; recorded in the manifest.
        config: the data set's part of the suite; recorded in the manifest.
        made_from: hash of all that the data set depends on; recorded in the manifest.

    Raises:
        ConfigError: the task does not fit the builder.
        DataError: a source is unfit, or a row breaks one of the checks.
        ResultError: the folder cannot be written or the disk is full.
    """
    folder = Path(folder)
    if builder.tasks and task not in builder.tasks:
        raise ConfigError(
            f"data set builder '{builder.name}' makes data for {' or '.join(builder.tasks)}, "
            f"not for '{task}'; choose another task or another builder."
        )
    built = builder.build()
    roles = {role: built.roles.get(role, []) for role in ROLES}
    if unknown := sorted(set(built.roles) - set(ROLES)):
        raise DataError(f"{builder.name}: the builder makes unknown roles {unknown}.")
    check_roles(builder.name, roles, built.labels)

    manifest_path = folder / MANIFEST
    try:
        manifest_path.unlink(missing_ok=True)
    except OSError as error:
        raise ResultError(describe_os_error(manifest_path, error)) from error
    files = {}
    for role in ROLES:
        path = folder / f"{role}.parquet"
        _write_role(path, roles[role])
        files[role] = {
            "file": path.name,
            "rows": len(roles[role]),
            "facts": len({row["fact_id"] for row in roles[role]}),
            "sha256": sha256_of(path),
            "rows_sha256": hash_of_rows(
                {name: row.get(name) for name in EXAMPLES.names} for row in roles[role]
            ),
        }
    manifest = {
        "format": MANIFEST_FORMAT,
        "dataset": builder.name,
        "task": task,
        "options": builder.options.model_dump(mode="json"),
        "config": dict(config),
        "roles": files,
        "data_hash": _data_hash(files),
        "made_from": made_from,
        "sources": built.sources,
        "dropped": dict(sorted(built.dropped.items())),
        "also_in_train": count_taught(roles),
        "labels": built.labels,
    }
    _log_counts(manifest)
    write_json(manifest_path, manifest)
    return manifest


def _log_counts(manifest: Mapping[str, Any]) -> None:
    """Say what was made, what was left out and what the base model has read before."""
    name, roles = manifest["dataset"], manifest["roles"]
    logger.info("%s: %s", name, ", ".join(f"{r} {roles[r]['rows']}" for r in ROLES))
    for reason, count in manifest["dropped"].items():
        logger.info("%s: dropped %d: %s", name, count, reason)
    for role, count in manifest["also_in_train"].items():
        if count:
            level = logging.INFO if role in ("upstream", "accurate") else logging.WARNING
            message = "%s: %d of %d rows of %s are also read in train, label and all"
            logger.log(level, message, name, count, roles[role]["rows"], role)


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """Return the manifest of a prepared data set; at least its `data_hash` and `labels` are right.

    Raises:
        DataError: it is missing, damaged, or no manifest.
    """
    path = Path(folder) / MANIFEST
    manifest = read_record(path, format=int, data_hash=str, roles=dict, labels=(list, type(None)))
    if manifest["format"] != MANIFEST_FORMAT:
        raise DataError(
            f"{path}: written in format {manifest['format']}, this version reads "
            f"{MANIFEST_FORMAT}; prepare the data set again."
        )
    if not all(isinstance(label, str) for label in manifest.get("labels") or ()):
        raise DataError(f"{path}: 'labels' must be texts; prepare the data set again.")
    for role, entry in manifest["roles"].items():
        check_record(f"{path}: roles.{role}", entry, file=str, rows=int, facts=int, sha256=str)
    return manifest


def load_role(folder: Path | str, role: str) -> list[Row]:
    """Read the rows of one role, in their order.

    Raises:
        DataError: the role is unknown, or its file is missing, truncated or of another format.
    """
    if role not in ROLES:
        raise DataError(f"{folder}: unknown role '{role}'; the roles are {', '.join(ROLES)}.")
    table = read_parquet(Path(folder) / f"{role}.parquet", EXAMPLES)
    rows: list[Row] = table.select(EXAMPLES.names).to_pylist()
    return rows


def load_evaluated(folder: Path | str) -> list[Row]:
    """Read the rows of all roles that predictions are made for."""
    return [row for role in ROLES if role != "train" for row in load_role(folder, role)]


def _data_hash(files: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [f"{role} {entry['rows_sha256']}\n" for role, entry in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _write_role(path: Path, rows: list[Row]) -> None:
    import datasets

    # Through columns, not Dataset.from_list, which refuses an empty list of rows.
    columns = {name: [row.get(name) for row in rows] for name in EXAMPLES.names}
    text = datasets.Value("string")
    features = datasets.Features(
        {field.name: datasets.List(text) if _is_list(field) else text for field in EXAMPLES}
    )
    with atomic_path(path) as temporary, no_progress_bars():
        datasets.Dataset.from_dict(columns, features=features).to_parquet(str(temporary))


def _is_list(field: pa.Field) -> bool:
    return pa.types.is_list(field.type)
