"""The workflow inside others, wide, and where Snakemake makes the environment."""

from __future__ import annotations

import os
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


CONDA = """#!/bin/bash
case "$*" in
  *--version*) echo "conda 24.9.2";;
  *"info --json"*) echo '{{"conda_prefix": "{home}", "platform": "linux-64"}}';;
  *channel_priority*) echo '{{"get": {{"channel_priority": "strict"}}}}';;
  *"env create"*)
    while [ $# -gt 0 ]; do [ "$1" = --prefix ] && P=$2; shift; done
    mkdir -p "$P/bin" "$P/conda-meta"
    printf '#!/bin/sh\\nexit 7\\n' > "$P/bin/python"; chmod +x "$P/bin/python";;
esac
"""


def test_with_an_environment_of_snakemakes_its_python_is_called(repository, tmp_path, monkeypatch):
    """A stand-in makes environments whose python only exits with 7."""
    home = tmp_path / "conda"
    (home / "bin").mkdir(parents=True)
    (home / "bin/conda").write_text(CONDA.format(home=home))
    (home / "bin/conda").chmod(0o755)
    (home / "bin/activate").write_text('export PATH="$1/bin:$PATH"\n')
    monkeypatch.setenv("PATH", f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}")
    suite = ("--configfile", str(repository / "config/suites/smoke.yaml"))
    target = "results/smoke/data/facts-qa/manifest.json"
    done = snakemake(repository, tmp_path, "--sdm", "conda", "--cores", "1", *suite, "--", target)
    assert done.returncode != 0
    assert "non-zero exit status 7" in done.stdout + done.stderr
