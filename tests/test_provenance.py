"""Where numbers come from: which code, and whether it is what was committed."""

from __future__ import annotations

import subprocess

import pytest

from grace_bench.reporting.summary.run_folder import RunFolder, suite_provenance
from grace_bench.store import provenance
from grace_bench.store.records import RunRecord


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in a repository, all of it committed, that provenance takes for its own."""
    folder = tmp_path / "package"
    (folder / "store").mkdir(parents=True)
    (folder / "store/provenance.py").write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *arguments], check=True)
    monkeypatch.setattr(provenance, "__file__", str(folder / "store/provenance.py"))
    provenance.git_state.cache_clear()
    yield folder
    provenance.git_state.cache_clear()


def dirty() -> bool:
    provenance.git_state.cache_clear()
    return provenance.git_state()["git_dirty"]


def test_a_file_of_the_package_that_git_does_not_know_is_a_change(package):
    assert not dirty()
    (package.parent / "notes.txt").write_text("no code")
    assert not dirty()
    (package / "another.py").write_text("code")
    assert dirty()
    (package / "another.py").unlink()
    (package / "store/provenance.py").write_text("# changed")
    assert dirty()


def test_a_package_installed_inside_a_repository_is_in_none_of_its_commits(package, monkeypatch):
    installed = package.parent / ".venv/grace_bench/store/provenance.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    monkeypatch.setattr(provenance, "__file__", str(installed))
    provenance.git_state.cache_clear()
    assert provenance.git_state() == {"git_commit": None, "git_dirty": None}


def test_tables_name_the_plugins_that_made_their_numbers(tmp_path):
    def run(origins):
        part = {"name": "x", "label": "X"}
        record = RunRecord(
            format="grace-bench run",
            version=1,
            id="r",
            variant="default",
            content_hash="h",
            status="complete",
            spec={
                "suite": "s",
                "seed": 0,
                "model": part,
                "dataset": {**part, "task": "classification"},
                "editor": {**part, "editor": "ft"},
            },
            counts={},
            seconds={},
            measure="accuracy",
            files={},
            provenance={"origins": origins},
        )
        return RunFolder(tmp_path, record)

    named = suite_provenance([run({"editor": "mine 1.2 0b1c", "cases.csv": "9f"}), run({})])
    assert named["plugins"] == "mine 1.2 0b1c"
    assert "plugins" not in suite_provenance([run({"cases.csv": "9f"})])
