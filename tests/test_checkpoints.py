"""Checkpoints: what was written comes back, or what was written before it; never half of it."""

from __future__ import annotations

import errno
import logging
import signal
import threading

import pytest
import torch

from grace_bench.errors import ResultError
from grace_bench.jobs import checkpoints as module
from grace_bench.jobs.checkpoints import Checkpoint, Checkpoints
from grace_bench.jobs.resumable import stop_requests

FILES = ("checkpoint.json", "tensors.safetensors", "state.json", "log.jsonl")


def tensors(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {
        "weights": torch.full((3, 2), value).T,  # not contiguous
        "half": torch.tensor([value, 1 / 3], dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "random": torch.get_rng_state(),
    }


@pytest.fixture
def written(tmp_path) -> Checkpoints:
    """Checkpoints of steps 10 and 20."""
    checkpoints = Checkpoints(tmp_path / "work", "a")
    for number in (10, 20):
        rows = [{"step": step, "loss": 1 / step} for step in range(1, number + 1)]
        state = {"seconds": 0.1 * number}
        checkpoints.write(Checkpoint(number, tensors(number), state, {"log": rows}))
    return checkpoints


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_what_was_written_comes_back_bit_for_bit(written):
    found = Checkpoints(written.folder, "a").latest()
    assert found.number == 20
    for name, expected in tensors(20).items():
        assert found.tensors[name].dtype == expected.dtype
        assert torch.equal(found.tensors[name], expected), name
    assert found.state == {"seconds": 0.1 * 20}
    assert found.records["log"][6] == {"step": 7, "loss": 1 / 7}


def test_where_nothing_was_written_there_is_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path / "work", "a")
    assert checkpoints.latest() is None
    checkpoints.remove()
    assert list(tmp_path.iterdir()) == []


def test_the_two_newest_are_kept(written):
    written.write(Checkpoint(30, tensors(), {}))
    assert names(written) == ["00000020", "00000030"]
    written.write(Checkpoint(30, tensors(), {"again": True}))
    assert names(written) == ["00000020", "00000030"]
    assert written.latest().state == {"again": True}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["lost", "cut", "changed", "emptied"])
def test_a_damaged_one_is_set_aside_for_the_one_before(written, caplog, file, damage):
    path = written.folder / "00000020" / file
    content = path.read_bytes()
    if damage == "lost":
        path.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1 :]
        path.write_bytes({"cut": content[:-9], "changed": flipped, "emptied": b""}[damage])
    with caplog.at_level(logging.WARNING):
        assert written.latest().number == 10
    assert names(written) == ["00000010", "00000020.unusable"]
    assert "It was set aside as 00000020.unusable." in caplog.text


def test_one_of_other_work_is_set_aside(written, caplog):
    with caplog.at_level(logging.WARNING):
        assert Checkpoints(written.folder, "b").latest() is None
    assert names(written) == ["00000010.unusable", "00000020.unusable"]
    assert "made with other settings, data, weights or versions. It was set aside" in caplog.text
    written.remove()
    assert not written.folder.exists()


def test_a_full_disk_leaves_the_older_ones(written, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.safetensors.torch, "save_file", fail)
    with pytest.raises(ResultError, match="the disk is full"):
        written.write(Checkpoint(30, tensors(), {}))
    assert names(written) == ["00000010", "00000020"]


def test_the_disk_that_safetensors_finds_full_is_full(written, monkeypatch):
    def fail(*_, **__):
        raise module.SafetensorError("Error while serializing: I/O error: (os error 28)")

    monkeypatch.setattr(module.safetensors.torch, "save_file", fail)
    with pytest.raises(ResultError, match="the disk is full"):
        written.write(Checkpoint(30, tensors(), {}))


def test_what_a_killed_writer_left_is_cleared_away(written):
    (written.folder / ".00000030.abcd.tmp").mkdir()
    assert written.latest().number == 20
    assert names(written) == ["00000010", "00000020"]


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_can_be_answered(number):
    def work():
        with stop_requests() as stop_requested:
            assert not stop_requested()
            signal.raise_signal(number)
            if stop_requested():
                raise KeyError("answered")

    with pytest.raises(KeyError, match="answered"):
        work()


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_that_nobody_answered_takes_its_effect_afterwards(number):
    came = []
    before = signal.signal(number, lambda *_: came.append("after"))
    try:
        with stop_requests():
            signal.raise_signal(number)
            came.append("in the block")
        assert came == ["in the block", "after"]
    finally:
        signal.signal(number, before)


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_ends_the_work_at_once():
    def work():
        with stop_requests():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("it went on")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_background_job_goes_on_ignoring_ctrl_c():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_requests() as stop_requested:
            signal.raise_signal(signal.SIGINT)
            assert not stop_requested()
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_than_the_main_one_are_asked_nothing():
    answers = []

    def ask():
        with stop_requests() as stop_requested:
            answers.append(stop_requested())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert answers == [False]
