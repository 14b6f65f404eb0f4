"""Reading suites: what is accepted, what wins, and the sentence a mistake gets."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import yaml

from grace_bench import registry
from grace_bench.datasets.options import DatasetOptions
from grace_bench.errors import ConfigError
from grace_bench.registry import EDITORS
from grace_bench.steps.single import single_run
from grace_bench.suite.compose import load_suite
from grace_bench.suite.overrides import merge, parse_value, set_value
from grace_bench.suite.plan import expand
from grace_bench.suite.planned import plan_of
from grace_bench.suite.schema import SuiteConfig

MODEL = {
    "name": "tiny",
    "label": "Tiny",
    "source": {"kind": "scratch", "architecture": "t5"},
    "layer": "encoder.block.0.layer.1.DenseReluDense.wo",
}
DATASET = {"name": "qa", "label": "QA", "task": "question_answering", "builder": "facts_qa"}
GRACE = {"name": "g", "label": "G", "editor": "grace"}


def suite(**changes) -> dict:
    """A suite that needs no file of the configuration folder."""
    return {
        "name": "s",
        "experiments": [{"model": MODEL, "dataset": DATASET}],
        "editors": [GRACE],
        **changes,
    }


@pytest.fixture
def config_dir(repository, tmp_path):
    """A copy of the shipped configuration that a test may change."""
    return shutil.copytree(repository / "config", tmp_path / "config")


def refusal(source, config_dir="config", overrides=()) -> str:
    with pytest.raises(ConfigError) as caught:
        expand(load_suite(source, config_dir, overrides))
    return str(caught.value)


def test_plug_ins_are_not_looked_for_anew_for_each_run(monkeypatch):
    asked = []
    find = registry.entry_points
    monkeypatch.setattr(
        registry, "entry_points", lambda group: asked.append(group) or find(group=group)
    )
    runs = expand(load_suite(suite(seeds=list(range(20)))))
    plan_of(load_suite(suite(seeds=list(range(20)))), runs)
    assert len(runs) == 20
    assert len(asked) <= 4


def test_every_shipped_file_is_used_in_a_valid_suite(repository):
    config = repository / "config"
    suites = [config / "config.yaml", *sorted((config / "suites").glob("*.yaml"))]
    assert {path.stem for path in suites} >= {"config", "smoke", "real-small", "development"}
    for path in suites:
        assert expand(load_suite(path, config)), path
    for kind in ("models", "datasets", "editors"):
        paths = list((config / kind).glob("*.yaml"))
        assert paths, kind
        for path in paths:
            part = kind.removesuffix("s")
            experiment = {"model": MODEL, "dataset": DATASET}
            if part != "editor":
                experiment[part] = path.stem
            editors = [path.stem] if part == "editor" else [GRACE]
            assert expand(load_suite(suite(experiments=[experiment], editors=editors), config))


def test_the_default_and_the_smoke_suite_have_results_folders_of_their_own(repository):
    config = repository / "config"
    suites = [config / "config.yaml", *(config / "suites").glob("*.yaml")]
    names = [load_suite(path, config).name for path in suites]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"streem": {"facts": 3}},
            "config: streem: unknown key 'streem'; did you mean 'stream'? Available: bundle, ",
        ),
        (
            {"stream": {"fact": 3}},
            "config: experiments[0].stream.fact: unknown key 'fact'; did you mean 'facts'? "
            "Available: edit, facts, max_edits, order",
        ),
        (
            {"compute": {"device": "gpu"}},
            "config: compute.device: must be auto, cpu, mps, cuda or cuda:1 (got 'gpu').",
        ),
        (
            {"editors": ["grce"]},
            "config: editors[0]: unknown editor 'grce'; did you mean 'grace'? Available: defer, ",
        ),
        (
            {"editors": [{**GRACE, "editor": "grce"}]},
            "editors.g: unknown editor 'grce'; did you mean 'grace'? Available: defer, ",
        ),
        (
            {"editors": [{**GRACE, "hyperparameters": {"radios": 3}}]},
            "editors.g.radios: unknown key 'radios'; did you mean 'radius'? Available: ",
        ),
        (
            {"editors": [{**GRACE, "hyperparameters": {"radius": 0}}]},
            "editors.g.radius: input should be greater than 0 (got 0).",
        ),
        (
            {"editors": [{**GRACE, "hyperparameters": {"radius": "wide"}}]},
            "editors.g.radius: input should be a valid number",
        ),
        (
            {"editors": [{**GRACE, "hyperparameters": {"split": "halves"}}]},
            "editors.g.split: input should be 'shrink' or 'half' (got 'halves').",
        ),
        (
            {"editors": [{**GRACE, "sweep": {"steps": [10, -1]}}]},
            "editors.g.steps: input should be greater than or equal to 0 (got -1).",
        ),
        (
            {"editors": [{**GRACE, "sweep": {"steps": []}}]},
            "config: editors[0].sweep: the sweep over 'steps' has no values.",
        ),
        (
            {"editors": [{**GRACE, "datasets": ["qq"]}]},
            "config: editors[0].datasets: unknown data set 'qq'; did you mean 'qa'? Available: qa.",
        ),
        (
            {"experiments": [{"model": "facts-t", "dataset": DATASET}]},
            "config: experiments[0].model: unknown model 'facts-t'; did you mean 'facts-t5'?",
        ),
        (
            {"experiments": [{"model": MODEL, "dataset": "fact-qa"}]},
            "config: experiments[0].dataset: unknown data set 'fact-qa'; did you mean 'facts-qa'?",
        ),
        (
            {"experiments": [{"model": {"name": "x", "base": "nope"}, "dataset": DATASET}]},
            "config: experiments[0].model.base: unknown model 'nope'. Available: ",
        ),
        (
            {"experiments": [{"model": MODEL, "dataset": {**DATASET, "builder": "fact_qa"}}]},
            "datasets.qa.builder: unknown data set builder 'fact_qa'; did you mean 'facts_qa'?",
        ),
        (
            {"experiments": [{"model": MODEL, "dataset": {**DATASET, "options": {"sed": 1}}}]},
            "datasets.qa.options.sed: unknown key 'sed'; did you mean 'seed'? Available: ",
        ),
        (
            {"experiments": [{"model": {**MODEL, "layer": 3}, "dataset": DATASET}]},
            "config: experiments[0].model.layer: input should be a valid string (got 3).",
        ),
        (
            {"experiments": [{"model": {**MODEL, "layers": "x"}, "dataset": DATASET}]},
            "config: experiments[0].model.layers: unknown key 'layers'; did you mean 'layer'? "
            "Available: end_token, label, layer, max_length, name, source, start_token, training",
        ),
        (
            {
                "experiments": [
                    {
                        "model": {**MODEL, "source": {**MODEL["source"], "vocabulary": 500}},
                        "dataset": DATASET,
                    }
                ]
            },
            "unknown key 'vocabulary'; did you mean 'vocabulary_size'? "
            "Available: architecture, kind, shape, vocabulary_size",
        ),
        (
            {"experiments": [{"model": MODEL, "dataset": DATASET}] * 2},
            "config: the same model and data set appear twice under 'experiments'.",
        ),
        ({"experiments": [{"model": MODEL}]}, "must be a mapping with 'model' and 'dataset'."),
        ({"experiments": None}, "config: 'experiments' and 'editors' must be lists; add them."),
        ({"editors": []}, "config: editors: list should have at least 1 item"),
        ({"seeds": [-1]}, "config: seeds[0]: input should be greater than or equal to 0 (got -1)."),
        ({"seeds": [1, 1]}, "config: a seed appears twice under 'seeds'."),
        ({"seeds": 3}, "config: seeds: must be a list, as in seeds=[0, 1] (got 3)."),
        ({"stream": [1]}, "config: stream: must be a section of keys and values (got [1])."),
        ({"set": {"a": 1}}, "config: set: must be a list of key=value (got {'a': 1})."),
        ({"set": ["radius=2"]}, "--set radius: no setting of a suite; did you mean editor.radius?"),
        ({"set": ["facts=2"]}, "--set facts: no setting of a suite; did you mean stream.facts?"),
        ({"set": ["editor.radius"]}, "--set editor.radius: write it as key=value"),
        (
            {"set": ["models.tinny.training.steps=1"]},
            "--set models.tinny.training.steps: unknown model 'tinny'; did you mean 'tiny'? "
            "Available: tiny",
        ),
        ({"set": ["datasets.x.label=X"]}, "unknown data set 'x'. Available: qa"),
        ({"set": ["editors.grace.steps=1"]}, "unknown editor 'grace'"),
        ({"set": ["models.tiny=1"]}, "--set models.tiny: name a key, as in models.tiny.label="),
        ({"set": ["models.tiny.layr=x"]}, "unknown key 'layr'; did you mean 'layer'?"),
        ({"set": ["editors.g.stps=1"]}, "unknown key 'stps'; did you mean 'steps'?"),
        (
            {"resources": {"models": {"tinny": {"edit": {"gpu": 1}}}}},
            "config: resources.models: unknown model 'tinny'; did you mean 'tiny'? Available: tiny",
        ),
        ({"resources": {"edits": {"gpu": 1}}}, "unknown key 'edits'; did you mean 'edit'?"),
        ({"resources": {"edit": {"gpus": 1}}}, "unknown key 'gpus'; did you mean 'gpu'?"),
        ({"resources": {"edit": {"mem_mb": 0}}}, "resources.edit.mem_mb: input should be greater"),
    ],
)
def test_a_mistake_gets_one_sentence_with_its_place_and_what_is_allowed(
    repository, changes, sentence
):
    message = refusal(suite(**changes), repository / "config")
    assert sentence in message
    assert "\n" not in message


def test_each_mistake_gets_a_line_of_its_own(repository):
    message = refusal(suite(seeds=[-1], compute={"threads": 0}), repository / "config")
    assert message.splitlines() == [
        "config: seeds[0]: input should be greater than or equal to 0 (got -1).",
        "config: compute.threads: input should be greater than or equal to 1 (got 0).",
    ]


def test_a_mistake_in_a_file_names_the_file(tmp_path, repository):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(suite(seeds=["x"])))
    assert refusal(path, repository / "config").startswith(f"{path}: seeds[0]: input should be a ")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("name: [", "not valid YAML"),
        ("", "must hold a mapping"),
        ("- 1", "must hold a mapping"),
        ("name: 2024-02-30", "not valid YAML (day is out of range for month)"),
        (b"\xff\xfe\x00", "mend it"),
    ],
)
def test_a_file_that_is_no_suite_is_named(tmp_path, content, sentence):
    path = tmp_path / "suite.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    assert sentence in message or isinstance(content, bytes)
    assert "no such file" in refusal(tmp_path / "none.yaml")
    assert "cannot be read" in refusal(tmp_path)


HOSTILE = ("../x", "/etc/x", "", "a/b", "..", ".", ".hidden", "a" * 65, "a b", "a\n", "a\0b", "-x")


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("part", ["suite", "model", "dataset", "editor"])
def test_no_name_can_lead_out_of_the_results_folder(repository, part, name):
    raw = suite()
    if part == "suite":
        raw["name"] = name
    elif part == "editor":
        raw["editors"] = [{**GRACE, "name": name}]
    else:
        whole = MODEL if part == "model" else DATASET
        raw["experiments"] = [{"model": MODEL, "dataset": DATASET, part: {**whole, "name": name}}]
    reason = "is a text that cannot be encoded" if "\0" in name else "string should match pattern"
    assert f"name: {reason}" in refusal(raw, repository / "config")


def test_a_hostile_value_is_shown_in_part(repository):
    message = refusal(suite(seeds=["9" * 10**5 + "x"]), repository / "config")
    assert len(message) < 400


def test_models_and_data_sets_that_would_share_a_folder_are_refused(repository):
    experiments = [
        {"model": {**MODEL, "name": "a-b"}, "dataset": {**DATASET, "name": "c"}},
        {"model": {**MODEL, "name": "a"}, "dataset": {**DATASET, "name": "b-c"}},
    ]
    message = refusal(suite(experiments=experiments), repository / "config")
    assert message == (
        "config: model 'a' on 'b-c' and model 'a-b' on 'c' would share a folder; "
        "rename one of them."
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("2E3", 2000.0),
        ("-1e-4", -1e-4),
        (".5", 0.5),
        ("3", 3),
        ("3.0", 3.0),
        ("1_000", 1000),
        ("[0, 1e-3]", [0, 1e-3]),
        ("{a: 1}", {"a": 1}),
        ("true", True),
        ("null", None),
        ("", None),
        ("e4", "e4"),
        ("1e-4x", "1e-4x"),
        ("._", "._"),
        ("'1e-4'", "1e-4"),
        ("v1.2.3", "v1.2.3"),
    ],
)
def test_values_are_read_as_people_mean_them(text, value):
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["[1", "{a: ", "2024-02-30"])
def test_a_value_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="is not a value"):
        parse_value(text)


def test_numbers_without_a_dot_are_numbers_in_files(config_dir):
    (config_dir / "mine.yaml").write_text(
        "name: s\nexperiments: [{model: facts-t5, dataset: facts-qa}]\n"
        "editors: [{name: ft, hyperparameters: {learning_rate: 1e-4}}]\n"
    )
    loaded = load_suite(config_dir / "mine.yaml", config_dir)
    assert loaded.editors[0].hyperparameters["learning_rate"] == 1e-4


@pytest.mark.parametrize("text", ["5e-2", "1e5", ".5e3", "-.5e-1", "1.e3"])
def test_a_number_is_one_value_whoever_reads_the_file(tmp_path, text):
    def with_factor(value) -> dict:
        source = {**MODEL["source"], "shape": {"initializer_factor": value}}
        return suite(experiments=[{"model": {**MODEL, "source": source}, "dataset": DATASET}])

    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(with_factor("FACTOR")).replace("FACTOR", text))
    (ours,) = expand(load_suite(path, "no-such-folder"))
    # As Snakemake gives it, which reads some of these as texts.
    (theirs,) = expand(load_suite(with_factor(yaml.safe_load(text)), "no-such-folder"))
    assert ours.spec.model.source.shape == {"initializer_factor": float(text)}
    assert ours.content_hash == theirs.content_hash


def test_an_option_is_of_the_type_its_builder_declares():
    """A text and a number from two readers of one file are the same runs."""

    def run(taught_facts, edit_facts):
        options = {"taught_facts": taught_facts, "edit_facts": edit_facts}
        experiments = [{"model": MODEL, "dataset": {**DATASET, "options": options}}]
        (found,) = expand(load_suite(suite(experiments=experiments)))
        return found

    assert run("80", 10).spec.dataset.options == {"taught_facts": 80, "edit_facts": 10}
    assert run("80", 10).content_hash == run(80, "10").content_hash


@pytest.mark.parametrize("given", ["5e-2", 0.05])
def test_an_option_of_no_declared_type_is_the_number_it_means(given):
    class Options(DatasetOptions):
        anything: Any = None
        text: str = ""

    read = Options(anything=given, text="5e-2")
    assert (read.anything, read.text) == (0.05, "5e-2")


def test_strings_from_the_command_line_become_what_the_key_takes(repository):
    # `snakemake --config` reads 1e-4 as a string, and numbers as numbers.
    raw = suite(
        seeds=["0", "2"],
        stream={"facts": "8"},
        editors=[{**GRACE, "hyperparameters": {"learning_rate": "1e-4", "steps": "5"}}],
    )
    runs = expand(load_suite(raw, repository / "config"))
    assert [run.spec.seed for run in runs] == [0, 2]
    assert runs[0].spec.stream.facts == 8
    assert runs[0].variant == "learning_rate=0.0001+steps=5"


def test_a_mapping_without_experiments_is_laid_over_the_default_suite(repository):
    config = repository / "config"
    default = load_suite(config / "config.yaml", config)
    changed = load_suite({"seeds": [7], "probes": {"batch_size": 3}}, config)
    assert changed.seeds == [7]
    assert {e.probes.batch_size for e in changed.experiments} == {3}
    assert [e.model.name for e in changed.experiments] == [
        e.model.name for e in default.experiments
    ]
    assert changed.editors == default.editors
    assert load_suite({}, config) == default


def test_set_reaches_every_kind_of_setting(repository):
    overrides = ["editor.radius=2.5", "stream.facts=3", "seeds=[4, 5]", "compute.threads=2"]
    loaded = load_suite(suite(set="probes.every=9"), repository / "config", overrides)
    [experiment] = loaded.experiments
    assert loaded.editors[0].hyperparameters == {"radius": 2.5}
    assert (experiment.stream.facts, experiment.probes.every) == (3, 9)
    assert (loaded.seeds, loaded.compute.threads) == ([4, 5], 2)


def test_set_reaches_models_data_sets_and_editors_by_name(repository):
    other = {**GRACE, "name": "h", "hyperparameters": {"steps": 3}}
    overrides = [
        "models.tiny.source={kind: folder, id: weights/t5}",
        "models.tiny.training.steps=4",
        "models.tiny.training.learning_rate=1e-3",
        "datasets.qa.options.edit_phrasings=2",
        "editors.h.radius=2",
        "editor.steps=7",
        "editors.h.steps=8",
    ]
    raw = suite(editors=[GRACE, other], set=overrides)
    loaded = load_suite(raw, repository / "config")
    [experiment] = loaded.experiments
    assert experiment.model.source.id == "weights/t5"
    assert (experiment.model.training.steps, experiment.model.training.learning_rate) == (4, 1e-3)
    assert experiment.model.layer == MODEL["layer"]
    assert experiment.dataset.options == {"edit_phrasings": 2}
    found = {editor.name: editor.hyperparameters for editor in loaded.editors}
    assert found == {"g": {"steps": 7}, "h": {"radius": 2, "steps": 8}}


def test_set_reaches_a_name_wherever_it_stands_and_names_with_dots(repository):
    models = [{**MODEL, "name": name} for name in ("v1", "v1.1")]
    datasets = [DATASET, {**DATASET, "name": "other"}]
    experiments = [{"model": m, "dataset": d} for m in models for d in datasets]
    raw = suite(experiments=experiments, set=["models.v1.1.max_length=9", "datasets.qa.label=L"])
    loaded = load_suite(raw, repository / "config").experiments
    assert {(e.model.name, e.model.max_length) for e in loaded} == {("v1", 128), ("v1.1", 9)}
    assert {(e.dataset.name, e.dataset.label) for e in loaded} == {("qa", "L"), ("other", "QA")}


def test_set_wins_over_what_an_experiment_says(repository):
    experiment = {
        "model": MODEL,
        "dataset": DATASET,
        "stream": {"facts": 5},
        "probes": {"every": 5},
    }
    raw = suite(experiments=[experiment], set=["stream.facts=2", "probes.every=3"])
    [loaded] = load_suite(raw, repository / "config").experiments
    assert (loaded.stream.facts, loaded.probes.every) == (2, 3)


def test_set_replaces_a_list_as_a_whole(repository):
    loaded = load_suite(suite(), repository / "config", ["editors=[grace, ft]", "seeds=[3]"])
    assert [editor.name for editor in loaded.editors] == ["grace", "ft"]
    assert loaded.seeds == [3]


def test_a_single_run_takes_the_suites_overrides_of_its_own_parts(repository, tmp_path):
    other = {**MODEL, "name": "other"}
    experiments = [{"model": m, "dataset": DATASET} for m in (MODEL, other)]
    lines = ["models.tiny.max_length=9", "models.other.max_length=8", "editors.ft.steps=6"]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(suite(experiments=experiments, editors=["ft"], set=lines)))
    names = ("tiny", "qa")
    spec = single_run(path, repository / "config", *names, "ft", 0, ["editors.ft.steps=5"]).spec
    assert (spec.model.max_length, spec.editor.hyperparameters["steps"]) == (9, 5)
    spec = single_run(path, repository / "config", *names, "unedited", 0).spec
    assert spec.model.max_length == 9


def test_a_common_hyperparameter_is_laid_over_each_editor_that_has_it(repository):
    editors = ["unedited", "ft", "grace"]
    loaded = load_suite(suite(editors=editors), repository / "config", ["editor.radius=9"])
    found = [editor.hyperparameters.get("radius") for editor in loaded.editors]
    assert found == [None, None, 9]
    with pytest.raises(ConfigError, match=r"editor\.radios: unknown key 'radios'; did"):
        load_suite(suite(editors=editors), repository / "config", ["editor.radios=9"])
    with pytest.raises(ConfigError, match="unknown key 'radius'"):
        load_suite(suite(editors=["unedited", "ft"]), repository / "config", ["editor.radius=9"])


def test_a_suite_that_says_nothing_asks_for_little_and_for_no_gpu(repository):
    resources = load_suite(suite(), repository / "config").resources
    asked = {
        rule: [resources.amount(rule, name, "tiny", 1) for name in ("gpu", "mem_mb", "runtime")]
        for rule in ("prepare_data", "prepare_model", "baseline", "prepare_editor", "edit")
    }
    assert asked == {
        "prepare_data": [0, 2000, 20],
        "prepare_model": [0, 4000, 120],
        "baseline": [0, 4000, 60],
        "prepare_editor": [0, 4000, 240],
        "edit": [0, 4000, 240],
    }


def test_memory_and_time_grow_with_the_attempt_and_models_ask_for_their_own(repository):
    edit = {"gpu": 1, "mem_mb": 1000}
    tiny = {"edit": {"mem_mb": 3000}, "baseline": {"runtime": 7}}
    raw = suite(resources={"edit": edit, "models": {"tiny": tiny}}, set=["resources.edit.gpu=2"])
    resources = load_suite(raw, repository / "config").resources
    assert [resources.amount("edit", "gpu", "tiny", attempt) for attempt in (1, 3)] == [2, 2]
    assert [resources.amount("edit", "mem_mb", "tiny", n) for n in (1, 3)] == [3000, 9000]
    assert resources.amount("edit", "mem_mb", "another", 1) == 1000
    assert resources.amount("edit", "runtime", "tiny", 2) == 480
    assert resources.amount("baseline", "runtime", "tiny", 1) == 7


def test_what_jobs_ask_a_cluster_for_is_no_part_of_a_run(repository):
    raw = suite(resources={"edit": {"gpu": 1}}, set=["resources.edit.mem_mb=9", "seeds=[0]"])
    suites = [load_suite(s, repository / "config") for s in (raw, suite())]
    runs = [expand(one) for one in suites]
    assert runs[0] == runs[1]
    assert [run.content_hash for run in runs[0]] == [run.content_hash for run in runs[1]]
    assert plan_of(suites[0], runs[0]) == plan_of(suites[1], runs[1])


@pytest.mark.parametrize("override", ["a", "=3", " =3", ""])
def test_set_needs_a_key_and_a_value(repository, override):
    assert "write it as key=value" in refusal(suite(), repository / "config", [override])


def test_set_cannot_go_below_a_value(repository):
    message = refusal(suite(), repository / "config", ["name.x=1"])
    assert message == "--set name.x: 'name' is a value, not a section."


def test_reading_a_mapping_leaves_it_as_it_was(repository):
    raw = suite(stream={"facts": 1}, set=["stream.facts=2"])
    before = yaml.safe_dump(raw)
    load_suite(raw, repository / "config", ["stream.order=given", "editor.radius=2"])
    assert yaml.safe_dump(raw) == before


def test_sections_left_empty_in_yaml_are_empty(repository):
    raw = suite(
        stream=None,
        probes=None,
        set=None,
        editors=[{**GRACE, "hyperparameters": None, "sweep": None, "per_dataset": {"qa": None}}],
        experiments=[{"model": MODEL, "dataset": DATASET, "stream": None}],
    )
    assert load_suite(raw, repository / "config") == load_suite(
        suite(editors=[{**GRACE, "per_dataset": {"qa": {}}}]), repository / "config"
    )


def test_merge_goes_into_sections_and_replaces_lists():
    base = {"a": {"b": 1, "c": 2}, "d": [1, 2], "e": 3}
    assert merge(base, {"a": {"c": 5}, "d": [9]}) == {"a": {"b": 1, "c": 5}, "d": [9], "e": 3}
    assert base == {"a": {"b": 1, "c": 2}, "d": [1, 2], "e": 3}


def test_a_source_of_another_kind_replaces_the_whole(repository):
    model = {"name": "minilm", "source": {"kind": "folder", "id": "weights"}}
    raw = suite(experiments=[{"model": model, "dataset": DATASET}])
    source = load_suite(raw, repository / "config").experiments[0].model.source
    assert source.sha256 is None  # of the package's weights, not of these
    assert source.id == "weights"
    same_kind = {"name": "minilm", "source": {"kind": "package", "subfolder": "other"}}
    raw = suite(experiments=[{"model": same_kind, "dataset": DATASET}])
    source = load_suite(raw, repository / "config").experiments[0].model.source
    assert source.sha256 is not None
    assert source.subfolder == "other"


def test_set_value_makes_sections_on_the_way():
    target: dict = {}
    set_value(target, "a.b.c", 1)
    set_value(target, "a.d", 2)
    assert target == {"a": {"b": {"c": 1}, "d": 2}}


def radii(config_dir, entry, overrides=()) -> dict[str, list[float]]:
    """The radii of the runs on each data set, with an editor file that has some of its own."""
    (config_dir / "editors" / "g.yaml").write_text(
        yaml.safe_dump(
            {**GRACE, "hyperparameters": {"radius": 2}, "per_dataset": {"one": {"radius": 3}}}
        )
    )
    experiments = [
        {"model": MODEL, "dataset": {**DATASET, "name": name}} for name in ("one", "two")
    ]
    raw = suite(experiments=experiments, editors=[entry])
    found: dict[str, list[float]] = {"one": [], "two": []}
    for run in expand(load_suite(raw, config_dir, overrides)):
        found[run.spec.dataset.name].append(run.spec.editor.hyperparameters["radius"])
    return found


@pytest.mark.parametrize(
    ("entry", "overrides", "one", "two"),
    [
        ("g", [], [3], [2]),  # the file: per_dataset before hyperparameters
        ({"name": "g", "hyperparameters": {"radius": 5}}, [], [5], [5]),
        ({"name": "g", "hyperparameters": {"steps": 5}}, [], [3], [2]),
        ({"name": "g", "per_dataset": {"two": {"radius": 6}}}, [], [3], [6]),
        (
            {
                "name": "g",
                "hyperparameters": {"radius": 5},
                "per_dataset": {"two": {"radius": 6}},
            },
            [],
            [5],
            [6],
        ),
        ({"name": "g", "sweep": {"radius": [7, 8]}}, [], [3, 7, 8], [2, 7, 8]),
        (
            {
                "name": "g",
                "hyperparameters": {"radius": 5},
                "per_dataset": {"two": {"radius": 6}},
                "sweep": {"radius": [7]},
            },
            ["editor.radius=9"],
            [9],
            [9],
        ),
    ],
)
def test_what_wins_from_weak_to_strong(config_dir, entry, overrides, one, two):
    assert radii(config_dir, entry, overrides) == {"one": one, "two": two}


PRESETS = [
    name
    for name in EDITORS.names()
    if "rules" in EDITORS.get(name).hyperparameters_class().model_fields
]


@pytest.mark.parametrize("name", PRESETS)
def test_released_rules_are_the_released_codes_whatever_the_file_tunes(repository, name):
    model, dataset = "facts-t5", "facts-qa"
    config = repository / "config"
    spec = single_run(
        config / "config.yaml", config, model, dataset, name, 0, ["editor.rules=released"]
    ).spec
    schema = EDITORS.get(name).hyperparameters_class()
    assert spec.editor.hyperparameters == schema(rules="released").model_dump(mode="json")


RELEASED = {"name": "g", "hyperparameters": {"rules": "released"}}


@pytest.mark.parametrize(
    ("entry", "overrides", "one", "two"),
    [
        (RELEASED, [], [1], [1]),
        ({**RELEASED, "per_dataset": {"two": {"radius": 6}}}, [], [1], [6]),
        ({"name": "mine", "base": "g", "hyperparameters": {"rules": "released"}}, [], [1], [1]),
        ("g", ["editor.rules=released", "editor.radius=9"], [9], [9]),
        ("g", ["editors.g.rules=corrected"], [3], [2]),  # the file's own rules
    ],
)
def test_other_rules_leave_nothing_of_what_the_file_tunes(config_dir, entry, overrides, one, two):
    assert radii(config_dir, entry, overrides) == {"one": one, "two": two}


@pytest.mark.parametrize(
    "part", [{"sweep": {"rules": ["released"]}}, {"per_dataset": {"qa": {"rules": "released"}}}]
)
def test_rules_are_one_for_an_editor(repository, part):
    said = refusal(suite(editors=[{**GRACE, **part}]), repository / "config")
    assert "is tuned for one value of 'rules'; define one editor per value" in said


def test_parts_of_one_label_are_told_apart_by_their_names(repository):
    editors = [{"name": "a", "base": "ft"}, {"name": "b", "base": "ft"}, "grace"]
    experiments = [
        {"model": {**MODEL, "name": model}, "dataset": {**DATASET, "name": data}}
        for model, data in (("tiny", "qa"), ("tiny", "qa-2"), ("other", "qa"))
    ]
    made = load_suite(suite(editors=editors, experiments=experiments), repository / "config")
    assert [entry.label for entry in made.editors] == ["FT (a)", "FT (b)", "GRACE"]
    assert [entry.model.label for entry in made.experiments] == [
        "Tiny (tiny)",
        "Tiny (tiny)",
        "Tiny (other)",
    ]
    assert {entry.dataset.label for entry in made.experiments} == {"QA (qa)", "QA (qa-2)"}


def test_an_experiment_wins_over_the_suite(repository):
    experiment = {"model": MODEL, "dataset": DATASET, "stream": {"facts": 2}}
    raw = suite(experiments=[experiment], stream={"facts": 9, "order": "given"})
    stream = load_suite(raw, repository / "config").experiments[0].stream
    assert (stream.facts, stream.order) == (2, "given")


def test_a_suite_cannot_be_changed_after_it_was_checked(repository):
    loaded = load_suite(suite(), repository / "config")
    assert isinstance(loaded, SuiteConfig)
    with pytest.raises(ValueError, match="frozen"):
        loaded.name = "../x"
