"""After each kind of change exactly what depends on it is made again, and `status` says the same.

One small suite, really run, on a table, a folder of weights and an editor of a plug-in.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from plugins import install
from workflows import planned_jobs, snakemake

from grace_bench.models.scratch import build_model, train_tokenizer
from grace_bench.store.files import read_json
from grace_bench.suite.schema import ScratchSource

pytestmark = pytest.mark.timeout(900)

SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
SOURCE = {"kind": "scratch", "architecture": "bert", "vocabulary_size": 300, "shape": SHAPE}
LAYER = "bert.encoder.layer.0.output.dense"
TINY = {
    "name": "tiny",
    "label": "Tiny",
    "source": SOURCE,
    "layer": LAYER,
    "max_length": 32,
    "training": {"steps": 3, "batch_size": 4, "learning_rate": 1e-3},
}
READY = {
    "name": "ready",
    "label": "Ready",
    "source": {"kind": "folder", "id": "weights"},
    "layer": LAYER,
    "max_length": 32,
}
CASES = {
    "name": "cases",
    "label": "Cases",
    "task": "classification",
    "builder": "table",
    "options": {"path": "cases.csv", "stream_size": 4, "upstream_size": 6},
}
MINE = {"name": "mine", "label": "Mine", "editor": "mine"}
SUITE = {
    "name": "small",
    "experiments": [{"model": TINY, "dataset": CASES}, {"model": READY, "dataset": CASES}],
    "editors": ["unedited", {"name": "ft", "hyperparameters": {"steps": 2}}, MINE],
    "stream": {"facts": 3},
    "probes": {"every": 2},
    "compute": {"device": "cpu"},
}
RUNS = 6
PLUGIN = """
from grace_bench.editors import EditorSpec

SPEC = EditorSpec(
    "grace_bench.editors.methods.unedited.hyperparameters:UneditedHyperparameters",
    "grace_bench.editors.methods.unedited.editor:UneditedEditor",
)
"""
TOPICS = ("art", "law", "sea")


@pytest.fixture(scope="module")
def clone(tmp_path_factory, repository):
    """A folder in which the suite has run to its end, and the plug-in is installed."""
    folder = tmp_path_factory.mktemp("clone")
    plugins = tmp_path_factory.mktemp("plugins")
    (plugins / "mine.py").write_text(PLUGIN)
    install(plugins, "mine", "editors", {"mine": "mine:SPEC"}, version="1.2")
    with pytest.MonkeyPatch.context() as patch:
        paths = [str(plugins), str(repository), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        write_table(folder, 30)
        texts = [f"A case about {topic}, number {i}" for i, topic in enumerate(TOPICS)]
        tokenizer = train_tokenizer("bert", texts, 300)
        model = build_model(
            ScratchSource.model_validate(SOURCE), "classification", tokenizer, sorted(TOPICS), 0
        )
        model.save_pretrained(folder / "weights")
        tokenizer.save_pretrained(folder / "weights")
        (folder / "suite.yaml").write_text(yaml.safe_dump(SUITE))
        done = snakemake(repository, folder, "--cores", "2", "--configfile", suite_of(folder))
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        yield Clone(repository, folder, plugins)


def suite_of(folder: Path) -> str:
    return str(folder / "suite.yaml")


def write_table(folder: Path, rows: int) -> None:
    lines = [f"A case about {TOPICS[i % 3]} number {i},{TOPICS[i % 3]}" for i in range(rows)]
    (folder / "cases.csv").write_text("\n".join(["text,label", *lines]) + "\n")


class Clone:
    """The folder, and what is asked of it."""

    def __init__(self, repository: Path, folder: Path, plugins: Path) -> None:
        self.repository, self.folder, self.plugins = repository, folder, plugins
        self.results = folder / "results/small"

    def jobs(self, folder: Path | None = None) -> dict[str, int]:
        """Return the jobs that are planned, aggregation left out."""
        place = folder or self.folder
        jobs = planned_jobs(self.repository, place, "--configfile", suite_of(place))
        rules = ("prepare_data", "prepare_model", "baseline", "prepare_editor", "edit")
        return {rule: n for rule, n in jobs.items() if rule in rules}

    def left(self, folder: Path | None = None) -> int:
        """Return how many runs `status` has left."""
        counts = self.status(folder)["counts"]
        return sum(counts.values()) - counts["finished"]

    def status(self, folder: Path | None = None) -> dict[str, Any]:
        """Return what `status` says."""
        place = folder or self.folder
        command = [sys.executable, "-m", "grace_bench", "status", "--suite", "suite.yaml", "--json"]
        command += ["--config-dir", str(self.repository / "config")]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    def change(self, change) -> None:
        """Write the suite with a change."""
        suite = json.loads(json.dumps(SUITE))
        change(suite)
        (self.folder / "suite.yaml").write_text(yaml.safe_dump(suite))

    def run_folder(self, editor: str = "ft", model: str = "tiny") -> Path:
        """Return the folder of one run."""
        (found,) = (self.results / f"runs/{model}/cases/{editor}").glob("*/seed-0")
        return found


@pytest.fixture
def changed(clone, tmp_path):
    """A copy of the finished folder, with times of its own, to change as one likes."""
    folder = tmp_path / "copy"
    shutil.copytree(clone.folder, folder, copy_function=shutil.copy)
    return Clone(clone.repository, folder, clone.plugins)


def test_a_copy_with_other_times_in_another_place_needs_no_run(changed):
    assert changed.jobs() == {}
    assert changed.left() == 0


def test_a_run_whose_folder_was_removed_is_made_again_alone_and_then_nothing(changed):
    shutil.rmtree(changed.run_folder())
    assert changed.jobs() == {"edit": 1}
    assert changed.left() == 1
    arguments = ("--cores", "2", "--configfile", suite_of(changed.folder))
    before = (changed.results / "summary.parquet").stat().st_mtime_ns
    done = snakemake(changed.repository, changed.folder, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (changed.results / "summary.parquet").stat().st_mtime_ns > before
    assert changed.jobs() == {}
    assert changed.left() == 0


def test_a_base_model_that_no_run_needs_is_not_made_again(changed):
    shutil.rmtree(changed.results / "models")
    assert changed.jobs() == {}
    assert changed.left() == 0


def test_a_base_model_that_is_made_again_takes_its_runs_with_it(changed):
    shutil.rmtree(changed.results / "models/tiny-cases")
    shutil.rmtree(changed.run_folder())
    assert changed.jobs() == {"prepare_model": 1, "baseline": 1, "edit": 3}
    assert changed.left() == 3


def test_another_table_makes_everything_again_and_a_touched_one_nothing(changed):
    os.utime(changed.folder / "cases.csv")
    assert (changed.jobs(), changed.left()) == ({}, 0)
    write_table(changed.folder, 33)
    everything = {"prepare_data": 1, "prepare_model": 2, "baseline": 2, "edit": RUNS}
    assert (changed.jobs(), changed.left()) == (everything, RUNS)
    # `status` names what is made again as Snakemake plans it.
    assert {part["state"] for part in changed.status()["inputs"]} == {"outdated"}


def test_other_weights_in_a_folder_make_its_runs_again(changed):
    config = changed.folder / "weights/config.json"
    config.write_text(json.dumps(read_json(config) | {"layer_norm_eps": 1e-6}))
    assert changed.jobs() == {"prepare_model": 1, "baseline": 1, "edit": 3}
    assert changed.left() == 3


def test_another_code_of_a_plugin_makes_its_runs_again(changed):
    record = read_json(changed.run_folder("mine") / "run.json")
    assert record["provenance"]["origins"]["editor"].startswith("mine 1.2 ")
    code = changed.plugins / "mine.py"
    try:
        code.write_text(PLUGIN + "# mended\n")
        assert (changed.jobs(), changed.left()) == ({"edit": 2}, 2)
    finally:
        code.write_text(PLUGIN)
    assert (changed.jobs(), changed.left()) == ({}, 0)


@pytest.mark.parametrize(
    ("key", "value", "jobs"),
    [
        ("stream", {"facts": 2}, {"edit": RUNS}),
        ("compute", {"device": "auto"}, {}),
        ("description", "another", {}),
    ],
)
def test_settings_make_again_what_they_move(changed, key, value, jobs):
    changed.change(lambda suite: suite.update({key: value}))
    assert changed.jobs() == jobs
    assert changed.left() == jobs.get("edit", 0)


def test_another_layer_makes_no_base_model_again(changed):
    def change(suite):
        suite["experiments"][0]["model"]["layer"] = "bert.encoder.layer.1.output.dense"

    changed.change(change)
    assert changed.jobs() == {"edit": 3}
    assert changed.left() == 3


def test_another_training_makes_again_one_model_and_its_runs(changed):
    changed.change(lambda suite: suite["experiments"][0]["model"]["training"].update(steps=4))
    assert changed.jobs() == {"prepare_model": 1, "baseline": 1, "edit": 3}
    assert changed.left() == 3
