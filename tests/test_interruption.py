"""Runs that are killed at any moment, stopped, or fail: what they leave, and how they go on.

What a moment is, see `kills.py`.
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from kills import Killer, in_child
from safetensors.torch import load_file
from small_runs import CAUSAL_MODEL, MODEL, SHORT_MEND, prepare_inputs, spec

from grace_bench.editors.methods.ft.editor import FinetuneEditor
from grace_bench.editors.methods.grace.editor import GraceEditor
from grace_bench.editors.methods.mend import training
from grace_bench.errors import EditorError, Interrupted, ResultError
from grace_bench.jobs import checkpoints, resumable
from grace_bench.jobs.lease import Lease
from grace_bench.jobs.resumable import CheckpointPolicy
from grace_bench.run import evaluation, stream
from grace_bench.steps import edit, precompute
from grace_bench.steps.edit import CHECKPOINTS, RunFolders, run_stream
from grace_bench.store import files
from grace_bench.store.files import read_json, read_parquet
from grace_bench.store.records import FailureRecord
from grace_bench.suite.plan import with_asset_settings

EVERY_STEP = CheckpointPolicy(minutes=0, steps=1)
EDITORS = {
    "grace": {"steps": 3, "radius": 30.0},
    "ft": {"steps": 2},
    "ft_ewc": {"steps": 2},
    "ft_retrain": {"steps": 2, "retrain_every": 2},
    "defer": {"steps": 2},
    "memory": {"steps": 2},
    "mend": SHORT_MEND,
    "rome": {"steps": 2, "context_lengths": [3], "contexts_per_length": 2, "ridge": 1e-3},
}
WITH_ASSETS = ("mend", "rome")
PROBES = {"every": 2, "batch_size": 8}
PLACES = (stream, evaluation, resumable, checkpoints, files, edit)
"""Modules whose calls are the moments."""


@pytest.fixture(scope="module")
def prepared(small_inputs, tmp_path_factory):
    """By editor: folders of data, model and baseline, and of what it needs before a run."""
    folder = tmp_path_factory.mktemp("assets")
    causal = prepare_inputs(folder / "causal", CAUSAL_MODEL)
    known = {}
    for editor in EDITORS:
        inputs = causal if editor == "rome" else small_inputs
        made = folder / editor if editor in WITH_ASSETS else None
        if made is not None:
            precompute.make_assets(with_asset_settings(spec_of(editor)), *inputs[:2], made)
        known[editor] = (*inputs, made)
    return known


def run_alone(editor: str, prepared, folder: Path, **options) -> dict:
    *inputs, made = prepared[editor]
    return run_stream(spec_of(editor), RunFolders(*inputs, folder, made), **options)


def spec_of(editor: str):
    model = CAUSAL_MODEL if editor == "rome" else MODEL
    return spec(editor, hyperparameters=EDITORS[editor], probes=PROBES, model=model)


@pytest.fixture(scope="module")
def undisturbed(prepared, tmp_path_factory):
    """What a run gives that nobody disturbs, by editor."""
    known: dict[str, dict] = {}
    for editor in EDITORS:
        folder = tmp_path_factory.mktemp(editor)
        run_alone(editor, prepared, folder)
        known[editor] = result_of(folder)
    return known


def result_of(folder: Path) -> dict:
    """Return all of a run's results that are not times: bytes of files, and rows."""
    record = read_json(folder / "run.json")
    assert not (folder / CHECKPOINTS).exists()
    names = [n for n in record["files"] if n != "steps.parquet"]
    steps = read_parquet(folder / "steps.parquet").drop_columns("edit_seconds").to_pylist()
    return {
        "bytes": {name: (folder / name).read_bytes() for name in sorted(names)},
        "steps": steps,
        "counts": record["counts"],
        "status": record["status"],
    }


def do(editor: str, prepared, folder: Path) -> None:
    with Lease(folder) as lease:
        run_alone(editor, prepared, folder, policy=EVERY_STEP, lease=lease)


@pytest.mark.slow
@pytest.mark.usefixtures("uncounted")
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("number", "ends"), [(signal.SIGKILL, {-9}), (signal.SIGTERM, {-15, 143})])
def test_runs_killed_at_fifty_random_moments_end_as_if_nothing_had_been(
    prepared, undisturbed, tmp_path, number, ends
):
    """Each is killed again and again: during edits, evaluations, checkpoints, the last writes."""
    killer = Killer(PLACES, number)
    editors = itertools.cycle(["grace", *reversed(EDITORS)])
    while killer.kills < killer.most:
        editor, folder = next(editors), tmp_path / f"run-{killer.kills}"
        killer.learn(editor, lambda e=editor: do(e, prepared, tmp_path / e))
        work = functools.partial(do, editor, prepared, folder)
        resumed = killer.work_until_done(editor, work, ends, folder / CHECKPOINTS)
        assert result_of(folder) == undisturbed[editor], editor
        assert read_json(folder / "run.json")["restarts"] or not resumed
    print(f"{killer.kills} kills by signal {number}, {killer.resumed} resumed; {dict(killer.met)}")
    assert killer.kills == 50
    assert killer.resumed > killer.kills / 2
    assert set(killer.met) == {module.__name__ for module in PLACES}


@pytest.mark.slow
@pytest.mark.usefixtures("uncounted")
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("number", "ends"), [(signal.SIGKILL, {-9}), (signal.SIGTERM, {-15, 143})])
def test_killed_trainings_of_mend_end_with_the_same_bytes(prepared, tmp_path, number, ends):
    settings = {**EDITORS["mend"], "training_steps": 6}
    mend = with_asset_settings(spec("mend", hyperparameters=settings))
    places = (training, resumable, checkpoints, files)
    killer, wanted = Killer(places, number, most=25), tmp_path / "undisturbed"
    make = functools.partial(precompute.make_assets, mend, *prepared["mend"][:2], policy=EVERY_STEP)
    make(wanted)
    wanted_files = {path.name: path.read_bytes() for path in wanted.glob("*.safetensors")}
    killer.learn("mend", lambda: make(tmp_path / "counted"))
    while killer.kills < killer.most:
        folder = tmp_path / f"training-{killer.kills}"
        work = functools.partial(make, folder)
        killer.work_until_done("mend", work, ends, folder / training.CHECKPOINTS)
        assert {
            path.name: path.read_bytes() for path in folder.glob("*.safetensors")
        } == wanted_files
        told, expected = (read_json(path / "assets.json")["summary"] for path in (folder, wanted))
        assert told == expected
        assert {path.name for path in folder.iterdir()} == {*wanted_files, "assets.json"}
    assert killer.kills == 25
    assert killer.resumed > killer.kills / 3  # half of its modules' calls come before the training
    assert set(killer.met) == {module.__name__ for module in places}


def test_what_was_half_written_when_a_run_was_killed_goes_when_it_goes_on(
    prepared, undisturbed, tmp_path
):
    def killed_while_writing():
        def write_table(_table, path, **_settings):
            path.write_bytes(b"half of a table")
            os.kill(os.getpid(), signal.SIGKILL)

        files.pq.write_table = write_table  # in the child alone
        do("grace", prepared, tmp_path)

    assert in_child(killed_while_writing)[0] == -signal.SIGKILL
    assert list(tmp_path.glob(".*.tmp"))
    do("grace", prepared, tmp_path)
    assert list(tmp_path.glob(".*")) == []
    assert result_of(tmp_path) == undisturbed["grace"]


def test_a_stopped_run_says_where_it_stopped(prepared, tmp_path):
    """SIGTERM ends the step, leaves a checkpoint, and the sentence names the step."""
    steps = 0

    class Stop(Lease):
        def check(self):
            nonlocal steps
            steps += 1
            if steps == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    with Stop(tmp_path) as lease, pytest.raises(Interrupted, match="after step 2 of 6"):
        run_alone("grace", prepared, tmp_path, lease=lease)
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["00000002"]
    assert not (tmp_path / "run.json").exists()


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    prepared, undisturbed, tmp_path, caplog
):
    code, _ = in_child(lambda: stop_after(4, prepared, tmp_path))
    assert code == 143
    newest = tmp_path / CHECKPOINTS / "00000004" / "tensors.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(bytes(content))
    with caplog.at_level("WARNING"):
        run_alone("grace", prepared, tmp_path)
    assert "changed since it was written. It was set aside as 00000004.unusable" in caplog.text
    assert read_json(tmp_path / "run.json")["restarts"] == [3]
    assert result_of(tmp_path) == undisturbed["grace"]


def test_a_checkpoint_of_other_settings_is_not_used(prepared, tmp_path, undisturbed):
    in_child(lambda: stop_after(4, prepared, tmp_path))
    other = spec("grace", hyperparameters={**EDITORS["grace"], "steps": 2}, probes=PROBES)
    assert run_stream(other, RunFolders(*prepared["grace"][:3], tmp_path)).restarts == []


def stop_after(step: int, prepared, folder: Path) -> None:
    class Stop(Lease):
        def check(self):
            if self._content.step == step:
                os.kill(os.getpid(), signal.SIGTERM)

    with Stop(folder) as lease:
        run_alone("grace", prepared, folder, policy=EVERY_STEP, lease=lease)


def test_what_was_trained_ahead_is_not_lost(prepared, undisturbed, tmp_path, monkeypatch):
    """Values are trained in batches before their edits; the interruption falls between them."""
    in_child(lambda: stop_after(2, prepared, tmp_path))
    tensors = load_file(tmp_path / CHECKPOINTS / "00000002" / "tensors.safetensors")
    assert len(tensors["resume.ahead_steps"]) > 0
    # All six edits were trained ahead; what was not taken over would be trained anew.
    monkeypatch.setattr(GraceEditor, "train_ahead", None)
    monkeypatch.setattr(GraceEditor, "_train_value", None)
    run_alone("grace", prepared, tmp_path)
    assert result_of(tmp_path) == undisturbed["grace"]


def test_a_full_disk_costs_a_checkpoint_not_the_run(prepared, undisturbed, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise ResultError("the disk is full")

    monkeypatch.setattr(edit.Checkpoints, "write", full)
    run_alone("grace", prepared, tmp_path, policy=EVERY_STEP)
    assert result_of(tmp_path) == undisturbed["grace"]


def test_checkpoints_take_no_more_than_their_share_of_the_time(prepared, tmp_path, monkeypatch):
    """One that takes long makes the pause before the next one long."""
    written = []

    def slow(self, made):
        written.append(made.number)
        time.sleep(0.2)

    monkeypatch.setattr(edit.Checkpoints, "write", slow)
    run_alone("grace", prepared, tmp_path, policy=CheckpointPolicy(minutes=1e-6))
    assert written == [1]  # 0.2 s may be spent every 10 s


@pytest.mark.parametrize(
    ("editor", "error"), [("grace", KeyError("no such thing")), ("ft", EditorError("no such edit"))]
)
def test_an_editor_that_raises_fails_its_run_and_keeps_the_steps_before(
    prepared, undisturbed, tmp_path, monkeypatch, editor, error
):
    kind = GraceEditor if editor == "grace" else FinetuneEditor
    plain = kind.edit

    def edit(self, batch):
        if batch.step == 3:
            raise error
        return plain(self, batch)

    monkeypatch.setattr(kind, "edit", edit)
    record = run_alone(editor, prepared, tmp_path)
    assert record.status == "failed"
    assert record.failure == FailureRecord(
        kind="error",
        step=3,
        example_id=record.failure.example_id,
        type=type(error).__name__,
        message=str(error),
    )
    found = result_of(tmp_path)
    assert found["steps"] == undisturbed[editor]["steps"][:2]
    assert set(found["bytes"]) == {"predictions.parquet", "probes.parquet"}
    assert read_json(tmp_path / "run.json")["counts"]["edits"] == 2


def test_numbers_that_are_not_finite_fail_a_run(prepared, tmp_path, monkeypatch):
    plain = FinetuneEditor.edit

    def edit(self, batch):
        result = plain(self, batch)
        if batch.step == 2:
            self.weight.data[0, 0] = torch.nan
        return result

    monkeypatch.setattr(FinetuneEditor, "edit", edit)
    failure = run_alone("ft", prepared, tmp_path).failure
    assert (failure.kind, failure.step) == ("diverged", 2)
    assert "not finite" in failure.message


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError("no"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"
        ),
    ],
)
def test_no_memory_for_an_edit_fails_a_run(prepared, tmp_path, monkeypatch, error):
    def edit(self, batch):
        raise error

    monkeypatch.setattr(FinetuneEditor, "edit", edit)
    failure = run_alone("ft", prepared, tmp_path).failure
    assert (failure.kind, failure.step) == ("out_of_memory", 1)


def test_no_memory_for_an_evaluation_makes_its_batches_smaller(
    prepared, undisturbed, tmp_path, monkeypatch
):
    plain, sizes = evaluation.predict_all, []

    def predict_all(model, task, examples, batch_size, *rest):
        sizes.append(batch_size)
        if min(batch_size, len(examples)) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(model, task, examples, batch_size, *rest)

    monkeypatch.setattr(evaluation, "predict_all", predict_all)
    record = run_alone("ft", prepared, tmp_path)
    assert (sizes[0], sizes[-1], record.evaluation_batch) == (8, 2, 2)
    assert record.status == "complete"
    found, expected = result_of(tmp_path), undisturbed["ft"]
    assert [s["es"] for s in found["steps"]] == [s["es"] for s in expected["steps"]]


def test_no_memory_for_edits_in_a_batch_makes_them_one_by_one(prepared, tmp_path, monkeypatch):
    plain = GraceEditor.train_ahead

    def train_ahead(self, inputs, steps):
        if len(steps) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        plain(self, inputs, steps)

    monkeypatch.setattr(GraceEditor, "train_ahead", train_ahead)
    record = run_alone("grace", prepared, tmp_path)
    assert record.status == "complete"
    assert record.counts["edits"] == 6


def test_the_lease_says_how_far_a_run_is(prepared, tmp_path, monkeypatch):
    reported = []

    class Reported(Lease):
        def report(self, **progress):
            super().report(**progress)
            reported.append(progress)

    with Reported(tmp_path) as lease:
        run_alone("grace", prepared, tmp_path, lease=lease)
    assert [progress["step"] for progress in reported] == [0, 1, 2, 3, 4, 5, 6]
    assert {progress["steps"] for progress in reported} == {6}
    assert reported[-1]["seconds_left"] == 0


def test_a_run_that_lost_its_lease_writes_no_result(prepared, tmp_path):
    class Lost(Lease):
        def check(self):
            if self._content.step == 3:
                raise ResultError("another one has taken over the work")

    with Lost(tmp_path) as lease, pytest.raises(ResultError, match="taken over the work"):
        run_alone("grace", prepared, tmp_path, lease=lease)
    assert list(tmp_path.iterdir()) == []
