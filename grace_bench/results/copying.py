"""Copies whole folders from untrusted places: a folder arrives with every file checked, or not.

No link is followed, and only ordinary files are read.
"""

from __future__ import annotations

import os
import shutil
import stat
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from grace_bench.errors import DataError, ResultError
from grace_bench.store.files import describe_os_error, discard, sha256_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


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

    Modification times are kept, as the workflow goes by them.

    Raises:
        DataError: a file is missing, no ordinary file, or not the one it should be.
        ResultError: the target cannot be written.
    """
    fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f".{target.name}.*.tmp"):  # by a call that was killed
            discard(left)
        fresh.mkdir()
        for piece in pieces:
            _copy_file(piece, fresh / piece.source.name)
        discard(target)
        os.rename(fresh, target)
    except OSError as error:
        raise ResultError(describe_os_error(target, error)) from error
    finally:
        with suppress(OSError):
            discard(fresh)


def _copy_file(piece: Piece, target: Path) -> None:
    """Copy one file and check the copy's hash; OSError if the copy cannot be written."""
    source = piece.source
    if piece.optional and not os.path.lexists(source):
        return
    if not is_file(source):
        missing = not os.path.lexists(source)
        reason = "no such file, but it is listed" if missing else "is no ordinary file"
        raise DataError(f"{source}: {reason}.")
    if not os.access(source, os.R_OK):
        raise DataError(f"{source}: cannot be read; check its permissions.")
    shutil.copy2(source, target, follow_symlinks=False)
    if piece.sha256 is not None and sha256_of(target) != piece.sha256:
        raise DataError(f"{source}: is not the file that was written; it was changed or cut.")


def is_file(path: Path) -> bool:
    """Say whether a path is an ordinary file and no link to one."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Say whether a path is a folder and no link to one."""
    return path.is_dir() and not path.is_symlink()
