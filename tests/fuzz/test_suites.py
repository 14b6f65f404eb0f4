"""Suite files of any content: runs inside the results folder, or one sentence."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import yaml
from fuzzing import HOSTILE_TEXTS, cases, changed, damaged, damages, sentence_of, tree_changes
from hypothesis import strategies as st

from grace_bench.suite.compose import load_suite
from grace_bench.suite.overrides import parse_value
from grace_bench.suite.plan import expand
from grace_bench.suite.section import NAME_PATTERN

MODEL = {
    "name": "tiny",
    "label": "Tiny",
    "source": {
        "kind": "scratch",
        "architecture": "bert",
        "vocabulary_size": 300,
        "shape": {"hidden_size": 16, "num_hidden_layers": 2},
    },
    "layer": "bert.encoder.layer.0.output.dense",
    "max_length": 32,
    "training": {"steps": 3, "batch_size": 4, "learning_rate": 1e-3, "freeze": ["bert.a"]},
}
DATASET = {
    "name": "cases",
    "label": "Cases",
    "task": "classification",
    "builder": "table",
    "options": {"path": "cases.jsonl", "upstream_size": 4, "stream_size": 4},
}
GRACE = {
    "name": "grace",
    "label": "GRACE",
    "editor": "grace",
    "hyperparameters": {"radius": 2.0, "steps": 3},
    "per_dataset": {"cases": {"radius": 1.5}},
}
NAMED = {
    "name": "small",
    "description": "names of files",
    "experiments": [
        {"model": "tiny", "dataset": "cases", "stream": {"facts": 2}},
        {"model": {"name": "own", "base": "tiny", "max_length": 16}, "dataset": {"name": "cases"}},
    ],
    "editors": ["grace", {"name": "grace", "sweep": {"radius": [1, 2], "steps": [1, 2]}}],
    "seeds": [0, 1],
    "stream": {"facts": 3, "order": "given"},
    "probes": {"every": 2, "upstream": 4},
    "compute": {"device": "cpu", "threads": 1},
    "resources": {"edit": {"gpu": 1}, "models": {"tiny": {"baseline": {"mem_mb": 10}}}},
    "set": ["editor.steps=2", "models.tiny.label=T"],
}
WHOLE = {
    "name": "whole",
    "experiments": [{"model": MODEL, "dataset": DATASET}],
    "editors": [GRACE, {"name": "rome", "label": "R", "editor": "rome"}],
    "seeds": [3],
}
PARTS = {
    "config.yaml": NAMED,
    "models/tiny.yaml": MODEL,
    "datasets/cases.yaml": DATASET,
    "editors/grace.yaml": GRACE,
    "editors/unedited.yaml": {"name": "unedited", "label": "Unedited", "editor": "unedited"},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """The folder that names in suites are looked up in."""
    folder = tmp_path_factory.mktemp("config")
    for name, content in PARTS.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(yaml.safe_dump(content))
    return folder


def check(fence, config, content: str | bytes) -> str | None:
    """Load and expand a suite; return the sentence of a refused one."""
    file = fence.emptied() / "suite.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = []

    def plan() -> None:
        found.extend(expand(load_suite(file, config), fence.inside / "results"))

    said = sentence_of(plan)
    for run in found:
        folders = [run.folder, run.dataset_folder, run.model_folder]
        for folder in filter(None, [*folders, run.assets_folder]):
            assert folder.resolve().is_relative_to(fence.inside / "results" / run.spec.suite)
            for part in folder.relative_to(fence.inside).parts:
                assert len(part.encode()) <= 255
                assert not part.startswith(".")
                assert part.isprintable()
    assert [path.name for path in fence.inside.iterdir()] == ["suite.yaml"]
    fence.check()
    return said


def test_the_suites_that_are_changed_here_are_good(fence, config):
    assert check(fence, config, yaml.safe_dump(NAMED)) is None
    assert check(fence, config, yaml.safe_dump(WHOLE)) is None


@cases(300, suite=st.sampled_from([NAMED, WHOLE]), changes=tree_changes())
def test_a_suite_with_any_value_anywhere(fence, config, suite, changes):
    check(fence, config, yaml.safe_dump(changed(suite, changes), sort_keys=False))


@cases(150, damage=damages())
def test_a_suite_with_any_bytes_anywhere(fence, config, damage):
    check(fence, config, damaged(yaml.safe_dump(NAMED).encode(), damage))


SNIPPETS = st.one_of(
    st.sampled_from(
        [
            *("!!int ''", "!!float x", "!!bool x", "!!timestamp x", "!!binary '='", "!!null x"),
            *("!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!str {a: 1}", "!!map [1]"),
            *("!!python/object/apply:os.system [touch x]", "!!python/name:os.system", "!x y"),
            *("2024-02-30", "2001-01-01 00:00:00+99:99", "0001-01-01", "1:2:3:4", "1:" * 300 + "1"),
            *("0x" + "f" * 390, "0b" + "1" * 390, "9" * 390, "9" * 5000, "9" * 5000 + "x", ".inf"),
            *("&a [*a]", "&a {b: *a}", "{<<: [{a: 1}, {b: 2}]}", "{<<: 3}", "*nowhere", "? a"),
            *("[" * 500, "[" * 40 + "]" * 40, "{a: " * 70 + "}" * 70, "- " * 300, '"\\ud800"'),
            *(
                '"\\0"',
                '"\\x1b[2J"',
                "'\t'",
                "%YAML 9.9",
                "---",
                "--- a\n--- b",
                "@",
                "`",
                "{[]: 1}",
            ),
            *("{1: 2}", "{null: 1}", "{[1]: 1}", "{true: 1}", "yes", "~", "", "|\n  text", ">-"),
        ]
    ),
    st.text(max_size=20),
)
LINES = [
    "name: {}",
    "description: {}",
    "seeds: [{}]",
    "stream: {{facts: {}}}",
    "probes: {}",
    "set: ['editor.steps={}']",
    "toy: {}",
    "resources: {{models: {{{}: {{}}}}}}",
    "compute: {{device: {}}}",
    "editors: [{{name: grace, sweep: {{radius: {}}}}}]",
    "editors: [{{name: grace, hyperparameters: {}}}]",
    "experiments: [{{model: {}, dataset: cases}}]",
    "experiments: [{{model: tiny, dataset: {{name: cases, options: {}}}}}]",
]


@cases(250, line=st.sampled_from(LINES), snippet=SNIPPETS)
def test_a_suite_with_any_yaml_in_any_place(fence, config, line, snippet):
    key = line.split(":")[0]
    rest = {name: value for name, value in NAMED.items() if name not in (key, "set")}
    text = yaml.safe_dump(rest) + line.format(snippet) + "\n"
    check(fence, config, text.encode("utf-8", "replace"))


@cases(40, width=st.integers(2, 12), height=st.integers(2, 40), merge=st.booleans())
def test_a_bomb_of_aliases_does_not_go_off(fence, config, width, height, merge):
    lines = ["x0: &x0 {a: 1}" if merge else "x0: &x0 [a]"]
    for n in range(1, height):
        inner = ", ".join([f"*x{n - 1}"] * width)
        lines.append(f"x{n}: &x{n} {{<<: [{inner}]}}" if merge else f"x{n}: &x{n} [{inner}]")
    said = check(fence, config, "\n".join([*lines, yaml.safe_dump(NAMED)]))
    assert said is not None


@cases(25, sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=3), seeds=st.integers(1, 400))
def test_a_suite_of_too_many_runs_is_refused_before_they_are_made(fence, config, sizes, seeds):
    keys = ("steps", "query_position", "early_stop_steps")
    sweep = {key: list(range(1, 1 + n)) for key, n in zip(keys, sizes, strict=False)}
    if 2 * seeds * (math.prod(sizes) + 1) <= 100_000:
        sweep, seeds = {"radius": [-1]}, 1  # refused for something else, and as quickly
    suite = {**NAMED, "set": [], "seeds": list(range(seeds))}
    suite["editors"] = [{"name": "grace", "sweep": sweep}]
    said = check(fence, config, yaml.safe_dump(suite, default_flow_style=True))
    assert "more than 100000" in said or "greater than 0" in said


class Quoting(yaml.SafeDumper):
    """Writes every text in quotes: to us 1e999 is a number."""


Quoting.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


@cases(60, name=st.one_of(st.sampled_from(HOSTILE_TEXTS), st.text(max_size=80)))
def test_no_name_leads_out_of_the_results(fence, config, name):
    for suite in (
        {**WHOLE, "name": name},
        {**WHOLE, "experiments": [{"model": {**MODEL, "name": name}, "dataset": DATASET}]},
        {**WHOLE, "experiments": [{"model": MODEL, "dataset": {**DATASET, "name": name}}]},
        {**WHOLE, "editors": [{**GRACE, "name": name}]},
    ):
        said = check(fence, config, yaml.dump(suite, Dumper=Quoting))
        fits = re.fullmatch(NAME_PATTERN.strip("^$"), name)
        assert (said is None) == bool(fits), said


@cases(60, key=st.sampled_from(["layer", "covariance"]), value=st.text(max_size=100))
def test_no_setting_leads_out_of_the_results(fence, config, key, value):
    editor = {"name": "rome", "label": "R", "editor": "rome", "hyperparameters": {key: value}}
    check(fence, config, yaml.safe_dump({**WHOLE, "editors": [editor]}))


@cases(100, text=st.one_of(SNIPPETS, st.sampled_from(HOSTILE_TEXTS)))
def test_a_value_of_the_command_line(text):
    sentence_of(lambda: parse_value(text))
    sentence_of(lambda: load_suite({"name": "x"}, "no-such-folder", [f"a.{text}={text}"]))
