"""Predictions become rows, rows become averages."""

from __future__ import annotations

import math

import pytest

from grace_bench.run.evaluation import average, predict_all, prediction_rows, probe_rows
from grace_bench.tasks.base import Prediction

EXAMPLES = [{"example_id": f"e{i}", "fact_id": f"f{i % 2}"} for i in range(5)]


class Counting:
    """A task that predicts an example's own id, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def predict(self, model, examples):
        self.batches.append(len(examples))
        return [Prediction(e["example_id"], {"f1": float(e["example_id"][1:])}) for e in examples]


@pytest.mark.parametrize(("size", "batches"), [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (64, [5])])
def test_predictions_keep_the_order_whatever_the_batch(size, batches):
    task = Counting()
    found = predict_all(None, task, EXAMPLES, size)
    assert [prediction.text for prediction in found] == ["e0", "e1", "e2", "e3", "e4"]
    assert task.batches == batches
    assert average(found, "f1") == 2.0


def test_no_examples_are_no_predictions():
    assert predict_all(None, Counting(), [], 4) == []
    assert math.isnan(average([], "f1"))
    assert probe_rows([], "err", 1, 1) == []


def test_rows_say_what_was_predicted_when():
    rows = prediction_rows(EXAMPLES[:1], [Prediction("x", {"f1": 0.5, "loss": 2.0})], "edits", 7, 3)
    assert rows == [
        {
            "step": 7,
            "n_edits": 3,
            "role": "edits",
            "example_id": "e0",
            "fact_id": "f0",
            "prediction": "x",
            "f1": 0.5,
            "loss": 2.0,
        }
    ]


def values(rows) -> dict[str, float | None]:
    return {row["measure"]: row["value"] for row in rows}


def test_a_probe_averages_every_measure_that_the_task_has():
    rows = [{"f1": 0.0, "accuracy": None, "loss": 1.0}, {"f1": 0.5, "accuracy": None, "loss": 3.0}]
    found = probe_rows(rows, "trr", step=4, n_edits=2)
    assert values(found) == {"f1": 0.25, "loss": 2.0}
    assert {(r["metric"], r["step"], r["n_edits"], r["n"]) for r in found} == {("trr", 4, 2, 2)}


def test_perplexity_is_averaged_in_three_ways():
    losses = [0.0, math.log(2), math.log(8)]
    rows = [{"loss": loss, "perplexity": math.exp(loss)} for loss in losses]
    found = values(probe_rows(rows, "trr", 1, 1))
    assert found["perplexity"] == pytest.approx(11 / 3)
    assert found["perplexity_median"] == pytest.approx(2)
    assert found["perplexity_log_mean"] == pytest.approx(16 ** (1 / 3))


def test_an_average_that_is_no_number_is_null():
    rows = [{"loss": 800.0, "perplexity": math.inf}, {"loss": 1.0, "perplexity": math.e}]
    found = values(probe_rows(rows, "trr", 1, 1))
    assert found["perplexity"] is None
    assert found["loss"] == pytest.approx(400.5)
