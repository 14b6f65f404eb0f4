"""Copies whole folders from untrusted places: a folder arrives with every file checked, or not.

No link is followed, and only ordinary files are read; the bytes that are hashed are those written.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from grace_bench.errors import DataError, ResultError
from grace_bench.store.files import describe_os_error

CHUNK = 2**20
LEFT_BEHIND = r"\.{name}\.[0-9a-f]{{8}}\.(tmp|old)"


@dataclass(frozen=True)
class Piece:
    """A file to be copied.

    Args:
        source: its path.
        sha256: the hash that it must have; None: unknown.
        optional: whether it may be missing.
    """

    source: Path
    sha256: str | None = None
    optional: bool = False


def place_folder(pieces: Sequence[Piece], target: Path) -> None:
    """Copy files into a new folder and put it in the place of `target`.

    If that fails, what was there before is still there. Modification times are kept, as the
    workflow goes by them.

    Raises:
        DataError: a file is missing, no ordinary file, or not the one it should be.
        ResultError: the target cannot be written.
    """
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _tidy(target)
    mark = uuid.uuid4().hex[:8]
    fresh = target.with_name(f".{target.name}.{mark}.tmp")
    old = target.with_name(f".{target.name}.{mark}.old")
    try:
        with _writing(target):
            fresh.mkdir()
        for piece in pieces:
            _copy_file(piece, fresh / piece.source.name)
        with _writing(target):
            with suppress(FileNotFoundError):
                os.rename(target, old)
            try:
                os.rename(fresh, target)
            except OSError:
                with suppress(OSError):
                    os.rename(old, target)
                raise
    finally:
        for left in (fresh, old):
            shutil.rmtree(left, ignore_errors=True)


def _copy_file(piece: Piece, target: Path) -> None:
    """Copy one file, checking its hash on the way.

    Raises:
        DataError: it is missing, no ordinary file, or not the one it should be.
        ResultError: the target cannot be written.
    """
    source = piece.source
    try:
        handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        if piece.optional:
            return
        raise DataError(f"{source}: no such file, but it is listed.") from error
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror}).") from error
    with open(handle, "rb") as stream:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{source}: is no ordinary file.")
        digest = hashlib.sha256()
        with _writing(target), open(target, "xb") as copy:
            for chunk in _chunks(stream, source):
                digest.update(chunk)
                copy.write(chunk)
    if piece.sha256 is not None and digest.hexdigest() != piece.sha256:
        raise DataError(f"{source}: is not the file that was written; it was changed or cut.")
    with _writing(target):
        os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


def is_file(path: Path) -> bool:
    """Return whether a path is an ordinary file, not a link to one."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder, not a link to one."""
    return path.is_dir() and not path.is_symlink()


def _chunks(stream: BinaryIO, source: Path) -> Iterator[bytes]:
    while True:
        try:
            chunk = stream.read(CHUNK)
        except OSError as error:
            raise DataError(f"{source}: cannot be read ({error.strerror}).") from error
        if not chunk:
            return
        yield chunk


def _tidy(target: Path) -> None:
    """Remove what an earlier call that was killed left behind."""
    pattern = re.compile(LEFT_BEHIND.format(name=re.escape(target.name)))
    for name in os.listdir(target.parent):
        if pattern.fullmatch(name):
            shutil.rmtree(target.with_name(name), ignore_errors=True)


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResultError(describe_os_error(target, error)) from error
