"""The editing loop: a stream of examples meets one editor on one model.

    run_stream(spec, data_folder, model_folder, baseline_folder, output)

For every example of the stream: predict; if it is an error, edit and score the edit at once (ES);
after every k edits and at the end, score what must be kept (a probe). All that happened is
written to `output` at the end, `run.json` last: a folder with one is whole.
"""

from __future__ import annotations

import logging
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch

from grace_bench import provenance
from grace_bench.assets import check_assets
from grace_bench.baseline import load_baseline
from grace_bench.datasets.base import load_role
from grace_bench.editors import create_editor
from grace_bench.editors.base import EditBatch, Editor
from grace_bench.errors import DataError
from grace_bench.evaluation import Evaluator, prediction_rows, probe_rows
from grace_bench.latency import time_forward_passes
from grace_bench.metrics import METRICS
from grace_bench.models.compute import autocast, set_up
from grace_bench.models.loading import load_model
from grace_bench.progress import Progress, Records, Stopwatch
from grace_bench.records import (
    LATENCY,
    PREDICTIONS,
    PROBES,
    STEPS,
    read_json,
    sha256_of,
    write_json,
    write_parquet,
)
from grace_bench.runs import Run, content_hash
from grace_bench.tasks import create_task
from grace_bench.tasks.base import Prediction, Task, to_device

if TYPE_CHECKING:
    from pathlib import Path

    from grace_bench.config import ComputeConfig, ProbeConfig, RunSpec, StreamConfig

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]

PREPARATION_WINDOW = 4
"""How many coming examples are looked at for each edit that is trained at once."""

TOKENS_AT_ONCE = 512
"""In one batch of edits: about as much as keeps a CPU busy; memory grows with it."""

MOST_AT_ONCE = 32

PROBED_ROLES = ("upstream", "accurate", "holdout")


def select_stream(rows: Sequence[Row], stream: StreamConfig, seed: int) -> list[Row]:
    """Return the rows of the edit stream in their order.

    The first `stream.facts` facts are taken with all their phrasings; "shuffled" permutes facts
    and then rows by the run's seed, "given" keeps the data set's order.
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
class Preparation:
    """What the editor has done ahead.

    Args:
        until: the first step for which nothing is prepared.
        steps: those with an edit prepared.
        seconds: spent on all of them.
    """

    until: int = 0
    steps: frozenset[int] = frozenset()
    seconds: float = 0.0

    def seconds_of(self, step: int) -> float:
        """Return a step's share of the time."""
        return self.seconds / len(self.steps) if step in self.steps else 0.0


def edits_at_once(compute: ComputeConfig, task: Task, example: Row) -> int:
    """Return how many edits are trained in one batch; 1 where each is trained for itself."""
    if compute.engine == "direct":
        return 1
    if compute.edits_at_once != "auto":
        return compute.edits_at_once
    inputs = task.encode([example])
    tokens = inputs["input_ids"].numel() + inputs["labels"].numel()
    return max(1, min(MOST_AT_ONCE, TOKENS_AT_ONCE // tokens))


class StreamRun:
    """One run in progress.

    Args:
        spec: the run.
        task: how rows become tensors and scores.
        editor: owns the model.
        roles: rows of the probed roles, already cut to the probes' sizes.
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
        self._prepared = Preparation()

    def start(self, baseline: Sequence[Row], stream: Sequence[Row]) -> None:
        """Take what is known of the unedited model from the baseline: it is the same for all."""
        by_role: dict[str, dict[str, Row]] = {}
        for row in baseline:
            by_role.setdefault(row["role"], {})[row["example_id"]] = row
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
        """Meet one example; edit if it is an error. Returns whether an edit was made."""
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
        """Make one edit, score it at once, and return its part of the step's record."""
        inputs = to_device(self.task.encode([example]), self.editor.model)
        subject = self.task.subject_span(example)
        batch = EditBatch(inputs, (example["example_id"],), example["label"], step, subject)
        with self.watch.measure("edit"), autocast(self.spec.compute, self.device):
            result = self.editor.edit(batch)
        seconds = self.watch.last + self._prepared.seconds_of(step)
        self.edited.append(example)
        with self.watch.measure("evaluation"):
            after = self.predict([example])
        rows = prediction_rows(
            [example], after, "edit", step, len(self.edited), self.evaluator.keys
        )
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

    def prepare(self, step: int, coming: Sequence[Row]) -> None:
        """Let the editor do ahead what the next edits will need, the one at `step` first."""
        if not self.editor.can_prepare or step < self._prepared.until:
            return
        size = edits_at_once(self.spec.compute, self.task, coming[0])
        if self.spec.stream.max_edits is not None:
            size = min(size, self.spec.stream.max_edits - len(self.edited))
        if size == 1:
            return
        window = coming[: PREPARATION_WINDOW * size]
        with self.watch.measure("evaluation"):
            found = self.predict(window)
        wanted = [
            (step + offset, example)
            for offset, (example, prediction) in enumerate(zip(window, found, strict=True))
            if self.spec.stream.edit == "all" or self.task.is_error(prediction)
        ][:size]
        steps = [number for number, _ in wanted]
        self._prepared = Preparation(step + len(window), frozenset(steps))
        if not wanted:
            return
        if len(wanted) == size:
            self._prepared.until = steps[-1] + 1
        inputs = to_device(self.task.encode([row for _, row in wanted]), self.editor.model)
        with self.watch.measure("edit"), autocast(self.spec.compute, self.device):
            self.editor.prepare(inputs, steps)
        self._prepared.seconds = self.watch.last

    def probe(self, step: int, keep: bool = True) -> None:
        """Score all past edits, and what must not have changed.

        Args:
            step: after which step.
            keep: every prediction, not only the averages.
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
                rows = prediction_rows(chosen, found, role, step, n_edits, self.evaluator.keys)
                self.records.add_probe(metric, rows, step, n_edits, keep)

    def time_inference(self, step: int) -> None:
        """Time single inputs, where the run's probes say so; no prediction changes by it."""
        examples = self.roles["upstream"][: self.spec.probes.latency or 0]
        with autocast(self.spec.compute, self.device):
            rows = time_forward_passes(self.editor, self.task, examples)
        at = {"step": step, "n_edits": len(self.edited), "n_keys": self.editor.n_keys}
        self.records.latency += [{**at, **row} for row in rows]

    def predict(self, examples: Sequence[Row]) -> list[Prediction]:
        """Predict in the run's precision."""
        with autocast(self.spec.compute, self.device):
            return self.evaluator.predict(examples)

    def go(self, stream: Sequence[Row]) -> None:
        """Run the whole stream, probing on schedule and at the end.

        Where an evaluation is cheap, averages are taken after every edit.
        """
        every, most = self.spec.probes.every, self.spec.stream.max_edits
        with Progress(len(stream), self.task.main_measure) as progress:
            for step, example in enumerate(stream, start=1):
                self.prepare(step, stream[step - 1 :])
                edited = self.step(step, example)
                last = step == len(stream) or len(self.edited) == most
                if last or (edited and len(self.edited) % every == 0):
                    self.probe(step)
                    self.time_inference(step)
                elif edited and self.evaluator.incremental:
                    self.probe(step, keep=False)
                progress.update(step, len(self.edited), self.records)
                if last:
                    break


def load_probed_roles(data_folder: Path, probes: ProbeConfig) -> dict[str, list[Row]]:
    """Return the rows of the probed roles; upstream and accurate cut to the probes' sizes."""
    roles = {role: list(load_role(data_folder, role)) for role in PROBED_ROLES}
    roles["upstream"] = roles["upstream"][: probes.upstream]
    roles["accurate"] = roles["accurate"][: probes.accurate]
    return roles


def run_stream(
    spec: RunSpec,
    data_folder: Path,
    model_folder: Path,
    baseline_folder: Path,
    output: Path,
    assets_folder: Path | None = None,
) -> dict[str, Any]:
    """Do one run and write its folder; return the content of `run.json`.

    Raises:
        GraceBenchError: the inputs do not fit the run, or the results cannot be written.
    """
    started = time.perf_counter()
    began = datetime.now(UTC)
    device = set_up(spec.compute)
    manifest = read_json(data_folder / "manifest.json")
    roles = load_probed_roles(data_folder, spec.probes)
    stream = select_stream(list(load_role(data_folder, "edits")), spec.stream, spec.seed)
    if not stream:
        raise DataError(f"{data_folder}: the edit stream is empty; prepare the data set again.")
    loaded = load_model(model_folder, spec.dataset.task, device)
    baseline = load_baseline(baseline_folder, manifest["data_hash"], loaded.sha256)
    task = create_task(spec.dataset, loaded.tokenizer, loaded.model.config, spec.model.max_length)
    editor = create_editor(
        spec.editor.editor,
        loaded.model,
        spec.model.layer,
        spec.editor.hyperparameters,
        torch.Generator().manual_seed(spec.seed),
        spec.compute.engine,
    )
    assets = None
    if assets_folder is not None:
        assets = check_assets(assets_folder, loaded.sha256)
        editor.use_assets(assets_folder)
    run = StreamRun(spec, task, editor, roles)
    loading_seconds = time.perf_counter() - started
    run.start(baseline, stream)
    run.go(stream)
    run_id = Run(spec).id
    files = write_run(run, output, loaded.sha256)
    seconds = {"load": loading_seconds, **run.watch.seconds}
    record = {
        "format": "grace-bench run",
        "version": 1,
        "id": run_id,
        "variant": Run(spec).variant,
        "content_hash": content_hash(spec),
        "spec": spec.model_dump(mode="json"),
        "status": "complete",
        "counts": count(run),
        "seconds": {
            **summarise_seconds(run, seconds),
            "total": time.perf_counter() - started,
        },
        "peak_memory_mib": provenance.peak_memory_mib(),
        "measure": task.main_measure,
        "data_hash": manifest["data_hash"],
        "model_hash": loaded.sha256,
        "assets": assets and {key: assets[key] for key in ("told", "files", "seconds")},
        "files": files,
        "provenance": {
            **provenance.describe(),
            "device": device.type,
            "threads": torch.get_num_threads(),
            "started": began.isoformat(timespec="seconds"),
        },
    }
    if device.type == "cuda":
        record["peak_gpu_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    write_json(output / "run.json", record)
    logger.info("done: %s", run_id)
    return record


def count(run: StreamRun) -> dict[str, Any]:
    """Return the run's counts: steps, edits, keys, edits per key."""
    n_keys, n_edits = run.editor.n_keys, len(run.edited)
    return {
        "steps": len(run.records.steps),
        "edits": n_edits,
        "keys": n_keys,
        "edits_per_key": n_edits / n_keys if n_keys else None,
    }


def summarise_seconds(run: StreamRun, seconds: Mapping[str, float]) -> dict[str, float | None]:
    """Return seconds by part of the run, and mean, sd and median of an edit's."""
    edits = [r["edit_seconds"] for r in run.records.steps if r.get("edit_seconds") is not None]
    return {
        **seconds,
        "per_edit_mean": statistics.fmean(edits) if edits else None,
        "per_edit_sd": statistics.stdev(edits) if len(edits) > 1 else None,
        "per_edit_median": statistics.median(edits) if edits else None,
    }


def write_run(run: StreamRun, output: Path, model_hash: str) -> dict[str, str]:
    """Write all files of a run but `run.json`; return their hashes."""
    output.mkdir(parents=True, exist_ok=True)
    write_parquet(output / "steps.parquet", run.records.steps, STEPS)
    write_parquet(output / "probes.parquet", run.records.probes, PROBES)
    write_parquet(output / "predictions.parquet", run.records.predictions, PREDICTIONS)
    names = ["steps.parquet", "probes.parquet", "predictions.parquet"]
    if run.records.latency:
        write_parquet(output / "latency.parquet", run.records.latency, LATENCY)
        names.append("latency.parquet")
    names += run.editor.save(output, model_hash)
    return {name: sha256_of(output / name) for name in names}
