"""One process at a time: a lock on a file, released by the system when its process ends.

    with exclusive(folder / ".track.lock", "exporting to MLflow"):
        ...

For work of seconds or minutes in one folder. Runs hold a lease instead, which also works between
machines that share no locks.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from grace_bench.errors import ResultError
from grace_bench.store.files import describe_os_error

logger = logging.getLogger(__name__)

WAIT_SECONDS = 60.0
POLL_SECONDS = 0.2
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""Errors of file systems without locks: some cluster storage."""


@contextmanager
def exclusive(path: Path, doing: str, wait_seconds: float | None = None) -> Iterator[None]:
    """Hold the lock during the block; its file stays behind, empty and harmless.

    Where the file system has no locks, the block runs without one.

    Args:
        path: of the lock's file; its folder is created if needed.
        doing: what the holder does, for messages: "exporting to MLflow".
        wait_seconds: how long to wait for another process that holds it; None: one minute.

    Raises:
        ResultError: another process holds it all that time, or the file cannot be created.
    """
    wait_seconds = WAIT_SECONDS if wait_seconds is None else wait_seconds
    # A soft lock would outlive a killed process.
    lock = FileLock(path, poll_interval=POLL_SECONDS, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            logger.info("%s: waiting for another process that is %s", path.parent, doing)
            lock.acquire(timeout=wait_seconds)
    except Timeout as error:
        raise ResultError(
            f"{path.parent}: another process is {doing} and has not finished within "
            f"{wait_seconds:g} seconds; rerun when it has."
        ) from error
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise ResultError(describe_os_error(path, error)) from error
        logger.warning("%s: this file system has no locks; continuing without", path)
    try:
        yield
    finally:
        lock.release()
