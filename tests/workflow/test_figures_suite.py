"""The suite of the paper's figures: planned whole, and run on tiny random models, fewer of each."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from paper_inputs import write_inputs

from grace_bench.store.files import read_json, read_parquet
from grace_bench.store.schemas import LATENCY, predictions_schema
from grace_bench.suite.compose import load_suite, read_yaml
from grace_bench.suite.plan import expand

pytestmark = pytest.mark.timeout(1500)  # a whole suite, beside other tests

BLOCKS = [0, 2, 4, 6]
RADII = [0.1, 1, 3]
SMALLER = [
    "seeds=[0]",
    "stream.max_edits=5",
    "probes.every=2",
    "probes.latency=2",
    "compute.threads=1",
    "datasets.hallucination.options.upstream_texts=4",
    "datasets.hallucination.options.train_texts=2",
    "editors.grace.steps=2",
    "editors.ft.steps=2",
]


def snakemake(repository: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(repository / "Snakefile")]
    command += ["--directory", str(folder), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=1400, env=environment, check=False
    )


def tiny_suite(repository: Path, folder: Path) -> Path:
    """Write the suite with two blocks, two radii and three editors, on made-up inputs."""
    suite = read_yaml(repository / "config" / "suites" / "figures.yaml")
    block0, _, block4, _, _, _, gpt2 = suite["experiments"]
    suite["experiments"] = [block0, block4, gpt2]
    unedited, grace, _, also_grace, ft, *_ = suite["editors"]
    suite["editors"] = [
        {**unedited, "datasets": ["hallucination"]},
        {**grace, "sweep": {"radius": [3]}},
        also_grace,
        ft,
    ]
    suite["bundle"] = 5
    inputs = write_inputs(folder / "inputs")
    lines = inputs.overrides("gpt2-xl-grace", "zsre-released", "hallucination")
    source = json.dumps({"kind": "folder", "id": str(inputs.model("t5"))})
    lines += [f"models.t5-small-ssm-nq-block-{n}.source={source}" for n in (0, 4)]
    path = folder / "figures.yaml"
    path.write_text(yaml.safe_dump({**suite, "set": [*lines, *SMALLER]}))
    return path


@pytest.fixture(scope="module")
def finished(repository, tmp_path_factory) -> Path:
    """The results of the suite, run to its end."""
    folder = tmp_path_factory.mktemp("figures")
    suite = tiny_suite(repository, folder)
    done = snakemake(repository, folder, "--cores", "2", "--configfile", str(suite))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "results" / "figures"


def test_the_whole_suite_plans(repository, tmp_path):
    suite = repository / "config" / "suites" / "figures.yaml"
    done = snakemake(repository, tmp_path, "--dry-run", "--configfile", str(suite))
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    jobs = {n: int(k) for n, k in re.findall(r"^(\w+)\s+(\d+)\s*$", output, re.MULTILINE)}
    assert (
        jobs["prepare_model"] == jobs["baseline"] == len(BLOCKS) + 2 + 3
    )  # one is trained, for each seed
    # Three seeds of: blocks x (radii and unedited), nine editors on Hallucination, two for Fig. 6.
    assert jobs["edit"] == 3 * (len(BLOCKS) * (len(RADII) + 1) + 9 + 2)
    assert jobs["toy"] == jobs["paper_figures"] == 1


def test_blocks_radii_and_sizes_are_the_papers(repository):
    suite = load_suite(repository / "config/suites/figures.yaml", repository / "config")
    zsre = [e for e in suite.experiments if e.dataset.name == "zsre-released"]
    assert [e.model.layer for e in zsre] == [
        f"encoder.block.{n}.layer.1.DenseReluDense.wo" for n in BLOCKS
    ]
    assert {e.stream.max_edits for e in zsre} == {3000}
    grace = {
        run.spec.editor.hyperparameters["radius"]
        for run in expand(suite)
        if run.spec.dataset.name == "zsre-released" and run.spec.editor.name == "grace"
    }
    assert grace == set(RADII)
    [long] = [e for e in suite.experiments if e.dataset.name == "zsre-5000"]
    assert (long.stream.max_edits, long.probes.latency) == (5000, 10)


def test_every_figure_is_drawn(finished):
    told = read_json(finished / "paper-figures" / "figures.json")
    assert {entry["figure"] for entry in told if entry["name"]} == {3, 4, 5, 6}
    drawn = {entry["name"] for entry in told if entry["name"]} | {"toy"}
    assert drawn >= {
        "fig3-gpt2-xl-grace-hallucination",
        "fig4-t5-small-ssm-nq-zsre-released",
        "fig5-t5-small-ssm-nq-block-4-zsre-released",
        "fig6-inference-time",
    }
    for name in drawn:
        for kind in ("pdf", "png", "csv"):
            assert (finished / "paper-figures" / f"{name}.{kind}").stat().st_size > 0
    page = (finished / "report.html").read_text()
    assert all(f'alt="{name}"' in page for name in drawn)


def test_the_figures_tell_of_blocks_radii_and_times(finished):
    def column(name: str, key: str) -> set[str]:
        with open(finished / "paper-figures" / f"{name}.csv", encoding="utf-8") as stream:
            return {row[key] for row in csv.DictReader(stream)}

    blocks = "fig4-t5-small-ssm-nq-zsre-released"
    assert {layer.split(".")[2] for layer in column(blocks, "layer")} == {"0", "4"}
    assert {float(radius) for radius in column(blocks, "radius")} == {1.0, 3.0}
    assert column("fig6-inference-time", "dataset") == {"hallucination", "zsre-released"}
    assert column("fig3-gpt2-xl-grace-hallucination", "editor") == {"unedited", "ft", "grace"}


def test_runs_name_answering_keys_and_times(finished):
    for run in read_json(finished / "plan.json")["runs"]:
        folder = finished.parents[1] / run["folder"]
        assert read_parquet(folder / "latency.parquet", LATENCY).num_rows > 0
        keys = read_parquet(
            folder / "predictions.parquet", predictions_schema(), ["role", "key"]
        ).to_pylist()
        named = any(row["key"] is not None for row in keys if row["role"] == "edit")
        assert named == ("/grace/" in run["id"])
