"""The workflow as a user runs it: planned, run, run again, changed. One real run of `smoke`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from waiting import wait_until
from workflows import planned_jobs, snakemake

from grace_bench.cli import main
from grace_bench.store.files import read_json

pytestmark = pytest.mark.timeout(1500)  # a whole suite, beside other tests

AGGREGATION = {"all", "plan", "summarise", "tables", "figures", "paper_figures", "report", "track"}


def write_suite(path: Path, repository: Path, change) -> Path:
    suite = yaml.safe_load((repository / "config/suites/smoke.yaml").read_text())
    change(suite)
    path.write_text(yaml.safe_dump(suite))
    return path


@pytest.fixture(scope="module")
def smoke_suite(repository) -> Path:
    return repository / "config" / "suites" / "smoke.yaml"


@pytest.fixture(scope="module")
def finished(repository, smoke_suite, tmp_path_factory) -> Path:
    """A folder in which the smoke suite has run to its end."""
    folder = tmp_path_factory.mktemp("smoke")
    done = snakemake(repository, folder, "--cores", "2", "--configfile", str(smoke_suite))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def test_bare_command_plans_the_default_suite(repository, tmp_path):
    jobs = planned_jobs(repository, tmp_path)
    assert jobs["prepare_data"] == 3
    assert jobs["prepare_model"] == jobs["baseline"] == 3
    # 3 tasks x 8 editors, and three more radii of GRACE on one task.
    assert jobs["edit"] == 3 * 8 + 3
    assert jobs.keys() >= AGGREGATION


@pytest.mark.parametrize("name", ["development", "real-small", "smoke"])
def test_every_suite_plans(repository, tmp_path, name):
    suite = repository / "config" / "suites" / f"{name}.yaml"
    assert planned_jobs(repository, tmp_path, "--configfile", str(suite))["edit"] > 0


def test_smoke_suite_writes_everything_the_readme_lists(finished):
    results = finished / "results" / "smoke"
    plan = read_json(results / "plan.json")["runs"]
    assert len({run["id"] for run in plan}) == len(plan) > 0
    for run in plan:
        folder = finished / run["folder"]
        record = read_json(folder / "run.json")
        assert record["id"] == run["id"]
        assert record["content_hash"] == run["content_hash"]
        assert (folder / "run.log").read_text().strip()
        if record["spec"]["editor"]["editor"] == "grace":
            assert (folder / "codebook.safetensors").stat().st_size > 0
            assert (folder / "codebook.parquet").stat().st_size > 0
    for name in ("summary.parquet", "curves.parquet", "report.html", "mlflow.db"):
        assert (results / name).stat().st_size > 0
    for name in ("tables/main.tex", "tables/main.csv", "figures/overview.png"):
        assert (results / name).stat().st_size > 0
    assert not list(results.rglob("*.tmp"))


def test_second_call_plans_nothing(repository, finished, smoke_suite):
    assert planned_jobs(repository, finished, "--configfile", str(smoke_suite)) == {}


def test_changed_hyperparameter_reruns_its_runs_and_the_aggregation_only(
    repository, finished, tmp_path
):
    def change(suite):
        suite["editors"][1] = {"name": "ft", "hyperparameters": {"steps": 11}}

    suite = write_suite(tmp_path / "changed.yaml", repository, change)
    jobs = planned_jobs(repository, finished, "--configfile", str(suite))
    assert jobs.pop("edit") == 3  # ft on three tasks
    assert jobs.keys() == AGGREGATION


def test_changed_training_reruns_one_model_and_what_depends_on_it(repository, finished, tmp_path):
    def change(suite):
        suite["experiments"][0]["model"]["training"]["steps"] = 61

    suite = write_suite(tmp_path / "changed.yaml", repository, change)
    jobs = planned_jobs(repository, finished, "--configfile", str(suite))
    assert jobs["prepare_model"] == jobs["baseline"] == 1
    assert "prepare_data" not in jobs
    assert jobs["edit"] == len(read_json(finished / "results/smoke/plan.json")["runs"]) // 3


def test_changed_label_reruns_no_run(repository, finished, tmp_path):
    def change(suite):
        suite["editors"][1]["label"] = "Fine-tuning"

    suite = write_suite(tmp_path / "changed.yaml", repository, change)
    jobs = planned_jobs(repository, finished, "--configfile", str(suite))
    assert jobs.keys() == AGGREGATION


def test_lost_run_is_made_again_alone(repository, finished, smoke_suite):
    run = read_json(finished / "results/smoke/plan.json")["runs"][0]
    path = finished / run["folder"] / "run.json"
    content, times = path.read_bytes(), path.stat()
    path.unlink()
    try:
        target = f"{run['folder']}/run.json"
        jobs = planned_jobs(repository, finished, target, "--configfile", str(smoke_suite))
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert jobs == {"edit": 1}


def test_tables_come_back_from_the_parquet_files_alone(repository, finished, smoke_suite):
    table = finished / "results" / "smoke" / "tables" / "main.tex"
    before = table.read_bytes()
    table.unlink()
    done = snakemake(
        repository, finished, "tables", "--cores", "1", "--configfile", str(smoke_suite)
    )
    assert done.returncode == 0, done.stderr
    assert table.read_bytes() == before
    # Leave the folder finished for the tests that follow.
    again = snakemake(repository, finished, "--cores", "2", "--configfile", str(smoke_suite))
    assert again.returncode == 0, again.stderr


def test_collected_results_need_nothing_but_the_aggregation(
    repository, finished, smoke_suite, tmp_path
):
    sources = ["collect", str(finished / "results/smoke"), "--with-models"]
    assert main([*sources, "--output", str(tmp_path / "results")]) == 0
    jobs = planned_jobs(repository, tmp_path, "--configfile", str(smoke_suite))
    assert jobs.keys() == AGGREGATION


def test_single_run_writes_what_the_rule_writes(finished, smoke_suite, repository):
    run = next(
        r
        for r in read_json(finished / "results/smoke/plan.json")["runs"]
        if "/grace/" in r["id"] and not r["in_sweep"] and r["id"].endswith("seed-0")
    )
    folder = finished / run["folder"]
    names = ("codebook.safetensors", "codebook.parquet", "predictions.parquet", "probes.parquet")
    before = {name: (folder / name).read_bytes() for name in names}
    aside = folder.with_name("aside")
    folder.rename(aside)
    model, dataset, editor = run["id"].split("/")[:3]
    command = [sys.executable, "-m", "grace_bench", "edit", "--suite", str(smoke_suite)]
    command += ["--config-dir", str(repository / "config"), "--seed", "0"]
    command += ["--model", model, "--dataset", dataset, "--editor", editor]
    command += ["--set", "editor.steps=10"]
    done = subprocess.run(command, cwd=finished, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {name: (folder / name).read_bytes() for name in names} == before
    shutil.rmtree(folder)
    aside.rename(folder)


def test_two_at_once_in_one_folder(repository, finished, smoke_suite):
    """The first has a lock while it does two runs; the second says so, and does nothing."""
    runs = read_json(finished / "results/smoke/plan.json")["runs"][:2]
    again = [*(f"{run['folder']}/run.json" for run in runs), "--forcerun", "edit"]
    again += ["--cores", "1", "--configfile", str(smoke_suite)]
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(snakemake, repository, finished, *again)
        locks = finished / ".snakemake" / "locks"
        wait_until(lambda: any(locks.glob("*")), 120, "the first has the lock")
        second = snakemake(repository, finished, *again)
        assert first.result().returncode == 0
    assert second.returncode != 0
    assert "cannot be locked" in second.stdout + second.stderr
    assert "Traceback" not in second.stdout + second.stderr


def test_wrong_name_in_a_suite_is_one_sentence(repository, tmp_path):
    def change(suite):
        suite["editors"].append("grce")

    suite = write_suite(tmp_path / "wrong.yaml", repository, change)
    done = snakemake(repository, tmp_path, "--dry-run", "--configfile", str(suite))
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "unknown editor 'grce'; did you mean 'grace'?" in output
    assert "Traceback" not in output


def test_the_wrong_environment_is_one_sentence(repository, tmp_path):
    missing = "raise ModuleNotFoundError(\"No module named 'pyarrow'\", name='pyarrow')\n"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "pyarrow.py").write_text(missing)
    environment = {"PYTHONPATH": str(tmp_path / "other")}
    done = snakemake(repository, tmp_path, "--dry-run", environment=environment)
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "has no 'pyarrow'; activate the environment that `make install` made" in output
    assert "Traceback" not in output


def test_snakemake_lint_is_clean(repository, tmp_path):
    done = snakemake(repository, tmp_path, "--lint")
    assert done.returncode == 0, done.stdout + done.stderr
