"""Predictions for roles, and their averages at a probe.

All editors are scored here by the same code, calling the model as any user would.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grace_bench import metrics
from grace_bench.errors import Diverged
from grace_bench.models.device import free_memory, is_out_of_memory
from grace_bench.replay.evaluations import EvaluationReplay
from grace_bench.tasks.base import Example, Prediction, Task, to_device

if TYPE_CHECKING:
    from grace_bench.editors.base import Editor

logger = logging.getLogger(__name__)


@torch.no_grad()
def predict_all(
    model: nn.Module,
    task: Task,
    examples: Sequence[Mapping[str, Any]],
    batch_size: int,
    editor: Editor | None = None,
) -> list[Prediction]:
    """Return one prediction per example, in order, computed in batches.

    Args:
        model: edited or not.
        task: turns examples into tensors and scores.
        examples: rows of a role.
        batch_size: examples predicted at once.
        editor: of the model; its keys that answered go into the predictions.

    Raises:
        Diverged: a loss is not finite; no further batch is predicted.
    """
    predictions: list[Prediction] = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        with nullcontext([]) if editor is None else editor.recorded_keys() as keys:
            found = task.predict(model, batch)
        for example, prediction in zip(batch, found, strict=True):
            if not math.isfinite(loss := prediction.scores.get("loss", 0.0)):
                raise Diverged(
                    f"the model's loss of example '{example['example_id']}' is not finite ({loss})"
                )
        if keys:  # a task's last prompt in a batch is the one whose text it reads
            found = [replace(p, key=key) for p, key in zip(found, keys[-1], strict=True)]
        predictions += found
    return predictions


class Evaluator:
    """Predicts with an edited model, and repeats only what an edit may have changed.

    A codebook changes no weight, so an input's output depends only on the value that answers it.
    Each input's query is kept, with its prediction and the value's version (0: no key answers, so
    the base model does). Editors without a codebook predict every time, but reuse the outputs of
    the layers that they leave alone.

    Args:
        editor: owns the model.
        task: turns examples into tensors and scores.
        batch_size: examples predicted at once; halved for good whenever memory runs out.
        direct: predict every example every time, with the whole model.
    """

    def __init__(self, editor: Editor, task: Task, batch_size: int, direct: bool = False) -> None:
        self.editor = editor
        self.task = task
        self.batch_size = batch_size
        self._lookup = None if direct else editor.incremental_lookup()
        replays = editor.trained and not direct
        self._model = EvaluationReplay(editor.model, editor.trained) if replays else editor.model
        self._known: dict[tuple[str, ...], _Known] = {}
        self._unedited: dict[tuple[str, ...], Prediction] = {}

    @property
    def incremental(self) -> bool:
        """Whether an evaluation repeats only what changed since the last one."""
        return self._lookup is not None

    def learn(self, examples: Sequence[Example], rows: Sequence[Mapping[str, Any]]) -> None:
        """Load the unedited model's predictions, rows of `predictions.parquet`."""
        for example, row in zip(examples, rows, strict=True):
            scores = {name: row[name] for name in metrics.MEASURES if row.get(name) is not None}
            self._unedited[_content(example)] = Prediction(row["prediction"], scores)

    def predict(self, examples: Sequence[Example]) -> list[Prediction]:
        """Return one prediction per example, in order."""
        while True:
            try:
                return self._predict(examples)
            except (RuntimeError, MemoryError) as error:
                if self.batch_size == 1 or not is_out_of_memory(error):
                    raise
            self.batch_size //= 2
            logger.warning("out of memory; continuing with %d examples at once.", self.batch_size)
            free_memory(next(self.editor.model.parameters()).device)

    def _predict(self, examples: Sequence[Example]) -> list[Prediction]:
        if self._lookup is None or not examples:
            return predict_all(self._model, self.task, examples, self.batch_size, self.editor)
        self._add_queries(examples)
        known = [self._known[_content(example)] for example in examples]
        keys, versions = (part[[old.index for old in known]] for part in self._lookup.answers())
        stale = {
            _content(example): (example, version)
            for example, old, version in zip(examples, known, versions.tolist(), strict=True)
            if old.version != version
        }
        asked = [example for example, _ in stale.values()]
        fresh = predict_all(self._model, self.task, asked, self.batch_size)
        for (content, (_, version)), prediction in zip(stale.items(), fresh, strict=True):
            old = self._known[content]
            old.version, old.prediction = version, prediction
        return [
            replace(old.prediction, key=None if key < 0 else key)
            for old, key in zip(known, keys.tolist(), strict=True)
        ]

    def state(self) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """Return the known queries, and the prediction for each as a JSON row."""
        if self._lookup is None:
            return {}, []
        rows = [
            {
                "content": list(content),
                "index": known.index,
                "version": known.version,
                "prediction": known.prediction and known.prediction.text,
                "scores": known.prediction and dict(known.prediction.scores),
            }
            for content, known in self._known.items()
        ]
        return {"queries": self._lookup.queries.clone()}, rows

    def load_state(self, tensors: Mapping[str, Tensor], rows: Sequence[Mapping[str, Any]]) -> None:
        """Load the `state` of an evaluator whose editor had the same codebook."""
        if self._lookup is None:
            return
        device = next(self.editor.model.parameters()).device
        self._lookup.add(tensors["queries"].to(device))
        for row in rows:
            scores = row["scores"]
            prediction = None if scores is None else Prediction(row["prediction"], scores)
            known = _Known(row["index"], row["version"], prediction)
            self._known[tuple(row["content"])] = known

    def _add_queries(self, examples: Sequence[Example]) -> None:
        """Look up the queries of examples that are new."""
        new = {_content(e): e for e in examples if _content(e) not in self._known}
        rows = list(new.values())
        for start in range(0, len(rows), self.batch_size):
            some = rows[start : start + self.batch_size]
            inputs = to_device(self.task.encode(some), self.editor.model)
            places = self._lookup.add(self.editor.queries(inputs))
            for example, place in zip(some, places, strict=True):
                before = self._unedited.get(_content(example))
                version = -1 if before is None else 0
                self._known[_content(example)] = _Known(place, version, before)


@dataclass
class _Known:
    """An example's place in the look-up, and its prediction under a version of a value."""

    index: int
    version: int  # -1: nothing was predicted
    prediction: Prediction | None


def _content(example: Example) -> tuple[str, ...]:
    """Return what an example's scores depend on: its text, label and other right answers."""
    return example["text"], example["label"], *(example.get("answers") or ())[1:]


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
    """Return the rows of `predictions.parquet` for one role, after `step` and `n_edits` edits."""
    return [
        {
            "step": step,
            "n_edits": n_edits,
            "role": role,
            "example_id": example["example_id"],
            "fact_id": example["fact_id"],
            "prediction": prediction.text,
            **prediction.scores,
            **({} if prediction.key is None else {"key": prediction.key}),
        }
        for example, prediction in zip(examples, predictions, strict=True)
    ]


def probe_rows(
    rows: Iterable[Mapping[str, Any]], metric: str, step: int, n_edits: int
) -> list[dict[str, Any]]:
    """Average one metric's prediction rows; return a row of `probes.parquet` per measure."""
    rows = list(rows)
    if not rows:
        return []
    known = [name for name in metrics.per_example() if rows[0].get(name) is not None]
    values = {
        measure.name: metrics.aggregate([row[measure.column] for row in rows], measure.name)
        for measure in metrics.averaged(known)
    }
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
