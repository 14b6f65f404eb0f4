"""What happened in one run, as text: its edits, its examples, what was forgotten. Torch-free."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator
from typing import Any

import pandas as pd

from grace_bench.errors import DataError
from grace_bench.metrics import MEASURES, METRICS
from grace_bench.reporting.summary.run_folder import RunFolder
from grace_bench.results.frames import Results

WIDTH = 80


class RunViewer:
    """One finished run with its predictions and the texts behind them.

    Args:
        results: of the suite.
        run: its id, or a part of it that no other run has.

    Raises:
        DataError: there is no such run, or it is not finished.
    """

    def __init__(self, results: Results, run: str) -> None:
        self.run: RunFolder = results.find(run)
        entry = next(entry for entry in results.plan.runs if entry.id == self.run.id)
        dataset = self.run.spec.dataset.name
        examples = results.examples
        self.examples = examples[examples["dataset"] == dataset].set_index("example_id")
        baselines = results.baselines
        self.baseline = baselines[baselines["base_model"] == entry.base_model]
        self.measure = MEASURES[self.run.record.measure]
        self.predictions = self.run.table("predictions.parquet").to_pandas()
        self.steps = self.run.table("steps.parquet").to_pandas()

    def overview(self) -> str:
        """Return the run's settings in brief, its counts, and its scores along the stream."""
        record, probes = self.run.record, self.run.table("probes.parquet").to_pandas()
        counts = ", ".join(f"{v:.4g} {k}" for k, v in record.counts.items() if v is not None)
        lines = [self.run.id, f"{record.status}: {counts}"]
        if record.failure is not None:
            lines.append(f"failed at step {record.failure.step}: {record.failure.message}")
        branches = self.steps["branch"].value_counts()
        if len(branches):
            lines.append("branches: " + ", ".join(f"{n} {name}" for name, n in branches.items()))
        own = probes[(probes["measure"] == self.measure.name)]
        table = own.pivot_table(index="n_edits", columns="metric", values="value")
        table = table[[name for name in METRICS if name in table]]
        table = table.rename(columns={name: METRICS[name].label for name in METRICS})
        kept = table.iloc[:: max(1, len(table) // 8)]
        last = table.iloc[[-1]]
        table = pd.concat([kept, last]) if kept.index[-1] != last.index[-1] else kept
        title = f"{self.measure.title} {self.measure.arrow} after so many edits"
        return "\n".join(
            [*lines, "", title, table.round(3).to_string(na_rep="-", index_names=False)]
        )

    def edit(self, step: int) -> str:
        """Return what an edit did, and what became of it.

        Raises:
            DataError: the run has no such step, or made no edit in it.
        """
        if not 1 <= step <= len(self.steps):
            raise DataError(f"{self.run.id}: has no step {step}; it has 1 to {len(self.steps)}.")
        row = self.steps.set_index("step").loc[step]
        if not row["edited"]:
            raise DataError(
                f"{self.run.id}: made no edit in step {step}: the model was right. Nearest edits: "
                + ", ".join(map(str, self._edits_near(step)))
            )
        facts = {
            "edit": f"{row['n_edits']} of {self.steps['edited'].sum()}, in step {step}",
            "branch": row["branch"],
            "key": row["key"],
            "nearest": row["nearest_key"],
            "distance": row["distance"],
            "loss": f"{row['loss_first']:.3g} -> {row['loss_last']:.3g}"
            if pd.notna(row["loss_first"])
            else None,
            "seconds": row["edit_seconds"],
        }
        lines = [f"{name:<10}{_plain(value)}" for name, value in facts.items() if pd.notna(value)]
        return "\n".join([*lines, "", self.example(row["example_id"])])

    def example(self, example_id: str) -> str:
        """Return what the model was asked, should say, said before, and said at each probe.

        Raises:
            DataError: the run has no such example.
        """
        if example_id not in self.examples.index:
            some = ", ".join(self.predictions["example_id"].drop_duplicates().head(3))
            raise DataError(f"{self.run.id}: has no example '{example_id}'; it has {some}, ...")
        row = self.examples.loc[example_id]
        answers = row["answers"] if row["answers"] is not None else [row["label"]]
        lines = [
            *_wrapped("asked", row["text"]),
            *_wrapped("wanted", " | ".join(answers)),
            *(line for said in self._before(example_id) for line in _wrapped("before", said)),
        ]
        found = self.predictions[self.predictions["example_id"] == example_id]
        found = found[found["step"] > 0].sort_values(["n_edits", "role"])
        for first, last in _runs_of_equal(found, self.measure.column):
            start, end = first["n_edits"], last["n_edits"]
            when = f"{start} edits" if start == end else f"{start}-{end} edits"
            key = "" if pd.isna(last["key"]) else f", key {int(last['key'])}"
            score = f"{self.measure.label} {last[self.measure.column]:.3g}"
            lines += _wrapped(when, f"{last['prediction'] or ''}  [{score}{key}]")
        return "\n".join(lines)

    def forgotten(self, most: int) -> str:
        """Return the examples that lost most between when they were right and the last probe."""
        before = pd.concat([self._taught(), self._edited()])
        after = self.predictions[self.predictions["n_edits"] == self.predictions["n_edits"].max()]
        after = after[after["role"].isin(["upstream", "accurate", "edits"])]
        column = self.measure.column
        both = before.merge(after, on=["role", "example_id"], suffixes=("_before", "_after"))
        sign = 1 if self.measure.higher_is_better else -1
        both["lost"] = sign * (both[f"{column}_before"] - both[f"{column}_after"])
        worst = both[both["lost"] > 0].sort_values("lost", ascending=False, kind="stable")
        lines = [
            f"{len(worst)} of {len(both)} examples lost {self.measure.label} by the last probe"
        ]
        for _, row in worst.head(most).iterrows():
            example = self.examples.loc[row["example_id"]]
            lines += [
                "",
                f"{row['example_id']} ({row['role']}): "
                f"{row[f'{column}_before']:.3g} -> {row[f'{column}_after']:.3g}",
                *_wrapped("asked", example["text"]),
                *_wrapped("wanted", example["label"]),
                *_wrapped("then", row["prediction_before"]),
                *_wrapped("now", row["prediction_after"]),
            ]
        return "\n".join(lines)

    def _taught(self) -> pd.DataFrame:
        return self.baseline[self.baseline["role"].isin(["upstream", "accurate"])]

    def _edited(self) -> pd.DataFrame:
        return self.predictions[self.predictions["role"] == "edit"].assign(role="edits")

    def _before(self, example_id: str) -> list[str]:
        return list(self.baseline[self.baseline["example_id"] == example_id]["prediction"].head(1))

    def _edits_near(self, step: int) -> list[int]:
        edits = self.steps[self.steps["edited"]]["step"]
        nearest = (edits - step).abs().sort_values(kind="stable").index[:3]
        return sorted(edits[nearest])


def _runs_of_equal(found: pd.DataFrame, column: str) -> Iterator[tuple[Any, Any]]:
    """Yield the first and the last of the probes in a row at which the same was said."""
    rows = found.to_dict("records")
    for _, group in itertools.groupby(rows, key=lambda row: (row["prediction"], str(row[column]))):
        same = list(group)
        yield same[0], same[-1]


def _wrapped(name: str, text: str | None) -> list[str]:
    shown = "(no text)" if text is None else (" ".join(text.split()) or "(nothing)")
    return textwrap.wrap(
        shown,
        WIDTH,
        initial_indent=f"{name:<14}",
        subsequent_indent=" " * 14,
        max_lines=6,
        placeholder=" ...",
    )


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else f"{value:.4g}"
    return str(value)
