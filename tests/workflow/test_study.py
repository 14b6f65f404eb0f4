"""A study of one's own, with grace-bench installed from its wheel, away from the clone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from grace_bench.store.files import read_json

pytestmark = pytest.mark.timeout(600)

PARTS = ("grace_bench", "config", "workflow")
FILES = ("environment.yml", "pyproject.toml", "README.md", "LICENSE")
SMALL = (
    *("models.facts-t5.training.steps=10", "models.facts-t5.training.warmup_steps=1"),
    *("datasets.facts-qa.options.taught_facts=60", "datasets.facts-qa.options.edit_facts=2"),
    "datasets.facts-qa.options.upstream_questions=10",
    "datasets.facts-qa.options.development_upstream_questions=10",
    *("stream.facts=2", "editor.steps=2", "bundle=3"),
)


def run(*command: str | Path, folder: Path) -> str:
    """Run a command as in a fresh shell, and return all it prints."""
    own = ("PYTHONPATH", "VIRTUAL_ENV", "MLFLOW_TRACKING_URI")
    inherited = {k: v for k, v in os.environ.items() if k not in own}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=inherited,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory) -> Path:
    """The wheel, built from a copy: building leaves files beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in PARTS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(repository / name, source / name, symlinks=True, ignore=ignored)
    for name in FILES:
        shutil.copy(repository / name, source)
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation")
    run(*pip, "--no-index", "--wheel-dir", folder, source, folder=folder)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """A Python with the wheel and, from this environment, what it depends on; not the clone."""
    home = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", home, folder=home)
    python = home / "bin/python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-compile")
    run(*pip, "--no-deps", "--no-index", wheel, folder=home)
    [packages] = home.glob("lib/python*/site-packages")
    # A folder that is named in a .pth file has its own .pth files, so the clone's, left alone.
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


def test_the_wheel_has_every_part_of_config_and_workflow(repository, wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = [repository / "workflow/Snakefile"]
    for folder, kinds in {"config": ("yaml",), "workflow": ("smk", "yaml", "rst")}.items():
        wanted += [p for kind in kinds for p in (repository / folder).rglob(f"*.{kind}")]
    assert len(wanted) > 40
    names = {f"grace_bench/shipped/{path.relative_to(repository).as_posix()}" for path in wanted}
    assert names - inside == set()
    assert {name.split("/")[0] for name in inside if ".dist-info/" not in name} == {"grace_bench"}
    assert not [name for name in inside if name.startswith("grace_bench/shipped/workflow/scripts")]


def test_a_study_runs_from_the_wheel_and_makes_its_reports(python, tmp_path):
    where = "import grace_bench; print(grace_bench.__file__)"
    assert run(python, "-c", where, folder=tmp_path).startswith(str(python.parents[1]))
    run(python.parent / "grace-bench", "init", "my-study", folder=tmp_path)
    study, results = tmp_path / "my-study", tmp_path / "my-study/results/my-study"
    snakemake = (python, "-m", "snakemake", "--config", f"set={list(SMALL)}", "--cores", "2")
    run(*snakemake, folder=study)
    assert "| GRACE |" in (results / "tables/main.md").read_text()
    [record] = results.glob("runs/facts-t5/facts-qa/unedited/default/seed-0/run.json")
    assert read_json(record)["provenance"]["git_commit"] is None
    run(*snakemake, "--report", "report.zip", folder=study)
    with zipfile.ZipFile(study / "report.zip") as report:
        names = {Path(name).name: name for name in report.namelist() if "/data/" in name}
        assert set(names) == {"main.csv", "overview.png", "report.html"}
        assert report.read(names["main.csv"]) == (results / "tables/main.csv").read_bytes()
        page = report.read("report/report.html").decode()
    assert "each edit right after it was" in page  # the table's caption
    assert 'src="http' not in page
