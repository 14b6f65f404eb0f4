"""What editors need before any run: made once, checked, and shared."""

from __future__ import annotations

import pytest

from grace_bench.errors import ConfigError, DataError
from grace_bench.steps import pipeline
from grace_bench.steps.precompute import check_assets
from grace_bench.store.files import read_json, write_json
from grace_bench.suite.compose import load_suite
from grace_bench.suite.plan import Run, expand, with_asset_settings

MEND = {"rank": 4, "training_steps": 2, "checks": 2, "accumulate": 1, "normalise_over": 4}


@pytest.fixture(scope="module")
def suite(repository):
    raw = {
        "editors": [
            "ft",
            {"name": "mend", "hyperparameters": MEND, "sweep": {"training_steps": [3]}},
            {"name": "rome", "datasets": ["facts-passages"], "sweep": {"learning_rate": [0.1]}},
        ],
        "seeds": [0, 1],
    }
    return load_suite({**smoke(repository), **raw}, repository / "config")


def smoke(repository):
    from grace_bench.suite.compose import read_yaml

    return read_yaml(repository / "config" / "suites" / "smoke.yaml")


def test_runs_share_assets_that_depend_on_the_same_settings(suite):
    folders = {}
    for run in expand(suite):
        if run.spec.seed > 0:
            continue  # its base model is another
        key = (run.spec.model.name, run.spec.editor.name)
        folders.setdefault(key, set()).add(run.assets_folder)
    assert folders["facts-t5", "ft"] == {None}
    assert len(folders["facts-t5", "mend"]) == 2  # training_steps 2 and 3
    assert len(folders["facts-gpt2", "rome"]) == 1  # the covariance knows no learning rate
    assert folders["facts-t5", "mend"].isdisjoint(folders["facts-gpt2", "mend"])


def test_assets_are_made_from_the_same_settings_for_all_runs_that_share_them(suite):
    by_folder = {}
    for run in expand(suite):
        if run.assets_folder:
            spec = with_asset_settings(run.spec)
            by_folder.setdefault(run.assets_folder, set()).add(spec.editor.model_dump_json())
            assert Run(spec).assets_folder == run.assets_folder
    assert all(len(editors) == 1 for editors in by_folder.values())


def test_an_editor_that_needs_nothing_has_nothing_prepared(suite):
    run = next(run for run in expand(suite) if run.spec.editor.name == "ft")
    with pytest.raises(ConfigError, match="needs nothing before a run"):
        pipeline.prepare_editor(run)


@pytest.mark.parametrize("damage", ["file", "missing", "model"])
def test_changed_assets_are_refused(tmp_path, damage):
    (tmp_path / "mend.safetensors").write_bytes(b"tensors")
    from grace_bench.store.files import sha256_of

    files = {"mend.safetensors": sha256_of(tmp_path / "mend.safetensors")}
    record = {"model_hash": "m", "files": files, "told": {}, "seconds": 0.1}
    write_json(tmp_path / "assets.json", record)
    assert check_assets(tmp_path, "m").files == files
    if damage == "file":
        (tmp_path / "mend.safetensors").write_bytes(b"others")
    if damage == "missing":
        (tmp_path / "mend.safetensors").unlink()
    with pytest.raises(DataError, match="make it again"):
        check_assets(tmp_path, "other" if damage == "model" else "m")


@pytest.mark.slow
def test_a_run_prepares_its_editor_and_uses_it(suite, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [run for run in expand(suite) if run.spec.model.name == "facts-gpt2"]
    for editor in ("mend", "rome"):
        run = next(run for run in runs if run.spec.editor.name == editor)
        record = pipeline.edit(run, prepare_missing=True)
        made = read_json(run.assets_folder / "assets.json")
        assert record.assets.files == made["files"]
        assert made["summary"]
        assert record.counts["edits"] > 0
