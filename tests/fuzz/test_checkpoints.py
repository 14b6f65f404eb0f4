"""Checkpoint folders of any content: the newest whole checkpoint, and nothing outside touched."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from fuzzing import (
    HOSTILE_TEXTS,
    PLAIN_VALUES,
    VALUES,
    cases,
    changed,
    damaged,
    damages,
    sentence_of,
    tree_changes,
)
from hypothesis import strategies as st

from grace_bench.jobs.checkpoints import Checkpoint, Checkpoints
from grace_bench.jobs.lease import LEASE, Lease, read_lease
from grace_bench.store.files import sha256_of
from grace_bench.store.records import LeaseRecord

FILES = ("checkpoint.json", "tensors.safetensors", "state.json", "log.jsonl")
NEW, OLD = "00000020", "00000010"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """Checkpoints of steps 10 and 20."""
    folder = tmp_path_factory.mktemp("good") / "checkpoints"
    checkpoints = Checkpoints(folder, "a")
    for number in (10, 20):
        log = [{"step": step, "loss": 0.5} for step in range(number)]
        tensors = {"w": torch.full((3,), float(number)), "n": torch.tensor(number)}
        state = {"seconds": 0.5, "at": number}
        checkpoints.write(Checkpoint(number, tensors, state, {"log": log}))
    return folder


def fresh(fence, good) -> Path:
    return shutil.copytree(good, fence.emptied() / "checkpoints")


def check(fence, folder) -> Checkpoint | None:
    """Go on from the newest checkpoint, write the next, and remove them all."""
    checkpoints = Checkpoints(folder, "a")
    found = []
    assert sentence_of(lambda: found.append(checkpoints.latest())) is None
    fence.check()
    [newest] = found
    if newest is not None:
        assert all(isinstance(tensor, torch.Tensor) for tensor in newest.tensors.values())
        assert all(isinstance(row, dict) for rows in newest.records.values() for row in rows)
    assert sentence_of(lambda: checkpoints.write(Checkpoint(30, {"w": torch.zeros(1)}, {}))) is None
    assert checkpoints.latest().number >= 30 or (newest and newest.number > 30)
    fence.check()
    checkpoints.remove()
    fence.check()
    return newest


def rehash(place: Path) -> None:
    """Make the manifest agree with the files, as somebody would who changed them on purpose."""
    manifest = json.loads((place / "checkpoint.json").read_text())
    manifest["files"] = {
        path.name: sha256_of(path) for path in place.iterdir() if path.name != "checkpoint.json"
    }
    (place / "checkpoint.json").write_text(json.dumps(manifest))


@cases(150, file=st.sampled_from(FILES), damage=damages())
def test_a_file_with_any_bytes_anywhere(fence, good, file, damage):
    folder = fresh(fence, good)
    path = folder / NEW / file
    before = path.read_bytes()
    after = damaged(before, damage)
    path.write_bytes(after)
    if file == "checkpoint.json":  # a damage may leave it as it reads
        assert check(fence, folder).number in (10, 20)
    else:
        assert check(fence, folder).number == (20 if after == before else 10)


@cases(100, file=st.sampled_from(FILES[1:]), damage=damages())
def test_any_bytes_with_their_right_hash(fence, good, file, damage):
    folder = fresh(fence, good)
    path = folder / NEW / file
    path.write_bytes(damaged(path.read_bytes(), damage))
    rehash(folder / NEW)
    assert check(fence, folder).number in (10, 20)


@cases(150, changes=tree_changes())
def test_a_manifest_with_any_value_anywhere(fence, good, changes):
    folder = fresh(fence, good)
    path = folder / NEW / "checkpoint.json"
    path.write_text(json.dumps(changed(json.loads(path.read_text()), changes)))
    assert check(fence, folder).number in (10, 20)


@cases(80, state=VALUES, rows=st.lists(VALUES, max_size=3))
def test_a_state_of_any_type_with_its_right_hash(fence, good, state, rows):
    folder = fresh(fence, good)
    (folder / NEW / "state.json").write_text(json.dumps(state))
    (folder / NEW / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rehash(folder / NEW)
    fits = all(isinstance(row, dict) for row in rows)
    assert check(fence, folder).number in ((20, 10) if fits else (10,))


PATHS = st.one_of(
    st.sampled_from(["../../secret/file.txt", "../00000010/log.jsonl", "../../../a/secret"]),
    st.sampled_from([text for text in HOSTILE_TEXTS if text]),
)


@cases(80, name=PATHS, absolute=st.booleans(), suffix=st.sampled_from(["", ".jsonl"]))
def test_a_manifest_that_names_files_elsewhere(fence, good, name, absolute, suffix):
    folder = fresh(fence, good)
    path = folder / NEW / "checkpoint.json"
    manifest = json.loads(path.read_text())
    target = fence.secret / "file.txt"
    manifest["files"][str(target) if absolute else name + suffix] = sha256_of(target)
    path.write_text(json.dumps(manifest))
    assert check(fence, folder).number == 10


LINKS = ["checkpoint", "file", "manifest", "unusable", "temporary", "state", "folder", "older"]


@cases(16, what=st.sampled_from(LINKS), broken=st.booleans())
def test_links_are_not_followed(fence, good, what, broken):
    folder = fresh(fence, good)
    new, target = folder / NEW, fence.secret / ("gone" if broken else "")
    if what == "checkpoint":
        shutil.rmtree(new)
        new.symlink_to(target)
    elif what in ("file", "manifest", "state"):
        name = {"file": FILES[1], "manifest": FILES[0], "state": FILES[2]}[what]
        (new / name).unlink()
        (new / name).symlink_to(fence.secret / ("gone" if broken else "tensors.safetensors"))
        if what != "manifest" and not broken:
            rehash(new)
    elif what == "unusable":
        (folder / f"{NEW}.unusable").symlink_to(target)
        (new / FILES[1]).unlink()
    elif what == "temporary":
        (folder / ".00000030.abc.tmp").symlink_to(target)
    elif what == "folder":
        folder.rename(folder.with_name("elsewhere"))
        folder.symlink_to(folder.with_name("elsewhere"))
    else:
        (folder / "00000005").symlink_to(target)
    damaged_new = what in ("checkpoint", "file", "manifest", "unusable", "state")
    assert check(fence, folder).number == (10 if damaged_new else 20)


NAMES = st.sampled_from(
    [
        *(NEW, OLD, f"{NEW}.unusable", "00000030", "00000005", "٠٠٠٠٠٠٣٠", "000000030", "1" * 200),
        *("99999999", "3" * 18, ".00000030.abc.tmp", "-0000001", "checkpoint.json", ".nfs1"),
    ]
)


@cases(42, name=NAMES, kind=st.sampled_from(["file", "folder", "pipe"]))
def test_anything_in_the_place_of_a_checkpoint(fence, good, name, kind):
    folder = fresh(fence, good)
    path = folder / name
    if path.exists():
        shutil.rmtree(path)
    if name.endswith(".unusable"):
        (folder / NEW / FILES[1]).unlink()
    if kind == "file":
        path.write_text("not a folder")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    assert check(fence, folder).number in (10, 20)


@cases(100, content=st.one_of(VALUES.map(lambda v: json.dumps(v).encode()), st.binary(max_size=40)))
def test_a_lease_of_any_content(fence, content):
    path = fence.emptied() / LEASE
    path.write_bytes(content)
    os.utime(path, (1, 1))  # nobody renews it
    assert read_lease(path) is None or isinstance(read_lease(path), LeaseRecord)
    with Lease(fence.inside, wait_minutes=0):
        assert read_lease(path).pid == os.getpid()
    assert list(fence.inside.iterdir()) == []
    fence.check()


@cases(60, changes=st.dictionaries(
    st.sampled_from(["token", "host", "pid", "job", "process", "state", "step", "seconds"]),
    PLAIN_VALUES, min_size=1, max_size=3))  # fmt: skip
def test_a_lease_with_any_value_anywhere(fence, changes):
    path = fence.emptied() / LEASE
    with Lease(fence.inside):
        told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, **changes}))
    os.utime(path, (1, 1))
    with Lease(fence.inside, wait_minutes=0):
        assert read_lease(path).token != told["token"]
    fence.check()
