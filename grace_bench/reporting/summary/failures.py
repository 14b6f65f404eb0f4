"""Failed runs: a failure is a result, and none of the run's numbers count as a complete run's.

The run.json of a failed run says at which step it failed and why. In summary.parquet each failed
run is one row of the metric `failure`, and each setting with failed seeds has one such row over all
seeds, so that tables, figures and the report need that file alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from grace_bench.store.records import FailureRecord

METRIC = "failure"
KINDS = {"out_of_memory": "out of memory"}
LONGEST_MESSAGE = 240
MOST_SEEDS = 6  # named one by one in a sentence

COLUMNS = (
    ("failure_kind", pa.string(), True),  # diverged, out_of_memory, error
    ("failure_type", pa.string(), True),  # class of the exception
    ("failure_step", pa.int32(), True),
    ("failure_example_id", pa.string(), True),
    ("failure_message", pa.string(), True),  # one sentence
)
"""Of summary.parquet; null except in rows of failed seeds."""


class Failure(FailureRecord):
    """How the run of one seed failed."""

    seed: int

    @property
    def place(self) -> str:
        """Where in the stream it failed."""
        return "before the first step" if not self.step else f"at step {self.step}"

    @property
    def reason(self) -> str:
        """Why it failed, on one line."""
        message = "".join(c if c.isprintable() else " " for c in self.message)
        message = " ".join(message.split()).rstrip(".")
        if len(message) > LONGEST_MESSAGE:
            message = message[: LONGEST_MESSAGE - 3] + "..."
        kind = KINDS.get(self.kind, self.kind)
        return f"{kind}: {message}" if message else kind


def failure_rows(
    keys: Mapping[str, Any], failures: Sequence[Failure], n_whole: int, measure: str
) -> Iterator[dict[str, Any]]:
    """Yield the rows of summary.parquet on the failed seeds of one setting, if any failed.

    Args:
        keys: the columns that all rows of the setting share.
        failures: of the setting's seeds.
        n_whole: number of seeds that did not fail.
        measure: the task's main one, so that a suite without any other row can be read.
    """
    if not failures:
        return
    common = {**keys, "metric": METRIC, "measure": measure, "is_main": True}
    n_failed = len(failures)
    yield {**common, "value": float(n_failed), "n_seeds": n_whole, "n_failed": n_failed}
    for failure in failures:
        details = failure.model_dump()
        row = {"seed": details.pop("seed"), "n_seeds": 0, "n_failed": 1}
        yield {**common, **row, **{f"failure_{key}": value for key, value in details.items()}}


def failure_of_row(row: Mapping[str, Any]) -> Failure:
    """Return the failure that a row of summary.parquet describes."""
    return Failure(
        seed=row["seed"],
        kind=row["failure_kind"] or "error",
        step=row["failure_step"],
        example_id=row["failure_example_id"],
        message=row["failure_message"] or "",
        type=row["failure_type"],
    )


def footnote(failures: Sequence[Failure], n_whole: int) -> str:
    """Describe the failed seeds of one setting in one or two sentences.

    >>> footnote([Failure(seed=2, kind="diverged", step=17, message="the loss is NaN.")], 2)
    '1 of 3 seeds failed: seed 2 at step 17 (diverged: the loss is NaN). Numbers: the other 2.'
    """
    parts = []
    for reason in dict.fromkeys(failure.reason for failure in failures):
        members = [failure for failure in failures if failure.reason == reason]
        named = [f"seed {f.seed} {f.place}" for f in members[:MOST_SEEDS]]
        if len(members) > MOST_SEEDS:
            named.append(f"{len(members) - MOST_SEEDS} more")
        parts.append(f"{', '.join(named)} ({reason})")
    reasons = "; ".join(parts)
    if not n_whole:
        many = f"All {len(failures)} seeds" if len(failures) > 1 else "The only seed"
        return f"{many} failed: {reasons}."
    total = len(failures) + n_whole
    return f"{len(failures)} of {total} seeds failed: {reasons}. Numbers: the other {n_whole}."


def short(label: str, failures: Sequence[Failure], n_whole: int) -> str:
    """Return an editor's label and its failed seeds in a few words: "FT (1 of 3 seeds)"."""
    total = len(failures) + n_whole
    seeds = f"{total} seed{'s' if total > 1 else ''}"
    return f"{label} ({f'all {seeds}' if not n_whole else f'{len(failures)} of {seeds}'})"
