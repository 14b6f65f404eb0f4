"""Predictions over roles, and their averages at a probe.

All editors are scored here, by the same code, through the model as any user would call it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from grace_bench import metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from grace_bench.tasks.base import Prediction, Task


@torch.no_grad()
def predict_all(
    model: nn.Module, task: Task, examples: Sequence[Mapping[str, Any]], batch_size: int
) -> list[Prediction]:
    """Return one prediction an example, in order, computed in batches."""
    return [
        prediction
        for start in range(0, len(examples), batch_size)
        for prediction in task.predict(model, examples[start : start + batch_size])
    ]


def average(predictions: Sequence[Prediction], measure: str) -> float:
    """Return the mean of one measure over predictions; NaN where there are none."""
    return metrics.aggregate([p.scores[measure] for p in predictions], measure)


def prediction_rows(
    examples: Sequence[Mapping[str, Any]],
    predictions: Sequence[Prediction],
    role: str,
    step: int,
    n_edits: int,
) -> list[dict[str, Any]]:
    """Return the rows of `predictions.parquet` for one role at one probe."""
    return [
        {
            "step": step,
            "n_edits": n_edits,
            "role": role,
            "example_id": example["example_id"],
            "fact_id": example["fact_id"],
            "prediction": prediction.text,
            **prediction.scores,
        }
        for example, prediction in zip(examples, predictions, strict=True)
    ]


def probe_rows(
    rows: Iterable[Mapping[str, Any]], metric: str, step: int, n_edits: int
) -> list[dict[str, Any]]:
    """Average the prediction rows of one metric: a row of `probes.parquet` for each measure."""
    rows = list(rows)
    if not rows:
        return []
    measures = [name for name in metrics.MEASURES if rows[0].get(name) is not None]
    values = {name: metrics.aggregate([row[name] for row in rows], name) for name in measures}
    if "perplexity" in measures:
        losses = [row["loss"] for row in rows]
        for name in ("perplexity_median", "perplexity_log_mean"):
            values[name] = metrics.aggregate(losses, name)
    return [
        {
            "step": step,
            "n_edits": n_edits,
            "metric": metric,
            "measure": measure,
            "value": value if math.isfinite(value) else None,
            "n": len(rows),
        }
        for measure, value in values.items()
    ]
