"""Checkpoints of long work: numbered, hashed, written whole or not at all; and a stop in good time.

    checkpoints = Checkpoints(folder, fingerprint="what the work depends on")
    found = checkpoints.latest()  # None: begin at the beginning
    with stop_requests() as stop_requested:
        ...
        checkpoints.write(step, tensors, state, {"log": rows})
    checkpoints.remove()

A checkpoint is a folder `<number>` with `tensors.safetensors`, `state.json`, one `<name>.jsonl` for
each list of records, and `checkpoint.json` with the hash of each of them. What the tensors and
the state mean is the work's own business.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import threading
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import safetensors.torch
from safetensors import SafetensorError

from grace_bench.errors import DataError, GraceBenchError, ResultError
from grace_bench.store.files import (
    as_os_error,
    describe_os_error,
    discard,
    read_json,
    remove_leftovers,
    sha256_of,
)
from grace_bench.store.json_records import check_record, is_plain_name, read_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

logger = logging.getLogger(__name__)

VERSION = 1
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
"""What taking over a state of another form raises."""


@dataclass
class Checkpoint:
    """What was written: tensors on the CPU, a JSON value, lists of records by name."""

    number: int
    tensors: dict[str, Tensor] = field(repr=False)
    state: Any
    records: dict[str, list[dict[str, Any]]] = field(repr=False)


class Checkpoints:
    """The checkpoints of one piece of work, in a folder of their own.

    Args:
        folder: that nothing else writes to; made with the first checkpoint.
        fingerprint: tells this work from any other that could use the folder: a hash of its
            settings and its inputs. A checkpoint with another one is not used.
        keep: how many are kept; with two, a damaged one costs only the work since the one before.
    """

    def __init__(self, folder: Path, fingerprint: str, keep: int = 2) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.keep = keep

    def write(
        self,
        number: int,
        tensors: Mapping[str, Tensor],
        state: Any,
        records: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    ) -> None:
        """Write one checkpoint, and remove all but the newest.

        Args:
            number: grows with the work: a step. One of the same number is replaced.
            tensors: on any device; no two may share memory.
            state: a JSON value. Floats come back bit for bit.
            records: rows of JSON values, one line each, so that they can be read meanwhile.

        Raises:
            ResultError: the folder cannot be written or the disk is full; older ones are as before.
        """
        target = self.folder / f"{number:08d}"
        temporary = self.folder / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            temporary.mkdir(parents=True)
            self._fill(temporary, number, tensors, state, records or {})
            discard(target)
            os.replace(temporary, target)
            older = [n for n in self._numbers() if n < number]
            for n in older[: max(0, len(older) - (self.keep - 1))]:
                discard(self.folder / f"{n:08d}")
        except (OSError, SafetensorError) as error:
            raise ResultError(describe_os_error(target, as_os_error(error))) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _fill(
        self,
        folder: Path,
        number: int,
        tensors: Mapping[str, Tensor],
        state: Any,
        records: Mapping[str, Sequence[Mapping[str, Any]]],
    ) -> None:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        safetensors.torch.save_file(plain, folder / TENSORS)
        (folder / STATE).write_text(json.dumps(state, sort_keys=True) + "\n", encoding="utf-8")
        for name, rows in records.items():
            with open(folder / f"{name}{RECORDS}", "w", encoding="utf-8") as stream:
                stream.writelines(json.dumps(row, sort_keys=True) + "\n" for row in rows)
        manifest = {
            "format": "grace-bench checkpoint",
            "version": VERSION,
            "number": number,
            "fingerprint": self.fingerprint,
            "files": {path.name: sha256_of(path) for path in sorted(folder.iterdir())},
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint of this work that is whole, or None.

        Newer ones that are damaged or of other work are renamed to `<number>.unusable`; the log
        says which and why.
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
    def taking_over(self, found: Checkpoint) -> Iterator[None]:
        """Set `found` aside if the block, which takes over its state, finds another form of it.

        What the block had taken over by then is worth nothing, so the work ends with a sentence;
        begun again it goes on from the checkpoint before.

        Raises:
            ResultError: the state is of another form.
        """
        try:
            yield
        except UNFIT as error:
            place = self.folder / f"{found.number:08d}"
            self._set_aside(place, f"{place}: not a state of this work ({error!r}).")
            raise ResultError(
                f"{place}: the checkpoint could not be used and is set aside; run the same "
                "command again, and it goes on from the one before."
            ) from error

    def _read(self, place: Path, number: int) -> Checkpoint:
        try:
            manifest = read_record(place / MANIFEST, number=int, fingerprint=str, files=dict)
            if (manifest.get("version"), manifest["number"]) != (VERSION, number):
                raise DataError(f"{place}: the checkpoint is of another format.")
            if manifest["fingerprint"] != self.fingerprint:
                raise DataError(
                    f"{place}: the checkpoint is of other settings, data, weights or versions."
                )
            files = manifest["files"]
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
            raise DataError(f"{place}: not a whole checkpoint ({error!r}).") from error

    def _set_aside(self, place: Path, reason: str) -> None:
        aside = place.with_name(place.name + UNUSABLE)
        logger.warning("%s It is set aside as %s.", reason, aside.name)
        try:
            discard(aside)
            place.rename(aside)
        except OSError as error:
            raise ResultError(describe_os_error(aside, error)) from error

    def remove(self) -> None:
        """Remove the folder and all in it: the work is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _numbers(self) -> list[int]:
        try:
            found = list(self.folder.iterdir()) if self.folder.is_dir() else []
        except OSError as error:
            raise ResultError(f"{self.folder}: cannot be read ({error.strerror}).") from error
        numbers = (int(path.name) for path in found if NUMBER.fullmatch(path.name))
        return sorted(n for n in numbers if (self.folder / f"{n:08d}") in found)


def _check_file(place: Path, name: str, expected: Any) -> None:
    """Check a file that the manifest of the checkpoint `place` lists.

    Raises:
        DataError: it is elsewhere, missing or changed.
    """
    if not is_plain_name(name):
        raise DataError(f"{place}: lists {name!r}, which is no file of a checkpoint.")
    path = place / name
    # A link leads out of the folder, and to a file that changes by itself.
    if place.is_symlink() or path.is_symlink() or not path.is_file():
        raise DataError(f"{path}: missing, or no file of its own.")
    if sha256_of(path) != expected:
        raise DataError(f"{path}: changed since it was written.")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8") as stream:
        return [check_record(path, json.loads(line)) for line in stream]


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Keep SIGTERM and Ctrl-C from ending the process at once; yield what says whether one came.

    Schedulers send SIGTERM some seconds before they kill a job: time for a checkpoint. A request
    that the block has not answered with an exception takes its ordinary effect after it, and so
    does a second Ctrl-C at once. Only the main thread of a process can do this; in others nothing
    is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _: object) -> None:
        came.append(number)
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    # A shell's background job ignores Ctrl-C, and goes on doing so.
    caught = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in caught:
        signal.signal(number, note)
    try:
        yield lambda: bool(came)
    finally:
        for number in caught:
            signal.signal(number, before[number])
    if came:
        signal.raise_signal(came[0])
