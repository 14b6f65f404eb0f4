"""From suites to runs: ids, hashes, sweeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from grace_bench.errors import ConfigError
from grace_bench.steps.single import single_run
from grace_bench.store.json_records import read_record
from grace_bench.store.records import Labels, Plan
from grace_bench.suite import plan
from grace_bench.suite.compose import load_suite
from grace_bench.suite.outdated import baseline_made_from, model_made_from
from grace_bench.suite.plan import Run, canonical_json, content_hash, digest, expand, resolve_editor
from grace_bench.suite.planned import (
    frozen_plan,
    is_plan_outdated,
    plan_of,
    planned_runs,
    write_plan,
)
from grace_bench.suite.schema import EditorConfig, RunSpec, SuiteConfig

MODEL = {
    "name": "tiny",
    "label": "Tiny",
    "source": {"kind": "scratch", "architecture": "t5"},
    "layer": "encoder.block.0.layer.1.DenseReluDense.wo",
    "training": {"steps": 5, "learning_rate": 1e-3},
}
DATASET = {"name": "qa", "label": "QA", "task": "question_answering", "builder": "facts_qa"}
GRACE = {"name": "g", "label": "G", "editor": "grace"}
PLAIN = {"name": "u", "label": "U", "editor": "unedited"}


def suite(**changes) -> SuiteConfig:
    experiments = [{"model": MODEL, "dataset": DATASET}]
    raw = {"name": "s", "experiments": experiments, "editors": [GRACE], **changes}
    return load_suite(raw, "no-such-folder")


def expanded(editors, **changes) -> list[Run]:
    return expand(suite(editors=editors, **changes))


def spec(**changes) -> RunSpec:
    [run] = expanded([GRACE])
    return RunSpec.model_validate({**run.spec.model_dump(), **changes})


def test_golden_ids():
    grace = {**GRACE, "hyperparameters": {"radius": 3}, "sweep": {"steps": [10, 50]}}
    found = expanded([PLAIN, grace], seeds=[0, 11])
    assert [run.id for run in found] == [
        "tiny/qa/g/radius=3.0+steps=10/seed-0",
        "tiny/qa/g/radius=3.0+steps=10/seed-11",
        "tiny/qa/g/radius=3.0+steps=50/seed-0",
        "tiny/qa/g/radius=3.0+steps=50/seed-11",
        "tiny/qa/g/radius=3.0/seed-0",
        "tiny/qa/g/radius=3.0/seed-11",
        "tiny/qa/u/default/seed-0",
        "tiny/qa/u/default/seed-11",
    ]
    assert found[-1].folder == Path("results/s/runs/tiny/qa/u/default/seed-11")
    assert found[0].dataset_folder == Path("results/s/data/qa")
    assert found[0].model_folder == Path("results/s/models/tiny-qa/seed-0")


@pytest.mark.parametrize(
    ("hyperparameters", "variant"),
    [
        ({}, "default"),
        ({"radius": 1}, "default"),  # what the class says anyway
        ({"rules": "released"}, "rules=released"),  # not its every switch
        ({"rules": "released", "split": "shrink"}, "rules=released+split=shrink"),
        ({"rules": "released", "split": "half"}, "rules=released"),
        ({"learning_rate": 1e-5}, "learning_rate=1e-05"),
        ({"replace_query": False, "query_position": -1}, "query_position=-1+replace_query=False"),
    ],
)
def test_a_variant_names_what_differs_from_the_defaults(hyperparameters, variant):
    [run] = expanded([{**GRACE, "hyperparameters": hyperparameters}])
    assert run.variant == variant


def test_three_and_three_point_zero_are_one_run():
    sweep = {"radius": [3, 3.0, "3"]}
    found = expanded([{**GRACE, "sweep": sweep}])
    assert [run.variant for run in found] == ["default", "radius=3.0"]
    [as_int] = expanded([{**GRACE, "hyperparameters": {"radius": 3}}])
    assert as_int.content_hash == found[1].content_hash


def test_a_sweep_is_a_product_beside_the_setting_itself():
    entry = {**GRACE, "hyperparameters": {"radius": 2}, "sweep": {"radius": [1, 2], "steps": [5]}}
    found = {run.variant: run.in_sweep for run in expanded([entry])}
    assert found == {"radius=2.0": False, "steps=5": True, "radius=2.0+steps=5": True}


def test_a_setting_inside_its_own_sweep_is_one_run_and_counts_as_the_setting():
    found = {r.variant: r.in_sweep for r in expanded([{**GRACE, "sweep": {"radius": [1, 2]}}])}
    assert found == {"default": False, "radius=2.0": True}


def test_a_setting_that_another_entry_sweeps_over_counts_as_a_setting():
    swept = {**GRACE, "sweep": {"radius": [2]}}
    fixed = {**GRACE, "hyperparameters": {"radius": 2}}
    for entries in ([swept, fixed], [fixed, swept]):
        found = {run.variant: run.in_sweep for run in expanded(entries)}
        assert found == {"default": False, "radius=2.0": False}


def test_editors_can_be_kept_to_some_data_sets():
    experiments = [
        {"model": MODEL, "dataset": {**DATASET, "name": name}} for name in ("one", "two")
    ]
    found = expanded([PLAIN, {**GRACE, "datasets": ["two"]}], experiments=experiments)
    assert [run.id for run in found] == [
        "tiny/one/u/default/seed-0",
        "tiny/two/g/default/seed-0",
        "tiny/two/u/default/seed-0",
    ]


LONG = {
    "rules": "released",
    "expand": "moving_average",
    "query_position": "prompt_end",
    "early_stop": "loss",
    "early_stop_loss": 0.125,
    "value_init": "warm",
}


def test_a_long_variant_is_cut_and_ends_in_a_hash():
    found = expanded([{**GRACE, "hyperparameters": LONG, "sweep": {"radius": [2, 3]}}])
    names = [run.variant for run in found]
    assert len(set(names)) == 3
    for run in found:
        assert len(run.variant) == plan.LONGEST_VARIANT
        readable, _, ending = run.variant.rpartition("-")
        assert ending == digest(run.spec.editor.hyperparameters)
        assert readable.startswith("early_stop=loss+early_stop_loss=0.125+")


def test_two_different_runs_with_one_id_are_refused():
    other = {"name": "g", "label": "G", "editor": "defer"}
    with pytest.raises(ConfigError) as caught:
        expanded([GRACE, other])
    assert str(caught.value) == (
        "suite 's': two different runs share the id 'tiny/qa/g/default/seed-0'; "
        "give one of the editors another name."
    )


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 1),
        ("editor.hyperparameters.radius", 2.0),
        ("editor.editor", "defer"),
        ("model.layer", "other"),
        ("model.training.steps", 6),
        ("model.source.vocabulary_size", 301),
        ("model.max_length", 64),
        ("dataset.options.seed", 1),
        ("dataset.task", "language_modelling"),
        ("stream.order", "given"),
        ("probes.every", 1),
        ("compute.precision", "bfloat16"),
        ("compute.threads", 2),
    ],
)
def test_the_hash_changes_with_what_moves_numbers(path, value):
    assert content_hash(changed(path, value)) != content_hash(spec())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("suite", "other"),
        ("model.label", "Other"),
        ("dataset.label", "Other"),
        ("editor.label", "Other"),
        ("compute.device", "cpu"),
    ],
)
def test_the_hash_does_not_change_with_names_for_people_and_places(path, value):
    assert content_hash(changed(path, value)) == content_hash(spec())


def changed(path: str, value: object) -> RunSpec:
    settings = spec().model_dump(mode="json")
    *parents, last = path.split(".")
    section = settings
    for parent in parents:
        section = section[parent]
    section[last] = value
    return RunSpec.model_validate(settings)


def test_the_hash_changes_with_the_version_of_the_numerics(monkeypatch):
    before = content_hash(spec())
    monkeypatch.setattr(plan, "NUMERICS_VERSION", plan.NUMERICS_VERSION + 1)
    assert content_hash(spec()) != before


def test_canonical_json_is_one_text_for_equal_settings():
    assert canonical_json({"b": 1.0, "a": [True, None, 0.5, "1"]}) == (
        '{"a":[true,null,0.5,"1"],"b":1}'
    )
    assert canonical_json({"x": 1e-4}) == '{"x":0.0001}'
    assert canonical_json({"x": (1, 2)}) == canonical_json({"x": [1.0, 2]})
    assert canonical_json({"x": "1"}) != canonical_json({"x": 1})
    assert canonical_json({"x": True}) != canonical_json({"x": 1})
    assert digest({"radius": 3.0, "a": "ä"}) == digest({"a": "ä", "radius": 3}) == "6101001a4a87"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_canonical_json_refuses_what_is_no_number(value):
    with pytest.raises(ConfigError, match="is not a number"):
        canonical_json({"x": value})


def test_a_run_of_a_plan_is_the_run_that_was_planned(tmp_path):
    chosen = suite(editors=[{**GRACE, "hyperparameters": {"radius": 3}, "sweep": {"steps": [2]}}])
    runs, path = expand(chosen, tmp_path), tmp_path / "s/plan.json"
    write_plan(chosen, runs, path)
    found = planned_runs(path, [run.id for run in runs], tmp_path)
    assert [(run.id, run.folder) for run in found] == [(run.id, run.folder) for run in runs]
    assert [run.content_hash for run in found] == [run.content_hash for run in runs]
    with pytest.raises(ConfigError, match="has no run 'tiny/qa/x'"):
        planned_runs(path, ["tiny/qa/x"])


def test_a_damaged_plan_of_a_workflow_is_written_again(tmp_path):
    chosen = suite()
    path = frozen_plan(chosen, expand(chosen), tmp_path)
    before = path.stat().st_ino
    assert frozen_plan(chosen, expand(chosen), tmp_path).stat().st_ino == before
    path.write_bytes(path.read_bytes()[:99])
    again = frozen_plan(chosen, expand(chosen), tmp_path)
    assert read_record(again, Plan) == plan_of(chosen, expand(chosen))


def test_a_run_of_a_plan_has_no_labels_as_no_job_depends_on_them(tmp_path):
    chosen, other = suite(), suite(editors=[{**GRACE, "label": "X"}])
    specs = []
    for one in (chosen, other):
        write_plan(one, expand(one), tmp_path / "s/plan.json")
        specs += [run.spec for run in planned_runs(tmp_path / "s/plan.json", [expand(one)[0].id])]
    assert specs[0] == specs[1]


def test_a_baseline_depends_on_the_size_of_its_batches():
    def hashes(**probes) -> tuple[str, str]:
        spec = expand(suite(probes=probes))[0].spec
        return model_made_from(spec), baseline_made_from(spec)

    model, usual = hashes()
    assert hashes(every=3, batch_size=64) == (model, usual) == (model, model)
    assert hashes(batch_size=8)[0] == model
    assert len({usual, hashes(batch_size=8)[1], hashes(batch_size=16)[1]}) == 3


def test_unnamed_hyperparameters_are_filled_in():
    editor = EditorConfig(name="g", label="G", editor="grace", hyperparameters={"radius": 3})
    settings = resolve_editor(editor).hyperparameters
    assert settings["radius"] == 3.0
    assert (settings["steps"], settings["rules"]) == (100, "corrected")


def test_each_seed_has_a_base_model_of_its_own():
    first, second = expand(suite(seeds=[0, 7]))
    assert [r.spec.model.training.seed for r in (first, second)] == [0, 7]
    assert [r.model_folder.name for r in (first, second)] == ["seed-0", "seed-7"]
    assert first.baseline_folder != second.baseline_folder


def test_a_number_as_training_seed_is_one_base_model_for_all_seeds():
    trained = {**MODEL, "training": {**MODEL["training"], "seed": 3}}
    runs = expand(suite(seeds=[0, 7], experiments=[{"model": trained, "dataset": DATASET}]))
    assert {run.model_folder.name for run in runs} == {"seed-3"}


def test_a_model_that_is_not_trained_is_shared_by_all_seeds():
    source = {"kind": "folder", "id": "weights"}
    model = {**MODEL, "training": None, "source": source}
    runs = expand(suite(seeds=[0, 7], experiments=[{"model": model, "dataset": DATASET}]))
    assert {run.model_folder.name for run in runs} == {"pretrained"}


def test_the_plan_lists_runs_with_labels_and_says_which_only_a_sweep_reaches(tmp_path):
    entry = {**GRACE, "sweep": {"radius": [2]}}
    known, relabelled = suite(editors=[entry]), suite(editors=[{**entry, "label": "X"}])
    plain, swept = plan_of(known, expand(known)).runs
    assert (plain.in_sweep, swept.in_sweep) == (False, True)
    assert swept.folder == "results/s/runs/tiny/qa/g/radius=2.0/seed-0"
    assert swept.labels == Labels(model="Tiny", dataset="QA", editor="G")
    assert is_plan_outdated(known, expand(known, tmp_path), tmp_path)
    write_plan(known, expand(known, tmp_path), tmp_path / "s/plan.json")
    assert not is_plan_outdated(known, expand(known, tmp_path), tmp_path)
    assert is_plan_outdated(relabelled, expand(relabelled, tmp_path), tmp_path)


def test_one_run_by_names_takes_the_suites_settings_and_the_overrides(repository, tmp_path):
    config = repository / "config"
    path = tmp_path / "suite.yaml"
    path.write_text(
        """
name: mine
experiments:
  - model: {name: facts-t5, max_length: 32}
    dataset: facts-qa
    stream: {facts: 5}
editors: [unedited, {name: grace, sweep: {radius: [1, 2]}}]
seeds: [0, 1, 2]
stream: {facts: 50, order: given}
set: [probes.every=7]
"""
    )
    overrides = [
        "editor.radius=4",
        "model.training.steps=3",
        "stream.max_edits=2",
        "probes.upstream=1",
    ]
    found = single_run(path, config, "facts-t5", "facts-qa", "grace", 9, overrides).spec
    assert (found.suite, found.seed, found.model.max_length) == ("mine", 9, 32)
    assert (found.stream.facts, found.stream.order, found.stream.max_edits) == (5, "given", 2)
    assert (found.probes.every, found.probes.upstream) == (7, 1)
    assert found.model.training.steps == 3
    assert found.editor.hyperparameters["radius"] == 4.0
    elsewhere = single_run(path, config, "minilm", "facts-topics", "ft", 0).spec
    assert (elsewhere.model.name, elsewhere.stream.facts) == ("minilm", 50)
