"""Results as frames, and what the looking commands say of them."""

from __future__ import annotations

import re
import shutil

import pytest
from run_notebook import executed
from small_runs import WIDE, spec

from grace_bench.cli import main
from grace_bench.errors import ConfigError, DataError
from grace_bench.reporting.summary.write import summarise
from grace_bench.results.frames import NAMES, load
from grace_bench.results.show import RunViewer
from grace_bench.steps.edit import RunFolders, run_stream
from grace_bench.steps.validate import validate
from grace_bench.store import schemas
from grace_bench.store.json_records import read_record, write_record
from grace_bench.store.records import PLAN, Labels, Plan, PlanEntry
from grace_bench.suite.compose import load_suite
from grace_bench.suite.plan import Run, expand


@pytest.fixture(scope="module")
def suite(small_inputs, tmp_path_factory):
    """The results of GRACE, FT and a run that was not begun."""
    root = tmp_path_factory.mktemp("results")
    runs = [
        Run(spec("ft", hyperparameters={"steps": 20, "learning_rate": 1.0}), root),
        Run(spec("grace", hyperparameters=WIDE), root),
        Run(spec("unedited"), root),
    ]
    some = runs[0]
    places = (some.dataset_folder, some.model_folder, some.baseline_folder)
    for source, target in zip(small_inputs, places, strict=True):
        shutil.copytree(source, target)
    for run in runs[:2]:
        run_stream(run.spec, RunFolders.of(run))
    labels = Labels(model="Tiny", dataset="QA", editor="E")
    entries = [
        PlanEntry(
            id=run.id,
            folder=str(run.folder),
            content_hash=run.content_hash,
            in_sweep=run.spec.editor.name == "unedited",
            base_model=run.spec.base_model,
            labels=labels,
        )
        for run in runs
    ]
    write_record(root / "s" / PLAN, Plan(suite="s", settings={}, runs=entries))
    return root / "s"


def test_results_are_frames_with_the_columns_of_the_files(suite):
    results = load(suite)
    assert results.runs["editor"].tolist() == ["ft", "grace", "unedited"]
    assert results.runs["status"].tolist() == ["complete", "complete", "unfinished"]
    assert results.runs["edits"].tolist()[:2] == [6, 6]
    assert results.runs["in_sweep"].tolist() == [False, False, True]
    for frame, schema in (
        (results.steps, schemas.STEPS),
        (results.probes, schemas.PROBES),
        (results.predictions, schemas.predictions_schema()),
        (results.codebooks, schemas.CODEBOOK),
    ):
        assert list(frame.columns) == [*NAMES, *schema.names]
    assert results.steps.groupby("editor").size().to_dict() == {"ft": 6, "grace": 6}
    assert set(results.codebooks["editor"]) == {"grace"}
    joined = results.predictions.merge(results.examples, on=["dataset", "example_id"], how="left")
    assert joined["text"].notna().all()
    assert len(results.baselines) == 26


def test_the_frames_of_the_docs_are_there(suite, repository, tmp_path, monkeypatch, capsys):
    page = (repository / "docs/how-to/look.md").read_text()
    [example] = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "default").symlink_to(suite)
    monkeypatch.chdir(tmp_path)
    exec(example, found := {})
    assert set(found["last"]["editor"]) == {"ft", "grace"}
    assert len(found["said"]) == len(found["results"].predictions)
    assert "the capital of " in capsys.readouterr().out


@pytest.mark.slow
def test_the_notebook_compares_the_editors_of_a_suite(suite, repository, tmp_path):
    summarise([run.folder for run in finished(suite)], suite / "summary.parquet")
    parameters = f"SUITE, DATASET = {str(suite)!r}, 'qa'"
    found = executed(repository, "compare_editors", tmp_path, parameters)
    assert found[1].count("complete") == 2
    assert "ft" in found[2]
    assert found[-1].startswith("0 of 5 questions")


def finished(suite):
    runs = load(suite).runs.query("status == 'complete'")["run"]
    return [load(suite).find(run) for run in runs]


def test_what_is_no_suite_and_no_run_is_one_sentence(suite, tmp_path):
    with pytest.raises(DataError, match=r"has no plan\.json, so it is not a suite's results"):
        load(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"results/nothing: has no plan\.json"):
        load("nothing")
    results = load(suite)
    with pytest.raises(DataError, match="no run has 'mend' in the id; give one of\n  tiny/qa/ft"):
        results.find("mend")
    with pytest.raises(DataError, match="3 runs have 'tiny' in the id"):
        results.find("tiny")
    with pytest.raises(DataError, match="unedited/default/seed-0: is not finished"):
        results.find("unedited")
    assert results.find("/ft/").id == results.find("ft").id
    assert results.find("tiny seed-0 grace").id.startswith("tiny/qa/grace/")
    assert results.find(f"{suite}/runs/{results.find('ft').id}/").id == results.find("ft").id


@pytest.mark.parametrize(
    "name", ["../../../../seed-0", "a/b/c/d", "a/b/c/d/seed-x", "a/b//d/seed-0"]
)
def test_a_plan_with_an_id_that_is_none_is_one_sentence(suite, tmp_path, name, capsys):
    plan = read_record(suite / PLAN, Plan)
    bad = plan.model_copy(update={"runs": [plan.runs[0].model_copy(update={"id": name})]})
    write_record(tmp_path / PLAN, bad)
    for command in (["list", "runs"], ["show", "x"]):
        assert main([*command, "--suite", str(tmp_path)]) == 2
        assert f"plan.json: {name!r} is not a run's id; plan again." in capsys.readouterr().err


@pytest.mark.parametrize("frame", ["steps", "baselines", "examples"])
def test_results_without_their_files_are_one_sentence(suite, tmp_path, frame):
    shutil.copy(suite / PLAN, tmp_path)
    with pytest.raises(DataError, match=r": has no .*; run the suite\."):
        getattr(load(tmp_path), frame)


def test_an_edit_is_shown_with_what_became_of_it(suite):
    viewer = RunViewer(load(suite), "grace")
    step = viewer.steps.iloc[3]
    example = viewer.examples.loc[step["example_id"]]
    text = viewer.edit(4)
    assert f"branch    {step['branch']}\nkey       {step['key']}\n" in text
    assert f"asked         {example['text']}\nwanted        {example['label']}\nbefore  " in text
    assert "\n4-6 edits  " in text or "\n4 edits  " in text
    assert f"key {step['key']}]" in text
    with pytest.raises(DataError, match="has no step 7; it has 1 to 6"):
        viewer.edit(7)
    with pytest.raises(DataError, match="has no example 'x'; it has upstream/0, "):
        viewer.example("x")


def test_what_was_forgotten_is_shown_with_both_answers(suite):
    viewer = RunViewer(load(suite), "ft")
    viewer.baseline = viewer.baseline.assign(f1=1.0)  # as if all had been right before
    first, *shown = viewer.forgotten(2).split("\n\n")
    number, _, of = first.split()[:3]
    assert first == f"{number} of {of} examples lost F1 by the last probe"
    assert 2 <= int(number) <= int(of) == 14
    assert len(shown) == 2
    assert all("): 1 -> 0\nasked  " in one and "\nnow  " in one for one in shown)


def test_an_overview_has_the_scores_along_the_stream(suite):
    text = RunViewer(load(suite), "grace").overview()
    assert "complete: 6 edits" in text
    _, table = text.split("F1 \u2191 after so many edits\n")
    header, *rows = (line.split() for line in table.splitlines())
    assert header == ["ES", "ERR", "TRR", "ARR", "Holdout"]
    assert [row[0] for row in rows] == list("0123456")


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("editors", ["grace", "GRACE", "grace", "rules=corrected"]),
        ("models", ["minilm", "MiniLM-L6", "package"]),
        ("datasets", ["facts-qa", "Facts", "QA", "question_answering,"]),
        ("measures", ["exact_match", "EM"]),
        ("suites", ["smoke", "everything", "once,"]),
    ],
)
def test_what_there_is_to_choose_is_listed(kind, line, capsys):
    assert main(["list", kind]) == 0
    lines = [one.split() for one in capsys.readouterr().out.splitlines()]
    assert [one[: len(line)] for one in lines if one[0] == line[0]] == [line]


def test_commands_show_and_list_runs(suite, capsys):
    assert main(["list", "runs", "--suite", str(suite)]) == 0
    header, *lines = (one.split() for one in capsys.readouterr().out.splitlines())
    assert header == ["run", "state", "ES", "ERR", "TRR", "ARR", "Holdout"]
    assert [one[1] for one in lines] == ["complete", "complete", "unfinished"]
    assert main(["show", "grace", "--suite", str(suite), "--edit", "1"]) == 0
    assert capsys.readouterr().out.startswith("edit      1 of 6, in step 1\nbranch    first")
    assert main(["show", "grace", "--suite", str(suite), "--forgotten", "0"]) == 2
    assert "--forgotten 0: must be 1 or more." in capsys.readouterr().err
    assert main(["show", "ft", "--suite", str(suite), "--edit", "1", "--example", "x"]) == 2
    assert "give one of --edit, --example and --forgotten." in capsys.readouterr().err


def test_a_suite_with_nothing_missing_is_valid(capsys):
    assert main(["validate"]) == 0
    assert capsys.readouterr().out == "suite 'default': 27 runs, nothing is missing\n"


def test_all_that_is_missing_is_said_at_once(repository):
    t5, bert = "facts-t5", {"name": "minilm", "source": {"id": "no_such_package"}}
    raw = {
        "name": "s",
        "experiments": [
            {"model": t5, "dataset": "facts-qa"},
            {"model": {"name": "bad", "base": t5, "layer": "encoder.x"}, "dataset": "facts-qa"},
            {"model": bert, "dataset": "facts-topics"},
            {"model": t5, "dataset": "zsre"},
        ],
        "editors": ["grace", "rome"],
    }
    with pytest.raises(ConfigError) as error:
        validate(expand(load_suite(raw, repository / "config")))
    lines = str(error.value).splitlines()
    for part in (
        "datasets.zsre: data/raw/zsre/structured_zeroshot-dev-new_annotated_final.jsonl: no such",
        "models.facts-t5 (for facts-qa): editor 'rome' edits causal language models",
        "models.bad (for facts-qa): T5ForConditionalGeneration: unknown layer 'encoder.x'",
        "models.minilm (for facts-topics): package 'no_such_package' is not installed",
    ):
        assert sum(line.startswith(part) for line in lines) == 1, part
    assert len(lines) == len(set(lines))
