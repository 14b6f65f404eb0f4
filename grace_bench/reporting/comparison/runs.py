"""From runs to rows of comparisons.parquet."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from grace_bench.metrics import MEASURES, METRICS
from grace_bench.registry import editor_spec
from grace_bench.reporting.comparison.paired import ALPHA, holm, paired_difference
from grace_bench.reporting.summary.run_folder import RunFolder
from grace_bench.reporting.summary.seed_group import setting_keys

REFERENCE = "grace"
CONTROL = "unedited"

Row = dict[str, Any]
Scores = dict[str, dict[str, tuple[str, float]]]
"""By metric and example, its fact and its score after all edits."""


class Contestant:
    """One editor with its hyperparameters on one experiment: its completed runs.

    Args:
        runs: all seeds, those that failed included.
        label: in tables and figures.
    """

    def __init__(self, runs: Iterable[RunFolder], label: str | None = None) -> None:
        """Read the scores of all seeds."""
        runs = list(runs)
        self.keys = setting_keys(runs[0])
        self.label = label or self.keys["editor_label"]
        # A mean of perplexities can hang on a single example; the loss orders them, too.
        main = runs[0].record.measure
        self.measure = "loss" if main == "perplexity" else main
        self.scores = {
            run.spec.seed: _read_scores(run, MEASURES[self.measure].column)
            for run in runs
            if run.failure is None
        }


def _read_scores(run: RunFolder, column: str) -> Scores:
    table = run.table("predictions.parquet", ("step", "role", "example_id", "fact_id", column))
    last = pc.max(table.filter(pc.field("role") != "edit")["step"])
    table = table.filter((pc.field("role") == "edit") | (pc.field("step") == last))
    scores: Scores = {metric.name: {} for metric in METRICS.values()}
    metrics = {metric.role: metric.name for metric in METRICS.values()}
    for row in table.to_pylist():
        if row["role"] in metrics and row[column] is not None and np.isfinite(row[column]):
            of_metric = scores[metrics[row["role"]]]
            of_metric[row["example_id"]] = (row["fact_id"], row[column])
    return scores


def settings_of(runs: Iterable[RunFolder]) -> Iterator[list[RunFolder]]:
    """Yield the seeds of each setting; `runs` are sorted by id."""
    for _, seeds in itertools.groupby(runs, key=lambda run: run.id.rsplit("/", 1)[0]):
        yield list(seeds)


def against_reference(runs: Sequence[RunFolder]) -> list[Row]:
    """Compare an experiment's reference editor with its other configured editors.

    The reference is GRACE; where it was not run, the tables' first editor that is not the control.
    Settings that only a sweep reached are left out: choosing the best by its test score
    would flatter the swept editor.
    """
    configured = [seeds for seeds in settings_of(runs) if not seeds[0].record.in_sweep]
    names = [seeds[0].spec.editor.name for seeds in configured]
    contestants = [
        Contestant(seeds, setting_label(seeds[0], names.count(name) > 1))
        for seeds, name in zip(configured, names, strict=True)
    ]
    eligible = [c for c in contestants if c.scores and c.keys["editor_class"] != CONTROL]
    if not eligible:
        return []
    reference = min(eligible, key=_reference_order)
    return [row for one in contestants if one is not reference for row in compare(reference, one)]


def _reference_order(contestant: Contestant) -> tuple[bool, int, str]:
    kind = contestant.keys["editor_class"]
    return kind != REFERENCE, editor_spec(kind).order, contestant.keys["editor"]


def setting_label(run: RunFolder, with_variant: bool) -> str:
    """Return how tables call a setting: its editor's label, with its variant if it has several."""
    label = run.spec.editor.label
    return f"{label} ({run.record.variant})" if with_variant else label


def compare(first: Contestant, second: Contestant) -> list[Row]:
    """Return a row for each metric that both have of the same examples under the same seed."""
    keys = ("model", "model_label", "dataset", "dataset_label")
    common = {key: first.keys[key] for key in keys}
    for name, one in (("first", first), ("second", second)):
        common[name] = one.keys["editor"]
        common[f"{name}_label"] = one.label
        common[f"{name}_variant"] = one.keys["variant"]
    is_share = MEASURES[first.measure].scale == "share"
    rows = []
    for metric in METRICS:
        pairs = _pairs(first, second, metric)
        if not pairs:
            continue
        names = sorted(f"{one.keys['editor']}/{one.keys['variant']}" for one in (first, second))
        key = "/".join((common["model"], common["dataset"], metric, *names))
        found = paired_difference([(facts, one - other) for facts, one, other in pairs], key)
        rows.append(
            {
                **common,
                "metric": metric,
                "measure": first.measure,
                "first_value": float(np.mean([one.mean() for _, one, _ in pairs])),
                "second_value": float(np.mean([other.mean() for *_, other in pairs])),
                "difference": found.value,
                "low": found.low if found.low is None or not is_share else max(found.low, -1.0),
                "high": found.high if found.high is None or not is_share else min(found.high, 1.0),
                "p_facts": found.p_facts,
                "p_seeds": found.p_seeds,
                "n": found.n,
                "n_facts": found.n_facts,
                "n_seeds": len(pairs),
            }
        )
    return rows


def _pairs(
    first: Contestant, second: Contestant, metric: str
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return each common seed's facts and both scores of the examples that both have."""
    pairs = []
    for seed in sorted(first.scores.keys() & second.scores.keys()):
        one, other = first.scores[seed][metric], second.scores[seed][metric]
        if examples := [name for name in one if name in other]:
            facts = np.array([one[name][0] for name in examples], dtype=object)
            scores = (np.array([found[name][1] for name in examples]) for found in (one, other))
            pairs.append((facts, *scores))
    return pairs


def corrected(rows: Sequence[Row]) -> list[Row]:
    """Add Holm's correction over all rows, and for whom each difference is shown."""
    of_facts = holm([row["p_facts"] for row in rows])
    of_seeds = iter(holm([row["p_seeds"] for row in rows if row["p_seeds"] is not None]))
    done = []
    for row, p_facts in zip(rows, of_facts, strict=True):
        p_seeds = None if row["p_seeds"] is None else next(of_seeds)
        excludes_0 = row["low"] is not None and row["low"] * row["high"] > 0
        shown = None
        if p_seeds is not None and p_seeds < ALPHA and excludes_0:
            shown = "seeds"
        elif p_facts < ALPHA and (p_seeds is not None or excludes_0):
            shown = "facts"
        done.append({**row, "p_facts_holm": p_facts, "p_seeds_holm": p_seeds, "shown": shown})
    return done
