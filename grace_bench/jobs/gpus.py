"""Several GPUs, several processes: each takes a free one. Torch-free.

    index = claim(torch.cuda.device_count())    # among the GPUs that this process sees

Snakemake counts GPUs but does not assign them. Here a process takes a GPU by locking a file of its
name; the system releases the lock when the process ends, however it ends. Under Slurm a job sees
only its own GPUs, and nothing is locked.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

from filelock import FileLock, Timeout

from grace_bench.errors import ConfigError

logger = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL_SECONDS = 1.0

_claimed: dict[tuple[str, ...], int] = {}  # GPUs to choose from -> which one this process has
_held: list[FileLock] = []


def count() -> int:
    """Return how many GPUs CUDA would show to a process here, without asking CUDA."""
    given = os.environ.get(VISIBLE)
    if given is not None:
        return len(_listed(given))
    try:
        done = subprocess.run(
            ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())


def claim(visible: int) -> int:
    """Return which of its visible GPUs this process should use; wait until one is free.

    A process asks once and keeps its GPU. One that sees a single GPU shares it rather than wait.

    Args:
        visible: number of GPUs this process sees, at least 1.

    Raises:
        ConfigError: someone else owns the folder of the locks.
    """
    if "SLURM_JOB_ID" in os.environ:
        return 0
    names = _names(visible)
    if names not in _claimed:
        _claimed[names] = _wait_for_one(names)
    return _claimed[names]


def _names(visible: int) -> tuple[str, ...]:
    given = os.environ.get(VISIBLE)
    listed = _listed(given) if given is not None else []
    return tuple(listed[:visible]) or tuple(str(index) for index in range(visible))


def _listed(given: str) -> list[str]:
    """Return the GPUs that a value of CUDA_VISIBLE_DEVICES names; CUDA stops at the first -1."""
    names = [name.strip() for name in given.split(",")]
    stop = next((i for i, name in enumerate(names) if not name or name == "-1"), len(names))
    return names[:stop]


def _wait_for_one(names: tuple[str, ...]) -> int:
    folder = _lock_folder()
    waiting = False
    while True:
        for index, name in enumerate(names):
            if _lock(folder / (re.sub(r"[^\w.-]", "_", name) + ".lock")):
                if len(names) > 1:
                    logger.info("GPU %s of %s", name, ", ".join(names))
                return index
        if len(names) == 1:
            return 0
        if not waiting:
            logger.info(
                "waiting for a GPU: other runs hold all %d; run fewer at once with "
                "--resources gpu=%d",
                *(len(names), len(names)),
            )
            waiting = True
        time.sleep(POLL_SECONDS)


def _lock_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"grace-bench-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or folder.is_symlink():
        raise ConfigError(
            f"{folder}: belongs to another user; remove it, or set TMPDIR to another folder."
        )
    return folder


def _lock(path: Path) -> bool:
    lock = FileLock(path, mode=0o600)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    _held.append(lock)
    return True
