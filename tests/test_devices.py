"""GPUs for several processes, with pretended device lists: no test here needs a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from grace_bench.jobs import gpus

CLAIM = """
import sys, time
from grace_bench.jobs import gpus
print(gpus.claim(int(sys.argv[1])), flush=True)
print(gpus.claim(int(sys.argv[1])), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start(tmp_path):
    """Start a process that claims one of so many GPUs and keeps it until told to end."""
    started = []

    def process(visible: int, **environment: str) -> subprocess.Popen:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in (gpus.VISIBLE, "SLURM_JOB_ID")
        }
        process = subprocess.Popen(
            [sys.executable, "-c", CLAIM, str(visible)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**inherited, "TMPDIR": str(tmp_path), **environment},
        )
        started.append(process)
        return process

    yield process
    for process in started:
        process.kill()
        process.communicate()


def claimed(process: subprocess.Popen) -> int:
    first, again = process.stdout.readline(), process.stdout.readline()
    assert first == again
    return int(first)


def test_each_process_has_its_own_and_keeps_it(start):
    assert sorted(claimed(start(3)) for _ in range(3)) == [0, 1, 2]


def test_who_finds_none_free_waits_for_one_that_is_killed(start):
    first, second = start(2), start(2)
    taken = {claimed(first): first, claimed(second): second}
    third = start(2)
    with pytest.raises(subprocess.TimeoutExpired):
        third.wait(1.5)
    taken[1].kill()
    assert claimed(third) == 1


def test_a_list_names_the_same_gpus_in_any_order(start):
    assert claimed(start(2, CUDA_VISIBLE_DEVICES="4,7")) == 0  # GPU 4
    assert claimed(start(2, CUDA_VISIBLE_DEVICES="7,4")) == 0  # GPU 7
    assert claimed(start(3, CUDA_VISIBLE_DEVICES="GPU-1a2b/3,7,4")) == 0


def test_one_gpu_alone_is_shared_at_once_and_left_alone_by_others(start):
    assert claimed(start(1, CUDA_VISIBLE_DEVICES="0")) == 0
    assert claimed(start(1, CUDA_VISIBLE_DEVICES="0")) == 0
    assert claimed(start(2)) == 1


def test_slurm_has_chosen_already(start):
    assert [claimed(start(2, SLURM_JOB_ID="7")) for _ in range(2)] == [0, 0]


@pytest.mark.parametrize(
    ("given", "number"), [("0,1,2", 3), ("1", 1), ("", 0), ("-1", 0), ("0,-1,1", 1), ("GPU-a", 1)]
)
def test_visible_gpus_are_counted(monkeypatch, given, number):
    monkeypatch.setenv(gpus.VISIBLE, given)
    assert gpus.count() == number


def test_without_a_list_nvidia_smi_is_asked(monkeypatch, tmp_path):
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.count() == 0
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: x)'\necho 'GPU 1: A (UUID: y)'\n")
    program.chmod(0o755)
    assert gpus.count() == 2
