"""One process at a time: a lock on a file, let go of by the system when its process ends.

    with exclusive(folder / ".track.lock", "exporting to MLflow"):
        ...

It is for work of seconds or minutes in one folder; runs hold a lease instead, which also holds
between machines that share no lock.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from grace_bench.errors import ResultError
from grace_bench.store.files import describe_os_error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

WAIT_SECONDS = 60.0
POLL_SECONDS = 0.2
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextmanager
def exclusive(path: Path, doing: str, wait_seconds: float | None = None) -> Iterator[None]:
    """Hold the lock while the block lasts; the file stays behind, empty and harmless.

    Args:
        path: of the lock's file; its folder is made if it isn't there.
        doing: what the holder does, for the sentence: "exporting to MLflow".
        wait_seconds: how long to wait for another process that holds it; None: a minute.

    Raises:
        ResultError: another process holds it all that time, or the file cannot be made.
    """
    wait_seconds = WAIT_SECONDS if wait_seconds is None else wait_seconds
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise ResultError(describe_os_error(path, error)) from error
    try:
        _take(handle, path, doing, wait_seconds)
        yield
    finally:
        os.close(handle)


def _take(handle: int, path: Path, doing: str, wait_seconds: float) -> None:
    until = time.monotonic() + wait_seconds
    told = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not told:
                logger.info("%s: another process is %s; waiting for it", path.parent, doing)
                told = True
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise ResultError(describe_os_error(path, error)) from error
            logger.warning("%s: this file system has no locks; going on without", path)
            return
        if time.monotonic() > until:
            raise ResultError(
                f"{path.parent}: another process is {doing}, and has not ended within "
                f"{wait_seconds:g} seconds; run this again when it has."
            )
        time.sleep(POLL_SECONDS)
