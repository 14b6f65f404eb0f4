"""Names to implementations: laziness, plug-ins, messages."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from grace_bench import registry
from grace_bench.errors import ConfigError, GraceBenchError, ResultError, unknown_name
from grace_bench.registry import EDITORS, TASKS, EditorSpec, Registry


@pytest.fixture
def package(tmp_path, monkeypatch) -> str:
    """A package with a sound module, a folder and a broken module; `THING` is what they offer."""
    name = f"things_{tmp_path.name}"
    (tmp_path / name / "folder").mkdir(parents=True)
    for file in ("__init__.py", "one.py", "folder/__init__.py"):
        (tmp_path / name / file).write_text("from math import exp as THING\n")
    (tmp_path / name / "bad.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        del sys.modules[module]


def test_what_lies_in_the_package_is_offered_and_imported_when_it_is_asked_for(package):
    things: Registry = Registry("thing", package, "THING", "no.group")
    assert things.names() == ["bad", "folder", "one"]
    assert f"{package}.one" not in sys.modules
    assert things.get("one")(0) == things.get("folder")(0) == 1
    assert f"{package}.bad" not in sys.modules


def test_a_broken_target_breaks_only_itself(package):
    things: Registry = Registry("thing", package, "THING", "no.group")
    assert things.get("one")(0) == 1
    with pytest.raises(ImportError):
        things.get("bad")


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


def plugged(monkeypatch, package, *points: EntryPoint) -> Registry:
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [p for p in points if p.group == group]
    )
    return Registry("thing", package, "THING", "grace_bench.things")


def test_installed_packages_add_names(monkeypatch, package):
    things = plugged(monkeypatch, package, PLUGIN)
    assert things.names() == ["bad", "folder", "one", "shout"]
    assert things.get("shout")(9) == 3
    with pytest.raises(ConfigError, match=r"here: unknown thing 'shot'; did you mean 'shout'\?"):
        things.get("shot", "here")


def test_what_is_built_in_cannot_be_replaced_by_a_plug_in(monkeypatch, package):
    things = plugged(monkeypatch, package, EntryPoint("one", "math:sqrt", "grace_bench.things"))
    assert things.get("one")(0) == 1


@pytest.mark.parametrize("value", ["no_such_module:x", "math:no_such_name"])
def test_a_broken_plug_in_is_named(monkeypatch, package, value):
    things = plugged(monkeypatch, package, EntryPoint("shout", value, "grace_bench.things"))
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
