"""A real Slurm cluster on loopback, as tests use it: two nodes with one pretended GPU each."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from plugins import install
from waiting import wait_until

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
BIN = Path(sys.executable).parent
REMEMBERED = 7200
"""Seconds (MinJobAge) for which Slurm can list a job that ended: longer than all tests take."""
NEEDED = ("Snakefile", "slurm", "workflow", "config", "grace_bench", "environment.yml")


@dataclass(frozen=True)
class Job:
    """What Slurm knows of one job, running or not."""

    number: str
    state: str
    node: str
    start: str
    end: str
    memory: str
    gpus: str
    comment: str

    @property
    def seed(self) -> int | None:
        name = self.comment.rpartition("_")[2]
        return int(name) if self.comment.startswith("rule_edit_") and name.isdecimal() else None


class Cluster:
    """The cluster that the shared scripts start and stop in a folder of its own."""

    def __init__(self, scripts: Path) -> None:
        # Paths of Unix sockets are short.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self._scripts = scripts
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("SLURM_")},
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{self.folder / 'bin'}:{BIN}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }

    def start(self) -> None:
        size = {"NODES": 2, "CPUS": 2, "MEM": 8000, "GPUS": 1, "MINAGE": REMEMBERED}
        settings = {f"SLURM_TEST_{name}": str(value) for name, value in size.items()}
        command = ["bash", str(self._scripts / "start.sh"), str(self.folder)]
        self._run(command, {**os.environ, **settings}, 60)

    def stop(self) -> None:
        self._run(["bash", str(self._scripts / "stop.sh"), str(self.folder)], os.environ, 60)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, command: list[str], environment, seconds: float) -> str:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    def ask(self, *command: str) -> str:
        """Run a command of Slurm and return what it prints."""
        return self._run(list(command), self.environment, 60)

    def jobs(self) -> list[Job]:
        """Return all jobs so far, oldest first."""
        gpus = self.ask("squeue", "-h", "-t", "all", "-O", "JobID:20,tres-per-job:40").splitlines()
        asked = dict(line.split(maxsplit=1) for line in gpus)
        table = self.ask("squeue", "-h", "-t", "all", "-o", "%i|%T|%N|%S|%e|%m|%k").splitlines()
        found = [
            Job(*parts[:6], asked.get(parts[0], ""), parts[6])
            for parts in (line.split("|") for line in table)
        ]
        return sorted(found, key=lambda job: int(job.number))

    def kill(self, daemon: str, number: signal.Signals) -> None:
        """Send a signal to slurmctld, slurmd-n0 or slurmd-n1, and wait for its end."""
        pid = int((self.folder / "run" / f"{daemon}.pid").read_text().split()[0])
        os.kill(pid, number)
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), 20, f"{daemon} is gone")

    def start_again(self, daemon: str) -> None:
        """Start a killed daemon as start.sh does, known to stop.sh."""
        name, _, node = daemon.partition("-")
        command = [
            name,
            "-D",
            "-f",
            str(self.folder / "slurm.conf"),
            *(["-N", node] if node else []),
        ]
        # By a shell that ends at once: the daemon must not stay our child when it ends.
        line = 'log=$1; shift; setsid nohup "$@" < /dev/null >> "$log" 2>&1 & echo $!'
        log = self.folder / "log" / f"{daemon}.out"
        pid = self._run(["bash", "-c", line, "-", str(log), *command], self.environment, 20).strip()
        wait_until(lambda: name in Path(f"/proc/{pid}/comm").read_text(), 10, f"{daemon} runs")
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        (self.folder / "run" / f"{daemon}.pid").write_text(f"{pid} {started}\n")


class Workflow:
    """A copy of the repository, with its suite, and Snakemake in it."""

    def __init__(self, repository: Path, folder: Path, cluster: Cluster) -> None:
        self.folder = folder / "grace-bench"
        self.accidents = folder / "accidents"
        self.accidents.mkdir(parents=True)
        self.cluster = cluster
        here = Path(__file__).parent
        copy_repository(repository, self.folder)
        editor = {"name": "held", "label": "Held", "editor": "held"}
        (self.folder / "config/editors/held.yaml").write_text(json.dumps(editor))
        self.suite = self.folder / "config/suites/small.yaml"
        shutil.copy(here / "suite.yaml", self.suite)
        plugin = folder / "plugin"
        plugin.mkdir(parents=True)
        shutil.copy(here / "held_editor.py", plugin)
        install(plugin, "held-editor", "editors", {"held": "held_editor:SPEC"}, version="1.0")
        self.environment = {
            **cluster.environment,
            "PYTHONPATH": str(plugin),
            "GRACE_BENCH_TEST_ACCIDENTS": str(self.accidents),
        }

    def start(self, *command: str, log: str, **environment: str) -> subprocess.Popen:
        """Start a command in the repository's root; what it says goes to a file beside it."""
        with open(self.folder.parent / log, "a", encoding="utf-8") as stream:
            return subprocess.Popen(
                ["timeout", "-k", "5", "2400", *command],
                cwd=self.folder,
                env={**self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self, log: str) -> str:
        return (self.folder.parent / log).read_text()

    def run_folder(self, seed: int, root: Path | None = None) -> Path:
        [folder] = (root or self.folder).glob(
            f"results/small/runs/facts-t5/facts-qa/held/*/seed-{seed}"
        )
        return folder


def copy_repository(repository: Path, folder: Path) -> None:
    """Copy what a clone has and the workflow needs."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in listed:
        source, target = repository / name, folder / name
        wanted = name.split("/")[0] in NEEDED
        if wanted and (source.is_file() or source.is_symlink()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    if not (folder / "slurm").exists():
        (folder / "slurm").symlink_to("workflow/profiles/slurm")
