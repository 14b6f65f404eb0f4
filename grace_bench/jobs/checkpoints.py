"""Checkpoints of long work: numbered, hashed, written completely or not at all.

    checkpoints = Checkpoints(folder, fingerprint="hash of everything the work depends on")
    found = checkpoints.latest()  # None: start from the beginning
    checkpoints.write(Checkpoint(step, tensors, state, {"log": rows}))
    checkpoints.remove()

A checkpoint is a folder `<number>` with `tensors.safetensors`, `state.json`, one `<name>.jsonl` per
list of records, and `checkpoint.json` with the hash of each of them. Only the work itself knows
what its tensors and its state mean.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from grace_bench.errors import DataError, GraceBenchError, ResultError
from grace_bench.store.files import (
    as_os_error,
    describe_os_error,
    discard,
    read_json,
    remove_leftovers,
    sha256_of,
)
from grace_bench.store.json_records import is_plain_name, read_record
from grace_bench.store.records import CheckpointRecord

logger = logging.getLogger(__name__)

MANIFEST = "checkpoint.json"
TENSORS = "tensors.safetensors"
STATE = "state.json"
RECORDS = ".jsonl"
UNUSABLE = ".unusable"
NUMBER = re.compile(r"[0-9]{8,18}")
UNREADABLE = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError),
    *(RuntimeError, MemoryError, SafetensorError),  # RecursionError is a RuntimeError
)
"""What reading a damaged checkpoint raises."""
UNFIT = (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, GraceBenchError)
"""What restoring a state of another form raises."""


@dataclass
class Checkpoint:
    """The state of some work.

    Args:
        number: grows with the work: a step.
        tensors: on any device; no two may share memory. Read back, they are on the CPU.
        state: a JSON value. Floats come back bit for bit.
        records: lists of JSON objects by name, one line each in their file, so that they can be
            read meanwhile.
    """

    number: int
    tensors: Mapping[str, Tensor] = field(repr=False)
    state: Any
    records: Mapping[str, Sequence[Mapping[str, Any]]] = field(repr=False, default_factory=dict)


class Checkpoints:
    """The checkpoints of one piece of work, in a folder of their own.

    Args:
        folder: nothing else may write to it; made with the first checkpoint.
        fingerprint: a hash of the work's settings and inputs. Checkpoints with a different
            fingerprint are not used.
        keep: number of checkpoints to keep. With two, a damaged one costs only the work since the
            previous one.
    """

    def __init__(self, folder: Path, fingerprint: str, keep: int = 2) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.keep = keep

    def write(self, made: Checkpoint) -> None:
        """Write a checkpoint, replacing one of the same number, and remove all but the newest.

        Raises:
            ResultError: the folder cannot be written or the disk is full; older ones are untouched.
        """
        target = self.folder / f"{made.number:08d}"
        temporary = self.folder / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            temporary.mkdir(parents=True)
            self._fill(temporary, made)
            discard(target)
            os.replace(temporary, target)
            older = [n for n in self._numbers() if n < made.number]
            for n in older[: max(0, len(older) - (self.keep - 1))]:
                discard(self.folder / f"{n:08d}")
        except (OSError, SafetensorError) as error:
            raise ResultError(describe_os_error(target, as_os_error(error))) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _fill(self, folder: Path, made: Checkpoint) -> None:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in made.tensors.items()}
        safetensors.torch.save_file(plain, folder / TENSORS)
        (folder / STATE).write_text(json.dumps(made.state, sort_keys=True) + "\n", encoding="utf-8")
        for name, rows in made.records.items():
            with open(folder / f"{name}{RECORDS}", "w", encoding="utf-8") as stream:
                stream.writelines(json.dumps(row, sort_keys=True) + "\n" for row in rows)
        files = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
        manifest = CheckpointRecord(number=made.number, fingerprint=self.fingerprint, files=files)
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def latest(self) -> Checkpoint | None:
        """Return the newest intact checkpoint of this work, or None.

        Newer ones that are damaged or belong to other work are renamed to `<number>.unusable`; the
        log says which and why.
        """
        remove_leftovers(self.folder)
        for number in reversed(self._numbers()):
            place = self.folder / f"{number:08d}"
            try:
                return self._read(place, number)
            except DataError as error:
                self._set_aside(place, str(error))
        return None

    @contextmanager
    def restoring(self, found: Checkpoint) -> Iterator[None]:
        """Set `found` aside if the block, which restores its state, cannot read it.

        The work is then half restored and ends; the next attempt uses the previous checkpoint.

        Raises:
            ResultError: the state has another form.
        """
        try:
            yield
        except UNFIT as error:
            place = self.folder / f"{found.number:08d}"
            self._set_aside(place, f"{place}: not a state of this work ({error!r}).")
            raise ResultError(
                f"{place}: the checkpoint is unusable and was set aside. Rerun the same command to "
                "resume from the previous one."
            ) from error

    def _read(self, place: Path, number: int) -> Checkpoint:
        try:
            manifest = read_record(place / MANIFEST, CheckpointRecord)
            if manifest.number != number:
                raise DataError(f"{place}: is the checkpoint {manifest.number}.")
            if manifest.fingerprint != self.fingerprint:
                raise DataError(
                    f"{place}: the checkpoint was made with other settings, data, weights or "
                    "versions."
                )
            files = manifest.files
            for name in (TENSORS, STATE, *files):
                _check_file(place, name, files.get(name))
            return Checkpoint(
                number,
                safetensors.torch.load_file(place / TENSORS),
                read_json(place / STATE),
                {
                    name.removesuffix(RECORDS): _read_lines(place / name)
                    for name in files
                    if name.endswith(RECORDS)
                },
            )
        except UNREADABLE as error:
            raise DataError(f"{place}: not an intact checkpoint ({error!r}).") from error

    def _set_aside(self, place: Path, reason: str) -> None:
        aside = place.with_name(place.name + UNUSABLE)
        logger.warning("%s It was set aside as %s.", reason, aside.name)
        try:
            discard(aside)
            place.rename(aside)
        except OSError as error:
            raise ResultError(describe_os_error(aside, error)) from error

    def remove(self) -> None:
        """Remove the folder and everything in it: the work is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _numbers(self) -> list[int]:
        try:
            found = list(self.folder.iterdir()) if self.folder.is_dir() else []
        except OSError as error:
            raise ResultError(f"{self.folder}: cannot read ({error.strerror}).") from error
        numbers = (int(path.name) for path in found if NUMBER.fullmatch(path.name))
        return sorted(n for n in numbers if (self.folder / f"{n:08d}") in found)


def _check_file(place: Path, name: str, expected: Any) -> None:
    """Check a file that the manifest of the checkpoint `place` lists.

    Raises:
        DataError: it lies elsewhere, is missing or has changed.
    """
    if not is_plain_name(name):
        raise DataError(f"{place}: lists {name!r}, which is not a file of a checkpoint.")
    path = place / name
    # A link leads out of the folder, to a file that can change.
    if place.is_symlink() or path.is_symlink() or not path.is_file():
        raise DataError(f"{path}: missing, or not a regular file.")
    if sha256_of(path) != expected:
        raise DataError(f"{path}: has changed since it was written.")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: has lines that are no records.")
    return rows
