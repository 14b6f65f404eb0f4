"""`grace-bench new` and `init`: what they write works, and what they refuse."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from grace_bench.cli import main

KINDS = ("editor", "dataset", "task")


@pytest.mark.slow
def test_what_is_written_passes_its_own_tests(tmp_path, monkeypatch):
    """A slow test (10 s): it is what an author of a method begins with."""
    monkeypatch.chdir(tmp_path)
    for kind in KINDS:
        assert main(["new", kind, f"my_{kind}"]) == 0
        project = tomllib.loads((tmp_path / f"my_{kind}/pyproject.toml").read_text())
        [[entry]] = [points.values() for points in project["project"]["entry-points"].values()]
        assert entry.startswith(f"my_{kind}:")
    assert "MyEditor" in (tmp_path / "my_editor/my_editor/editor.py").read_text()
    assert not list(tmp_path.rglob("*NAME*"))
    folders = [str(tmp_path / f"my_{kind}") for kind in KINDS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *folders]
    done = subprocess.run(
        [*command, "--import-mode=importlib"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout


@pytest.mark.parametrize(
    ("kind", "name", "sentence"),
    [
        ("editor", "grace", "editor 'grace' already exists"),
        ("dataset", "zsre", "data set builder 'zsre' already exists"),
        ("task", "classification", "task 'classification' already exists"),
        ("editor", "json", "a Python module named 'json' already exists"),
        ("editor", "torch", "a Python module named 'torch' already exists"),
        ("editor", "class", "'class' is a Python keyword"),
        ("editor", "My-Editor", "'My-Editor' cannot be the name of a package"),
        ("editor", "../x", "'../x' cannot be the name of a package"),
        ("editor", "there", "there: already exists"),
    ],
)
def test_a_name_that_cannot_be_is_refused_and_writes_nothing(
    tmp_path, monkeypatch, capsys, kind, name, sentence
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert main(["new", kind, name]) == 2
    assert sentence in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_study_has_its_own_suite_and_nothing_else_to_be_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert main(["init", "studies/2026"]) == 0  # a number, if YAML were to decide
    assert main(["init", "there"]) == 0
    monkeypatch.chdir(tmp_path / "studies/2026")
    capsys.readouterr()
    assert main(["plan"]) == 0
    told = capsys.readouterr()
    assert "3 runs in suite '2026'" in told.err
    assert "facts-t5/facts-qa/unedited/default/seed-0" in told.out
    assert not list(tmp_path.rglob("*.txt"))
    assert not list(tmp_path.rglob("profiles/default"))  # Snakemake would use it unasked


@pytest.mark.slow
def test_a_study_is_planned_from_the_clone_and_takes_rules_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my-study"]) == 0
    with (tmp_path / "my-study/Snakefile").open("a") as stream:
        stream.write(
            '\n\nrule mine:\n    output:\n        "mine.txt",\n    shell:\n        "touch"\n'
        )

    def planned(*target: str) -> str:
        command = [sys.executable, "-m", "snakemake", "-n", "--cores", "1", *target]
        done = subprocess.run(
            command, cwd=tmp_path / "my-study", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "results/my-study/runs/facts-t5/facts-qa/grace" in planned()
    assert "mine.txt" not in planned()
    assert "mine.txt" in (mine := planned("mine"))
    assert "results/my-study" not in mine


def test_the_next_steps_of_a_study_are_suites(tmp_path, monkeypatch, capsys):
    assert main(["init", str(tmp_path / "my-study")]) == 0
    monkeypatch.chdir(tmp_path / "my-study")
    readme, suite = Path("README.md").read_text(), Path("config/config.yaml")
    [sweep] = re.findall(r"by `- (\{name: grace, .*)`\.", readme)
    assert "write `- defer` below `- grace`" in readme
    suite.write_text(suite.read_text().replace("- grace\n", f"- {sweep}\n  - defer\n"))
    capsys.readouterr()
    assert main(["plan"]) == 0
    assert "6 runs in suite 'my-study'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "sentence"),
    [
        ("full", "full: is not empty; choose another folder."),
        ("file", "file: is a file; choose another folder."),
        ("my study", "'my study' cannot be the name of a suite; use at most 48 letters"),
        ("..", "cannot be the name of a suite"),
        ("n" * 49, "cannot be the name of a suite"),
    ],
)
def test_a_folder_that_cannot_become_a_study_is_left_alone(
    tmp_path, monkeypatch, capsys, folder, sentence
):
    here = tmp_path / "_parent" / "work"
    (here / "full").mkdir(parents=True)
    (here / "full/notes.txt").touch()
    (here / "file").touch()
    monkeypatch.chdir(here)
    assert main(["init", folder]) == 2
    assert sentence in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        "_parent",
        "file",
        "full",
        "notes.txt",
        "work",
    ]
