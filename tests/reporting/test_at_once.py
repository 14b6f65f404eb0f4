"""Aggregations of one folder by two processes at once, and of runs of two machines."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from grace_bench.cli import main
from grace_bench.results.collect import collect
from grace_bench.store import files

STEPS = (
    ["summarise", "--plan", "{suite}/plan.json", "--output", "{suite}"],
    ["tables", "--summary", "{suite}", "--output", "{suite}/tables"],
    ["figures", "--summary", "{suite}", "--output", "{suite}/figures"],
    ["report", "--summary", "{suite}", "--output", "{suite}/report.html"],
)


def write_plan(folders: list[Path], suite: Path) -> None:
    runs = []
    for folder in folders:
        record = json.loads((folder / "run.json").read_text())
        labels = {part: record["spec"][part]["label"] for part in ("model", "dataset", "editor")}
        entry = {key: record[key] for key in ("id", "content_hash", "in_sweep")}
        runs.append({**entry, "folder": str(folder), "base_model": "m-d/seed-0", "labels": labels})
    files.write_json(suite / "plan.json", {"suite": "synthetic", "runs": runs})


def start(suite: Path, *steps: list[str]) -> subprocess.Popen:
    """Start a process that does some commands one after the other."""
    commands = [[part.format(suite=suite) for part in step] for step in steps]
    code = (
        "import json, sys; from grace_bench.cli import main\n"
        "codes = [main(command) for command in json.loads(sys.argv[1])]\n"
        "sys.exit(max(codes))"
    )
    command = [sys.executable, "-c", code, json.dumps(commands)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def both(suite: Path, *steps: list[str]) -> None:
    """Let two processes do the same at the same time."""
    for process in [start(suite, *steps), start(suite, *steps)]:
        error = process.communicate()[1]
        assert process.returncode == 0, error
        assert "Traceback" not in error


@pytest.fixture(scope="module")
def folders(make_run, tmp_path_factory) -> list[Path]:
    results = tmp_path_factory.mktemp("results")
    made = [make_run(results, editor=e, seed=s) for e in ("unedited", "grace") for s in (0, 1)]
    return [*made, make_run(results, editor="ft", failed_at=9)]


@pytest.mark.slow
def test_two_processes_at_once_write_what_one_writes(folders, tmp_path):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    for suite in (alone, shared):
        write_plan(folders, suite)
    # Left over from an earlier suite: both find them, both remove them.
    for number in range(30):
        for name in ("tables/sweep-x{}.md", "figures/sweep-x{}.png"):
            path = shared / name.format(number)
            path.parent.mkdir(exist_ok=True)
            path.write_text("old")
    both(shared, *STEPS)
    for step in STEPS:
        assert main([part.format(suite=alone) for part in step]) == 0
    found = {str(p.relative_to(shared)): p for p in shared.rglob("*") if p.is_file()}
    assert found.keys() == {str(p.relative_to(alone)) for p in alone.rglob("*") if p.is_file()}
    for name, path in found.items():
        assert path.read_bytes() == (alone / name).read_bytes(), name


@pytest.mark.slow
def test_two_exports_at_once_make_each_run_once(folders, tmp_path):
    from mlflow.tracking import MlflowClient

    suite = tmp_path / "synthetic"
    write_plan(folders, suite)
    assert main([part.format(suite=suite) for part in STEPS[0]]) == 0
    step = ["track", "--plan", "{suite}/plan.json", "--summary", "{suite}"]
    for process in [start(suite, step), start(suite, step)]:
        error = process.communicate()[1]
        # On a slow machine the second gives up after a minute, in a sentence.
        assert process.returncode == 0 or "another process is exporting this folder" in error
        assert process.returncode in (0, 75)
    client = MlflowClient(tracking_uri=f"sqlite:///{suite}/mlflow.db")
    experiment = client.get_experiment_by_name("synthetic").experiment_id
    runs = client.search_runs([experiment])
    names = [run.data.tags["grace_bench.run_id"] for run in runs]
    settings = {folder.parent for folder in folders}
    assert len(names) == len(set(names)) == len(folders) + len(settings) + 1
    known = {run.info.run_id for run in runs}
    assert {run.data.tags.get("mlflow.parentRunId") for run in runs} - {None} <= known
    kept = json.loads((suite / "mlflow-export.json").read_text())["runs"]
    assert set(kept) == set(names)


def test_runs_of_two_machines_give_what_those_of_one_give(folders, tmp_path):
    home = folders[0].parents[6]
    for number, folder in enumerate(folders):
        machine = tmp_path / ("a" if number % 2 else "b")
        shutil.copytree(folder, machine / folder.relative_to(home))
    done = collect([tmp_path / "a", tmp_path / "b"], tmp_path / "results")
    assert len(done.copied) == len(folders)
    assert not done.problems
    ours = [tmp_path / "results" / folder.relative_to(home) for folder in folders]
    summaries = []
    for name, found in (("one", folders), ("two", ours)):
        write_plan(found, tmp_path / name)
        assert main([part.format(suite=tmp_path / name) for part in STEPS[0]]) == 0
        summaries.append((tmp_path / name / "summary.parquet").read_bytes())
    assert summaries[0] == summaries[1]
