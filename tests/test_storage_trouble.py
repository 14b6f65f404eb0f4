"""Disks that fill up, folders that turn read-only: a sentence, nothing half-written, and on we go.

The trouble is real: a file system of some megabytes, filled, or mounted read-only half-way.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_runs import Capitals, spec

from grace_bench.datasets.base import prepare
from grace_bench.datasets.options import DatasetOptions
from grace_bench.editors.methods.grace.editor import GraceEditor
from grace_bench.errors import ResultError
from grace_bench.jobs import lease
from grace_bench.jobs.checkpoints import Checkpoint, Checkpoints
from grace_bench.jobs.lease import Lease
from grace_bench.jobs.resumable import CheckpointPolicy
from grace_bench.steps.edit import CHECKPOINTS, RunFolders, run_stream
from grace_bench.store.files import read_json, read_parquet, write_parquet
from grace_bench.store.schemas import PROBES

pytestmark = pytest.mark.slow

SIZE = 8 * 2**20
EVERY_STEP = CheckpointPolicy(minutes=0, steps=1)
EQUAL = ("codebook.safetensors", "codebook.parquet", "predictions.parquet", "probes.parquet")


class Disk:
    """A file system in memory, of which the space and the right to write can be taken away."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        with contextlib.suppress(OSError), open(self.folder / "filler", "wb", 0) as stream:
            while True:
                stream.write(b"x" * 65536)
        with contextlib.suppress(OSError), open(self.folder / "filler", "ab", 0) as stream:
            while True:
                stream.write(b"x")

    def free(self) -> None:
        (self.folder / "filler").unlink()

    def forbid(self) -> None:
        self._remount("ro")

    def allow(self) -> None:
        self._remount("rw")

    def _remount(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.folder)], check=True)

    def files(self) -> list[str]:
        """Return the files that are there, the filler left out."""
        found = (p for p in self.folder.rglob("*") if p.is_file() and p.name != "filler")
        return sorted(str(path.relative_to(self.folder)) for path in found)


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "grace-bench-test", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a file system cannot be mounted here ({done.stderr.strip()})")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def undisturbed(small_inputs, tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    run_stream(grace(), RunFolders(*small_inputs, folder))
    return {name: (folder / name).read_bytes() for name in EQUAL}


def grace():
    return spec("grace", hyperparameters={"steps": 2})


def do(small_inputs, folder: Path) -> dict:
    with Lease(folder) as lease:
        return run_stream(
            grace(), RunFolders(*small_inputs, folder), policy=EVERY_STEP, lease=lease
        )


def at_step(monkeypatch, step: int, happen) -> None:
    """Let something happen before an edit."""
    plain = GraceEditor.edit

    def edit(self, batch):
        if batch.step == step:
            happen()
        return plain(self, batch)

    monkeypatch.setattr(GraceEditor, "edit", edit)


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_run_whose_disk_fails_half_way_goes_on_when_it_is_back(
    small_inputs, undisturbed, disk, monkeypatch, caplog, trouble
):
    """Checkpoints are left out from then on; the results cannot be, and none is half-written."""
    begin, end = (disk.fill, disk.free) if trouble == "full" else (disk.forbid, disk.allow)
    sentence = "the disk is full; free" if trouble == "full" else "is not writable; check its"
    run = disk.folder / "run"
    with monkeypatch.context() as patch:
        at_step(patch, 3, begin)
        with caplog.at_level("WARNING"), pytest.raises(ResultError, match=sentence):
            do(small_inputs, run)
    assert "no checkpoint at step 3, continuing" in caplog.text
    end()
    whole = {f"run/{CHECKPOINTS}/0000000{n}/{name}" for n in (1, 2) for name in checkpoint_files()}
    # A lease cannot be taken back from a disk that takes no changes: it is a dead process's. How
    # long that takes to be sure of is a matter of tests/test_lease.py.
    monkeypatch.setattr(lease, "DEAD_AFTER_SECONDS", 2.0)
    assert {name for name in disk.files() if "lease" not in name} <= whole
    record = do(small_inputs, run)
    assert record.restarts == [2]
    assert {name: (run / name).read_bytes() for name in EQUAL} == undisturbed
    assert not [name for name in disk.files() if name.endswith(".tmp")]


def checkpoint_files() -> list[str]:
    lists = ("steps", "predictions", "probes", "latency", "journal", "known")
    return ["checkpoint.json", "state.json", "tensors.safetensors", *(f"{n}.jsonl" for n in lists)]


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_run_does_not_begin_where_nothing_can_be_written(small_inputs, disk, trouble):
    (disk.fill if trouble == "full" else disk.forbid)()
    with pytest.raises(ResultError, match=r"the disk is full|is not writable"):
        do(small_inputs, disk.folder / "run")
    assert disk.files() == []


def test_a_data_set_on_a_full_disk_leaves_nothing_and_is_made_later(disk):
    disk.fill()
    (disk.folder / "filler").write_bytes(b"x" * (SIZE - 3 * 4096))  # room for some of its files
    with pytest.raises(ResultError, match="the disk is full; free some space and rerun"):
        prepare_data(disk.folder / "data")
    assert not (disk.folder / "data" / "manifest.json").exists()
    assert not [name for name in disk.files() if name.endswith(".tmp")]
    disk.free()
    prepare_data(disk.folder / "data")
    assert read_json(disk.folder / "data" / "manifest.json")["data_hash"]


def prepare_data(folder: Path) -> None:
    prepare(Capitals(DatasetOptions()), folder, task="question_answering", config={})


def test_what_stands_there_is_untouched_by_a_write_that_fails(disk):
    path = disk.folder / "probes.parquet"
    row = {"step": 1, "n_edits": 1, "metric": "es", "measure": "f1", "value": 1.0, "n": 1}
    write_parquet(path, [row], PROBES)
    disk.fill()
    with pytest.raises(ResultError, match="the disk is full"):
        write_parquet(path, [{**row, "step": n} for n in range(200_000)], PROBES)
    assert read_parquet(path, PROBES).to_pylist() == [row]
    assert disk.files() == ["probes.parquet"]


def test_a_checkpoint_on_a_full_disk_leaves_the_one_before(disk):
    checkpoints = Checkpoints(disk.folder / CHECKPOINTS, "work")
    checkpoints.write(Checkpoint(1, {}, {"at": 1}))
    disk.fill()
    with pytest.raises(ResultError, match="the disk is full"):
        checkpoints.write(Checkpoint(2, {}, {"at": 2, "much": "x" * 2**20}))
    assert checkpoints.latest().state == {"at": 1}


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_command_says_it_in_one_sentence(repository, disk, trouble):
    (disk.fill if trouble == "full" else disk.forbid)()
    command = [sys.executable, "-m", "grace_bench", "plan", "--output", "results/plan.json"]
    command += ["--config-dir", str(repository / "config")]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run(
        command, cwd=disk.folder, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 75
    assert done.stderr.startswith("error: results")
    assert done.stderr.count("\n") == 1
    assert disk.files() == []
    shutil.rmtree(disk.folder / "results", ignore_errors=True)
