"""Locks of work of seconds: what happens where the file system has none."""

from __future__ import annotations

import errno
import fcntl

import pytest

from grace_bench.jobs.locks import exclusive


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
@pytest.mark.parametrize("stays", [False, True])
def test_where_there_are_no_locks_the_work_is_done_without(
    tmp_path, monkeypatch, caplog, number, stays
):
    def flock(*_args):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    path = tmp_path / ".lock"
    if stays:  # of work before
        path.touch()
    done = []
    with exclusive(path, "working", wait_seconds=0):
        done.append(1)
    assert done
    assert "this file system has no locks; continuing without" in caplog.text
