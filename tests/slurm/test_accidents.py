"""The shipped profile on a real Slurm cluster, and what accidents leave behind: nothing.

One cluster, one suite of four runs; accidents come one after the other, each at a moment that the
runs wait for (`held_editor.py`). At the end everything must be as on one machine without any.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from loopback import REMEMBERED, Cluster, Job, Workflow
from waiting import wait_until

from grace_bench.store.files import read_json

pytestmark = pytest.mark.timeout(3600)  # a busy machine

LITERAL = ("snakemake", "--cores", "2", "--profile", "slurm")
WAITS = "already doing this; waiting"
EQUAL = ("codebook.safetensors", "codebook.parquet", "predictions.parquet", "probes.parquet")
OTHERS = (
    "data/facts-qa/edits.parquet",
    "models/facts-t5-facts-qa/seed-0/model.safetensors",
    "baselines/facts-t5-facts-qa/seed-0/predictions.parquet",
)
# Tests cannot wait as long as people can: looks at jobs often, and at shared storage not for long.
SOON = ("--slurm-init-seconds-before-status-checks", "1", "--max-status-checks-per-second", "2")
SOON += ("--latency-wait", "20")


class Accidents:
    """What happens to the runs, in the order in which each of them meets it."""

    def __init__(self, workflow: Workflow) -> None:
        self.workflow = workflow
        self.cluster: Cluster = workflow.cluster
        self.folder = workflow.accidents
        self.met: list[str] = []
        self._seen: set[str] = set()
        self._plan: dict[int, list[Callable[[int, str, dict], None]]] = {
            0: [self.cancel, self.lose_daemon_of_drained_node],
            1: [self.reach_time_limit, self.release],
            2: [self.overrun_time_limit, self.restart_controller],
            3: [],
        }
        for seed, plan in self._plan.items():
            if plan:
                self._file("hold", seed).touch()
        self._file("eat", 1).touch()

    def _file(self, what: str, seed: int) -> Path:
        return self.folder / f"{what}-{seed}"

    def happen(self, snakemake: subprocess.Popen, seconds: float) -> None:
        """Let accidents happen until Snakemake ends."""
        end = time.monotonic() + seconds
        while snakemake.poll() is None:
            assert time.monotonic() < end, "Snakemake did not end"
            for path in sorted(self.folder.glob("at-*")):
                _, seed, job = path.name.split("-")
                accident = self._plan[int(seed)][0] if path.name not in self._seen else None
                if accident is None or not self._is_time_for(accident):
                    continue
                self._seen.add(path.name)
                accident(int(seed), job, json.loads(path.read_text()))
                self.met.append(accident.__name__)
                self._plan[int(seed)].pop(0)
            time.sleep(0.2)

    def _is_time_for(self, accident: Callable) -> bool:
        """Say whether an accident meets its own run alone.

        A job that begins while the controller is away fails, so no other may be about to.
        """
        if accident != self.restart_controller:
            return True
        runs = self.workflow.folder / "results/small/runs"
        return all(any(runs.glob(f"*/*/*/*/seed-{seed}/run.json")) for seed in (0, 1))

    def cancel(self, seed: int, job: str, at: dict) -> None:
        self.cluster.ask("scancel", job)

    def reach_time_limit(self, seed: int, job: str, at: dict) -> None:
        """Be near the end: the signal that the profile asks for comes when Slurm looks next."""
        self.cluster.ask("scontrol", "update", f"jobid={job}", f"EndTime={clock(100)}")

    def release(self, seed: int, job: str, at: dict) -> None:
        self._file("hold", seed).unlink()

    def overrun_time_limit(self, seed: int, job: str, at: dict) -> None:
        self._file("deaf", seed).touch()
        self.cluster.ask("scontrol", "update", f"jobid={job}", f"EndTime={clock(1)}")

    def lose_daemon_of_drained_node(self, seed: int, job: str, at: dict) -> None:
        """The job ends while its node takes no new ones and nobody watches over it."""
        node = at["node"]
        self.cluster.ask("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
        self.cluster.kill(f"slurmd-{node}", signal.SIGKILL)
        self._file("hold", seed).unlink()
        wait_until(lambda: not os.path.exists(f"/proc/{at['pid']}"), 300, "the run ends")
        self.cluster.start_again(f"slurmd-{node}")
        self.cluster.ask("scontrol", "update", f"nodename={node}", "state=resume")

    def restart_controller(self, seed: int, job: str, at: dict) -> None:
        """Away for longer than the commands of Slurm wait for it by themselves."""
        self.cluster.kill("slurmctld", signal.SIGTERM)
        time.sleep(13)
        self.cluster.start_again("slurmctld")
        self._file("hold", seed).unlink()


def clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + seconds))


@pytest.fixture(scope="module")
def workflow(repository, cluster, tmp_path_factory) -> Workflow:
    return Workflow(repository, tmp_path_factory.mktemp("slurm"), cluster)


@pytest.fixture(scope="module")
def done(workflow) -> Accidents:
    """The suite, done on the cluster with all accidents, and on this machine with none."""
    quick = ("python", str(__file__).replace("test_accidents", "snakemake_quick"), *LITERAL[1:])
    suite = ("--configfile", str(workflow.suite))
    local = workflow.start(
        *("snakemake", "tables", "--cores", "2", *suite),
        *("--snakefile", str(workflow.folder / "Snakefile")),
        *("--directory", str(workflow.folder.parent / "local"), "--nolock"),
        log="local.log",
        GRACE_BENCH_TEST_ACCIDENTS=str(workflow.folder.parent / "none"),
    )
    accidents = Accidents(workflow)
    first = workflow.start(*quick, *suite, *SOON, *targets(workflow, 0, 1, 2), log="first.log")
    try:
        accidents.happen(first, 2000)
        assert first.returncode == 0, workflow.said("first.log")[-6000:]
        assert local.wait(1200) == 0, workflow.said("local.log")[-3000:]
        kill_snakemake(workflow, (*quick, *suite, *SOON, "tables"), (*LITERAL, *suite))
    finally:
        for process in (first, local):
            end(process)
    return accidents


def end(process: subprocess.Popen) -> None:
    """Kill a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def targets(workflow: Workflow, *seeds: int) -> list[str]:
    listed = subprocess.run(
        [*("python", "-m", "grace_bench", "plan", "--suite", str(workflow.suite))],
        cwd=workflow.folder,
        env=workflow.environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    wanted = tuple(f"seed-{seed}" for seed in seeds)
    return [f"results/small/runs/{name}/run.json" for name in listed if name.endswith(wanted)]


def kill_snakemake(workflow: Workflow, first: tuple, again: tuple) -> None:
    """Kill Snakemake while its last run is at work, and start it again with the literal command."""
    hold = workflow.accidents / "hold-3"
    hold.touch()
    snakemake = workflow.start(*first, log="killed.log")
    try:
        at = wait_until(lambda: list(workflow.accidents.glob("at-3-*")), 300, "the run is at work")
    finally:
        os.killpg(snakemake.pid, signal.SIGKILL)
        snakemake.wait()
    assert workflow.start(*again, "--unlock", log="unlock.log").wait(120) == 0
    second = workflow.start(*again, *SOON, "tables", log="again.log")
    try:
        original = at[0].name.rpartition("-")[2]
        wait_until(
            lambda: running_edits(workflow, besides=original),
            300,
            "it is submitted again",
            every=0.2,  # each question is two commands of Slurm
        )
        log = workflow.run_folder(3) / "run.log"
        wait_until(lambda: WAITS in text_of(log), 300, "its process waits for the first")
        hold.unlink()
        assert second.wait(1200) == 0, workflow.said("again.log")[-6000:]
    finally:
        end(second)


def text_of(log: Path) -> str:
    """Return what stands in a log; nothing while Snakemake has removed it for the next attempt."""
    try:
        return log.read_text()
    except FileNotFoundError:
        return ""


def running_edits(workflow: Workflow, besides: str) -> list[Job]:
    return [
        job
        for job in workflow.cluster.jobs()
        if job.seed == 3 and job.state == "RUNNING" and job.number != besides
    ]


@pytest.fixture(scope="module")
def jobs(done, cluster) -> list[Job]:
    return cluster.jobs()


def states(jobs: list[Job], seed: int) -> list[str]:
    return [job.state for job in jobs if job.seed == seed]


def test_results_are_those_of_one_machine_byte_by_byte(done, workflow):
    local = workflow.folder.parent / "local"
    different = [
        (seed, name)
        for seed in range(4)
        for name in EQUAL
        if (workflow.run_folder(seed) / name).read_bytes()
        != (workflow.run_folder(seed, local) / name).read_bytes()
    ]
    results = "results/small"
    different += [
        name
        for name in OTHERS
        if (workflow.folder / results / name).read_bytes() != (local / results / name).read_bytes()
    ]
    assert different == []
    tables = [folder / results / "tables" / "main.csv" for folder in (workflow.folder, local)]
    one, other = [
        # Seconds differ wherever and whenever they are measured.
        [line for line in table.read_text().splitlines() if "s/edit" not in line]
        for table in tables
    ]
    assert one == other
    assert len(one) > 3


def test_every_accident_happened(done):
    wanted = {"cancel", "lose_daemon_of_drained_node", "reach_time_limit", "overrun_time_limit"}
    assert sorted(done.met) == sorted({*wanted, "release", "restart_controller"})
    assert not (done.folder / "eat-1").exists()


def test_a_cancelled_job_leaves_a_checkpoint_and_comes_again(done, jobs, workflow):
    assert states(jobs, 0) == ["CANCELLED", "COMPLETED"]
    assert list(done.folder.glob("term-0-*"))
    assert read_json(workflow.run_folder(0) / "run.json")["restarts"] != []


def test_out_of_memory_comes_again_with_more_and_a_time_limit_goes_on(done, jobs, workflow):
    attempts = [job for job in jobs if job.seed == 1]
    assert [job.state for job in attempts] == ["FAILED", "FAILED", "COMPLETED"]
    assert [job.memory for job in attempts] == ["1200M", "2400M", "3600M"]
    stopped = attempts[1]
    # The signal before the limit came through to the run, and that left a checkpoint.
    assert list(done.folder.glob(f"term-1-{stopped.number}"))
    assert read_json(workflow.run_folder(1) / "run.json")["restarts"] != []


def test_a_job_over_its_time_comes_again(jobs):
    assert states(jobs, 2) == ["TIMEOUT", "COMPLETED"]


def test_a_lost_snakemake_costs_one_job_that_waits_for_the_first(jobs, workflow):
    assert states(jobs, 3) == ["COMPLETED", "COMPLETED"]
    assert "Unlocked working directory" in workflow.said("unlock.log")
    log = (workflow.run_folder(3) / "run.log").read_text()
    assert WAITS in log
    assert "was done by the other process" in log


def test_no_device_has_two_jobs_at_once(jobs):
    times: dict[str, list[tuple[str, str]]] = {}
    for job in jobs:
        if "gpu" in job.gpus:
            times.setdefault(job.node, []).append((job.start, job.end))
    assert sum(map(len, times.values())) == len(
        [job for job in jobs if "prepare_data" not in job.comment]
    )
    for node, spans in times.items():
        spans.sort()
        overlaps = [(a, b) for a, b in itertools.pairwise(spans) if b[0] < a[1]]
        assert overlaps == [], node


def test_only_jobs_with_data_or_models_were_submitted(jobs):
    rules = {re.match(r"rule_([a-z_]+?)(_wildcards|$)", job.comment)[1] for job in jobs}
    assert rules == {"prepare_data", "prepare_model", "baseline", "edit"}


def test_logs_are_where_the_docs_say(jobs, workflow):
    for seed in range(4):
        assert (workflow.run_folder(seed) / "run.log").read_text().strip()
    failed = [job for job in jobs if job.state != "COMPLETED"]
    assert len(failed) == 4
    for job in failed:
        variant = workflow.run_folder(job.seed).parent.name
        name = f"facts-t5_facts-qa_held_{variant}_{job.seed}"
        log = workflow.folder / "results/slurm-logs/rule_edit" / name / f"{job.number}.log"
        assert log.read_text().strip()


def test_the_check_says_what_is_right_for_this_cluster(cluster):
    done = subprocess.run(
        ["python", "-c", "from grace_bench.jobs.slurm import look; print(look().describe())"],
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "sacct is of no use" in done.stdout
    assert f"the profile uses squeue. It remembers a job for {REMEMBERED} s" in done.stdout
    assert "Partition: the default one, main" in done.stdout
    assert "gpu:1" in done.stdout
    assert "SLURM_CONF is" not in done.stdout  # start.sh has put a srun on PATH that sets it
