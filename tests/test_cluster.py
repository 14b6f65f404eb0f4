"""What `grace-bench cluster` says, and what the profile gets, with pretended Slurm commands."""

from __future__ import annotations

import pytest

from grace_bench.errors import ConfigError
from grace_bench.jobs.slurm import GPU_PARTITION, JOB_STATUS, MAX_GPUS, Site, look, site

CONFIG = """Configuration data as of 2026-01-01T00:00:00
ClusterName             = birch
KillWait                = 30 sec
MinJobAge               = {age} sec
PreemptMode             = {preempt}
SLURM_VERSION           = 24.05.1
"""
VARIABLES = ("SBATCH_ACCOUNT", "SBATCH_PARTITION", "SLURM_CONF")
VARIABLES += (GPU_PARTITION, MAX_GPUS, JOB_STATUS)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Pretend a cluster: a folder of programs that is all there is on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def put(name: str, says: str = "", code: int = 0) -> None:
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n/bin/cat <<'END'\n{says}\nEND\nexit {code}\n")
        program.chmod(0o755)

    def pretend(age: int = 300, preempt: str = "OFF", accounting: bool = True, nodes: str = ""):
        put("sbatch")
        put("srun")
        put("scontrol", CONFIG.format(age=age, preempt=preempt))
        put("sinfo", nodes or "main*|(null)\ngpu|gpu:a100:4(S:0-1)")
        put("sacct", "" if accounting else "accounting storage is disabled", 1 - accounting)
        return put

    return pretend


def test_a_machine_without_slurm_is_told_apart(slurm):
    assert "there is no sbatch on PATH" in look().describe()
    assert "workflow/profiles/default" in look().describe()


def test_a_controller_that_does_not_answer_is_named(slurm):
    slurm()("scontrol", "Unable to contact slurm controller", 1)
    assert "Unable to contact slurm controller" in look().describe()


def test_working_accounting_is_used(slurm):
    slurm()
    assert "sacct answers, and the profile uses it" in look().describe()
    assert site().status_command == "sacct"


def test_without_accounting_squeue_is_used(slurm):
    slurm(accounting=False)
    said = look().describe()
    assert "the profile uses squeue. It remembers a job for 300 s" in said
    assert "squeue" in look().headline()


def test_a_memory_of_jobs_that_is_too_short_is_warned_of(slurm):
    slurm(accounting=False, age=60)
    assert "MinJobAge=300" in look().describe()


def test_accounts_partitions_and_gpus_are_told(slurm, monkeypatch):
    slurm()
    said = look().describe()
    assert "export SBATCH_ACCOUNT=NAME" in said
    assert "the default one, main, of main, gpu" in said
    assert "gpu:a100:4" in said
    monkeypatch.setenv("SBATCH_PARTITION", "gqu")
    assert "SBATCH_PARTITION is 'gqu', which is not here" in look().describe()


def test_preemption_that_cancels_is_warned_of(slurm):
    slurm(preempt="CANCEL")
    assert "PreemptMode=CANCEL" in look().describe()


def test_a_slurm_conf_that_jobs_would_lose_is_warned_of(slurm, monkeypatch, tmp_path):
    put = slurm()
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    assert "srun inside jobs would not know it" in look().describe()
    put("srun", "SLURM_CONF=there")
    assert "srun inside jobs" not in look().describe()


def test_the_environment_says_what_differs_from_site_to_site(slurm, monkeypatch):
    slurm()
    for name, value in zip(VARIABLES[:2], ("me", "long"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(GPU_PARTITION, "gpu")
    monkeypatch.setenv(MAX_GPUS, "8")
    assert site() == Site("me", "long", "gpu", 8, "sacct")


@pytest.mark.parametrize(("name", "value"), [(MAX_GPUS, "0"), (MAX_GPUS, "x"), (JOB_STATUS, "q")])
def test_a_wrong_value_in_the_environment_is_one_sentence(slurm, monkeypatch, name, value):
    slurm()
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name}: '{value}' is no"):
        site()
