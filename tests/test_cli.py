"""The commands as a user types them: results, messages, exit codes."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import grace_bench
from grace_bench.cli import build_parser, main
from grace_bench.steps.single import single_run
from grace_bench.store.files import read_json, read_parquet, sha256_of
from grace_bench.store.schemas import STEPS
from grace_bench.suite import compose
from grace_bench.suite.compose import load_suite
from grace_bench.suite.plan import expand
from grace_bench.suite.planned import plan_of

MODEL = {
    "name": "tiny",
    "label": "Tiny BERT",
    "source": {
        "kind": "scratch",
        "architecture": "bert",
        "vocabulary_size": 300,
        "shape": {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        },
    },
    "layer": "bert.encoder.layer.0.output.dense",
    "max_length": 32,
    "training": {"steps": 3, "batch_size": 4, "learning_rate": 1e-3},
}
DATASET = {
    "name": "cases",
    "label": "Cases",
    "task": "classification",
    "builder": "table",
    "options": {
        "path": "cases.jsonl",
        "term_column": "term",
        "train_before": 2000,
        "upstream_size": 4,
    },
}
SUITE = {
    "name": "small",
    "experiments": [{"model": "tiny", "dataset": "cases"}],
    "editors": ["unedited", {"name": "ft", "sweep": {"steps": [1, 2]}}],
    "stream": {"facts": 3},
    "probes": {"every": 2},
    "compute": {"device": "cpu"},
}
TOPICS = ("law", "war", "tax")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder with a small configuration and a table; nothing else."""
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path)
    return tmp_path


def make_folder(path: Path) -> None:
    parts = {
        "config.yaml": SUITE,
        "models/tiny.yaml": MODEL,
        "datasets/cases.yaml": DATASET,
        **{
            f"editors/{name}.yaml": {"name": name, "label": name.upper(), "editor": name}
            for name in ("unedited", "ft", "grace")
        },
    }
    for name, content in parts.items():
        file = path / "config" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(content))
    rows = [
        {"text": f"A case about {TOPICS[i % 3]}, number {i}", "label": TOPICS[i % 3], "term": term}
        for i, term in enumerate(range(1990, 2008))
    ]
    (path / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


RUN = ["--model", "tiny", "--dataset", "cases", "--editor", "unedited"]
FT = ["edit", *RUN, "--editor", "ft", "--set", "editor.steps=2"]


def changed_plan(**changes) -> list[str]:
    """The options of a run of a plan whose suite has been changed."""
    suite = load_suite(Path("config/config.yaml"))
    runs = expand(suite)
    plan = plan_of(suite, runs).model_dump(mode="json")
    Path("plan.json").write_text(json.dumps({**plan, "settings": {**plan["settings"], **changes}}))
    return ["--plan", "plan.json", "--run", runs[0].id]


def written(folder: Path) -> list[str]:
    results = folder / "results"
    return sorted(p.relative_to(results).as_posix() for p in results.rglob("*") if p.is_file())


MISTAKES = {
    "unknown editor": (
        ["edit", *RUN, "--editor", "grcae"],
        "unknown editor 'grcae'; did you mean 'grace'? Available: ",
    ),
    "no editor": (["edit", "--model", "tiny", "--dataset", "cases"], "give --editor ("),
    "unknown model": (
        ["edit", "--model", "tiney", "--dataset", "cases"],
        "unknown model 'tiney'; did you mean 'tiny'? Available: ",
    ),
    "unknown data set": (
        ["edit", "--model", "tiny", "--dataset", "case"],
        "unknown data set 'case'; did you mean 'cases'? Available: cases",
    ),
    "unknown hyperparameter": (
        ["edit", *RUN, "--editor", "ft", "--set", "editor.stepz=2"],
        "editors.ft.stepz: unknown key 'stepz'; did you mean 'steps'?",
    ),
    "wrong type": (
        ["edit", *RUN, "--set", "stream.facts=many"],
        "stream.facts: input should be a valid integer",
    ),
    "wrong range": (
        ["edit", *RUN, "--editor", "ft", "--set", "editor.learning_rate=-1e-3"],
        "editors.ft.learning_rate: input should be greater than 0 (got -0.001).",
    ),
    "negative seed": (
        ["edit", *RUN, "--seed", "-1"],
        "--seed -1: must be 0 or more.",
    ),
    "wrong option": (
        ["edit", *RUN, "--set", "dataset.options.upstream=2"],
        "datasets.cases.options.upstream: unknown key 'upstream'",
    ),
    "option that makes no sense": (
        ["edit", *RUN, "--set", "dataset.options.term_column=null"],
        "datasets.cases.options: term_column and train_before belong together",
    ),
    "no model": (["edit", "--dataset", "cases"], "give --model and --dataset"),
    "missing suite": (["plan", "--suite", "none.yaml"], "none.yaml: no such file; check the path."),
    "missing config": (
        ["plan", "--config-dir", "none"],
        "none: no such folder; go to the clone of grace-bench",
    ),
    "a folder as suite": (["plan", "--suite", "config"], "config: cannot be read"),
    "plan without a run": (["edit", "--plan", "plan.json"], "--plan and --run go together"),
    "run of no plan": (["edit", "--plan", "p.json", "--run", "x"], "p.json: no such file"),
    "set without a value": (["plan", "--set", "seeds"], "--set seeds: write it as key=value"),
    "missing plan": (
        ["summarise", "--plan", "plan.json", "--output", "results/x"],
        "plan.json: no such file",
    ),
    "missing data": (["prepare-model", *RUN], "manifest.json: no such file; run the step that"),
    "missing model": (["baseline", *RUN], "manifest.json: no such file; run the step that"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_sentence_and_writes_nothing(folder, capsys, mistake):
    arguments, sentence = MISTAKES[mistake]
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert sentence in said.err
    assert "Traceback" not in said.err
    assert not (folder / "results").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "../x"}, "plan.json: name: string should match pattern"),
        ({"seeds": [-1]}, "seeds[0]: input should be greater than or equal to 0 (got -1)."),
        ({"sead": 1}, "plan.json: sead: unknown key 'sead'; did you mean 'seeds'?"),
        (
            {"editors": [{"name": "x", "label": "x", "editor": "fft"}]},
            "editors.x: unknown editor 'fft'; did you mean 'ft'?",
        ),
        (
            {"editors": [{"name": "x", "label": "x", "editor": "ft", "hyperparameters": {"a": 1}}]},
            "editors.x.a: unknown key 'a'.",
        ),
    ],
)
def test_a_plan_is_checked_whole_before_anything_is_done(folder, capsys, changes, sentence):
    assert main(["edit", *changed_plan(**changes)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert sentence in error
    assert not (folder / "results").exists()


def test_a_wrong_layer_names_the_nearest_and_makes_no_model(folder, capsys):
    layer = "bert.encoder.layer.0.output.dens"
    assert main(["edit", *RUN, "--set", f"model.layer={layer}"]) == 2
    assert f"unknown layer '{layer}'; did you mean '{MODEL['layer']}'?" in capsys.readouterr().err
    made = [name for name in written(folder) if name.startswith(("small/models", "small/runs"))]
    assert made == ["small/models/tiny-cases/seed-0/refused.json"]


def test_the_wrong_usage_of_an_option_is_told(folder, capsys):
    for arguments in (["edit", "--seed", "one"], ["edit", "--nonsense"], ["nonsense"], []):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert "error: " in capsys.readouterr().err
    assert not (folder / "results").exists()


def test_a_process_of_its_own_says_the_same(folder):
    command = [sys.executable, "-m", "grace_bench"]
    done = subprocess.run(
        [*command, "edit", *RUN, "--editor", "grcae"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --editor: unknown editor 'grcae'; did you")
    assert done.stderr.count("\n") == 1
    command.insert(1, "-OO")  # without docstrings
    done = subprocess.run([*command, "plan"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "tiny/cases/unedited/default/seed-0"
    assert done.stderr == "4 runs in suite 'small'\n"


def test_debug_shows_where_a_mistake_was_found(folder):
    with pytest.raises(grace_bench.errors.ConfigError):
        main(["plan", "--debug", "--suite", "none.yaml"])


def test_a_result_that_cannot_be_written_is_the_machines_trouble(folder, capsys):
    (folder / "results").write_text("a file where the folder should be")
    assert main(["plan", "--output", "results/plan.json"]) == 75
    error = capsys.readouterr().err
    assert error.startswith("error: results/plan.json: cannot write (")
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["../../elsewhere", "/elsewhere", ".hidden", "a/b", ""])
def test_the_ui_is_of_a_suite_and_nothing_else(folder, capsys, name):
    assert main(["ui", name]) == 2
    assert "is not a valid suite name" in capsys.readouterr().err
    assert not (folder / "results").exists()


def test_the_version_and_every_command_explain_themselves(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"grace-bench {grace_bench.__version__}\n"
    [commands] = [a for a in build_parser()._actions if a.dest == "command"]
    assert {"prepare-data", "prepare-model", "baseline", "edit", "plan", "track", "report"} <= set(
        commands.choices
    )
    for name, command in commands.choices.items():
        assert command.description, name


def test_the_plan_lists_runs_and_can_be_written(folder, capsys):
    assert main(["plan", "--set", "seeds=[0, 1]"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        f"tiny/cases/{rest}/seed-{seed}"
        for rest in ("ft/default", "ft/steps=1", "ft/steps=2", "unedited/default")
        for seed in (0, 1)
    ]
    assert "8 runs in suite 'small'" in said.err
    Path("seeds.json").write_text('{"seeds": [5]}')
    assert main(["plan", "--suite", "seeds.json", "--output", "out/plan.json"]) == 0
    plan = read_json(folder / "out/plan.json")
    assert (plan["suite"], len(plan["runs"])) == ("small", 4)
    assert plan["runs"][0]["id"].endswith("seed-5")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder in which `edit` by names has made all that a run needs, and the run."""
    folder = tmp_path_factory.mktemp("by-names")
    make_folder(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*FT, "--seed", "3"]) == 0
    return folder


RUN_FOLDER = "results/small/runs/tiny/cases/ft/steps=2/seed-3"


def test_edit_by_names_makes_what_it_needs_and_the_run(finished):
    made = written(finished)
    roles = ("train", "upstream", "edits", "holdout", "accurate")
    expected = {
        *(f"small/data/cases/{role}.parquet" for role in roles),
        "small/data/cases/manifest.json",
        "small/models/tiny-cases/seed-3/model.safetensors",
        "small/models/tiny-cases/seed-3/training.json",
        "small/baselines/tiny-cases/seed-3/baseline.json",
        "small/runs/tiny/cases/ft/steps=2/seed-3/run.json",
    }
    assert expected <= set(made)
    assert not [name for name in made if name.endswith(".tmp")]
    assert read_json(finished / RUN_FOLDER / "run.json")["counts"]["steps"] == 3


def test_edit_of_a_plan_writes_the_same_bytes(finished, folder):
    plan = ["--plan", "results/small/plan.json"]
    changes = ["--set", "editor.steps=2", "--set", "seeds=[3]"]
    assert main(["plan", *changes, "--output", plan[1]]) == 0
    for command in ("prepare-data", "prepare-model", "baseline", "edit"):
        assert main([command, *plan, "--run", "tiny/cases/ft/steps=2/seed-3"]) == 0, command
    ours, theirs = folder / RUN_FOLDER, finished / RUN_FOLDER
    for name in ("predictions.parquet", "probes.parquet", "editor.safetensors"):
        assert sha256_of(ours / name) == sha256_of(theirs / name), name
    steps = [
        read_parquet(f / "steps.parquet", STEPS).drop_columns(["edit_seconds"])
        for f in (ours, theirs)
    ]
    assert steps[0].equals(steps[1])
    records = [read_json(f / "run.json") for f in (ours, theirs)]
    for key in ("id", "content_hash", "spec", "counts", "data_hash", "model_hash"):
        assert records[0][key] == records[1][key], key


@pytest.mark.slow
def test_a_run_is_logged_as_a_model_that_is_registered_and_loaded_back(folder, capsys, monkeypatch):
    import mlflow

    from grace_bench.library import EditedModel, load_run

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = f"sqlite:///{folder}/results/small/mlflow.db"
    suite = {**SUITE, "editors": [{"name": "grace", "hyperparameters": {"steps": 2}}]}
    Path("one.json").write_text(json.dumps(suite))
    plan = ["--plan", "results/small/plan.json"]
    assert main(["plan", "--suite", "one.json", "--output", plan[1]]) == 0
    (run,) = read_json(folder / plan[1])["runs"]
    for command in ("prepare-data", "prepare-model", "baseline", "edit"):
        assert main([command, *plan, "--run", run["id"]]) == 0, command
    assert main(["summarise", *plan, "--output", "results/small"]) == 0
    track = ["track", *plan, "--summary", "results/small", "--log-model"]
    capsys.readouterr()
    assert main([*track, "none/of/these/runs/seed-0"]) == 2
    assert "has no run 'none/of/these/runs/seed-0'" in capsys.readouterr().err
    assert not (folder / "results/small/mlflow.db").exists()
    assert main([*track, run["id"]]) == 0
    logged = capsys.readouterr().out.split()[-1]
    assert main([*track, run["id"]]) == 0  # once is enough
    assert capsys.readouterr().out.split()[-1] == logged

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert mlflow.register_model(logged, "cases").status == "READY"
    client, export = mlflow.MlflowClient(), read_json(folder / "results/small/mlflow-export.json")
    (entry,) = client.search_logged_models([export["experiment_id"]])
    assert entry.source_run_id == export["runs"][run["id"]]["mlflow_run_id"]
    place = Path(mlflow.artifacts.download_artifacts("models:/cases/1"))
    kinds = {path.suffix for path in place.iterdir() if path.suffix}
    assert kinds == {".json", ".parquet", ".safetensors"}
    assert "pickle" not in (place / "MLmodel").read_text()
    edited, wanted = EditedModel.from_pretrained(place), load_run(run["folder"])
    assert edited.receipts == wanted.receipts
    assert len(edited.codebook) == len(wanted.codebook) > 0
    prompt = wanted.receipts[0].prompt
    assert edited.ask(prompt) == wanted.ask(prompt)


def test_what_is_there_is_not_made_again(finished, monkeypatch, caplog):
    monkeypatch.chdir(finished)
    weights = Path("results/small/models/tiny-cases/seed-3/model.safetensors")
    before = weights.stat().st_mtime_ns
    with caplog.at_level(logging.INFO, logger="grace_bench"):
        assert main(["edit", *RUN, "--editor", "unedited", "--seed", "3"]) == 0
    assert weights.stat().st_mtime_ns == before
    assert not [r for r in caplog.records if r.getMessage().startswith("prepar")]


def test_the_end_says_scores_and_place_and_a_second_call_does_nothing(
    finished, monkeypatch, capsys, caplog
):
    monkeypatch.chdir(finished)
    before = (finished / RUN_FOLDER / "run.json").read_bytes()
    with caplog.at_level(logging.INFO, logger="grace_bench"):
        assert main([*FT, "--seed", "3"]) == 0
    scores, place = capsys.readouterr().out.splitlines()
    assert re.match(r"ES \d\.\d\d, ERR \d\.\d\d, TRR \d\.\d\d", scores)
    assert scores.endswith("of 3 steps")
    assert place == RUN_FOLDER
    assert "is already done; remove its folder" in caplog.text
    assert (finished / RUN_FOLDER / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("stream.facts=2", "stream.facts: 3 there, 2 here"),
        ("probes.upstream=2", "probes.upstream: null there, 2 here"),
        ("compute.precision=bfloat16", 'compute.precision: "float32" there, "bfloat16" here'),
        ("model.max_length=20", "models/tiny-cases/seed-3: was made with other settings"),
        ("dataset.options.upstream_size=5", "data/cases: was made with other settings"),
    ],
)
def test_another_experiment_does_not_replace_what_is_there(
    finished, monkeypatch, capsys, setting, told
):
    monkeypatch.chdir(finished)
    before = {name: sha256_of(finished / "results" / name) for name in written(finished)}
    assert main([*FT, "--seed", "3", "--set", setting]) == 2
    error = capsys.readouterr().err.strip()
    assert told in error
    assert "add --set name=NAME" in error
    assert {n: sha256_of(finished / "results" / n) for n in written(finished)} == before


def test_an_experiment_with_a_name_of_its_own_has_its_own_folder(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    assert main([*FT, "--seed", "3", "--set", "stream.facts=2", "--set", "name=mine"]) == 0
    assert "results/mine/runs/tiny/cases/ft/steps=2/seed-3" in capsys.readouterr().out
    shutil.rmtree(finished / "results/mine")


def test_a_run_that_is_refused_for_its_settings_is_failed_not_left(folder, capsys):
    model = {**MODEL, "layer": "bert.encoder.layer.7"}
    suite = {**SUITE, "experiments": [{"model": model, "dataset": "cases"}], "editors": ["ft"]}
    Path("wrong.yaml").write_text(yaml.safe_dump(suite))
    assert main(["edit", *RUN, "--editor", "ft", "--suite", "wrong.yaml"]) == 2
    sentence = capsys.readouterr().err.removeprefix("error: ").strip()
    assert main(["status", "--suite", "wrong.yaml", "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert (run["state"], run["message"]) == ("failed", f"refused: {sentence}")
    model["layer"] = MODEL["layer"]
    Path("wrong.yaml").write_text(yaml.safe_dump(suite))
    assert main(["edit", *RUN, "--editor", "ft", "--suite", "wrong.yaml"]) == 0
    capsys.readouterr()
    assert main(["status", "--suite", "wrong.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["finished"] == 1


def test_a_suite_may_be_given_by_its_name(folder, capsys):
    suites = folder / "config/suites"
    suites.mkdir()
    (suites / "mine.yaml").write_text(yaml.safe_dump({**SUITE, "name": "mine"}))
    assert main(["plan", "--suite", "mine"]) == 0
    assert main(["plan", "--suite", "default"]) == 0
    assert main(["plan", "--suite", "mien"]) == 2
    assert "--suite mien: unknown suite 'mien'; did you mean 'mine'?" in capsys.readouterr().err


def test_the_network_is_for_those_who_ask_for_it(folder):
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    source = "model.source={kind: hub, id: nobody/nothing, revision: main}"
    command = [sys.executable, "-m", "grace_bench", *FT, "--set", source]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "allow access to the hub (HF_HUB_OFFLINE=0)" in done.stderr.splitlines()[-1]


def test_elsewhere_than_in_the_clone_one_is_told_where_to_go(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["plan"]) == 0  # the clone's own suite
    assert "facts-t5/facts-qa/grace" in capsys.readouterr().out
    assert main(["plan", "--config-dir", "nowhere"]) == 2
    assert "nowhere: no such folder; go to the clone" in capsys.readouterr().err
    monkeypatch.setattr(compose, "SHIPPED", tmp_path / "not-there")
    assert main(["plan"]) == 2
    assert "config: no such folder; go to the clone of grace-bench" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("seeds=3", "seeds: must be a list, as in seeds=[0, 1] (got 3)."),
        ("seeds=0,1", "seeds: must be a list, as in seeds=[0, 1] (got '0,1')."),
    ],
)
def test_what_must_be_a_list_has_an_example(folder, capsys, setting, told):
    assert main(["plan", "--set", setting]) == 2
    assert told in capsys.readouterr().err


def test_a_misspelt_section_gets_the_nearest_one(folder, capsys):
    suite = {**SUITE, "experiment": SUITE["experiments"]}
    del suite["experiments"]
    Path("mine.yaml").write_text(yaml.safe_dump(suite))
    assert main(["plan", "--suite", "mine.yaml"]) == 2
    assert "unknown key 'experiment'; did you mean 'experiments'?" in capsys.readouterr().err


def test_a_sweep_that_an_override_ends_is_said(folder, capsys, caplog):
    assert main(["plan", "--set", "editors.ft.steps=2"]) == 0
    assert "--set: ft now has one value of 'steps' instead of a sweep." in caplog.text


def test_edit_takes_the_suites_own_entry_of_the_editor(folder):
    suite = {**SUITE, "editors": ["unedited", {"name": "mine", "base": "ft", "label": "Mine"}]}
    suite["editors"][1]["hyperparameters"] = {"steps": 7}
    Path("mine.yaml").write_text(yaml.safe_dump(suite))
    planned = {run.id for run in expand(load_suite(Path("mine.yaml")))}
    config = Path("config")
    run = single_run(Path("mine.yaml"), config, "tiny", "cases", "mine", 0)
    assert run.spec.editor.hyperparameters["steps"] == 7
    assert run.id in planned


def test_edit_does_the_run_of_a_suite_that_is_laid_over_the_default_one(folder):
    Path("mine.yaml").write_text("name: mine\nseeds: [3]\nstream: {facts: 2}\n")
    planned = {run.id: run.content_hash for run in expand(load_suite(Path("mine.yaml")))}
    config = Path("config")
    run = single_run(Path("mine.yaml"), config, "tiny", "cases", "unedited", 3)
    assert planned[run.id] == run.content_hash


def test_a_model_of_older_data_is_made_again(folder):
    """As after a kill between the making of the data and of the model."""
    assert main(FT) == 0
    changed = "dataset.options.upstream_size=5"
    assert main(["prepare-data", *RUN, "--set", changed]) == 0
    small = folder / "results/small"
    shutil.rmtree(small / "runs")
    assert main([*FT, "--set", changed]) == 0
    data_hash = read_json(small / "data/cases/manifest.json")["data_hash"]
    assert read_json(small / "models/tiny-cases/seed-0/training.json")["data_hash"] == data_hash
    baseline = read_json(small / "baselines/tiny-cases/seed-0/baseline.json")
    assert baseline["data_hash"] == data_hash
    assert baseline["averages"]["upstream"]["n"] == 5


def test_data_need_no_model(folder):
    """The options are the suite's own."""
    suite = yaml.safe_load(Path("config/config.yaml").read_text())
    suite["experiments"][0]["dataset"] = {"name": "cases", "options": {"upstream_size": 5}}
    Path("mine.yaml").write_text(yaml.safe_dump(suite))
    assert main(["prepare-data", "--dataset", "cases", "--suite", "mine.yaml"]) == 0
    manifest = read_json(folder / "results/small/data/cases/manifest.json")
    assert manifest["options"]["upstream_size"] == 5
    assert not (folder / "results/small/models").exists()


def test_results_land_in_the_suites_folder(folder):
    suite = folder / "mine.yaml"
    suite.write_text(yaml.safe_dump({**SUITE, "name": "mine"}))
    assert main(["prepare-data", *RUN, "--suite", "mine.yaml"]) == 0
    assert {Path(name).parts[0] for name in written(folder)} == {"mine"}
