"""Names that would lead out of the results folder, given to every command: one sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
import yaml
from fuzzing import Fence
from small_runs import DATASET, MODEL, spec

from grace_bench.cli import build_parser, main

NAMES = ("../../x", "..", ".", "", ".hidden", "a/b", "a\\b", "a\0b", "a\nb", "~", "x" * 300)
RUN_COMMANDS = ("prepare-data", "prepare-model", "baseline", "prepare-editor", "edit")
PARTS = ("suite", "model", "dataset", "editor")


@pytest.fixture
def fence(tmp_path, monkeypatch) -> Iterator[Fence]:
    """A working folder that must stay empty, as all beside it must stay what it is."""
    fence = Fence(tmp_path / "outer")
    monkeypatch.chdir(fence.inside)
    yield fence
    fence.check()


@pytest.fixture(params=[*NAMES, "absolute"])
def name(request, fence) -> str:
    return str(fence.secret / "x") if request.param == "absolute" else request.param


def named(part: str, name: str) -> dict:
    """Return a run as JSON in which one part has the name."""
    run = spec("ft").model_dump(mode="json")
    if part == "suite":
        return {**run, "suite": name}
    return {**run, part: {**run[part], "name": name}}


def refused(capsys, *command: str) -> str:
    """Do a command that must end with 2, one sentence and nothing written; return the sentence."""
    before = sorted(os.listdir())
    assert main(list(command)) == 2, command
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err
    assert sorted(os.listdir()) == before
    return said.err


@pytest.mark.parametrize("part", PARTS)
def test_in_a_plan(capsys, fence, name, part):
    run = named(part, name)
    experiment = {key: run[key] for key in ("model", "dataset", "stream", "probes")}
    settings = {"name": run["suite"], "experiments": [experiment], "editors": [run["editor"]]}
    (fence.inside / "plan.json").write_text(json.dumps({"settings": settings, "runs": []}))
    place = {"suite": "name", "editor": "editors[0].name"}.get(part, f"experiments[0].{part}.name")
    for command in RUN_COMMANDS:
        said = refused(capsys, command, "--plan", "plan.json", "--run", "x")
        assert f"plan.json: {place}: " in said
    said = refused(
        capsys, "edit-bundle", "--plan", "plan.json", "--runs", "x", "--output", "b.json"
    )
    assert f"plan.json: {place}: " in said


@pytest.mark.parametrize("part", PARTS)
def test_in_a_suite(capsys, fence, name, part):
    run = named(part, name)
    suite = {
        "name": run["suite"],
        "experiments": [{"model": run["model"], "dataset": run["dataset"]}],
        "editors": [run["editor"]],
    }
    (fence.inside / "suite.json").write_text(json.dumps(suite))
    for command in ("plan", "status", "validate"):
        refused(capsys, command, "--suite", "suite.json")


@pytest.mark.parametrize("part", ["model", "dataset", "editor"])
def test_as_an_option(capsys, fence, name, part):
    """Not even a good file is read that lies outside of the folder of its kind."""
    files = {"model": MODEL, "dataset": DATASET, "editor": {"name": "ft", "editor": "ft"}}
    for kind, content in files.items():
        folder = fence.inside / "config" / f"{kind}s"
        folder.mkdir(parents=True)
        (folder / f"{content['name']}.yaml").write_text(yaml.safe_dump(content))
    for place in ("x.yaml", "config/x.yaml"):
        (fence.inside / place).write_text(yaml.safe_dump(files[part]))
    (fence.inside / "config/config.yaml").write_text("name: small\nexperiments: []\neditors: []\n")
    given = {"model": "tiny", "dataset": "qa", "editor": "ft", part: name}
    options = [f"--{key}={value}" for key, value in given.items()]
    wanted = {"model": "unknown model", "dataset": "unknown data set", "editor": "unknown editor"}
    for command in RUN_COMMANDS:
        said = refused(capsys, command, *options)
        assert wanted[part] in said or "is a text that cannot be encoded" in said


def test_of_a_suite_for_the_ui(capsys, name):
    assert "is not a valid suite name" in refused(capsys, "ui", name)


def test_of_a_package_to_begin_from(capsys, name):
    assert "cannot be the name of a package" in refused(capsys, "new", "editor", name)


def test_every_command_is_here_or_takes_no_names():
    [commands] = [a for a in build_parser()._actions if a.dest == "command"]
    here = {*RUN_COMMANDS, "edit-bundle", "plan", "status", "validate", "ui", "new"}
    # Names in runs and in summaries: tests/fuzz/test_records.py and tests/reporting.
    elsewhere = {"collect", "summarise", "tables", "figures", "report", "paper-figures", "track"}
    elsewhere |= {"init"}  # tests/test_skeleton.py
    elsewhere |= {"list", "show", "compare"}  # tests/test_results.py, reporting/test_comparison.py
    assert set(commands.choices) - here - elsewhere == {"cluster", "toy", "reference"}
