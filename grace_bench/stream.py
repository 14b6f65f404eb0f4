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
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from grace_bench import provenance
from grace_bench.datasets.base import load_role
from grace_bench.editors import create_editor
from grace_bench.editors.base import EditBatch, Editor
from grace_bench.errors import DataError
from grace_bench.evaluation import predict_all, prediction_rows, probe_rows
from grace_bench.metrics import METRICS
from grace_bench.models.compute import autocast, set_up, synchronize
from grace_bench.models.loading import load_model
from grace_bench.records import (
    PREDICTIONS,
    PROBES,
    STEPS,
    read_json,
    read_parquet,
    sha256_of,
    write_json,
    write_parquet,
)
from grace_bench.runs import Run, content_hash
from grace_bench.tasks import TASKS
from grace_bench.tasks.base import Task, to_device

if TYPE_CHECKING:
    from pathlib import Path

    from grace_bench.config import ProbeConfig, RunSpec, StreamConfig

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]

PROBED_ROLES = ("upstream", "accurate", "holdout")


class Stopwatch:
    """Seconds by part of a run, the device waited for at both ends."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {"edit": 0.0, "evaluation": 0.0}
        self.last = 0.0

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the time of the block to `part`; `last` holds it afterwards."""
        synchronize(self._device)
        started = time.perf_counter()
        yield
        synchronize(self._device)
        self.last = time.perf_counter() - started
        self.seconds[part] += self.last


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


class Records:
    """What a run has to tell, gathered while it goes."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.predictions: list[dict[str, Any]] = []
        self.probes: list[dict[str, Any]] = []

    def add_probe(self, metric: str, rows: list[dict[str, Any]], step: int, n_edits: int) -> None:
        """Keep a role's predictions and their averages."""
        self.predictions += rows
        self.probes += probe_rows(rows, metric, step, n_edits)

    def latest(self, metric: str, measure: str) -> float | None:
        """Return the newest probed value of a metric, for progress lines."""
        for row in reversed(self.probes):
            if row["metric"] == metric and row["measure"] == measure:
                return row["value"]
        return None


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

    def start(self, baseline: Sequence[Row]) -> None:
        """Take the probe before any edit from the baseline: the model is the same for all."""
        by_role: dict[str, dict[str, Row]] = {}
        for row in baseline:
            by_role.setdefault(row["role"], {})[row["example_id"]] = row
        for metric in ("trr", "arr"):
            role = METRICS[metric].role
            found = by_role.get(role, {})
            rows = [dict(found[example["example_id"]]) for example in self.roles[role]]
            self.records.add_probe(metric, rows, step=0, n_edits=0)

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
        batch = EditBatch(inputs, (example["example_id"],), example["label"], step)
        with self.watch.measure("edit"), autocast(self.spec.compute, self.device):
            result = self.editor.edit(batch)
        seconds = self.watch.last
        self.edited.append(example)
        with self.watch.measure("evaluation"):
            after = self.predict([example])
        rows = prediction_rows([example], after, "edit", step, len(self.edited))
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

    def probe(self, step: int) -> None:
        """Score all past edits, and what must not have changed."""
        n_edits = len(self.edited)
        facts = {example["fact_id"] for example in self.edited}
        limit = self.spec.probes.holdout
        examples = {
            "err": self.edited,
            "trr": self.roles["upstream"],
            "arr": self.roles["accurate"],
            "holdout": [r for r in self.roles["holdout"] if r["fact_id"] in facts][:limit],
        }
        edits = [row for row in self.records.predictions if row["role"] == "edit"]
        self.records.probes += probe_rows(edits, "es", step, n_edits)
        with self.watch.measure("evaluation"):
            for metric, chosen in examples.items():
                rows = prediction_rows(
                    chosen, self.predict(chosen), METRICS[metric].role, step, n_edits
                )
                self.records.add_probe(metric, rows, step, n_edits)

    def predict(self, examples: Sequence[Row]) -> list:
        """Predict in the run's precision."""
        with autocast(self.spec.compute, self.device):
            return predict_all(self.editor.model, self.task, examples, self.spec.probes.batch_size)

    def go(self, stream: Sequence[Row]) -> None:
        """Run the whole stream, probing on schedule and at the end."""
        every, most = self.spec.probes.every, self.spec.stream.max_edits
        probed = 0
        step = 0
        with Progress(len(stream), self.task.main_measure) as progress:
            for step, example in enumerate(stream, start=1):
                edited = self.step(step, example)
                if edited and len(self.edited) % every == 0:
                    self.probe(step)
                    probed = step
                progress.update(step, len(self.edited), self.records)
                if most is not None and len(self.edited) >= most:
                    break
        if probed != step:
            self.probe(step)


class Progress:
    """A bar on a terminal, plain lines in a job's log: ES, ERR, edits a second, time left."""

    def __init__(self, total: int, measure: str) -> None:
        self.total = total
        self.measure = measure
        self.bar = tqdm(total=total, unit="step", disable=not sys.stderr.isatty())
        self.started = time.perf_counter()
        self.every = max(1, total // 10)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def update(self, step: int, n_edits: int, records: Records) -> None:
        """Tell where the run is."""
        scores = [row["es"] for row in records.steps if row.get("es") is not None]
        es = statistics.fmean(scores) if scores else None
        err = records.latest("err", self.measure)
        told = f"ES {_short(es)}, ERR {_short(err)}"
        seconds = time.perf_counter() - self.started
        self.bar.set_postfix_str(f"{n_edits} edits, {told}")
        self.bar.update(1)
        if self.bar.disable and (step % self.every == 0 or step == self.total):
            logger.info(
                "step %d/%d, %d edits, %s, %.2f edits/s, %.0f s left",
                *(step, self.total, n_edits, told, n_edits / seconds),
                seconds / step * (self.total - step),
            )


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


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
    task = TASKS.get(spec.dataset.task)(
        loaded.tokenizer, loaded.model.config, spec.model.max_length
    )
    editor = create_editor(
        spec.editor.editor,
        loaded.model,
        spec.model.layer,
        spec.editor.hyperparameters,
        torch.Generator().manual_seed(spec.seed),
        spec.compute.engine,
    )
    run = StreamRun(spec, task, editor, roles)
    loading_seconds = time.perf_counter() - started
    run.start(baseline)
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
    names += run.editor.save(output, model_hash)
    return {name: sha256_of(output / name) for name in names}


def load_baseline(folder: Path, data_hash: str, model_hash: str) -> list[Row]:
    """Return the unedited model's predictions.

    Raises:
        DataError: they were made of other data or by another model.
    """
    record = read_json(folder / "baseline.json")
    if (record.get("data_hash"), record.get("model_hash")) != (data_hash, model_hash):
        raise DataError(
            f"{folder}: the baseline was made with other data or another model; make it again."
        )
    return read_parquet(folder / "predictions.parquet", PREDICTIONS).to_pylist()


def run_baseline(
    spec: RunSpec, data_folder: Path, model_folder: Path, output: Path
) -> dict[str, Any]:
    """Predict every role with the unedited model; written once per model x data set.

    `output` receives predictions.parquet and, last, baseline.json with the averages.
    """
    device = set_up(spec.compute)
    loaded = load_model(model_folder, spec.dataset.task, device)
    task = TASKS.get(spec.dataset.task)(
        loaded.tokenizer, loaded.model.config, spec.model.max_length
    )
    rows: list[dict[str, Any]] = []
    averages: dict[str, dict[str, float | None]] = {}
    for role in ("upstream", "edits", "holdout", "accurate"):
        examples = list(load_role(data_folder, role))
        with autocast(spec.compute, device):
            predictions = predict_all(loaded.model, task, examples, spec.probes.batch_size)
        found = prediction_rows(examples, predictions, role, step=0, n_edits=0)
        rows += found
        averages[role] = {r["measure"]: r["value"] for r in probe_rows(found, role, 0, 0)}
        averages[role]["n"] = len(examples)
        if role == "edits":
            averages[role]["errors"] = sum(task.is_error(p) for p in predictions)
        logger.info("%s: %s", role, averages[role])
    write_parquet(output / "predictions.parquet", rows, PREDICTIONS)
    record = {
        "model_hash": loaded.sha256,
        "data_hash": read_json(data_folder / "manifest.json")["data_hash"],
        "averages": averages,
        "measure": task.main_measure,
    }
    write_json(output / "baseline.json", record)
    return record
