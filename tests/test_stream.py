"""The editing loop: which edits come, what is written down, and that it comes out the same."""

from __future__ import annotations

import math
import random
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from small_runs import MODEL, WIDE, spec

from grace_bench.datasets.base import load_role
from grace_bench.editors import base
from grace_bench.errors import DataError
from grace_bench.models.loading import load_model
from grace_bench.models.scratch import train_tokenizer
from grace_bench.run.stream import edits_at_once, select_stream
from grace_bench.steps.edit import RunFolders, run_stream
from grace_bench.store.files import read_json, read_parquet, sha256_of, write_json, write_parquet
from grace_bench.store.schemas import EXAMPLES, LATENCY, PROBES, STEPS, predictions_schema
from grace_bench.suite.plan import content_hash
from grace_bench.suite.schema import ComputeConfig, StreamConfig
from grace_bench.tasks.kinds.question_answering import QuestionAnswering


@pytest.fixture(scope="module")
def finished(small_inputs, tmp_path_factory):
    """The folder of one `ft` run with six steps, probes after four and at the end."""
    folder = tmp_path_factory.mktemp("run")
    run_stream(spec(), RunFolders(*small_inputs, folder))
    return folder


def tables(folder):
    return [
        read_parquet(folder / f"{name}.parquet", schema).to_pylist()
        for name, schema in (
            ("steps", STEPS),
            ("probes", PROBES),
            ("predictions", predictions_schema()),
        )
    ]


ROWS = [
    {"example_id": f"{fact}{phrasing}", "fact_id": fact, "text": "t", "label": "l"}
    for fact in "abcdefgh"
    for phrasing in "12"
]


def ids(rows) -> list[str]:
    return [row["example_id"] for row in rows]


def test_the_given_order_takes_the_first_facts_whatever_the_seed():
    config = StreamConfig(facts=3, order="given")
    assert ids(select_stream(ROWS, config, 0)) == ["a1", "a2", "b1", "b2", "c1", "c2"]
    assert select_stream(ROWS, config, 1) == select_stream(ROWS, config, 0)


def test_a_shuffled_stream_hangs_on_its_seed_alone():
    config = StreamConfig(facts=4)
    random.seed(1)
    first = select_stream(ROWS, config, 0)
    random.seed(2)
    assert select_stream(ROWS, config, 0) == first
    others = [ids(select_stream(ROWS, config, seed)) for seed in range(1, 5)]
    assert len({tuple(other) for other in [*others, ids(first)]}) == 5
    assert len({frozenset(row[0] for row in other) for other in others}) > 1  # other facts, too


def test_a_fact_comes_with_all_its_phrasings_and_they_are_spread():
    found = ids(select_stream(ROWS, StreamConfig(facts=5), 0))
    assert len(found) == 10
    facts = {name[0] for name in found}
    assert sorted(found) == sorted(f"{fact}{n}" for fact in facts for n in "12")
    assert any(found[i][0] != found[i + 1][0] for i in range(0, 10, 2))


@pytest.mark.parametrize("facts", [None, 8, 100])
def test_all_facts_are_taken_where_no_fewer_are_asked_for(facts):
    for order in ("given", "shuffled"):
        found = select_stream(ROWS, StreamConfig(facts=facts, order=order), 0)
        assert sorted(ids(found)) == sorted(ids(ROWS))


def test_a_run_writes_its_files_and_their_hashes(finished):
    record = read_json(finished / "run.json")
    names = {"steps.parquet", "probes.parquet", "predictions.parquet", "editor.safetensors"}
    assert {path.name for path in finished.iterdir()} == {*names, "run.json"}
    assert record["files"] == {name: sha256_of(finished / name) for name in names}
    assert (record["id"], record["status"]) == ("tiny/qa/ft/steps=2/seed-0", "complete")
    assert record["spec"] == spec().model_dump(mode="json")
    assert record["measure"] == "f1"
    assert record["counts"] == {"steps": 6, "edits": 6, "keys": None, "edits_per_key": None}


def test_every_step_is_told(finished, small_inputs):
    steps, _, predictions = tables(finished)
    expected = select_stream(load_role(small_inputs[0], "edits"), spec().stream, 0)
    assert ids(steps) == ids(expected)
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]
    edits = 0
    for step in steps:
        edits += step["edited"]
        assert step["n_edits"] == edits
        assert step["is_error"] == step["edited"]
        assert (step["es"] is None) == (not step["edited"])
        if step["edited"]:
            assert step["gradient_steps"] == 2
            assert step["loss_last"] < step["loss_first"]
            assert step["edit_seconds"] > 0
            [after] = [p for p in predictions if p["role"] == "edit" and p["step"] == step["step"]]
            assert after["example_id"] == step["example_id"]
            assert after["f1"] == step["es"]


def test_probes_come_before_the_first_edit_on_schedule_and_at_the_end(finished):
    _, probes, _ = tables(finished)
    assert sorted({(p["step"], p["n_edits"]) for p in probes}) == [(0, 0), (4, 4), (6, 6)]
    metrics = {step: {p["metric"] for p in probes if p["step"] == step} for step in (0, 4, 6)}
    assert metrics[0] == {"trr", "arr"}
    assert metrics[4] == metrics[6] == {"es", "err", "trr", "arr", "holdout"}


def test_a_probe_is_the_mean_of_its_predictions(finished):
    _, probes, predictions = tables(finished)
    roles = {"err": "edits", "trr": "upstream", "arr": "accurate", "holdout": "holdout"}
    checked = 0
    for probe in probes:
        measure = probe["measure"]
        if measure.startswith("perplexity"):
            continue
        if probe["metric"] == "es":  # all edits so far, each right after it was made
            rows = [p for p in predictions if p["role"] == "edit" and p["step"] <= probe["step"]]
        else:
            role = roles[probe["metric"]]
            rows = [p for p in predictions if p["role"] == role and p["step"] == probe["step"]]
        assert probe["n"] == len(rows) > 0
        mean = math.fsum(row[measure] for row in rows) / len(rows)
        assert probe["value"] == pytest.approx(mean)
        checked += 1
    assert checked >= 12 * 5


def test_a_probe_has_all_past_edits_and_their_facts_held_out_phrasings(finished):
    steps, _, predictions = tables(finished)
    for at in (4, 6):
        past = [step for step in steps if step["step"] <= at and step["edited"]]
        rows = [p for p in predictions if p["step"] == at]
        assert ids(p for p in rows if p["role"] == "edits") == ids(past)
        held_out = {p["fact_id"] for p in rows if p["role"] == "holdout"}
        assert held_out == {step["fact_id"] for step in past}


def test_the_unedited_model_scores_what_the_baseline_says(small_inputs, tmp_path):
    run_stream(spec("unedited"), RunFolders(*small_inputs, tmp_path))
    steps, probes, predictions = tables(tmp_path)
    baseline = {
        (row["role"], row["example_id"]): row
        for row in read_parquet(
            small_inputs[2] / "predictions.parquet", predictions_schema()
        ).to_pylist()
    }
    for row in predictions:
        role = "edits" if row["role"] == "edit" else row["role"]
        before = baseline[role, row["example_id"]]
        assert row["prediction"] == before["prediction"]
        assert row["loss"] == pytest.approx(before["loss"], abs=1e-5)
    trr = [p["value"] for p in probes if (p["metric"], p["measure"]) == ("trr", "loss")]
    assert len(trr) == 7  # before any edit and after each
    assert trr == pytest.approx([trr[0]] * 7)
    assert all(step["loss_first"] is None for step in steps)


def test_the_baseline_counts_the_errors_the_stream_can_meet(small_inputs):
    record = read_json(small_inputs[2] / "baseline.json")
    rows = read_parquet(small_inputs[2] / "predictions.parquet", predictions_schema()).to_pylist()
    errors = sum(row["exact_match"] < 1 for row in rows if row["role"] == "edits")
    assert record["averages"]["edits"]["errors"] == errors
    assert {role: found["n"] for role, found in record["averages"].items()} == {
        "upstream": 5,
        "edits": 12,
        "holdout": 6,
        "accurate": 3,
    }


def test_the_same_seed_gives_the_same_bytes(finished, small_inputs, tmp_path):
    torch.manual_seed(4321)
    random.seed(4321)
    run_stream(spec(), RunFolders(*small_inputs, tmp_path))
    for name in ("predictions.parquet", "probes.parquet", "editor.safetensors"):
        assert sha256_of(tmp_path / name) == sha256_of(finished / name), name
    first, again = tables(finished)[0], tables(tmp_path)[0]
    for step in (*first, *again):
        step.pop("edit_seconds")
    assert first == again


def test_another_seed_gives_another_order(finished, small_inputs, tmp_path):
    run_stream(spec(seed=1), RunFolders(*small_inputs, tmp_path))
    assert ids(tables(tmp_path)[0]) != ids(tables(finished)[0])
    weights = [
        load_file(folder / "editor.safetensors")["weight"] for folder in (finished, tmp_path)
    ]
    assert not torch.equal(*weights)


def test_the_saved_state_is_the_edited_layer(finished, small_inputs):
    original = load_model(small_inputs[1], "question_answering").model
    state = load_file(finished / base.STATE_FILE)
    layer = original.get_submodule(MODEL["layer"])
    assert state["weight"].shape == layer.weight.shape
    assert not torch.equal(state["weight"], layer.weight)


def test_the_prepared_tokenizer_is_the_one_the_model_was_trained_with(small_inputs):
    rows = load_role(small_inputs[0], "train")
    texts = [row[key] for row in rows for key in ("text", "label")]
    fresh = train_tokenizer("t5", texts, MODEL["source"]["vocabulary_size"])
    loaded = load_model(small_inputs[1], "question_answering").tokenizer
    for text in (*texts, "Unseen words, 3.14!"):
        assert loaded(text)["input_ids"] == fresh(text)["input_ids"]


def test_no_more_edits_than_asked_for(small_inputs, tmp_path):
    stream_config = {"facts": None, "max_edits": 3}
    record = run_stream(spec("unedited", stream=stream_config), RunFolders(*small_inputs, tmp_path))
    steps, probes, _ = tables(tmp_path)
    assert record.counts["edits"] == steps[-1]["n_edits"] == 3
    assert steps[-1]["edited"]
    assert {p["n_edits"] for p in probes} == {0, 1, 2, 3}


def test_a_probe_at_the_last_step_is_made_once(small_inputs, tmp_path):
    run_stream(spec("unedited", probes={"every": 3}), RunFolders(*small_inputs, tmp_path))
    _, probes, predictions = tables(tmp_path)
    assert sorted({p["step"] for p in predictions if p["role"] == "upstream"}) == [0, 3, 6]
    assert len({(p["step"], p["metric"], p["measure"]) for p in probes}) == len(probes)
    keys = [(p["step"], p["role"], p["example_id"]) for p in predictions]
    assert len(set(keys)) == len(keys)


def test_with_a_codebook_averages_are_exact_after_every_edit(small_inputs, tmp_path):
    run_stream(
        spec("grace", probes={"every": 4, "batch_size": 8}),
        RunFolders(*small_inputs, tmp_path / "one"),
    )
    run_stream(
        spec("grace", probes={"every": 1, "batch_size": 8}),
        RunFolders(*small_inputs, tmp_path / "two"),
    )
    every_fourth, every = tables(tmp_path / "one"), tables(tmp_path / "two")
    assert every_fourth[1] == every[1]
    assert {p["n_edits"] for p in every[1]} == set(range(every[0][-1]["n_edits"] + 1))
    told = {(p["step"], p["role"], p["example_id"]): p for p in every[2]}
    for row in every_fourth[2]:
        assert told[row["step"], row["role"], row["example_id"]] == row


@pytest.mark.parametrize(
    ("is_encoder_decoder", "labels", "edits"),
    [(True, 10, 12), (False, 30, 17)],  # a causal model's labels are masks over its 30 tokens
)
def test_a_causal_models_tokens_count_once(is_encoder_decoder, labels, edits):
    inputs = {"input_ids": torch.zeros(1, 30), "labels": torch.zeros(1, labels)}
    config = SimpleNamespace(is_encoder_decoder=is_encoder_decoder)
    task = SimpleNamespace(config=config, encode=lambda _: inputs)
    assert edits_at_once(ComputeConfig(), task, {}) == edits


@pytest.mark.parametrize("engine", ["lean", "replay"])
def test_the_quick_ways_find_what_the_direct_one_finds(small_inputs, tmp_path, engine):
    ways = {"direct": 1, engine: 3}
    for way, at_once in ways.items():
        compute = {"device": "cpu", "engine": way, "edits_at_once": at_once}
        run_stream(spec("grace", compute=compute), RunFolders(*small_inputs, tmp_path / way))
    direct, quick = tables(tmp_path / "direct"), tables(tmp_path / engine)
    names = ("step", "example_id", "branch", "key", "nearest_key", "distance", "es", "n_keys")
    for one, other in zip(direct[0], quick[0], strict=True):
        assert {n: other[n] for n in names} == {n: one[n] for n in names}
        assert (other["loss_last"] is None) == (one["loss_last"] is None)
        if one["loss_last"] is not None:
            assert other["loss_last"] == pytest.approx(one["loss_last"], rel=1e-3)
    assert any(step["edited"] for step in direct[0])
    for one, other in zip(direct[2], quick[2], strict=True):
        assert (other["prediction"], other["key"]) == (one["prediction"], one["key"])


@pytest.mark.parametrize("engine", ["lean", "direct"])
def test_a_prediction_names_the_key_that_answered_it(small_inputs, tmp_path, engine):
    compute = {"device": "cpu", "engine": engine}
    run_stream(spec("grace", 0, WIDE, compute=compute), RunFolders(*small_inputs, tmp_path))
    steps, _, predictions = tables(tmp_path)
    after = [p for p in predictions if p["role"] == "edit"]
    assert [p["key"] for p in after] == [step["key"] for step in steps if step["edited"]]
    assert {p["key"] for p in predictions if p["step"] == 0} == {None}
    assert {p["key"] for p in predictions if p["role"] == "holdout"} > {0}


def test_without_a_codebook_no_key_answers(finished):
    assert {p["key"] for p in tables(finished)[2]} == {None}


@pytest.mark.parametrize("editor", ["grace", "ft", "memory"])
def test_timing_inputs_changes_no_result(small_inputs, tmp_path, editor):
    timed = {**spec().probes.model_dump(), "latency": 2}
    run_stream(spec(editor), RunFolders(*small_inputs, tmp_path / "plain"))
    record = run_stream(spec(editor, probes=timed), RunFolders(*small_inputs, tmp_path / "timed"))
    for name in ("predictions.parquet", "probes.parquet"):
        assert sha256_of(tmp_path / "timed" / name) == sha256_of(tmp_path / "plain" / name)
    rows = read_parquet(tmp_path / "timed" / "latency.parquet", LATENCY).to_pylist()
    assert [(r["step"], r["example_id"]) for r in rows] == [
        (step, f"upstream/{i}") for step in (4, 6) for i in (0, 1)
    ]
    assert all(row["seconds"] > 0 and row["seconds_unedited"] > 0 for row in rows)
    assert [row["n_keys"] is None for row in rows] == [editor != "grace"] * 4
    assert "latency.parquet" in record.files
    assert not (tmp_path / "plain" / "latency.parquet").exists()


def test_only_a_run_that_times_inputs_has_another_identity():
    plain, named = spec(), spec(probes={"every": 4, "batch_size": 8, "latency": None})
    timed = spec(probes={"every": 4, "batch_size": 8, "latency": 1})
    assert content_hash(named) == content_hash(plain) != content_hash(timed)
    assert "latency" not in plain.model_dump(mode="json")["probes"]


def test_probes_take_no_more_examples_than_asked_for(small_inputs, tmp_path):
    probes = {"every": 2, "upstream": 2, "holdout": 1, "accurate": 1}
    run_stream(spec("unedited", probes=probes), RunFolders(*small_inputs, tmp_path))
    sizes = {(p["metric"], p["n"]) for p in tables(tmp_path)[1] if p["metric"] != "es"}
    assert sizes >= {("trr", 2), ("arr", 1), ("holdout", 1)}
    assert {n for metric, n in sizes if metric in ("trr", "arr", "holdout")} == {1, 2}


@pytest.mark.parametrize("edit", ["errors", "all"])
def test_what_is_right_is_edited_only_if_all_is(small_inputs, tmp_path, monkeypatch, edit):
    seen: list[bool] = []

    def every_second(self, prediction) -> bool:
        seen.append(len(seen) % 2 == 0)
        return seen[-1]

    monkeypatch.setattr(QuestionAnswering, "is_error", every_second)
    config = {"facts": 3, "edit": edit}
    record = run_stream(spec("unedited", stream=config), RunFolders(*small_inputs, tmp_path))
    steps, _, _ = tables(tmp_path)
    assert [step["is_error"] for step in steps] == [True, False] * 3
    edited = [True] * 6 if edit == "all" else [True, False] * 3
    assert [step["edited"] for step in steps] == edited
    assert record.counts["edits"] == sum(edited)
    assert all((step["es"] is None) == (not step["edited"]) for step in steps)


def test_a_stream_without_errors_ends_with_a_probe(small_inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(QuestionAnswering, "is_error", lambda self, prediction: False)
    record = run_stream(spec("unedited"), RunFolders(*small_inputs, tmp_path))
    _, probes, _ = tables(tmp_path)
    assert record.counts["edits"] == 0
    assert {(p["step"], p["metric"]) for p in probes} == {
        *((0, "trr"), (0, "arr")),
        *((6, "trr"), (6, "arr")),
    }
    assert record.seconds["per_edit_mean"] is None


def test_an_empty_stream_is_one_sentence(small_inputs, tmp_path):
    data = shutil.copytree(small_inputs[0], tmp_path / "data")
    write_parquet(data / "edits.parquet", [], EXAMPLES)
    with pytest.raises(DataError, match="the edit stream is empty; prepare it again"):
        run_stream(spec(), RunFolders(data, *small_inputs[1:], tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["model_hash", "data_hash"])
def test_a_baseline_of_something_else_is_refused(small_inputs, tmp_path, key):
    baseline = shutil.copytree(small_inputs[2], tmp_path / "baseline")
    record = read_json(baseline / "baseline.json")
    write_json(baseline / "baseline.json", {**record, key: "0" * 64})
    with pytest.raises(DataError, match="baseline was made with other data or another model"):
        run_stream(spec(), RunFolders(*small_inputs[:2], baseline, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("missing", ["manifest.json", "edits.parquet"])
def test_missing_data_is_one_sentence(small_inputs, tmp_path, missing):
    data = shutil.copytree(small_inputs[0], tmp_path / "data")
    (data / missing).unlink()
    with pytest.raises(DataError, match="no such file; run the step that makes it first"):
        run_stream(spec(), RunFolders(data, *small_inputs[1:], tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_run_json_comes_last(small_inputs, tmp_path, monkeypatch):
    def fail(self, folder, model_hash):
        raise RuntimeError("killed")

    monkeypatch.setattr(base.Editor, "save", fail)
    with pytest.raises(RuntimeError, match="killed"):
        run_stream(spec(), RunFolders(*small_inputs, tmp_path))
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize("editor", ["grace", "memory"])
def test_editors_with_other_notions_go_through_the_same_loop(small_inputs, tmp_path, editor):
    record = run_stream(spec(editor), RunFolders(*small_inputs, tmp_path))
    steps, _, _ = tables(tmp_path)
    assert record.counts["edits"] == 6
    if editor == "grace":
        assert record.counts["keys"] == steps[-1]["n_keys"] > 0
        assert record.counts["edits_per_key"] == pytest.approx(6 / steps[-1]["n_keys"])
        assert steps[0]["branch"] == "first"
        assert all(step["key"] is not None for step in steps)


def test_progress_is_told_in_the_log(small_inputs, tmp_path, caplog):
    with caplog.at_level("INFO", logger="grace_bench"):
        run_stream(spec("unedited"), RunFolders(*small_inputs, tmp_path))
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("step 6/6, 6 edits, ES 0.") and "s left" in line for line in lines)
    assert lines[-1] == "done: tiny/qa/unedited/default/seed-0"


def test_a_stream_without_a_mistake_is_said(small_inputs, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(QuestionAnswering, "is_error", lambda self, prediction: False)
    record = run_stream(spec("ft"), RunFolders(*small_inputs, tmp_path))
    assert record.counts["edits"] == 0
    assert "no edit was made: the model was right on all 6 examples" in caplog.text


def test_a_baseline_of_fewer_examples_is_one_sentence(small_inputs, tmp_path):
    baseline = shutil.copytree(small_inputs[2], tmp_path / "baseline")
    rows = read_parquet(baseline / "predictions.parquet", predictions_schema()).to_pylist()
    fewer = [row for row in rows if row["role"] != "upstream"]
    write_parquet(baseline / "predictions.parquet", fewer, predictions_schema())
    with pytest.raises(DataError, match="lacks 5 examples of role 'upstream', 'upstream/0' among"):
        run_stream(spec(), RunFolders(*small_inputs[:2], baseline, tmp_path / "run"))
