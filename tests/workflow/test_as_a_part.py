"""The workflow inside others, wide, and in Snakemake's catalog."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from workflows import snakemake

from grace_bench.store.files import read_json

MODULE = """
module b:
    snakefile: "{snakefile}"
    config: config
{prefix}
use rule * from b as b_*
"""


def outer(
    folder: Path, repository: Path, prefix: str = "", suite: Path | None = None
) -> subprocess.CompletedProcess:
    """Plan a suite, or the smoke suite, from a workflow that uses ours as a module."""
    text = MODULE.format(snakefile=repository / "Snakefile", prefix=prefix)
    (folder / "Snakefile").write_text(text)
    suite = suite or repository / "config/suites/smoke.yaml"
    command = [sys.executable, "-m", "snakemake", "-n", "--configfile", str(suite)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_as_a_module_it_finds_its_own_parts(repository, tmp_path):
    done = outer(tmp_path, repository)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "b_prepare_data" in done.stdout + done.stderr


def test_as_a_module_it_takes_the_users_parts_first_and_its_own_where_there_is_none(
    repository, tmp_path
):
    editors = tmp_path / "config/editors"
    editors.mkdir(parents=True)
    (editors / "mine.yaml").write_text("name: mine\nlabel: Mine\neditor: ft\n")
    (editors / "ft.yaml").write_text(
        "name: ft\nlabel: FT\neditor: ft\nhyperparameters: {steps: 7}\n"
    )
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "name: s\nexperiments: [{model: facts-t5, dataset: facts-qa}]\n"
        "editors: [mine, ft, unedited]\nseeds: [0]\n"
    )
    done = outer(tmp_path, repository, suite=suite)
    assert done.returncode == 0, done.stdout + done.stderr
    for run in ("mine/default", "ft/steps=7", "unedited/default"):
        assert f"runs/facts-t5/facts-qa/{run}/seed-0/run.json" in done.stdout + done.stderr


def test_a_modules_prefix_is_refused_in_a_sentence(repository, tmp_path):
    done = outer(tmp_path, repository, '    prefix: "sub"\n')
    assert done.returncode != 0
    assert "module prefix: grace-bench writes to results/<suite>" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_a_wide_suite_is_planned(repository, tmp_path):
    """Its settings are longer than what a command line may have."""
    models = [
        {"name": f"t5-{i:04d}", "base": "facts-t5", "label": f"{i} {'x' * 99}"} for i in range(800)
    ]
    experiments = [{"model": model, "dataset": "facts-qa"} for model in models]
    suite = {"name": "wide", "editors": ["unedited"], "experiments": experiments}
    path = tmp_path / "wide.yaml"
    path.write_text(yaml.safe_dump(suite))
    target = "results/wide/plan.json"
    done = snakemake(repository, tmp_path, "--cores", "1", "--configfile", str(path), "--", target)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(read_json(tmp_path / target)["runs"]) == 800


def test_an_environment_of_snakemakes_is_refused_in_a_sentence(repository, tmp_path):
    done = snakemake(repository, tmp_path, "--dry-run", "--sdm", "conda")
    assert done.returncode != 0
    assert "--sdm conda: not offered, as jobs run in the environment" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_as_the_catalog_deploys_it_the_installed_package_does_the_work(repository, tmp_path):
    """From a commit of a repository, as Snakemake's `github(...)`; and with the whole config/."""
    source, user = tmp_path / "source", tmp_path / "user"
    for name in ("workflow", "config"):
        shutil.copytree(repository / name, source / name)
    shutil.copytree(repository / "config", user / "config")
    shutil.copy(repository / "environment.yml", source)
    git = ["git", "-C", str(source), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *arguments], check=True)
    (user / "workflow").mkdir()
    text = MODULE.format(snakefile=f"git+file://{source}/workflow/Snakefile@HEAD", prefix="")
    (user / "workflow/Snakefile").write_text(f'configfile: "config/config.yaml"\n{text}')
    command = [sys.executable, "-m", "snakemake", "-n"]
    done = subprocess.run(command, cwd=user, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "facts-passages/grace" in done.stdout + done.stderr


def test_the_catalog_finds_what_it_requires(repository):
    usage = yaml.safe_load((repository / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert usage["report"] is True
    assert not any(usage["software-stack-deployment"].values())
    assert "config/config.yaml" in (repository / "config/README.md").read_text()
    readme = (repository / "README.md").read_text().lower()
    assert "snakemake" in readme
    assert "workflow" in readme
