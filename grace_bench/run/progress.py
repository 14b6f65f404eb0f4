"""What a run gathers as it goes: records and seconds; and its progress line."""

from __future__ import annotations

import logging
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from grace_bench.models.device import synchronize
from grace_bench.run.evaluation import probe_rows

logger = logging.getLogger(__name__)


@dataclass
class Lap:
    """One measurement; `seconds` is set when its block ends."""

    seconds: float = 0.0


class Stopwatch:
    """Seconds by part of a run; waits for the device before and after each measurement."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {"edit": 0.0, "evaluation": 0.0}

    @contextmanager
    def measure(self, part: str) -> Iterator[Lap]:
        """Add the time of the block to `part`."""
        lap = Lap()
        synchronize(self._device)
        started = time.perf_counter()
        yield lap
        synchronize(self._device)
        lap.seconds = time.perf_counter() - started
        self.seconds[part] += lap.seconds


class Records:
    """The rows that a run has produced so far."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.predictions: list[dict[str, Any]] = []
        self.edits: list[dict[str, Any]] = []
        self.probes: list[dict[str, Any]] = []
        self.latency: list[dict[str, Any]] = []
        self.journal: list[dict[str, Any]] = []

    def add_probe(
        self,
        metric: str,
        rows: list[dict[str, Any]],
        step: int,
        n_edits: int,
        keep: bool = True,
    ) -> None:
        """Add the averages of prediction rows and, with `keep`, the rows themselves."""
        if keep:
            self.predictions += rows
        self.probes += probe_rows(rows, metric, step, n_edits)

    def latest(self, metric: str, measure: str) -> float | None:
        """Return the newest probed value of a metric."""
        for row in reversed(self.probes):
            if row["metric"] == metric and row["measure"] == measure:
                return row["value"]
        return None


class Progress:
    """A bar on a terminal, plain lines in a job's log: ES, ERR, edits per second, time left."""

    def __init__(self, total: int, measure: str, done: int = 0, edited: int = 0) -> None:
        self.total = total
        self.measure = measure
        self.done_before = done
        self.edited_before = edited
        self.bar = tqdm(total=total, initial=done, unit="step", disable=not sys.stderr.isatty())
        self.started = time.perf_counter()
        self.every = max(1, total // 10)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def update(self, step: int, n_edits: int, records: Records) -> None:
        """Show where the run is."""
        scores = [row["es"] for row in records.steps if row.get("es") is not None]
        es = statistics.fmean(scores) if scores else None
        err = records.latest("err", self.measure)
        summary = f"ES {_short(es)}, ERR {_short(err)}"
        seconds = time.perf_counter() - self.started
        self.bar.set_postfix_str(f"{n_edits} edits, {summary}")
        self.bar.update(1)
        if self.bar.disable and (step % self.every == 0 or step == self.total):
            logger.info(
                "step %d/%d, %d edits, %s, %.2f edits/s, %.0f s left",
                *(step, self.total, n_edits, summary, (n_edits - self.edited_before) / seconds),
                seconds / (step - self.done_before) * (self.total - step),
            )


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
