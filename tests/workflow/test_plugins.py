"""What other packages add: it runs through the whole workflow without a line here."""

from __future__ import annotations

import os

import pytest
import yaml
from workflows import snakemake

from grace_bench.store.files import read_json

EDITOR = '''
"""A constant is added to the weight: no edit takes, all is forgotten a little."""
import torch

from grace_bench.editors.base import EditResult
from grace_bench.editors.hyperparameters import EditorHyperparameters
from grace_bench.editors.weight import WeightEditor
from grace_bench.registry import EditorSpec


class Settings(EditorHyperparameters):
    size: float = 0.01


class Shift(WeightEditor):
    name = "shift"

    def edit(self, batch):
        with torch.no_grad():
            self.weight.add_(self.hyperparameters.size)
        return EditResult()


SPEC = EditorSpec("added:Settings", "added:Shift", colour="#123456", marker="<")
'''
DATASET = """
from typing import Any

from grace_bench.datasets.base import BuiltDataset, DatasetBuilder
from grace_bench.datasets.options import DatasetOptions

LANDS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Peru": "Lima", "Cuba": "Havana"}
ASKED = {
    "train": "What is the capital of {}?",
    "upstream": "Which city is the capital of {}?",
    "edits": "Name the capital of {} before 1900.",
    "holdout": "The capital of {} before 1900?",
}


class Options(DatasetOptions):
    anything: Any = None


class Lands(DatasetBuilder[Options]):
    name = "lands"
    options_class = Options
    tasks = ("shouting",)

    def build(self):
        def row(role, land, city):
            fact = "old/" if role in ("train", "upstream") else "new/"
            text, name = ASKED[role].format(land), f"{role}/{land}"
            return {"example_id": name, "fact_id": fact + land, "text": text, "label": city}

        roles = {role: [row(role, *pair) for pair in LANDS.items()] for role in ASKED}
        return BuiltDataset(roles, sources=[])
"""
TASK = """
from grace_bench.tasks.kinds.question_answering import QuestionAnswering


class Shouting(QuestionAnswering):
    name = "shouting"
"""
POINTS = """
[grace_bench.editors]
shift = added:SPEC

[grace_bench.datasets]
lands = added:Lands

[grace_bench.tasks]
shouting = added:Shouting
"""
SUITE = {
    "name": "added",
    "experiments": [
        {
            "model": {
                "name": "tiny",
                "label": "Tiny",
                "source": {
                    "kind": "scratch",
                    "architecture": "gpt2",
                    "vocabulary_size": 300,
                    "shape": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
                },
                "layer": "transformer.h.0.mlp.c_fc",
                "max_length": 48,
                "training": {"steps": 5, "batch_size": 2, "learning_rate": 1e-3},
            },
            "dataset": {"name": "lands", "label": "Lands", "task": "shouting", "builder": "lands"},
        }
    ],
    "editors": ["unedited", {"name": "shift", "label": "Shift", "editor": "shift"}],
    "seeds": [0],
    "probes": {"every": 2},
    "compute": {"device": "cpu"},
}


@pytest.mark.timeout(300)
def test_an_editor_a_data_set_and_a_task_of_another_package(tmp_path, repository, monkeypatch):
    package, folder = tmp_path / "package", tmp_path / "folder"
    (package / "added-1.2.dist-info").mkdir(parents=True)
    folder.mkdir()
    (package / "added.py").write_text(EDITOR + DATASET + TASK)
    info = package / "added-1.2.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: added\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(POINTS)
    (folder / "suite.yaml").write_text(yaml.safe_dump(SUITE))
    paths = [str(package), str(repository), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))

    done = snakemake(repository, folder, "--cores", "2", "--configfile", str(folder / "suite.yaml"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = folder / "results/added"
    record = read_json(results / "runs/tiny/lands/shift/default/seed-0/run.json")
    origins = record["provenance"]["origins"]
    assert set(origins) == {"editor", "data set builder", "task"}
    assert all(plugin.startswith("added 1.2 ") for plugin in origins.values())
    table = (results / "tables/main.md").read_text()
    assert "Shift" in table
    assert "Lands" in table
    assert "added 1.2" in (results / "tables/main.tex").read_text()
    assert (results / "figures/overview.png").is_file()
    assert "Shift" in (results / "report.html").read_text()
