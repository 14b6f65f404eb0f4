"""The paper suite: its whole plan, and all of it on tiny random models of the same architectures.

Nothing of the suite is changed but what a user may override too: models, files, sizes.
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from paper_inputs import write_inputs

from grace_bench.store.files import read_json
from grace_bench.suite.compose import load_suite
from grace_bench.suite.plan import expand

pytestmark = pytest.mark.timeout(1500)  # a whole suite, beside other tests

EDITORS = {"unedited", "ft", "ft_ewc", "ft_retrain", "mend", "defer", "memory"}
EDITORS |= {"grace", "grace-released"}
BUNDLE = 10
"""Runs of a job: all of one model, which is loaded once for them."""

SMALLER = [
    "seeds=[0]",
    "stream.max_edits=5",
    "probes.every=3",
    "compute.threads=1",
    "models.scotus-bert.training.steps=4",
    "datasets.hallucination.options.upstream_texts=8",
    "datasets.hallucination.options.train_texts=8",
    *(f"editors.{name}.steps=2" for name in sorted(EDITORS - {"unedited", "mend"})),
    "editors.ft_retrain.retrain_every=2",
    "editors.ft_retrain.epochs=1",
    "editors.mend.rank=4",
    "editors.mend.training_steps=2",
    "editors.mend.check_every=1",
    "editors.mend.checks=2",
    "editors.mend.held_out=0.4",
    "editors.mend.normalise_over=4",
    "editors.rome.layer=transformer.h.1.mlp.c_proj",
    "editors.rome.steps=2",
    "editors.rome.contexts_per_length=1",
]


def snakemake(repository: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    suite = repository / "config" / "suites" / "paper.yaml"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(repository / "Snakefile")]
    command += ["--directory", str(folder), "--configfile", str(suite), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=1400, env=environment, check=False
    )


def planned_jobs(done: subprocess.CompletedProcess) -> dict[str, int]:
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    if "Nothing to be done" in output:
        return {}
    table = output.split("Job stats:")[1].split("total")[0]
    return {name: int(n) for name, n in re.findall(r"^(\w+)\s+(\d+)\s*$", table, re.MULTILINE)}


@pytest.fixture(scope="module")
def finished(repository, tmp_path_factory) -> Path:
    """A folder in which the suite has run to its end on tiny inputs, and `tiny.yaml` with them."""
    folder = tmp_path_factory.mktemp("paper")
    names = ("t5-small-ssm-nq", "scotus-bert", "gpt2-xl-grace", "zsre", "scotus", "hallucination")
    lines = write_inputs(folder / "inputs").overrides(*names) + SMALLER
    (folder / "tiny.yaml").write_text(yaml.safe_dump({"set": lines, "bundle": BUNDLE}))
    done = snakemake(repository, folder, str(folder / "tiny.yaml"), "--cores", "2")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def test_the_whole_suite_plans(repository, tmp_path):
    jobs = planned_jobs(snakemake(repository, tmp_path, "--dry-run"))
    assert jobs["prepare_data"] == 3
    assert jobs["prepare_model"] == jobs["baseline"] == 2 + 3  # one is trained, for each seed
    assert jobs["prepare_editor"] == 5 + 1  # MEND for each of them, ROME for one
    assert jobs["edit"] == 3 * (3 * len(EDITORS) + 1)  # seeds x (tasks x editors, and ROME)
    assert jobs["tables"] == jobs["figures"] == jobs["track"] == 1


def test_sizes_seeds_and_both_sets_of_rules_are_the_papers(repository):
    suite = load_suite(repository / "config/suites/paper.yaml", repository / "config")
    sizes = {e.dataset.name: e.stream.max_edits for e in suite.experiments}
    assert sizes == {"zsre": 1000, "scotus": 931, "hallucination": 1392}
    assert all(e.stream.facts is None for e in suite.experiments)
    assert len(suite.seeds) >= 3
    rules = {
        run.spec.editor.name: run.spec.editor.hyperparameters["rules"]
        for run in expand(suite)
        if run.spec.editor.editor == "grace"
    }
    assert rules == {"grace": "corrected", "grace-released": "released"}


def test_every_job_says_what_it_needs_of_a_cluster(repository):
    suite = load_suite(repository / "config/suites/paper.yaml", repository / "config")
    for rule in ("prepare_model", "baseline", "prepare_editor", "edit"):
        small, large = (
            {
                name: suite.resources.amount(rule, name, model, attempt=1)
                for name in ("gpu", "mem_mb", "runtime")
            }
            for model in ("t5-small-ssm-nq", "gpt2-xl-grace")
        )
        assert small["gpu"] == large["gpu"] == 1
        assert large["mem_mb"] > small["mem_mb"]
        assert large["runtime"] > small["runtime"]
    assert suite.resources.amount("prepare_data", "gpu", None, attempt=1) == 0


def test_every_editor_has_its_rows_and_stands_beside_the_paper(finished):
    results = finished / "results" / "paper"
    runs = read_json(results / "plan.json")["runs"]
    assert len(runs) == 3 * len(EDITORS) + 1
    for run in runs:
        record = read_json(finished / run["folder"] / "run.json")
        assert f"done: {run['id']}" in (finished / run["folder"] / "run.log").read_text()
        assert (record["status"], record["counts"]["edits"]) == ("complete", 5), run["id"]
    with open(results / "tables" / "main.csv", encoding="utf-8") as stream:
        main = list(csv.DictReader(stream))
    with open(results / "tables" / "paper.csv", encoding="utf-8") as stream:
        paper = list(csv.DictReader(stream))
    labels = {row["row"] for row in main}
    assert labels >= {"Unedited", "FT", "FT+EWC", "FT+Retrain", "MEND", "Defer", "ROME", "Memory"}
    assert labels >= {"GRACE", "GRACE (released)"}
    assert len({row["table"] for row in paper}) == 3
    for table in {row["table"] for row in paper}:
        compared = {
            row["row"]
            for row in paper
            if row["table"] == table and row["column"].endswith("difference") and row["value"]
        }
        assert compared == labels - {"Unedited"} - ({"ROME"} if "gpt2" not in table else set())


def test_figures_and_pages_are_made(finished):
    results = finished / "results" / "paper"
    for name in ("figures/overview.png", "tables/main.tex", "tables/paper.md", "report.html"):
        assert (results / name).stat().st_size > 0
    assert not list(results.rglob("*.tmp"))


def test_one_more_run_in_a_bundle_leaves_the_others_as_they_are(repository, finished):
    """Its bundle is made again, but only to do that run."""
    lines = yaml.safe_load((finished / "tiny.yaml").read_text())["set"]
    lines = ["editors.ft.steps=3" if line == "editors.ft.steps=2" else line for line in lines]
    changed = finished / "changed.yaml"
    changed.write_text(yaml.safe_dump({"set": lines, "bundle": BUNDLE}))
    jobs = planned_jobs(snakemake(repository, finished, str(changed), "--dry-run"))
    assert jobs["edit"] == 3  # ft on three tasks
    assert jobs["edit_bundle"] == 3
    assert jobs.keys().isdisjoint({"prepare_data", "prepare_model", "baseline", "prepare_editor"})


def test_what_jobs_ask_a_cluster_for_makes_nothing_again(repository, finished):
    lines = yaml.safe_load((finished / "tiny.yaml").read_text())["set"]
    more = finished / "more.yaml"
    resources = {"edit": {"gpu": 4}}
    more.write_text(
        yaml.safe_dump(
            {
                "set": [*lines, "resources.edit.gpu=2"],
                "resources": resources,
                "bundle": BUNDLE,
            }
        )
    )
    done = snakemake(repository, finished, str(more), "--dry-run")
    assert planned_jobs(done) == {}
