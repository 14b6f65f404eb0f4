"""`grace-bench new`: what it writes works, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib

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
