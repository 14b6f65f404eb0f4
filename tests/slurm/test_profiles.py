"""The profiles as files: found by name, every key explained, nothing in them that is not there."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import yaml
import yte

PROFILES = ("slurm", "default", "gpu")
RULES = re.compile(r"^\s*rule (\w+):", re.MULTILINE)


@pytest.fixture(params=PROFILES)
def profile(repository, request):
    return repository / "workflow/profiles" / request.param / "profile.yaml"


def test_the_name_slurm_is_found_from_the_root(repository):
    assert (repository / "slurm").resolve() == repository / "workflow/profiles/slurm"


def test_every_key_is_explained(profile):
    lines = profile.read_text().splitlines()
    bare = []
    for number, line in enumerate(lines):
        if re.match(r"[a-z_-]+:", line) and "#" not in line:
            before = number - 1
            while before >= 0 and re.match(r"([a-z_-]+:|\?if )", lines[before]):
                before -= 1
            if not lines[before].startswith("#"):
                bare.append(line)
    assert bare == []


def test_rules_that_profiles_name_exist(repository, profile):
    # Snakemake ignores a name that does not exist, without a word.
    folder = repository / "workflow/rules"
    rules = {name for path in folder.glob("*.smk") for name in RULES.findall(path.read_text())}
    content = yaml.safe_load(profile.read_text())
    named = {**content.get("set-resources", {})}
    for key, value in content.items():
        if key.startswith("?if "):
            named |= value.get("set-resources", {})
    assert named.keys() <= rules


def test_no_job_arrays(repository):
    assert "array" not in yaml.safe_load(
        (repository / "workflow/profiles/slurm/profile.yaml").read_text()
    )


@pytest.mark.parametrize("name", ["slurm", "workflow/profiles/default", "workflow/profiles/gpu"])
def test_the_literal_command_plans(repository, tmp_path, name):
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "2", "--profile", name]
    command += ["--directory", str(tmp_path), "--configfile", "config/suites/smoke.yaml"]
    environment = {**os.environ, "SBATCH_ACCOUNT": "me", "GRACE_BENCH_MAX_GPUS": "3"}
    environment |= {"GRACE_BENCH_GPU_PARTITION": "gpus", "CUDA_VISIBLE_DEVICES": "0,1"}
    done = subprocess.run(
        command, cwd=repository, capture_output=True, text=True, env=environment, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert re.search(r"^edit +12$", said, re.MULTILINE)
    assert f"Using profile {name}" in said


def evaluated(repository, name: str) -> dict:
    """Return a profile as Snakemake takes it: its computed values worked out."""
    return yte.process_yaml((repository / f"workflow/profiles/{name}/profile.yaml").read_text())


def test_what_differs_from_site_to_site_comes_from_the_environment(repository, monkeypatch):
    for name, value in {
        "SBATCH_ACCOUNT": "me",
        "SBATCH_PARTITION": "all",
        "GRACE_BENCH_GPU_PARTITION": "gpus",
        "GRACE_BENCH_MAX_GPUS": "3",
        "GRACE_BENCH_JOB_STATUS": "sacct",
    }.items():
        monkeypatch.setenv(name, value)
    found = evaluated(repository, "slurm")
    assert found["default-resources"]["slurm_account"] == "me"
    assert found["default-resources"]["slurm_partition"] == "all"
    assert found["default-resources"]["slurm_extra"] == "'--signal=TERM@120'"
    assert found["resources"] == {"gpu": 3}
    assert found["slurm-status-command"] == "sacct"
    with_models = {"prepare_model", "baseline", "prepare_editor", "edit", "edit_bundle"}
    assert found["set-resources"] == {n: {"slurm_partition": "gpus"} for n in with_models}


def test_a_site_that_says_nothing_gets_its_defaults(repository, monkeypatch):
    for name in ("SBATCH_ACCOUNT", "SBATCH_PARTITION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("GPU_PARTITION", "MAX_GPUS"):
        monkeypatch.delenv(f"GRACE_BENCH_{name}", raising=False)
    monkeypatch.setenv("GRACE_BENCH_JOB_STATUS", "sacct")
    found = evaluated(repository, "slurm")
    assert found.keys().isdisjoint({"resources", "set-resources"})
    assert found["default-resources"].keys() == {"slurm_extra", "mem_mb", "runtime"}


@pytest.mark.parametrize(("devices", "gpus"), [("0,1,2", 3), ("1", 1), ("", 1)])
def test_one_machine_runs_as_many_jobs_with_models_as_it_has_gpus(
    repository, monkeypatch, devices, gpus
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    found = evaluated(repository, "gpu")
    assert found["resources"] == {"gpu": gpus}
    assert {tuple(asked.items()) for asked in found["set-resources"].values()} == {(("gpu", 1),)}
