"""What a Slurm cluster is like, as far as a suite's jobs depend on it. Torch-free.

    print(look().describe())         # `grace-bench cluster`: in plain sentences, on a login node
    site = site()                    # what the profile `slurm` asks for when Snakemake starts

Nothing is submitted; three commands of Slurm are asked, each for some seconds at most.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from grace_bench.errors import ConfigError

TIMEOUT_SECONDS = 20
LONGEST_POLL_SECONDS = 180
"""The plugin looks at its jobs every so often, when nothing ends for long."""

MAX_GPUS = "GRACE_BENCH_MAX_GPUS"
GPU_PARTITION = "GRACE_BENCH_GPU_PARTITION"
JOB_STATUS = "GRACE_BENCH_JOB_STATUS"
STATUS_COMMANDS = ("sacct", "squeue")


@dataclass(frozen=True)
class Site:
    """What the profile asks the environment for; empty or None: not given."""

    account: str
    partition: str
    gpu_partition: str
    max_gpus: int | None
    status_command: str


def site() -> Site:
    """Return what differs from site to site, and make the plugin keep to the status command.

    Raises:
        ConfigError: a variable has a value that cannot be.
    """
    command = os.environ.get(JOB_STATUS, "")
    if command and command not in STATUS_COMMANDS:
        raise ConfigError(f"{JOB_STATUS}: '{command}' is no status command; use sacct or squeue.")
    command = command or ("sacct" if not accounting_trouble() else "squeue")
    if command == "squeue":
        never_fall_back_to_sacct()
    return Site(
        account=os.environ.get("SBATCH_ACCOUNT", ""),
        partition=os.environ.get("SBATCH_PARTITION", ""),
        gpu_partition=os.environ.get(GPU_PARTITION, ""),
        max_gpus=_max_gpus(),
        status_command=command,
    )


def _max_gpus() -> int | None:
    given = os.environ.get(MAX_GPUS, "")
    if not given:
        return None
    if not given.isdecimal() or int(given) < 1:
        raise ConfigError(
            f"{MAX_GPUS}: '{given}' is no number of GPUs; use 1 or more, or unset it."
        )
    return int(given)


def accounting_trouble() -> str:
    """Return why sacct cannot say how jobs are; empty: it can."""
    # A name that no job has: the answer is empty, however large the database is.
    query = ["sacct", "-X", "--noheader", "--format=JobIdRaw", "--name=grace-bench_none"]
    return _ask(query).trouble


def never_fall_back_to_sacct() -> None:
    """Make the Slurm plugin believe that there is no sacct, as it answers nothing here.

    When the controller is away for a moment, plugin 2.8.0 turns from squeue to sacct wherever that
    program is installed, is refused at once where accounting is off, and then forgets all running
    jobs without a word.
    """
    try:
        import snakemake_executor_plugin_slurm as plugin
    except ImportError:
        return
    available = getattr(plugin, "is_query_tool_available", None)
    if available is not None:
        plugin.is_query_tool_available = lambda tool: tool != "sacct" and available(tool)


@dataclass(frozen=True)
class Answer:
    """What a command of Slurm printed, and why it could not, if it couldn't."""

    text: str = ""
    trouble: str = ""


def _ask(command: list[str]) -> Answer:
    if shutil.which(command[0]) is None:
        return Answer(trouble=f"there is no {command[0]} on PATH")
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Answer(trouble=f"{command[0]} does not answer within {TIMEOUT_SECONDS} s")
    except OSError as error:
        return Answer(trouble=f"{command[0]} cannot be run ({error.strerror})")
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        return Answer(trouble=f"{command[0]} says: {said[:200]}")
    return Answer(text=done.stdout)


@dataclass(frozen=True)
class Cluster:
    """What was found. Settings are those of `scontrol show config`."""

    trouble: str = ""  # why no job can be submitted from here; empty: it can
    settings: dict[str, str] = field(default_factory=dict)
    partitions: tuple[str, ...] = ()  # the default one ends in *
    gpus: tuple[str, ...] = ()  # kinds: gpu:a100:4
    accounting_trouble: str = ""
    own_slurm_conf: str = ""  # SLURM_CONF, where jobs would lose it

    def seconds(self, setting: str) -> int | None:
        """Return a setting that is a time; None: it isn't known."""
        number = re.match(r"\d+", self.settings.get(setting, ""))
        return int(number[0]) if number else None

    @property
    def status_command(self) -> str:
        """The command that tells how jobs are."""
        return "squeue" if self.accounting_trouble else "sacct"

    def describe(self) -> str:
        """Return sentences for a person: what works here, and what to put where."""
        if self.trouble:
            return (
                f"No jobs can be submitted from here: {self.trouble}. Log in to a node of the "
                "cluster that has sbatch; on this machine use "
                "--profile workflow/profiles/default or workflow/profiles/gpu."
            )
        sentences = [
            self._about_slurm(),
            self._about_status(),
            *self._about_account(),
            *self._about_gpus(),
            *self._about_stopping(),
            *self._about_slurm_conf(),
        ]
        return "\n".join(sentences)

    def headline(self) -> str:
        """Return one line for the start of a workflow."""
        if self.trouble:
            return f"Slurm: {self.trouble}"
        name = self.settings.get("ClusterName", "?")
        return f"Slurm {name}: job status by {self.status_command} ({self._why()})"

    def _why(self) -> str:
        return self.accounting_trouble or "accounting answers"

    def _about_slurm(self) -> str:
        version = self.settings.get("SLURM_VERSION", "of unknown version")
        name = self.settings.get("ClusterName", "?")
        return f"Slurm {version} answers; the cluster is called {name}."

    def _about_status(self) -> str:
        if not self.accounting_trouble:
            return "Job status: sacct answers, and the profile uses it. Nothing to do."
        sentence = (
            f"Job status: sacct is of no use ({self.accounting_trouble}); the profile uses squeue. "
        )
        age = self.seconds("MinJobAge")
        if age is not None and age <= LONGEST_POLL_SECONDS:
            return sentence + (
                f"But squeue forgets a job {age} s after its end (MinJobAge), and Snakemake may "
                f"look only every {LONGEST_POLL_SECONDS} s: it could wait for ever. Ask the "
                f"administrators for MinJobAge={LONGEST_POLL_SECONDS + 120}, or for accounting."
            )
        return sentence + f"It remembers a job for {age} s after its end, which is enough."

    def _about_account(self) -> list[str]:
        account = os.environ.get("SBATCH_ACCOUNT", "")
        partition = os.environ.get("SBATCH_PARTITION", "")
        default = [name for name in self.partitions if name.endswith("*")]
        known = ", ".join(name.rstrip("*") for name in self.partitions)
        sentences = [
            f"Account: {account} (SBATCH_ACCOUNT)."
            if account
            else "Account: your default one. If sbatch wants a name: export SBATCH_ACCOUNT=NAME."
        ]
        if partition and partition not in known.split(", "):
            sentences.append(
                f"Partition: SBATCH_PARTITION is '{partition}', which is not here. There are: "
                f"{known}."
            )
        elif partition:
            sentences.append(f"Partition: {partition} (SBATCH_PARTITION) of {known}.")
        elif default:
            sentences.append(
                f"Partition: the default one, {default[0].rstrip('*')}, of {known}. Another: "
                "export SBATCH_PARTITION=NAME."
            )
        else:
            sentences.append(
                f"Partition: there is no default one; export SBATCH_PARTITION=NAME, one of {known}."
            )
        return sentences

    def _about_gpus(self) -> list[str]:
        if not self.gpus:
            return ["GPUs: no node says that it has any; suites that ask for GPUs cannot run here."]
        kinds = ", ".join(self.gpus)
        cap = os.environ.get(MAX_GPUS, "")
        limit = (
            f"at most {cap} at once ({MAX_GPUS})" if cap else f"no limit ({MAX_GPUS}=N sets one)"
        )
        return [
            f"GPUs on a node: {kinds}; {limit}. If they are in a partition of their own: "
            f"export {GPU_PARTITION}=NAME."
        ]

    def _about_stopping(self) -> list[str]:
        sentences = []
        wait = self.seconds("KillWait")
        if wait is not None:
            sentences.append(
                f"Stopping: a job that is cancelled has {wait} s (KillWait) to write a checkpoint; "
                "one whose time is up is asked 120 s before."
            )
        if "CANCEL" in self.settings.get("PreemptMode", ""):
            sentences.append(
                "Preemption: jobs may be cancelled for others and are not put back by Slurm "
                "(PreemptMode=CANCEL); Snakemake does not notice. Use a partition that is not "
                "preempted, or press Ctrl-C and start again when squeue shows no more of your jobs."
            )
        return sentences

    def _about_slurm_conf(self) -> list[str]:
        if not self.own_slurm_conf:
            return []
        return [
            f"SLURM_CONF is {self.own_slurm_conf}, and srun inside jobs would not know it: the "
            "jobs' Snakemake drops SLURM_ variables. Put a file named srun first on PATH, with "
            "the three lines that docs/how-to/cluster.md gives, before you start."
        ]


def look() -> Cluster:
    """Ask Slurm what it is like here."""
    if shutil.which("sbatch") is None:
        return Cluster(trouble="there is no sbatch on PATH")
    config = _ask(["scontrol", "show", "config"])
    if config.trouble:
        return Cluster(trouble=config.trouble)
    nodes = _ask(["sinfo", "--noheader", "--format=%P|%G"]).text.splitlines()
    parts = [line.strip().split("|") for line in nodes if "|" in line]
    kinds = {kind.split("(")[0] for _, generic in parts for kind in generic.split(",")}
    return Cluster(
        settings=dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", config.text, re.MULTILINE)),
        partitions=tuple(dict.fromkeys(partition for partition, _ in parts)),
        gpus=tuple(sorted(kind for kind in kinds if kind.startswith("gpu"))),
        accounting_trouble=accounting_trouble(),
        own_slurm_conf=lost_slurm_conf(),
    )


def lost_slurm_conf() -> str:
    """Return SLURM_CONF, if it is set and the srun on PATH doesn't set it again; else nothing."""
    given = os.environ.get("SLURM_CONF", "")
    srun = shutil.which("srun")
    if not given or srun is None:
        return ""
    with open(srun, "rb") as stream:
        start = stream.read(4096)
    sets_it = start.startswith(b"#!") and b"SLURM_CONF" in start
    standard = Path("/etc/slurm/slurm.conf")
    same = standard.exists() and Path(given).exists() and standard.samefile(given)
    return "" if sets_it or same else given
