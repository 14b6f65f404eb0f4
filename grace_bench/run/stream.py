"""The editing loop: one editor on one model works through a stream of examples.

    run = StreamRun(spec, task, editor, roles)
    run.start(baseline, stream)
    run.run(stream)

For each example: predict; on an error, edit and score the edit at once (ES); after every k edits
and at the end, score what must be kept (a probe). `run.records` gathers the results, and
`steps/edit.py` writes them.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grace_bench.datasets.base import load_role
from grace_bench.editors.base import EditBatch, Editor
from grace_bench.errors import DataError
from grace_bench.jobs.checkpoints import Checkpoint
from grace_bench.metrics import METRICS
from grace_bench.models.device import autocast, free_memory, is_out_of_memory
from grace_bench.run.evaluation import Evaluator, prediction_rows, probe_rows
from grace_bench.run.latency import time_forward_passes
from grace_bench.run.progress import Progress, Records, Stopwatch
from grace_bench.store.tensors import part_of
from grace_bench.suite.schema import ComputeConfig, ProbeConfig, RunSpec, StreamConfig
from grace_bench.tasks.base import Prediction, Task, to_device

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]

WINDOW = 4
"""Coming examples inspected per edit of a batch that is trained ahead."""

TOKENS_AT_ONCE = 512
"""In one batch of edits: about enough to keep a CPU busy; memory grows with it."""

MOST_AT_ONCE = 32

PROBED_ROLES = ("upstream", "accurate", "holdout")

CHECKPOINTED = ("steps", "predictions", "probes", "latency", "journal")
"""The records in a checkpoint; `edits` are among the predictions."""


def select_stream(rows: Sequence[Row], stream: StreamConfig, seed: int) -> list[Row]:
    """Return the rows of the edit stream in order: the first `stream.facts` facts, all phrasings.

    "shuffled" permutes facts and then rows by the run's seed; "given" keeps the data set's order.
    """
    facts = list(dict.fromkeys(row["fact_id"] for row in rows))
    generator = random.Random(f"stream-{seed}")
    if stream.order == "shuffled":
        generator.shuffle(facts)
    chosen = set(facts[: stream.facts])
    selected = [row for row in rows if row["fact_id"] in chosen]
    if stream.order == "shuffled":
        generator.shuffle(selected)
    return selected


@dataclass
class TrainedAhead:
    """What the editor has trained ahead.

    Args:
        until: the first step that was not considered.
        steps: those whose edit was trained.
        seconds: spent on all of them.
    """

    until: int = 0
    steps: frozenset[int] = frozenset()
    seconds: float = 0.0

    def seconds_of(self, step: int) -> float:
        """Return a step's share of the seconds."""
        return self.seconds / len(self.steps) if step in self.steps else 0.0


def edits_at_once(compute: ComputeConfig, task: Task, example: Row) -> int:
    """Return how many edits to train in one batch; 1: each on its own."""
    if compute.engine == "direct":
        return 1
    if compute.edits_at_once != "auto":
        return compute.edits_at_once
    inputs = task.encode([example])
    read, wanted = inputs["input_ids"].numel(), inputs["labels"].numel()
    # A causal model's labels mask its own input; a classifier's label is not a token.
    tokens = read + wanted if task.config.is_encoder_decoder else read
    return max(1, min(MOST_AT_ONCE, TOKENS_AT_ONCE // tokens))


class StreamRun:
    """One run in progress.

    Args:
        spec: the run.
        task: turns rows into tensors and scores.
        editor: owns the model.
        roles: rows of the probed roles, already cut to the probes' sizes.

    Attributes:
        done: the last step made, from 1.
        finished: whether it was the stream's last step.
    """

    def __init__(
        self,
        spec: RunSpec,
        task: Task,
        editor: Editor,
        roles: Mapping[str, Sequence[Row]],
    ) -> None:
        self.spec = spec
        self.task = task
        self.editor = editor
        self.roles = roles
        self.device = next(editor.model.parameters()).device
        self.watch = Stopwatch(self.device)
        self.records = Records()
        self.edited: list[Row] = []
        direct = spec.compute.engine == "direct"
        self.evaluator = Evaluator(editor, task, spec.probes.batch_size, direct)
        self.done = 0
        self.finished = False
        self._ahead = TrainedAhead()
        self._most_at_once = MOST_AT_ONCE

    def start(self, baseline: Sequence[Row], stream: Sequence[Row]) -> None:
        """Take the unedited model's predictions from the baseline, which all editors share."""
        by_role: dict[str, dict[str, Row]] = {}
        for row in baseline:
            by_role.setdefault(row["role"], {})[row["example_id"]] = row
        for role, examples in (*self.roles.items(), ("edits", stream)):
            unknown = {e["example_id"] for e in examples} - by_role.get(role, {}).keys()
            if unknown:
                raise DataError(
                    f"the baseline lacks {len(unknown)} examples of role '{role}', "
                    f"'{min(unknown)}' among them; run the baseline step again."
                )
        if self.done == 0:
            for metric in ("trr", "arr"):
                role = METRICS[metric].role
                found = by_role.get(role, {})
                rows = [dict(found[example["example_id"]]) for example in self.roles[role]]
                self.records.add_probe(metric, rows, step=0, n_edits=0)
        with self.watch.measure("evaluation"), autocast(self.spec.compute, self.device):
            for role, examples in (*self.roles.items(), ("edits", stream)):
                found = by_role.get(role, {})
                self.evaluator.learn(examples, [found[e["example_id"]] for e in examples])

    def step(self, step: int, example: Row) -> bool:
        """Predict one example; edit if it is an error. Return whether an edit was made."""
        with self.watch.measure("evaluation"):
            before = self.predict([example])[0]
        is_error = self.task.is_error(before)
        wanted = is_error or self.spec.stream.edit == "all"
        record: dict[str, Any] = {
            "step": step,
            "example_id": example["example_id"],
            "fact_id": example["fact_id"],
            "is_error": is_error,
            "edited": wanted,
        }
        if wanted:
            record |= self.edit(step, example)
        record |= {"n_edits": len(self.edited), "n_keys": self.editor.n_keys}
        self.records.steps.append(record)
        return wanted

    def edit(self, step: int, example: Row) -> dict[str, Any]:
        """Make one edit, score it, and return its part of the step's record."""
        batch = EditBatch.of(self.task, self.editor.model, example, step)
        with self.watch.measure("edit") as lap, autocast(self.spec.compute, self.device):
            result = self.editor.edit(batch)
        self.editor.check_finite(step, result.losses)
        seconds = lap.seconds + self._ahead.seconds_of(step)
        self.edited.append(example)
        self.records.journal += result.changes
        with self.watch.measure("evaluation"):
            after = self.predict([example])
        rows = prediction_rows([example], after, "edit", step, len(self.edited))
        self.records.edits += rows
        self.records.predictions += rows
        return {
            "branch": result.branch,
            "key": result.key,
            "nearest_key": result.nearest_key,
            "distance": result.distance,
            "gradient_steps": len(result.losses),
            "loss_first": result.losses[0] if result.losses else None,
            "loss_last": result.losses[-1] if result.losses else None,
            "edit_seconds": seconds,
            "es": rows[0][self.task.main_measure],
        }

    def train_ahead(self, step: int, coming: Sequence[Row]) -> None:
        """Let the editor train ahead what the edits from `step` on will need."""
        if not self.editor.can_train_ahead or step < self._ahead.until:
            return
        size = min(edits_at_once(self.spec.compute, self.task, coming[0]), self._most_at_once)
        if self.spec.stream.max_edits is not None:
            size = min(size, self.spec.stream.max_edits - len(self.edited))
        if size == 1:
            return
        window = coming[: WINDOW * size]
        with self.watch.measure("evaluation"):
            found = self.predict(window)
        wanted = [
            (step + offset, example)
            for offset, (example, prediction) in enumerate(zip(window, found, strict=True))
            if self.spec.stream.edit == "all" or self.task.is_error(prediction)
        ][:size]
        steps = [number for number, _ in wanted]
        self._ahead = TrainedAhead(step + len(window), frozenset(steps))
        if not wanted:
            return
        if len(wanted) == size:
            self._ahead.until = steps[-1] + 1
        inputs = to_device(self.task.encode([row for _, row in wanted]), self.editor.model)
        try:
            with self.watch.measure("edit") as lap, autocast(self.spec.compute, self.device):
                self.editor.train_ahead(inputs, steps)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._most_at_once = size // 2  # this batch's edits are trained one by one
            logger.warning("out of memory; continuing with %d edits at once.", self._most_at_once)
            free_memory(self.device)
            return
        self._ahead.seconds = lap.seconds

    def probe(self, step: int, keep: bool = True) -> None:
        """Score all past edits, and what must not have changed, after `step`.

        With `keep`, every prediction is recorded, not only the averages.
        """
        n_edits = len(self.edited)
        facts = {example["fact_id"] for example in self.edited}
        limit = self.spec.probes.holdout
        examples = {
            "err": self.edited,
            "trr": self.roles["upstream"],
            "arr": self.roles["accurate"],
            "holdout": [r for r in self.roles["holdout"] if r["fact_id"] in facts][:limit],
        }
        self.records.probes += probe_rows(self.records.edits, "es", step, n_edits)
        with self.watch.measure("evaluation"):
            for metric, chosen in examples.items():
                found, role = self.predict(chosen), METRICS[metric].role
                rows = prediction_rows(chosen, found, role, step, n_edits)
                self.records.add_probe(metric, rows, step, n_edits, keep)

    def time_inference(self, step: int) -> None:
        """Time single inputs, if the run's probes ask for it."""
        examples = self.roles["upstream"][: self.spec.probes.latency or 0]
        with autocast(self.spec.compute, self.device):
            rows = time_forward_passes(self.editor, self.task, examples)
        at = {"step": step, "n_edits": len(self.edited), "n_keys": self.editor.n_keys}
        self.records.latency += [{**at, **row} for row in rows]

    def predict(self, examples: Sequence[Row]) -> list[Prediction]:
        """Predict in the run's precision."""
        with autocast(self.spec.compute, self.device):
            return self.evaluator.predict(examples)

    def run(self, stream: Sequence[Row], after_step: Callable[[], None] = lambda: None) -> None:
        """Make all remaining steps, probing on schedule and at the end.

        Where evaluations are cheap, averages are taken after every edit.

        Args:
            stream: all of it, steps already made included.
            after_step: called after each step; an exception from it ends the run.
        """
        every, most = self.spec.probes.every, self.spec.stream.max_edits
        measure, edited = self.task.main_measure, len(self.edited)
        with Progress(len(stream), measure, self.done, edited) as progress:
            while not self.finished:
                step = self.done + 1
                self.train_ahead(step, stream[step - 1 :])
                edited = self.step(step, stream[step - 1])
                last = step == len(stream) or len(self.edited) == most
                if last or (edited and len(self.edited) % every == 0):
                    self.probe(step)
                    self.time_inference(step)
                elif edited and self.evaluator.incremental:
                    self.probe(step, keep=False)
                progress.update(step, len(self.edited), self.records)
                self.done, self.finished = step, last
                after_step()

    def checkpoint(self) -> Checkpoint:
        """Return all that a new process needs to resume after the last step, bit for bit."""
        tensors, replay = self.editor.snapshot()
        queries, known = self.evaluator.state()
        tensors |= {f"evaluator.{name}": tensor for name, tensor in queries.items()}
        state = {
            "done": self.done,
            "finished": self.finished,
            "seconds": self.watch.seconds,
            "ahead": [self._ahead.until, sorted(self._ahead.steps), self._ahead.seconds],
            "most_at_once": self._most_at_once,
            "batch_size": self.evaluator.batch_size,
            "replay": replay,
        }
        records = {name: getattr(self.records, name) for name in CHECKPOINTED}
        return Checkpoint(self.done, tensors, state, {**records, "known": known})

    def restore(self, found: Checkpoint, stream: Sequence[Row]) -> None:
        """Restore a checkpoint; call it before `start`, with an editor that has made no edit."""
        tensors, state, records = found.tensors, found.state, found.records
        self.editor.restore(tensors, state["replay"])
        direct = self.spec.compute.engine == "direct"
        self.evaluator = Evaluator(self.editor, self.task, state["batch_size"], direct)
        self.evaluator.load_state(part_of(tensors, "evaluator"), records["known"])
        for name in CHECKPOINTED:
            setattr(self.records, name, records[name])
        self.records.edits = [r for r in records["predictions"] if r["role"] == "edit"]
        self.edited = [stream[row["step"] - 1] for row in records["steps"] if row["edited"]]
        self.done, self.finished = state["done"], state["finished"]
        self.watch.seconds = state["seconds"]
        until, steps, seconds = state["ahead"]
        self._ahead = TrainedAhead(until, frozenset(steps), seconds)
        self._most_at_once = state["most_at_once"]


def load_probed_roles(data_folder: Path, probes: ProbeConfig) -> dict[str, list[Row]]:
    """Return the rows of the probed roles; upstream and accurate cut to the probes' sizes."""
    roles = {role: list(load_role(data_folder, role)) for role in PROBED_ROLES}
    roles["upstream"] = roles["upstream"][: probes.upstream]
    roles["accurate"] = roles["accurate"][: probes.accurate]
    return roles
