"""`grace-bench collect`: runs of several machines in one place, conflicts reported and left out."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grace_bench.cli import main
from grace_bench.errors import ConfigError, ResultError
from grace_bench.jobs import locks
from grace_bench.results import copying
from grace_bench.results.collect import collect

FILES = ("steps.parquet", "probes.parquet", "predictions.parquet", "codebook.safetensors")


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_run(
    machine: Path,
    seed: int = 0,
    editor: str = "grace",
    suite: str = "s",
    result: str = "",
    failed: bool = False,
    **changes: object,
) -> Path:
    """Write a run folder; `result` is what the files that hold scores depend on."""
    run_id = f"m/d/{editor}/default/seed-{seed}"
    folder = machine / suite / "runs" / run_id
    folder.mkdir(parents=True)
    names = FILES[:3] if failed else FILES
    for name in names:
        own = str(machine) if name == "steps.parquet" else result
        (folder / name).write_bytes(f"{run_id} {name} {own}".encode())
    (folder / "run.log").write_text("all is well\n")
    record = {
        "format": "grace-bench run",
        "version": 1,
        "id": run_id,
        "variant": "default",
        "content_hash": f"settings of {run_id}",
        "spec": {
            "suite": suite,
            "model": {"name": "m", "label": "M"},
            "dataset": {"name": "d", "label": "D", "task": "classification"},
            "editor": {"name": editor, "label": editor, "editor": editor, "hyperparameters": {}},
            "seed": seed,
        },
        "status": "failed" if failed else "complete",
        "failure": {"kind": "error", "step": 3, "message": "no luck"} if failed else None,
        "counts": {"steps": 1},
        "seconds": {"total": 1.0},
        "measure": "accuracy",
        "data_hash": sha(b"data"),
        "model_hash": sha(b"weights"),
        "files": {name: sha((folder / name).read_bytes()) for name in names},
    }
    (folder / "run.json").write_text(json.dumps(record | changes))
    return folder


def make_inputs(machine: Path, suite: str = "s", data: bytes = b"data") -> None:
    """Write a data set, a model, a baseline and assets, as they would be made for the runs."""
    home = machine / suite
    contents = {
        "data/d/train.parquet": b"rows",
        "data/d/manifest.json": {
            "data_hash": sha(data),
            "roles": {
                "train": {"file": "train.parquet", "rows": 1, "facts": 1, "sha256": sha(b"rows")}
            },
        },
        "models/m-d/pretrained/model.safetensors": b"weights",
        "models/m-d/pretrained/tokenizer.json": b"{}",
        "models/m-d/pretrained/.training/00000003/state.json": b"{}",
        "models/m-d/pretrained/lease.json": b"{}",
        "models/m-d/pretrained/training.json": {"sha256": sha(b"weights"), "data_hash": sha(data)},
        "baselines/m-d/pretrained/predictions.parquet": b"predictions",
        "baselines/m-d/pretrained/baseline.json": {
            "model_hash": sha(b"weights"),
            "data_hash": sha(data),
        },
        "assets/m-d/pretrained/mend-1/mend.safetensors": b"a network",
        "assets/m-d/pretrained/mend-1/assets.json": {
            "model_hash": sha(b"weights"),
            "files": {"mend.safetensors": sha(b"a network")},
            "summary": {},
            "seconds": 1.0,
        },
    }
    for name, content in contents.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def machines(tmp_path) -> tuple[Path, Path, Path]:
    return tmp_path / "a", tmp_path / "b", tmp_path / "out"


def test_runs_and_what_reports_need_come_together(machines):
    a, b, out = machines
    first, second = make_run(a, 0), make_run(b, 1, failed=True)
    os.utime(first / "run.json", (10**9, 10**9))
    for machine in (a, b):
        make_inputs(machine)
    (make_run(b, 2) / "run.json").unlink()  # not finished
    (second / "checkpoints").mkdir()
    done = collect([a / "s", b], out)
    assert done.copied == ["m/d/grace/default/seed-0", "m/d/grace/default/seed-1"]
    assert (done.kept, done.inputs, done.problems) == (0, 2, [])
    assert done.notes == [f"{b / 's'}: 1 runs are not finished; not copied."]
    copy = out / "s" / first.relative_to(a / "s")
    assert tree(copy) == tree(first)
    assert (copy / "run.json").stat().st_mtime == 10**9  # the workflow goes by times
    assert tree(out / "s" / second.relative_to(b / "s")) == tree(second)
    inputs = {name for name in tree(out / "s") if not name.startswith("runs/")}
    assert inputs == {
        "data/d/train.parquet",
        "data/d/manifest.json",
        "baselines/m-d/pretrained/predictions.parquet",
        "baselines/m-d/pretrained/baseline.json",
    }


def test_again_changes_nothing_and_models_come_when_asked_for(machines):
    a, b, out = machines
    make_run(a, 0)
    make_inputs(a)
    collect([a], out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    done = collect([a, a / "s"], out)
    assert (done.copied, done.kept, done.inputs, done.problems) == ([], 1, 0, [])
    assert {p: p.stat().st_mtime_ns for p in before} == before
    make_run(b, 1)
    done = collect([a, b], out, with_models=True)
    assert done.copied == ["m/d/grace/default/seed-1"]
    assert done.inputs == 2
    found = {name for name in tree(out / "s") if name.startswith(("models", "assets"))}
    assert found == {
        "models/m-d/pretrained/model.safetensors",
        "models/m-d/pretrained/tokenizer.json",
        "models/m-d/pretrained/training.json",
        "assets/m-d/pretrained/mend-1/mend.safetensors",
        "assets/m-d/pretrained/mend-1/assets.json",
    }


def test_rows_count_not_the_bytes_that_another_version_writes(machines):
    first, second, target = machines
    rows = {"probes.parquet": "p", "predictions.parquet": "q"}
    for machine, written in ((first, "by pyarrow 24"), (second, "by pyarrow 25")):
        folder = make_run(machine, result=written, rows=rows)
        same = folder / "codebook.safetensors"
        same.write_bytes(b"keys")
        record = json.loads((folder / "run.json").read_text())
        record["files"] = {**record["files"], same.name: sha(b"keys")}
        (folder / "run.json").write_text(json.dumps(record))
    done = collect([first, second], target)
    assert not done.problems
    assert len(done.copied) == 1


def test_a_run_done_twice_with_one_result_is_one_run(machines):
    a, b, out = machines
    make_run(a)
    make_run(b)
    done = collect([a, b], out)
    assert (done.copied, done.problems) == (["m/d/grace/default/seed-0"], [])
    assert collect([b], out).kept == 1
    assert (out / "s/runs/m/d/grace/default/seed-0/steps.parquet").read_bytes().endswith(b"/a")


CONFLICTS = {
    "results": (
        {"result": "other"},
        "m/d/grace/default/seed-0: has different results in {a}/s and {b}/s "
        "(codebook.safetensors, predictions.parquet, probes.parquet); not copied.",
    ),
    "settings": (
        {"content_hash": "others"},
        "m/d/grace/default/seed-0: was made with different settings in {a}/s and {b}/s; "
        "not copied.",
    ),
    "data": (
        {"data_hash": "f" * 64},
        "data set d: runs were made with different ones: 3a6eb0790f39 in {a}/s; "
        "ffffffffffff in {b}/s; none of these runs is copied, as their scores do not compare.",
    ),
    "weights": (
        {"model_hash": "f" * 64},
        "model m-d/pretrained: runs were made with different ones: 9a7eb3ff8e91 in {a}/s; "
        "ffffffffffff in {b}/s; none of these runs is copied, as their scores do not compare.",
    ),
}


@pytest.mark.parametrize("kind", CONFLICTS)
def test_a_conflict_is_one_sentence_and_copies_neither(machines, kind, capsys):
    a, b, out = machines
    changes, sentence = CONFLICTS[kind]
    make_run(a)
    make_run(b, **changes)
    whole = kind in ("results", "settings")
    other = make_run(a, 7)  # has no part in it, unless all of its data or model are in doubt
    done = collect([a, b], out)
    [said] = done.problems
    wanted = sentence.format(a=a, b=b)
    if whole:
        assert said == wanted
    else:
        assert said.split(":")[0] == wanted.split(":")[0]
        assert "ffffffffffff in" in said
    there = sorted(p.parent.name for p in out.rglob("run.json"))
    assert there == (["seed-7"] if whole else [])
    # By the command: the same sentence, and 2.
    assert main(["collect", str(a), str(b), "--output", str(out)]) == 2
    error = capsys.readouterr().err
    assert f"problem: {said}\n" in error
    assert "error: 1 problems; what they name was not copied." in error
    assert other.is_dir()


@pytest.mark.parametrize("kind", CONFLICTS)
def test_what_is_there_stays_and_what_contradicts_it_stays_out(machines, kind):
    a, b, out = machines
    make_run(a)
    collect([a], out)
    before = tree(out)
    make_run(b, **CONFLICTS[kind][0])
    done = collect([b], out)
    assert len(done.problems) == 1
    assert str(b) in done.problems[0]
    assert str(out) in done.problems[0]
    assert (done.copied, tree(out)) == ([], before)


def test_a_complete_run_counts_before_a_failed_one(machines):
    a, b, out = machines
    failed, whole = make_run(a, failed=True), make_run(b)
    inside = whole.relative_to(b)
    done = collect([a, b], out)
    assert tree(out / inside) == tree(whole)
    [said] = done.notes
    assert said == (
        f"m/d/grace/default/seed-0: failed in {a}/s, was completed in {b}/s; the complete one "
        "counts."
    )
    # The failed one first, then the complete one in its place; and not the other way round.
    shutil.rmtree(out)
    assert collect([a], out).copied == ["m/d/grace/default/seed-0"]
    assert tree(out / inside) == tree(failed)
    done = collect([b], out)
    assert (done.copied, len(done.notes)) == (["m/d/grace/default/seed-0"], 1)
    assert tree(out / inside) == tree(whole)
    done = collect([a], out)
    assert (done.copied, done.kept, done.problems) == ([], 1, [])
    assert tree(out / inside) == tree(whole)


def test_files_that_are_not_those_of_the_record_are_refused(machines):
    a, b, out = machines
    (make_run(a, 0) / "predictions.parquet").write_bytes(b"changed")
    (make_run(a, 1) / "codebook.safetensors").unlink()
    make_run(b, 1)
    done = collect([a, b], out)
    assert done.copied == ["m/d/grace/default/seed-1"]  # the other machine's is whole
    assert len(done.problems) == 2
    assert "predictions.parquet: is not the file that was written" in done.problems[0]
    assert "codebook.safetensors: no such file, but it is listed" in done.problems[1]
    assert not (out / "s/runs/m/d/grace/default/seed-0").exists()


def test_a_damaged_copy_is_replaced(machines):
    a, _, out = machines
    folder = make_run(a)
    collect([a], out)
    copy = out / folder.relative_to(a)
    (copy / "probes.parquet").write_bytes(b"cut")
    done = collect([a], out)
    assert done.notes == [
        f"m/d/grace/default/seed-0: the copy in {out / 's'} is damaged and is replaced."
    ]
    assert tree(copy) == tree(folder)


HOSTILE = {
    "id of another place": {"id": "../../../../x"},
    "id of another run": {"id": "m/d/grace/default/seed-1"},
    "absolute file": {"files": {"/etc/passwd": "0" * 64}},
    "file outside": {"files": dict.fromkeys(("../x", *FILES), "0" * 64)},
    "hidden file": {"files": dict.fromkeys((".bashrc", *FILES), "0" * 64)},
    "the record itself": {"files": dict.fromkeys(("run.json", *FILES), "0" * 64)},
    "no files": {"files": {}},
    "hashes of no kind": {"files": dict.fromkeys(FILES, 5)},
    "spec of no kind": {"spec": []},
    "spec without names": {"spec": {"suite": "s", "seed": 0, "model": {}}},
    "no data": {"data_hash": None},
    "id of no kind": {"id": 5},
    "not finished": {"status": "running"},
    "of the future": {"version": 2},
    "no counts": {"counts": {"keys": "many"}},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_records_that_lie_are_refused_in_a_sentence(machines, kind):
    a, _, out = machines
    make_run(a, **HOSTILE[kind])
    make_run(a, 5)
    done = collect([a], out)
    assert done.copied == ["m/d/grace/default/seed-5"]
    [said] = done.problems
    assert "run.json" in said
    assert len(said.splitlines()) == 1
    assert {p.name for p in out.parent.iterdir()} <= {"a", "b", "out"}


def test_a_suite_with_a_name_that_escapes_goes_nowhere(machines):
    a, _, out = machines
    folder = make_run(a)
    record = json.loads((folder / "run.json").read_text())
    record["spec"]["suite"] = "../../elsewhere"
    (folder / "run.json").write_text(json.dumps(record))
    done = collect([a], out)
    assert len(done.problems) == 1
    assert not list(out.parent.rglob("elsewhere"))


@pytest.mark.parametrize("hash_of", ["data_hash", "model_hash"])
def test_a_run_that_does_not_say_what_it_was_made_from_is_not_copied(machines, hash_of):
    a, _, out = machines
    folder = make_run(a)
    record = json.loads((folder / "run.json").read_text())
    del record[hash_of]
    (folder / "run.json").write_text(json.dumps(record))
    [problem] = collect([a], out).problems
    assert "lacks the hash of the run's data or weights" in problem


def test_links_and_pipes_are_not_followed(machines, tmp_path):
    a, _, out = machines
    secret = tmp_path / "secret"
    secret.write_bytes(b"m/d/grace/default/seed-0 probes.parquet ")  # even with the right hash
    folder = make_run(a, 0)
    (folder / "probes.parquet").unlink()
    (folder / "probes.parquet").symlink_to(secret)
    piped = make_run(a, 1)
    (piped / "probes.parquet").unlink()
    os.mkfifo(piped / "probes.parquet")
    elsewhere = make_run(tmp_path / "c", 2)
    (folder.parent / "seed-2").symlink_to(elsewhere)
    logged = make_run(a, 3)
    (logged / "run.log").unlink()
    (logged / "run.log").symlink_to(secret)
    make_inputs(a)
    shutil.rmtree(a / "s/data/d")
    make_inputs(tmp_path / "c")
    (a / "s/data/d").symlink_to(tmp_path / "c/s/data/d")
    done = collect([a], out)
    assert done.copied == ["m/d/grace/default/seed-3"]
    assert len(done.problems) == 3
    copied = tree(out / "s")
    assert not [name for name in copied if name.startswith("data")]
    assert secret.read_bytes() not in copied.values()
    assert not any(path.is_symlink() for path in out.rglob("*"))


def test_other_data_than_the_runs_is_not_copied_nor_replaced(machines):
    a, b, out = machines
    make_run(a)
    make_inputs(a, data=b"newer data than the runs'")
    done = collect([a], out)
    assert (len(done.copied), done.inputs, done.problems) == (1, 1, [])
    make_inputs(out, data=b"newer data than the runs'")
    make_inputs(b)
    make_run(b, 1)
    done = collect([b], out)
    [said] = done.problems
    assert "data/d: is not what the runs were made from, and stays." in said


def test_a_damaged_data_set_is_not_copied(machines):
    a, _, out = machines
    make_run(a)
    make_inputs(a)
    (a / "s/data/d/train.parquet").write_bytes(b"cut")
    done = collect([a], out)
    assert (len(done.copied), len(done.problems)) == (1, 1)
    assert not (out / "s/data/d").exists()


def test_a_data_set_that_lists_one_file_for_two_roles_is_not_copied(machines):
    a, _, out = machines
    make_run(a)
    make_inputs(a)
    path = a / "s/data/d/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["roles"]["edits"] = manifest["roles"]["train"] | {"sha256": sha(b"others")}
    path.write_text(json.dumps(manifest))
    done = collect([a], out)
    assert "lists a file twice" in done.problems[0]
    assert not (out / "s/data/d").exists()


def test_a_full_disk_leaves_nothing_half_there(machines, monkeypatch):
    a, _, out = machines
    make_run(a)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(copying.os, "utime", full)
    with pytest.raises(ResultError, match="the disk is full") as error:
        collect([a], out)
    assert error.value.exit_code == 75
    assert [p for p in out.rglob("*") if p.is_file()] == [out / ".collect.lock"]
    monkeypatch.undo()
    assert len(collect([a], out).copied) == 1


def test_what_a_killed_call_left_behind_goes(machines):
    a, _, out = machines
    folder = make_run(a)
    parent = (out / folder.relative_to(a)).parent
    left = parent / ".seed-0.0123abcd.tmp"
    left.mkdir(parents=True)
    (left / "steps.parquet").write_text("half")
    collect([a], out)
    assert sorted(p.name for p in parent.iterdir()) == ["seed-0"]


def test_a_folder_that_cannot_be_put_in_place_leaves_the_one_before(machines, monkeypatch):
    a, _, out = machines
    folder = make_run(a)
    collect([a], out)
    copy = out / folder.relative_to(a)
    (copy / "probes.parquet").write_bytes(b"cut")
    before, rename = tree(copy), os.rename

    def refuse(source, target):
        if str(source).endswith(".tmp"):
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(copying.os, "rename", refuse)
    with pytest.raises(ResultError, match="the disk is full"):
        collect([a], out)
    assert tree(copy) == before


def test_a_run_that_goes_on_in_the_output_is_left_alone(machines):
    a, _, out = machines
    folder = make_run(a)
    running = out / folder.relative_to(a)
    running.mkdir(parents=True)
    (running / "lease.json").write_text(json.dumps({"host": "node-1", "step": 3}))
    done = collect([a], out)
    assert done.problems == [
        f"m/d/grace/default/seed-0: is running in {out / 's'} now; collect again when it is done."
    ]
    os.utime(running / "lease.json", (0, 0))
    assert collect([a], out).copied == ["m/d/grace/default/seed-0"]


def test_places_that_are_none(machines, tmp_path):
    a, _, out = machines
    make_run(a)
    for sources, output, said in (
        ([tmp_path / "none"], out, "none: cannot be read"),
        ([a / "s/runs/m"], out, "has no runs; give results/<suite>"),
        ([a], a / "s", "is the folder of a suite; give the folder above it"),
    ):
        with pytest.raises(ConfigError, match=said):
            collect(sources, output)
    assert not out.exists()
    done = collect([a], a)
    assert done.notes == [f"{a / 's'}: is the folder to collect into; left unchanged."]


def test_several_suites_stay_apart(machines):
    a, _, out = machines
    make_run(a, suite="one")
    make_run(a, suite="two", data_hash="f" * 64)
    assert len(collect([a], out).copied) == 2
    assert sorted(p.name for p in out.iterdir()) == [".collect.lock", "one", "two"]


def test_only_one_collects_at_a_time(machines, monkeypatch):
    a, _, out = machines
    make_run(a)
    code = (
        "import sys, pathlib, time; from grace_bench.jobs.locks import exclusive\n"
        "with exclusive(pathlib.Path(sys.argv[1]), 'x'): print('held', flush=True); time.sleep(60)"
    )
    lock = out / ".collect.lock"
    command = [sys.executable, "-c", code, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        monkeypatch.setattr(locks, "WAIT_SECONDS", 0.3)
        began = time.monotonic()
        assert main(["collect", str(a), "--output", str(out)]) == 75
        assert time.monotonic() - began < 30
        assert not (out / "s").exists()
        holder.kill()
    # The system lets go of a dead process's lock.
    assert main(["collect", str(a), "--output", str(out)]) == 0
