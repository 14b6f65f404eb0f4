"""The status of a suite: what is finished, running, failed or left. Reads files only; torch-free.

    reader = StatusReader.of_suite(suite)   # or .of_plan(Path("results/default/plan.json"))
    reader.read_status().counts["running"]

`status_text` writes it for people. It works at any time, while jobs write: a file that is
incomplete, damaged or just gone is ignored, and the run's other files decide.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from grace_bench.errors import DataError
from grace_bench.jobs.lease import DEAD_AFTER_SECONDS, LEASE, describe, has_ended, read_lease
from grace_bench.jobs.refusals import refusal
from grace_bench.store.json_records import read_record, try_read
from grace_bench.store.records import RUN, LeaseRecord, Plan, PlanEntry, RunOutcome
from grace_bench.suite.outdated import model_hash_of, outdated, parts_of, why_outdated
from grace_bench.suite.plan import RESULTS, Run, expand
from grace_bench.suite.planned import plan_of
from grace_bench.suite.schema import SuiteConfig

STATES = {
    "finished": "complete, with the plan's settings",
    "failed": "the editor failed, which is the run's result, or its settings were refused",
    "running": "its process renews its lease",
    "dead": "its process died; rerun to resume",
    "waiting": "was stopped; rerun to resume from its checkpoint",
    "left": "not started yet",
}
AGAIN = "its inputs are missing or outdated, and are made again for other runs"
PROGRESS = {"step", "steps", "edits", "seconds_left"}
CHECKPOINT = re.compile(r"[0-9]{8,18}")


@dataclass(frozen=True)
class RunStatus:
    """One run as its files show it; None: unknown.

    Args:
        id: of the run.
        state: one of STATES.
        step: the last one done; the one at which a failed run failed.
        steps: number of steps of the whole stream.
        edits: number of edits so far.
        seconds_left: the run's own estimate.
        heartbeat_seconds: since its process last renewed its lease.
        holder: that process: "process 12 on node-1 (job 7)".
        checkpoint: the step from which it resumes.
        message: how it failed.
        note: why a finished run does not count.
    """

    id: str
    state: str
    step: int | None = None
    steps: int | None = None
    edits: int | None = None
    seconds_left: float | None = None
    heartbeat_seconds: float | None = None
    holder: str | None = None
    checkpoint: int | None = None
    message: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class InputStatus:
    """Something that runs need: "present", "being made", "outdated" or "missing"."""

    kind: str
    name: str
    state: str


@dataclass(frozen=True)
class SuiteStatus:
    """A suite at one moment."""

    suite: str
    time: str
    runs: list[RunStatus]
    inputs: list[InputStatus]

    @property
    def counts(self) -> dict[str, int]:
        """The number of runs in each state."""
        found = Counter(run.state for run in self.runs)
        return {state: found[state] for state in STATES}

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return all(run.state in ("finished", "failed") for run in self.runs)

    def groups(self) -> dict[tuple[str, ...], dict[str, int]]:
        """Return the counts of each model x data set x editor."""
        found: dict[tuple[str, ...], Counter[str]] = {}
        for run in self.runs:
            found.setdefault(tuple(run.id.split("/")[:3]), Counter())[run.state] += 1
        return {name: {s: counts[s] for s in STATES} for name, counts in found.items()}

    def as_json(self) -> dict[str, Any]:
        """Return the status as plain values."""
        return {
            "format": "grace-bench status",
            "version": 1,
            "suite": self.suite,
            "time": self.time,
            "counts": self.counts,
            "groups": [
                {**dict(zip(("model", "dataset", "editor"), name, strict=False)), "counts": counts}
                for name, counts in self.groups().items()
            ],
            "inputs": [asdict(item) for item in self.inputs],
            "runs": [asdict(run) for run in self.runs],
        }


@dataclass(frozen=True)
class _Input:
    """Something that runs need; `record` is the file that is written last."""

    kind: str
    folder: Path
    record: str

    def read_status(self, again: Set[Path]) -> InputStatus:
        """Return its status; `again` holds the records that are made again."""
        path = self.folder / self.record
        state = "missing"
        if _is_file(path):
            state = "outdated" if path in again else "present"
        if state != "present" and (age := _heartbeat(self.folder)) is not None:
            holder = read_lease(self.folder / LEASE)
            state = state if _is_dead(holder, age) else "being made"
        depth = {"data set": 1, "assets": 3}.get(self.kind, 2)
        name = "/".join(self.folder.parts[-depth:])
        return InputStatus(self.kind, _printable(name), state)


class StatusReader:
    """Reads the status of a suite's runs and of what they need.

    Args:
        suite: its name.
        entries: of its plan: id, folder and content hash of each run.
        inputs: what the runs need.
        planned: the runs, if they are known; `of_plan` reads only their list.
    """

    def __init__(
        self,
        suite: str,
        entries: Sequence[PlanEntry],
        inputs: Sequence[_Input],
        planned: Sequence[Run] = (),
    ) -> None:
        self.suite = suite
        self.planned = planned
        self.entries = entries
        self.inputs = inputs

    @classmethod
    def of_suite(cls, suite: SuiteConfig, results: Path = RESULTS) -> StatusReader:
        """Return the reader of the runs that a suite describes."""
        inputs: dict[_Input, None] = {}
        runs = expand(suite, results)
        for run in runs:
            inputs[_Input("data set", run.dataset_folder, "manifest.json")] = None
            inputs[_Input("model", run.model_folder, "training.json")] = None
            inputs[_Input("baseline", run.baseline_folder, "baseline.json")] = None
            if run.assets_folder is not None:
                inputs[_Input("assets", run.assets_folder, "assets.json")] = None
        entries = plan_of(suite, runs).runs
        return cls(suite.name, entries, sorted(inputs, key=_input_order), runs)

    @classmethod
    def of_plan(cls, path: Path) -> StatusReader:
        """Return the reader of the runs of a plan.json, which does not list editors' assets.

        Raises:
            DataError: the file is missing, damaged or no plan.
        """
        plan = read_record(path, Plan)
        inputs: dict[_Input, None] = {}
        for number, entry in enumerate(plan.runs):
            place = f"{path}: runs[{number}]"
            parts, folder = entry.id.split("/"), Path(entry.folder)
            if len(parts) != 5 or folder.parts[-6:] != ("runs", *parts):
                raise DataError(f"{place}: folder and id do not belong together; plan again.")
            home, base_model = folder.parents[5], entry.base_model
            pair, _, made = base_model.partition("/")
            if pair != f"{parts[0]}-{parts[1]}" or not re.fullmatch(r"pretrained|seed-\d+", made):
                raise DataError(f"{place}: base model and id do not belong together; plan again.")
            inputs[_Input("data set", home / "data" / parts[1], "manifest.json")] = None
            inputs[_Input("model", home / "models" / base_model, "training.json")] = None
            inputs[_Input("baseline", home / "baselines" / base_model, "baseline.json")] = None
        return cls(plan.suite, plan.runs, sorted(inputs, key=_input_order))

    def _runs(self, again: Set[Path]) -> Iterator[RunStatus]:
        folders = [
            Path(entry.folder).parents[5] / "models" / entry.base_model for entry in self.entries
        ]
        weights = {folder: model_hash_of(folder) for folder in set(folders)}
        planned = {run.id: run for run in self.planned}
        for entry, model in zip(self.entries, folders, strict=True):
            folder = Path(entry.folder)
            also = AGAIN if folder / "run.json" in again else None
            found = status_of_run(entry.id, folder, entry.content_hash, weights[model], also)
            if found.state == "left" and (run := planned.get(entry.id)) is not None:
                found = _refused_by_a_part(found, run)
            yield found

    def read_status(self) -> SuiteStatus:
        """Return the suite's status at this moment."""
        again = outdated(self.planned)
        return SuiteStatus(
            _printable(self.suite),
            datetime.now(UTC).astimezone().isoformat(timespec="seconds"),
            list(self._runs(again)),
            [item.read_status(again) for item in self.inputs],
        )


def status_of_run(
    run_id: str,
    folder: Path,
    content_hash: str,
    model_hash: str | None = None,
    also: str | None = None,
) -> RunStatus:
    """Return the status of one run.

    Args:
        run_id: its id.
        folder: its folder.
        content_hash: its hash if it were run now.
        model_hash: the hash of its base model; None: there is none.
        also: why it is run again although it is finished with these settings.
    """
    run_id, note = _printable(run_id), None
    record = try_read(folder / RUN, RunOutcome)
    if record is not None:
        note = why_outdated(record, content_hash, model_hash) or also
        if note is None and record.status == "complete":
            return RunStatus(run_id, "finished")
    age = _heartbeat(folder)
    holder = None if age is None else read_lease(folder / LEASE)
    alive = age is not None and not _is_dead(holder, age)
    if record is not None and note is None and not alive:
        return _failed(run_id, record.failure)
    if not alive and (refused := refusal(folder, content_hash)) is not None:
        return RunStatus(run_id, "failed", message=_printable(f"refused: {refused}"))
    checkpoint = _newest_checkpoint(folder / "checkpoints")
    if age is None:
        state = "left" if checkpoint is None else "waiting"
        return RunStatus(run_id, state, checkpoint=checkpoint, note=note)
    return RunStatus(
        run_id,
        "running" if alive else "dead",
        **({} if holder is None else holder.model_dump(include=PROGRESS)),
        heartbeat_seconds=round(age, 1),
        holder=_printable(describe(holder)),
        checkpoint=checkpoint,
        note=note,
    )


def _refused_by_a_part(found: RunStatus, run: Run) -> RunStatus:
    """Return the status as failed if something that the run needs was refused."""
    for part in parts_of(run):
        if (refused := refusal(part.record.parent, part.made_from)) is not None:
            return replace(found, state="failed", message=_printable(f"refused: {refused}"))
    return found


def _failed(run_id: str, failure: Any) -> RunStatus:
    failure = failure if isinstance(failure, dict) else {}
    kind, message, step = (failure.get(key) for key in ("kind", "message", "step"))
    parts = [kind.replace("_", " ")] if isinstance(kind, str) else []
    parts += [message] if isinstance(message, str) else []
    message = _printable(": ".join(parts)) or None
    step = step if type(step) is int else None  # True is an int, too
    return RunStatus(run_id, "failed", step=step, message=message)


def _is_dead(holder: LeaseRecord | None, age: float) -> bool:
    return age > DEAD_AFTER_SECONDS or (holder is not None and has_ended(holder))


def _heartbeat(folder: Path) -> float | None:
    """Return the seconds since a folder's lease was renewed; None: no lease."""
    try:
        found = os.lstat(folder / LEASE)
    except (OSError, ValueError):
        return None
    # Clocks of machines differ a little: never negative.
    return max(0.0, time.time() - found.st_mtime) if stat.S_ISREG(found.st_mode) else None


def _newest_checkpoint(folder: Path) -> int | None:
    try:
        names = [name for name in os.listdir(folder) if CHECKPOINT.fullmatch(name)]
    except (OSError, ValueError):
        return None
    whole = [int(name) for name in names if _is_file(folder / name / "checkpoint.json")]
    return max(whole, default=None)


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def _printable(text: str) -> str:
    """Return text from a file without what a terminal would take for a command, shortened."""
    return "".join(c if c.isprintable() else " " for c in text)[:1000]


def _input_order(item: _Input) -> tuple[int, str]:
    return ("data set", "model", "baseline", "assets").index(item.kind), str(item.folder)
