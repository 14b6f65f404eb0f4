"""Predictions over roles, and their averages at a probe.

All editors are scored here, by the same code, through the model as any user would call it.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from grace_bench import metrics
from grace_bench.errors import Diverged
from grace_bench.models.device import free_memory, is_out_of_memory
from grace_bench.replay.steps import PrefixCache
from grace_bench.tasks.base import Prediction, to_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor

    from grace_bench.editors.base import Editor
    from grace_bench.tasks.base import Example, Task

logger = logging.getLogger(__name__)


@torch.no_grad()
def predict_all(
    model: nn.Module,
    task: Task,
    examples: Sequence[Mapping[str, Any]],
    batch_size: int,
    after_batch: Callable[[int], None] | None = None,
) -> list[Prediction]:
    """Return one prediction an example, in order, computed in batches.

    Args:
        model: edited or not.
        task: turns examples into tensors and scores.
        examples: rows of a role.
        batch_size: examples predicted at once.
        after_batch: called after each batch with its size.

    Raises:
        Diverged: a loss is not finite; no further batch is predicted.
    """
    predictions: list[Prediction] = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        found = task.predict(model, batch)
        for example, prediction in zip(batch, found, strict=True):
            if not math.isfinite(loss := prediction.scores.get("loss", 0.0)):
                raise Diverged(
                    f"the model's loss of example '{example['example_id']}' is not finite ({loss})"
                )
        predictions += found
        if after_batch is not None:
            after_batch(len(batch))
    return predictions


class Evaluator:
    """Predicts with an edited model, again only where an edit can have changed the answer.

    The weights below a codebook never change, so that an input's output hangs on the value that
    answers it and on nothing else. Each input's query is kept, and its prediction together with
    the value's stamp (0: no key answers, the base model does). Editors without such a codebook
    are asked anew each time, the layers that they leave alone computed once.

    Args:
        editor: owns the model.
        task: turns examples into tensors and scores.
        batch_size: examples predicted at once; halved, for good, whenever memory runs out.
        direct: predict every example anew each time, with the whole model.

    Attributes:
        keys: the key that answered each example of the last `predict`; None where none did.
    """

    def __init__(self, editor: Editor, task: Task, batch_size: int, direct: bool = False) -> None:
        self.editor = editor
        self.task = task
        self.batch_size = batch_size
        self.keys: list[int | None] = []
        self._tracked = None if direct else editor.track()
        replays = editor.trained and not direct
        self._model = PrefixCache(editor.model, editor.trained) if replays else editor.model
        self._known: dict[tuple[str, ...], _Known] = {}
        self._unedited: dict[tuple[str, ...], Prediction] = {}

    @property
    def incremental(self) -> bool:
        """Whether an evaluation costs no more than what edits changed since the last one."""
        return self._tracked is not None

    def learn(self, examples: Sequence[Example], rows: Sequence[Mapping[str, Any]]) -> None:
        """Take over the unedited model's predictions: rows of `predictions.parquet`."""
        for example, row in zip(examples, rows, strict=True):
            scores = {name: row[name] for name in metrics.MEASURES if row.get(name) is not None}
            self._unedited[_content(example)] = Prediction(row["prediction"], scores)

    def predict(self, examples: Sequence[Example]) -> list[Prediction]:
        """Return one prediction an example, in order."""
        while True:
            try:
                return self._predict(examples)
            except (RuntimeError, MemoryError) as error:
                if self.batch_size == 1 or not is_out_of_memory(error):
                    raise
            self.batch_size //= 2
            logger.warning("out of memory: from now on %d examples at once.", self.batch_size)
            free_memory(next(self.editor.model.parameters()).device)

    def _predict(self, examples: Sequence[Example]) -> list[Prediction]:
        self.keys = []
        if self._tracked is None or not examples:
            return predict_all(
                self._model, self.task, examples, self.batch_size, self._ask_for_keys
            )
        self._track(examples)
        known = [self._known[_content(example)] for example in examples]
        keys, stamps = (part[[old.index for old in known]] for part in self._tracked.answers())
        stale = {
            _content(example): (example, stamp)
            for example, old, stamp in zip(examples, known, stamps.tolist(), strict=True)
            if old.stamp != stamp
        }
        asked = [example for example, _ in stale.values()]
        fresh = predict_all(self._model, self.task, asked, self.batch_size)
        for (content, (_, stamp)), prediction in zip(stale.items(), fresh, strict=True):
            old = self._known[content]
            old.stamp, old.prediction = stamp, prediction
        self.keys = [None if key < 0 else key for key in keys.tolist()]
        return [old.prediction for old in known]

    def state(self) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """Return the queries that are tracked, and what was predicted for each, as JSON rows."""
        if self._tracked is None:
            return {}, []
        rows = [
            {
                "content": list(content),
                "index": known.index,
                "stamp": known.stamp,
                "prediction": known.prediction and known.prediction.text,
                "scores": known.prediction and dict(known.prediction.scores),
            }
            for content, known in self._known.items()
        ]
        return {"queries": self._tracked.queries.clone()}, rows

    def load_state(self, tensors: Mapping[str, Tensor], rows: Sequence[Mapping[str, Any]]) -> None:
        """Take over `state` of an evaluator whose editor had the same codebook."""
        if self._tracked is None:
            return
        device = next(self.editor.model.parameters()).device
        self._tracked.add(tensors["queries"].to(device))
        for row in rows:
            scores = row["scores"]
            prediction = None if scores is None else Prediction(row["prediction"], scores)
            known = _Known(row["index"], row["stamp"], prediction)
            self._known[tuple(row["content"])] = known

    def _ask_for_keys(self, rows: int) -> None:
        self.keys += self.editor.answering_keys(rows)

    def _track(self, examples: Sequence[Example]) -> None:
        """Find out the queries of examples that are new here."""
        new = {_content(e): e for e in examples if _content(e) not in self._known}
        rows = list(new.values())
        for start in range(0, len(rows), self.batch_size):
            some = rows[start : start + self.batch_size]
            inputs = to_device(self.task.encode(some), self.editor.model)
            places = self._tracked.add(self.editor.queries(inputs))
            for example, place in zip(some, places, strict=True):
                before = self._unedited.get(_content(example))
                stamp = -1 if before is None else 0
                self._known[_content(example)] = _Known(place, stamp, before)


@dataclass
class _Known:
    """Where an example's query is tracked, and what was predicted under which value's stamp."""

    index: int
    stamp: int  # -1: nothing was predicted
    prediction: Prediction | None


def _content(example: Example) -> tuple[str, ...]:
    """Return what an example's scores hang on: its text, its label and further right answers."""
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
    keys: Sequence[int | None] | None = None,
) -> list[dict[str, Any]]:
    """Return the rows of `predictions.parquet` for one role at one probe.

    Args:
        examples: rows of the role.
        predictions: one for each.
        role: under which they are kept.
        step: after which step.
        n_edits: made so far.
        keys: that answered the examples; left out: the model has no keys.
    """
    answered = [None] * len(examples) if keys is None else keys
    return [
        {
            "step": step,
            "n_edits": n_edits,
            "role": role,
            "example_id": example["example_id"],
            "fact_id": example["fact_id"],
            "prediction": prediction.text,
            **prediction.scores,
            **({} if key is None else {"key": key}),
        }
        for example, prediction, key in zip(examples, predictions, answered, strict=True)
    ]


def probe_rows(
    rows: Iterable[Mapping[str, Any]], metric: str, step: int, n_edits: int
) -> list[dict[str, Any]]:
    """Average the prediction rows of one metric: a row of `probes.parquet` for each measure."""
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
