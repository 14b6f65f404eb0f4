"""Measures against hand-computed numbers."""

from __future__ import annotations

import math
from importlib.metadata import EntryPoint

import pytest

from grace_bench import metrics
from grace_bench.errors import ConfigError
from grace_bench.metrics import (
    Answer,
    Measure,
    aggregate,
    exact_match,
    f1_released,
    perplexity,
    squad_f1,
)
from grace_bench.store import files, schemas

END = 1


@pytest.mark.parametrize(
    ("prediction", "answer", "f1", "match"),
    [
        ("Paris", "paris", 1.0, 1.0),
        ("The Hague!", "Hague", 1.0, 1.0),  # case, article, punctuation
        ("  New\tYork ", "new york", 1.0, 1.0),
        ("U.S.", "us", 1.0, 1.0),
        ("theory", "ory", 0.0, 0.0),  # an article inside a word stays
        ("New York City", "New York", 0.8, 0.0),  # P 2/3, R 1
        ("York", "New York", 2 / 3, 0.0),  # P 1, R 1/2
        ("the cat the cat", "cat", 2 / 3, 0.0),  # multiset: one of two counts; P 1/2, R 1
        ("cat cat", "cat cat dog", 0.8, 0.0),  # P 1, R 2/3
        ("York New", "New York", 1.0, 0.0),  # order is nothing to F1
        ("Rome", "Paris", 0.0, 0.0),
        ("", "Paris", 0.0, 0.0),
        ("Paris", "", 0.0, 0.0),
        ("", "", 1.0, 1.0),
    ],
)
def test_squad_measures(prediction, answer, f1, match):
    assert squad_f1(prediction, answer) == pytest.approx(f1)
    assert exact_match(prediction, answer) == match


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        *(("15", "1.5"), ("5", "-5"), ("2010", "20.10"), ("12", "1/2"), ("1030", "10:30")),
        *(("UTC+01:00", "UTC-01:00"), ("20,10", "2010"), (".5", "5"), ("-.5", ".5")),
        *(("C", "C++"), ("C", "C#"), ("A+", "A"), ("At", ".at")),
        *(("", "A"), ("", "The The"), ("?", "!"), ("the", "a"), ("a an the", "")),
    ],
)
def test_other_answers_are_not_right(prediction, answer):
    assert exact_match(prediction, answer) == exact_match(answer, prediction) == 0.0
    assert squad_f1(prediction, answer) < 1.0


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        *(("Cote d'Ivoire", "Cote d\u2019Ivoire"), ("-5", "\u22125"), ("1\u20132", "1-2")),
        *(("\u201cEmma\u201d", "Emma"), ("Jos\u00e9", "Jose\u0301")),
        *(("1,234,567", "1234567"), ("1.5.", "1.5"), ("('.at')", ".AT"), ("COVID-19", "Covid19")),
        *(("A", "a"), ("?", "?"), ("Paris \u2014 city", "Paris city")),
    ],
)
def test_the_same_answers_written_otherwise_are_right(prediction, answer):
    assert exact_match(prediction, answer) == exact_match(answer, prediction) == 1.0
    assert squad_f1(prediction, answer) == 1.0


@pytest.mark.parametrize(
    ("predicted", "label", "score"),
    [
        ([5, 6, END], [5, 6, END], 1.0),
        ([5, 5, END], [5, 5, END], 2 / 3),  # exact, with a repeated token
        ([5, 6, 7, END], [8, 9, 10, END], 0.25),  # wrong, 3 tokens and the end
        ([5, END], [6, END], 0.5),  # wrong, 1 token and the end
        ([5, 6], [5, 6, END], 0.8),  # P 1, R 2/3
        ([5, 6], [7, 8], 0.0),
        ([END], [5, END], 0.0),  # a scalar has no len: the bare except
        ([], [5, END], 0.0),
        ([5, END], [], 0.0),
    ],
)
def test_f1_of_the_released_code(predicted, label, score):
    """Facts about the released code, M2."""
    assert f1_released(predicted, label) == pytest.approx(score)


def test_perplexity_averages():
    losses = [0.0, math.log(2), math.log(8)]
    perplexities = [perplexity(loss) for loss in losses]
    assert aggregate(perplexities, "perplexity") == pytest.approx(11 / 3)
    assert aggregate(losses, "perplexity_median") == pytest.approx(2.0)
    assert aggregate(losses, "perplexity_log_mean") == pytest.approx(16 ** (1 / 3))
    assert aggregate([0.0, math.log(4)], "perplexity_median") == pytest.approx(2.0)


def test_one_outlier_decides_the_mean_and_not_the_others():
    losses = [1.0] * 9 + [800.0]
    assert math.isinf(perplexity(800.0))
    assert math.isinf(aggregate([perplexity(x) for x in losses], "perplexity"))
    assert aggregate(losses, "perplexity_median") == pytest.approx(math.e)


def test_the_average_of_nothing_is_nan():
    for measure in metrics.MEASURES:
        assert math.isnan(aggregate([], measure))


@pytest.fixture
def words(monkeypatch) -> Measure:
    """A measure as if another package had added it."""
    measure = Measure("words", "Words", False, "words", score=lambda a: len(a.text.split()))
    monkeypatch.setitem(vars(metrics.MEASURES), "_all", {**metrics.MEASURES, "words": measure})
    schema = schemas.predictions_schema.__wrapped__
    monkeypatch.setattr(schemas, "predictions_schema", schema)
    return measure


def test_an_answer_has_the_measures_of_its_kind():
    text = Answer("New York", ["York", "new york!"], ids=[5, END], label_ids=[5, END])
    assert metrics.score(text) == {"f1": 1.0, "exact_match": 1.0, "f1_released": 1.0}
    assert metrics.score(Answer("law", ["Law"], is_class=True)) == {"accuracy": 0.0}


def test_an_added_measure_is_scored_stored_and_averaged(words, tmp_path):
    assert metrics.score(Answer("a b", ["c"]))["words"] == 2.0
    assert schemas.predictions_schema().field("words").nullable
    assert words in metrics.averaged(["words"])
    # Files written before it was added have no value of it.
    old = schemas.predictions_schema().remove(schemas.predictions_schema().get_field_index("words"))
    row = {"step": 0, "n_edits": 0, "role": "upstream", "example_id": "e", "fact_id": "f"}
    files.write_parquet(tmp_path / "old.parquet", [row], old)
    read = files.read_parquet(tmp_path / "old.parquet", schemas.predictions_schema())
    assert read["words"].to_pylist() == [None]


@pytest.mark.parametrize("target", ["math:pi", "grace_bench.metrics:MEASURES"])
def test_what_is_no_measure_is_refused_in_a_sentence(target, monkeypatch):
    point = EntryPoint("words", target, "grace_bench.measures")
    measures = metrics.Measures()
    monkeypatch.setattr(measures.added, "_plugins", lambda: {"words": point})
    with pytest.raises(ConfigError, match="must name a Measure called 'words'"):
        dict(measures)


def test_perplexities_are_averaged_only_beside_a_perplexity():
    assert [m.name for m in metrics.averaged(["accuracy", "loss"])] == ["accuracy", "loss"]
    names = [m.name for m in metrics.averaged(["loss", "perplexity"])]
    assert names == ["loss", "perplexity", "perplexity_median", "perplexity_log_mean"]
