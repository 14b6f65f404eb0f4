"""A lease on a piece of work, so that two processes never do the same work at once.

    with Lease(folder) as lease:      # waits while another process holds it
        ...
        lease.report(step=3, steps=100)
        lease.check()                 # raises if another process has taken over the work

When Snakemake is killed, its jobs keep running; restarted, it submits them again. The lease is a
file, `lease.json`, that its holder renews every few seconds and that shows the progress of the
work. A lease that was not renewed for a minute belongs to a dead process and is taken over; the
process's temporary files are removed.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from grace_bench.errors import ResultError
from grace_bench.store.files import describe_os_error, remove_leftovers
from grace_bench.store.json_records import try_read
from grace_bench.store.records import LeaseRecord

logger = logging.getLogger(__name__)

LEASE = "lease.json"
HEARTBEAT_SECONDS = 5.0
DEAD_AFTER_SECONDS = 60.0
POLL_SECONDS = 2.0
TRIES = 3
"""Attempts to read a lease: on some shared storage a file looks truncated while it is replaced."""


class Lease:
    """The right to do the work of one folder, held during the block.

    Args:
        folder: of the work; created if needed.
        wait_minutes: how long to wait for another process that holds the lease.

    Attributes:
        waited: whether another process held the lease; it may have done the work.
    """

    def __init__(self, folder: Path, wait_minutes: float = 24 * 60) -> None:
        self.path = folder / LEASE
        self.wait_minutes = wait_minutes
        self.waited = False
        self._token = uuid.uuid4().hex
        self._content = LeaseRecord(
            token=self._token,
            host=socket.gethostname(),
            pid=os.getpid(),
            process=identity(os.getpid()),
            job=os.environ.get("SLURM_JOB_ID"),
        )
        self._began = time.monotonic()
        self._made: list[Path] = []
        self._lost = False
        self._done = threading.Event()
        self._renewer = threading.Thread(target=self._renew_for_ever, daemon=True)

    def __enter__(self) -> Lease:
        folder = self.path.parent
        self._made = [place for place in (folder, *folder.parents) if not place.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._acquire()
            remove_leftovers(folder, except_for=LEASE)  # those belong to processes that wait
        except OSError as error:
            raise ResultError(describe_os_error(self.path, error)) from error
        self._renewer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._renewer.join()
        if self._is_mine():
            with suppress(OSError):
                self.path.unlink()
                for place in self._made:  # only those that are still empty
                    place.rmdir()

    def report(self, **progress: Any) -> None:
        """Report progress; it appears in the file with the next renewal."""
        self._content = self._content.model_copy(update=progress)

    def check(self) -> None:
        """Raise ResultError if another process now holds the lease."""
        if self._lost:
            raise ResultError(
                f"{self.path.parent}: this process did not renew its lease for a minute, and "
                "another one has taken over the work; leave it to that one."
            )

    def _acquire(self) -> None:
        until = time.monotonic() + 60 * self.wait_minutes
        reported = False
        while not self._create():
            holder = read_lease(self.path)
            if self._is_dead(holder):
                self._remove(holder)
                continue
            self.waited = True
            if not reported:
                logger.warning(
                    "%s: %s is already doing this; waiting.", self.path, describe(holder)
                )
                reported = True
            if time.monotonic() > until:
                raise ResultError(
                    f"{self.path}: {describe(holder)} has been doing this for more than "
                    f"{self.wait_minutes:g} minutes; end that process, or wait, and rerun."
                )
            time.sleep(POLL_SECONDS)

    def _create(self) -> bool:
        """Create the file unless it exists; linking is atomic."""
        temporary = self._write()
        try:
            os.link(temporary, self.path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True

    def _write(self) -> Path:
        temporary = self.path.with_name(f".{LEASE}.{uuid.uuid4().hex[:8]}.tmp")
        seconds = round(time.monotonic() - self._began, 1)
        content = self._content.model_copy(update={"seconds": seconds})
        try:
            temporary.write_text(content.model_dump_json() + "\n", encoding="utf-8")
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _is_dead(self, holder: LeaseRecord | None) -> bool:
        age = heartbeat_age(self.path)
        if age is None:
            return False  # gone meanwhile; the next attempt decides
        return abs(age) > DEAD_AFTER_SECONDS or (holder is not None and has_ended(holder))

    def _remove(self, holder: LeaseRecord | None) -> None:
        """Take away a dead process's lease; of several processes that try, one succeeds."""
        aside = self.path.with_name(f".{LEASE}.{uuid.uuid4().hex[:8]}.tmp")
        with suppress(FileNotFoundError):
            os.rename(self.path, aside)
            if _token(read_lease(aside)) == _token(holder):
                logger.warning("%s: %s is gone; taking over.", self.path, describe(holder))
            else:  # not the dead process's: another process was faster
                with suppress(FileExistsError):
                    os.link(aside, self.path)
            aside.unlink()

    def _is_mine(self) -> bool:
        return _token(read_lease(self.path)) == self._token

    def _renew_for_ever(self) -> None:
        while not self._lost and not self._done.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):  # a full disk: retry next time
                found = read_lease(self.path)
                if _token(found) == self._token:
                    os.replace(self._write(), self.path)
                elif found is not None:
                    self._lost = True
                elif not self.path.exists():  # otherwise it is unreadable for now
                    self._create()


def read_lease(path: Path) -> LeaseRecord | None:
    """Return the content of a lease; None if it is gone or unreadable."""
    return try_read(path, LeaseRecord, TRIES)


def heartbeat_age(path: Path) -> float | None:
    """Return the seconds since a lease was renewed, by its file system's clock; None: gone."""
    probe = path.with_name(f".{LEASE}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        return now - path.stat().st_mtime
    except FileNotFoundError:
        return None


def describe(holder: LeaseRecord | None) -> str:
    """Return who holds a lease, for messages."""
    if holder is None:
        return "another process"
    job = f" (job {holder.job})" if holder.job else ""
    return f"process {holder.pid} on {holder.host}{job}"


def has_ended(holder: LeaseRecord) -> bool:
    """Return whether the process is known to be gone: it ran on this machine, in this boot."""
    process, machine = holder.process, machine_identity()
    if process is None or machine is None:
        return False
    return process.startswith(machine) and process != identity(holder.pid)


def identity(pid: int) -> str | None:
    """Return a unique identity of a process: machine, boot, pid and start time."""
    machine = machine_identity()
    if machine is None:
        return None
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        return f"{machine} {pid} {status.rpartition(')')[2].split()[19]}"
    except (OSError, IndexError):
        return None


def machine_identity() -> str | None:
    """Return a unique identity of this machine since its last boot; None where unavailable.

    Containers count as machines: each has its own process numbers.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _token(lease: LeaseRecord | None) -> str | None:
    return None if lease is None else lease.token
