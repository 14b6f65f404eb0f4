"""`grace-bench status`: every state a run can be in, from files alone, whatever they hold."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grace_bench.errors import ConfigError, DataError
from grace_bench.jobs.lease import Lease
from grace_bench.results.status import STATES, RunStatus, StatusReader, SuiteStatus, status_of_run
from grace_bench.results.status_text import CLEAR, duration, render, show

HASH = "0123456789abcdef"


def lease(folder: Path, age: float = 0.0, **what: object) -> None:
    """Write a lease as another machine's process would."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "format": "grace-bench lease",
        "version": 1,
        "token": "t",
        "host": "node-1",
        "pid": 12,
        "job": "77",
        "state": "running",
        "step": 30,
        "steps": 120,
        "edits": 21,
        "seconds": 60.0,
        "seconds_left": 180,
        "restarts": 0,
    }
    (folder / "lease.json").write_text(json.dumps(content | what))
    then = time.time() - age
    os.utime(folder / "lease.json", (then, then))


def record(folder: Path, **what: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"status": "complete", "content_hash": HASH, "failure": None}
    (folder / "run.json").write_text(json.dumps(content | what))


def checkpoint(folder: Path, *steps: int) -> None:
    for step in steps:
        place = folder / "checkpoints" / f"{step:08d}"
        place.mkdir(parents=True)
        (place / "checkpoint.json").write_text("{}")


def plan_entry(run_id: str, folder: str) -> dict:
    """Return what a plan says of a run."""
    labels = {"model": "M", "dataset": "D", "editor": "E"}
    entry = {"id": run_id, "folder": folder, "content_hash": HASH}
    entry |= {"base_model": f"{'-'.join(run_id.split('/')[:2])}/seed-0"}
    return {**entry, "in_sweep": False, "labels": labels}


def look(folder: Path) -> RunStatus:
    return status_of_run("m/d/e/v/seed-0", folder, HASH)


FAILURE = {"kind": "out_of_memory", "step": 17, "message": "no room on the GPU."}


def test_finished(tmp_path):
    record(tmp_path)
    assert look(tmp_path) == RunStatus("m/d/e/v/seed-0", "finished")


def test_failed_says_where_and_why(tmp_path):
    record(tmp_path, status="failed", failure=FAILURE)
    found = look(tmp_path)
    assert (found.state, found.step) == ("failed", 17)
    assert found.message == "out of memory: no room on the GPU."


def test_a_failed_run_that_is_tried_again_is_running(tmp_path):
    record(tmp_path, status="failed", failure=FAILURE)
    lease(tmp_path)
    assert look(tmp_path).state == "running"
    lease(tmp_path, age=600)
    assert look(tmp_path).state == "failed"


def test_running_says_how_far_and_where(tmp_path):
    lease(tmp_path, age=3)
    found = look(tmp_path)
    assert found.state == "running"
    assert (found.step, found.steps, found.edits, found.seconds_left) == (30, 120, 21, 180)
    assert found.holder == "process 12 on node-1 (job 77)"
    assert 2 < found.heartbeat_seconds < 30


def test_a_real_lease_is_running_and_gone_when_it_ends(tmp_path):
    with Lease(tmp_path) as held:
        held.report(state="running", step=1)
        found = look(tmp_path)
        assert found.state == "running"
        assert str(os.getpid()) in found.holder
    assert look(tmp_path).state == "left"


def test_dead_goes_on_from_its_newest_whole_checkpoint(tmp_path):
    lease(tmp_path, age=61)
    assert (look(tmp_path).state, look(tmp_path).checkpoint) == ("dead", None)
    checkpoint(tmp_path, 10, 20)
    (tmp_path / "checkpoints" / "00000025.unusable").mkdir()
    (tmp_path / "checkpoints" / "00000030").mkdir()  # of which nothing was written
    assert (look(tmp_path).state, look(tmp_path).checkpoint) == ("dead", 20)


def test_a_process_of_this_machine_that_is_gone_is_dead_at_once(tmp_path):
    code = (
        "import os, sys, pathlib; from grace_bench.jobs.lease import Lease; "
        "Lease(pathlib.Path(sys.argv[1])).__enter__(); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / "lease.json").is_file()
    assert look(tmp_path).state == "dead"


def test_stopped_with_a_checkpoint_waits(tmp_path):
    checkpoint(tmp_path, 10)
    found = look(tmp_path)
    assert (found.state, found.checkpoint) == ("waiting", 10)


def test_nothing_there_or_other_settings_is_left(tmp_path):
    assert look(tmp_path / "none").state == "left"
    record(tmp_path, content_hash="another")
    assert look(tmp_path).state == "left"
    assert "other settings" in look(tmp_path).note


BAD = {
    "empty": b"",
    "cut": b'{"status": "compl',
    "no text": bytes(range(256)),
    "a list": b"[1, 2]",
    "deep": b"[" * 100_000,
    "other types": json.dumps(
        {
            "status": ["failed"],
            "content_hash": 1,
            "failure": "x",
            "step": "many",
            "steps": True,
            "edits": 1e300,
            "seconds_left": "soon",
            "host": {"a": [1]},
            "pid": -(10**30),
            "process": 5,
            "job": [],
        }
    ).encode(),
}


@pytest.mark.parametrize("name", ["run.json", "lease.json", "checkpoints"])
@pytest.mark.parametrize("content", BAD)
def test_damaged_files_say_nothing_and_break_nothing(tmp_path, name, content):
    (tmp_path / name).write_bytes(BAD[content])
    found = look(tmp_path)
    assert found.state == ("running" if name == "lease.json" else "left")
    render(SuiteStatus("s", "now", [found], []))


def test_pipes_links_and_folders_in_the_place_of_files(tmp_path):
    for number, make in enumerate((os.mkfifo, os.mkdir, lambda p: os.symlink("nowhere", p))):
        for name in ("run.json", "lease.json"):
            folder = tmp_path / f"{number}-{name}"
            folder.mkdir()
            make(folder / name)
            assert look(folder).state == "left"
    os.symlink(tmp_path / "circle", tmp_path / "circle")
    assert look(tmp_path / "circle").state == "left"
    assert look(tmp_path / ("x" * 300)).state == "left"


def test_failure_of_any_form_is_shown(tmp_path):
    for failure in (
        None,
        "x",
        {},
        {"kind": 3, "step": "x"},
        {"step": True},
        {"message": "\x1b[2Jboo\nhoo"},
    ):
        record(tmp_path, status="failed", failure=failure)
        found = look(tmp_path)
        assert (found.state, found.step) == ("failed", None)
        text = render(SuiteStatus("s", "now", [found], []))
        assert "\x1b" not in text
    assert "[2Jboo hoo" in text


def write_plan(tmp_path: Path, n: int = 1) -> Path:
    """A suite with a run in every state, several times over."""
    suite = tmp_path / "results" / "big"
    runs = []
    for number in range(n):
        for seed, state in enumerate(STATES):
            run_id = f"m{number % 2}/d/e{number % 3}/v{number}/seed-{seed}"
            folder = suite / "runs" / run_id
            runs.append(plan_entry(run_id, str(folder)))
            if state == "finished":
                record(folder)
            elif state == "failed":
                record(folder, status="failed", failure=FAILURE)
            elif state in ("running", "dead"):
                lease(folder, age=600 * (state == "dead"))
            if state in ("dead", "waiting"):
                checkpoint(folder, 20)
    (suite / "data" / "d").mkdir(parents=True)
    (suite / "data" / "d" / "manifest.json").write_text("{}")
    lease(suite / "models" / "m0-d" / "seed-0")
    path = suite / "plan.json"
    path.write_text(json.dumps({"suite": "big", "runs": runs}))
    return path


def test_totals_groups_inputs_and_lists(tmp_path):
    status = StatusReader.of_plan(write_plan(tmp_path, 4)).read_status()
    assert status.counts == dict.fromkeys(STATES, 4)
    assert status.groups()["m1", "d", "e0"] == dict.fromkeys(STATES, 1)
    text = render(status)
    assert text.startswith(
        "suite big: 24 runs: 4 finished, 4 failed, 4 running, 4 dead, 4 waiting, 4 left\n"
    )
    assert "  m0/d/e0/v0/seed-1  at step 17: out of memory: no room on the GPU." in text
    assert (
        "  m0/d/e0/v0/seed-2  step 30 of 120, 21 edits, 3 min left, process 12 on node-1 (job 77), "
        "last seen"
    ) in text
    assert "last seen 10 min ago, rerun to resume after step 20" in text
    assert "  m0/d/e0/v0/seed-4  rerun to resume after step 20" in text
    assert "data sets: 1 of 1" in text
    assert "models: 0 of 2; being made: m0-d/seed-0; missing: m1-d/seed-0" in text
    assert "baselines: 0 of 2; missing: m0-d/seed-0, m1-d/seed-0" in text


def test_thousands_of_runs_stay_short_and_quick(tmp_path):
    reader = StatusReader.of_plan(write_plan(tmp_path, 400))
    began = time.process_time()
    text = render(reader.read_status())
    assert time.process_time() - began < 5
    assert text.startswith("suite big: 2400 runs")
    assert text.count("\n") < 250
    assert "and 350 more; --json lists all" in text


def test_json_has_every_run(tmp_path):
    out = io.StringIO()
    show(StatusReader.of_plan(write_plan(tmp_path)), out, as_json=True)
    written = json.loads(out.getvalue())
    assert written["format"] == "grace-bench status"
    assert written["counts"] == dict.fromkeys(STATES, 1)
    assert [run["state"] for run in written["runs"]] == list(STATES)
    assert written["groups"][0]["model"] == "m0"
    assert {"kind": "data set", "name": "d", "state": "present"} in written["inputs"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_watch_goes_on_until_all_is_done_and_clears_only_a_screen(tmp_path, stream):
    folder = tmp_path / "results/s/runs/m/d/e/v/seed-0"
    plan = tmp_path / "plan.json"
    entry = plan_entry("m/d/e/v/seed-0", str(folder))
    plan.write_text(json.dumps({"suite": "s", "runs": [entry]}))
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            record(folder)

    out = stream()
    show(StatusReader.of_plan(plan), out, every=5.0, sleep=sleep)
    assert slept == [5.0, 5.0]
    assert out.getvalue().count("suite s: 1 runs") == 3
    assert out.getvalue().count(CLEAR) == (3 if stream is Terminal else 0)
    with pytest.raises(ConfigError, match="--watch 0: must be between"):
        show(StatusReader.of_plan(plan), out, every=0.0)


@pytest.mark.slow
def test_it_can_be_asked_while_everything_changes(tmp_path):
    """Files that come, go and are cut between two system calls."""
    rng = random.Random(5)
    path = write_plan(tmp_path, 3)
    files = [f for f in (tmp_path / "results").rglob("*.json") if f != path]
    reader = StatusReader.of_plan(path)
    for _ in range(60):
        for file in rng.sample(files, 4):
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(rng.choice([*BAD.values(), b'{"status": "complete"}']))
            elif rng.random() < 0.5:
                file.unlink()
            else:
                file.write_bytes(file.read_bytes()[: rng.randrange(20)])
        render(reader.read_status())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        ("{", "not readable as JSON"),
        ("[]", "must be an object"),
        ('{"suite": "s", "runs": [3]}', r"'runs\[0\]' must be an object"),
        ('{"suite": "s", "runs": [{"id": "a"}]}', "lacks"),
        (json.dumps({"suite": "s", "runs": [plan_entry("a", "b")]}), "do not belong together"),
    ],
)
def test_a_plan_that_is_none_is_one_sentence(tmp_path, content, said):
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=said):
        StatusReader.of_plan(path)


def test_the_command_needs_neither_torch_nor_pandas(repository, tmp_path):
    code = (
        "import sys; from grace_bench.cli import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'pandas', 'transformers', 'mlflow', 'matplotlib'} & set(sys.modules);"
        "sys.exit(code)"
    )
    config = ["--config-dir", str(repository / "config")]
    done = subprocess.run(
        [sys.executable, "-c", code, "status", *config],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("suite default: ")
    assert "models: 0 of 3; missing: " in done.stdout
    assert "assets: 0 of 3; missing: " in done.stdout
    assert list(tmp_path.iterdir()) == []  # asking leaves nothing behind


def test_durations():
    seconds = (0.2, 99, 200, 7500, 400_000)
    assert [duration(s) for s in seconds] == ["0 s", "99 s", "3 min", "2 h 5 min", "4 d 15 h"]
