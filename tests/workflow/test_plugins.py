"""What other packages add runs through the whole workflow without a line of grace-bench."""

from __future__ import annotations

import os

import pytest
import yaml
from capitals import model_config
from plugins import install
from workflows import snakemake

from grace_bench.steps.skeleton import write_skeleton
from grace_bench.store.files import read_json

GROUPS = {
    "editor": ("editors", "SPEC"),
    "dataset": ("datasets", "BUILDER"),
    "task": ("tasks", "TASK"),
}


@pytest.mark.timeout(300)
def test_an_editor_a_data_set_and_a_task_of_other_packages(tmp_path, repository, monkeypatch):
    """A slow test (40 s): what `grace-bench new` writes, from the rows to the report."""
    paths = [str(repository), os.environ.get("PYTHONPATH", "")]
    for kind, (group, target) in GROUPS.items():
        name, package = f"my_{kind}", tmp_path / kind
        write_skeleton(kind, name, package)
        install(package, name, group, {name: f"{name}:{target}"}, version="1.2")
        paths.insert(0, str(package))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    builder = tmp_path / "dataset/my_dataset/__init__.py"
    builder.write_text(builder.read_text().replace('("question_answering",)', '("my_task",)'))
    dataset = yaml.safe_load((tmp_path / "dataset/config/datasets/my_dataset.yaml").read_text())
    suite = {
        "name": "added",
        "experiments": [
            {
                "model": model_config().model_dump(mode="json"),
                "dataset": {**dataset, "task": "my_task"},
            }
        ],
        "editors": ["unedited", "my_editor"],
        "seeds": [0],
        "probes": {"every": 2},
        "compute": {"device": "cpu"},
    }
    folder = tmp_path / "editor"  # its config/editors has the editor, the clone's has the other one
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite))

    done = snakemake(repository, folder, "--cores", "2", "--configfile", str(folder / "suite.yaml"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = folder / "results/added"
    record = read_json(results / "runs/tiny/my_dataset/my_editor/default/seed-0/run.json")
    origins = record["provenance"]["origins"]
    assert {kind: origin.split()[:2] for kind, origin in origins.items()} == {
        "editor": ["my_editor", "1.2"],
        "data set builder": ["my_dataset", "1.2"],
        "task": ["my_task", "1.2"],
    }
    table = (results / "tables/main.md").read_text()
    assert "MyEditor" in table
    assert "MyDataset" in table
    assert "my_task 1.2" in (results / "tables/main.tex").read_text()
    assert (results / "figures/overview.png").is_file()
    assert "MyEditor" in (results / "report.html").read_text()
