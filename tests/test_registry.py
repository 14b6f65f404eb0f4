"""Names to implementations: laziness, plug-ins, messages."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from grace_bench import registry
from grace_bench.editors import EDITORS, EditorSpec
from grace_bench.errors import ConfigError, GraceBenchError, ResultError, unknown_name
from grace_bench.registry import Registry
from grace_bench.tasks import TASKS


def test_a_target_is_imported_when_it_is_asked_for(tmp_path, monkeypatch):
    (tmp_path / "heavy_module.py").write_text("class Thing: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    things: Registry = Registry("thing")
    things.register("one", "heavy_module:Thing")
    assert things.names() == ["one"]
    assert "heavy_module" not in sys.modules
    assert things.get("one").__name__ == "Thing"
    monkeypatch.delitem(sys.modules, "heavy_module")


def test_a_broken_target_breaks_only_itself():
    things: Registry = Registry("thing")
    things.register("good", "math:sqrt")
    things.register("bad", "no_such_module:x")
    assert things.get("good")(9) == 3
    with pytest.raises(ImportError):
        things.get("bad")


def test_a_name_can_be_taken_once():
    things: Registry = Registry("thing")
    things.register("one", "math:sqrt")
    with pytest.raises(ConfigError, match="thing 'one' is registered twice; rename one of them"):
        things.register("one", "math:exp")


@pytest.mark.parametrize(
    ("name", "names", "where", "sentence"),
    [
        (
            "grce",
            ["grace", "defer"],
            "",
            "unknown editor 'grce'; did you mean 'grace'? Available: defer, grace",
        ),
        ("zzz", ["grace"], "here", "here: unknown editor 'zzz'. Available: grace"),
        ("x", [], "", "unknown editor 'x'. Available: none"),
    ],
)
def test_an_unknown_name_gets_the_nearest_and_the_available_ones(name, names, where, sentence):
    assert unknown_name("editor", name, names, where) == sentence


def test_a_long_list_of_names_is_cut():
    sentence = unknown_name("layer", "x", [f"layer.{i}" for i in range(500)])
    assert sentence.endswith(", ...")
    assert sentence.count("layer.") == 30


PLUGIN = EntryPoint("shout", "math:sqrt", "grace_bench.things")


def plugged(monkeypatch, *points: EntryPoint) -> Registry:
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [p for p in points if p.group == group]
    )
    return Registry("thing", group="grace_bench.things")


def test_installed_packages_add_names(monkeypatch):
    things = plugged(monkeypatch, PLUGIN)
    things.register("own", "math:exp")
    assert things.names() == ["own", "shout"]
    assert things.get("shout")(9) == 3
    with pytest.raises(ConfigError, match=r"here: unknown thing 'shot'; did you mean 'shout'\?"):
        things.get("shot", "here")


def test_what_is_built_in_cannot_be_replaced_by_a_plug_in(monkeypatch):
    things = plugged(monkeypatch, PLUGIN)
    things.register("shout", "math:exp")
    assert things.get("shout")(0) == 1


@pytest.mark.parametrize("value", ["no_such_module:x", "math:no_such_name"])
def test_a_broken_plug_in_is_named(monkeypatch, value):
    things = plugged(monkeypatch, EntryPoint("shout", value, "grace_bench.things"))
    with pytest.raises(ConfigError, match=f"thing 'shout' cannot be imported .* '{value}'"):
        things.get("shout")


def test_every_registered_editor_and_task_is_what_it_says():
    for name in EDITORS.names():
        spec = EDITORS.get(name)
        assert isinstance(spec, EditorSpec)
        assert spec.editor_class().name == name
        spec.hyperparameters_class()()  # all settings have defaults
    for name in TASKS.names():
        assert TASKS.get(name).name == name


def test_exit_codes_tell_what_the_user_can_mend():
    assert GraceBenchError.exit_code == ConfigError.exit_code == 2
    assert ResultError.exit_code == 75
