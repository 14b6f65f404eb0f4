"""Leases: one process at a time, the dead leave none behind, the slow ones notice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from waiting import wait_until

from grace_bench.errors import ResultError
from grace_bench.jobs import lease as module
from grace_bench.jobs.lease import LEASE, Lease, read_lease

HOLD = """
import sys, time
from pathlib import Path
from grace_bench.jobs.lease import Lease
with Lease(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)


def hold_in_another_process(folder, seconds) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def write_lease(folder, seconds_old, **content):
    path = folder / LEASE
    path.write_text(json.dumps({"token": "other", "host": "elsewhere", "pid": 1, **content}))
    then = time.time() - seconds_old
    os.utime(path, (then, then))


def test_a_lease_tells_who_holds_it_and_how_far_the_work_is(tmp_path):
    with Lease(tmp_path / "run") as lease:
        lease.report(state="running", step=3, steps=10)
        path = tmp_path / "run" / LEASE
        wait_until(lambda: read_lease(path).step == 3, 60, "it is renewed")
        found = read_lease(path)
        assert (found.pid, found.state, found.steps) == (os.getpid(), "running", 10)
        lease.check()
        assert not lease.waited
    assert list(tmp_path.iterdir()) == []  # folders that were made for nothing are gone, too


def test_folders_with_something_in_them_stay(tmp_path):
    (tmp_path / "runs").mkdir()
    with Lease(tmp_path / "runs" / "one" / "seed-0"):
        (tmp_path / "runs" / "one" / "result").write_text("x")
    assert [path.name for path in tmp_path.rglob("*")] == ["runs", "one", "result"]


def test_the_second_process_waits_for_the_first(tmp_path):
    process = hold_in_another_process(tmp_path, 1.0)
    with Lease(tmp_path) as lease:
        assert process.wait(timeout=60) == 0
        assert lease.waited


def test_waiting_has_an_end(tmp_path):
    write_lease(tmp_path, seconds_old=0, job="17")
    with pytest.raises(ResultError, match=r"process 1 on elsewhere \(job 17\)"):
        Lease(tmp_path, wait_minutes=0.001).__enter__()
    assert read_lease(tmp_path / LEASE).token == "other"


def test_the_lease_of_a_killed_process_is_taken_over_at_once(tmp_path):
    process = hold_in_another_process(tmp_path, 60)
    process.kill()
    process.wait()
    with Lease(tmp_path, wait_minutes=1) as lease:
        assert not lease.waited


@pytest.mark.parametrize("sign", [1, -1])  # renewed long ago, or by a clock that is far ahead
def test_a_lease_that_was_not_renewed_is_taken_over(tmp_path, sign):
    write_lease(tmp_path, seconds_old=sign * (module.DEAD_AFTER_SECONDS + 5))
    with Lease(tmp_path, wait_minutes=0.001):
        assert read_lease(tmp_path / LEASE).pid == os.getpid()


@pytest.mark.parametrize("content", ["", "[]", '"x"', "{", '{"token": 7, "pid": "x"}', "\0\xff"])
def test_a_damaged_lease_counts_until_it_is_old(tmp_path, content):
    path = tmp_path / LEASE
    path.write_text(content)
    with pytest.raises(ResultError, match="rerun"):
        Lease(tmp_path, wait_minutes=0.001).__enter__()
    os.utime(path, (1, 1))
    with Lease(tmp_path, wait_minutes=0.001) as lease:
        lease.check()


def test_a_lease_that_cannot_be_read_for_a_moment_is_not_lost(tmp_path, monkeypatch):
    with Lease(tmp_path) as lease:
        with monkeypatch.context() as patch:
            patch.setattr(module, "read_lease", lambda _path: None)
            time.sleep(0.3)
        time.sleep(0.3)
        lease.check()
        assert read_lease(tmp_path / LEASE).pid == os.getpid()


def test_a_lease_that_somebody_removed_comes_back(tmp_path):
    with Lease(tmp_path) as lease:
        (tmp_path / LEASE).unlink()
        wait_until((tmp_path / LEASE).exists, 60, "it is renewed")
        assert read_lease(tmp_path / LEASE).pid == os.getpid()
        lease.check()


def is_lost(lease: Lease) -> bool:
    try:
        lease.check()
    except ResultError:
        return True
    return False


def test_a_process_that_slept_too_long_notices_that_its_lease_is_gone(tmp_path):
    with Lease(tmp_path) as lease:
        write_lease(tmp_path, seconds_old=0)
        wait_until(lambda: is_lost(lease), 60, "it is known to be lost")
        with pytest.raises(ResultError, match="another one has taken over the work"):
            lease.check()
    assert read_lease(tmp_path / LEASE).token == "other"  # not ours to remove


def test_of_many_that_want_a_dead_lease_one_at_a_time_gets_it(tmp_path):
    write_lease(tmp_path, seconds_old=module.DEAD_AFTER_SECONDS + 5)
    inside, most, done = 0, 0, 0
    guard = threading.Lock()

    def work():
        nonlocal inside, most, done
        with Lease(tmp_path):
            with guard:
                inside += 1
                most = max(most, inside)
            time.sleep(0.02)
            with guard:
                inside -= 1
                done += 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert (most, done) == (1, 8)
    assert list(tmp_path.iterdir()) == []
