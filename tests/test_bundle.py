"""Several runs in one process: each comes out as it would alone, fails alone, and is done once."""

from __future__ import annotations

import os
import shutil
import signal

import pytest
from small_runs import spec

from grace_bench.editors.methods.ft.editor import FinetuneEditor
from grace_bench.errors import EditorError, Interrupted, ModelError
from grace_bench.steps import bundle as module
from grace_bench.steps import edit, pipeline
from grace_bench.steps.bundle import KEPT, run_bundle
from grace_bench.steps.edit import RunFolders, run_stream
from grace_bench.store.files import read_json
from grace_bench.suite.plan import Run, bundles

pytestmark = pytest.mark.slow

SPECS = [
    spec("grace", hyperparameters={"steps": 2}),
    spec("ft"),
    spec("memory"),
    spec("grace", seed=1, hyperparameters={"steps": 2}),
]


@pytest.fixture
def runs(small_inputs, tmp_path) -> list[Run]:
    """Four runs whose inputs stand where a suite has them."""
    some = [Run(one, tmp_path) for one in SPECS]
    first = some[0]
    baseline = first.baseline_folder
    for source, target in zip(
        small_inputs, (first.dataset_folder, first.model_folder, baseline), strict=True
    ):
        shutil.copytree(source, target)
    return some


def do(runs: list[Run]) -> dict:
    return run_bundle(runs)


def test_a_bundle_gives_what_its_runs_give_alone(small_inputs, runs, tmp_path):
    do(runs)
    for run in runs:
        run_stream(run.spec, RunFolders(*small_inputs, tmp_path / "alone" / run.id))
        files = read_json(run.folder / "run.json")["files"]
        for name in set(files) - {"steps.parquet"}:
            alone = (tmp_path / "alone" / run.id / name).read_bytes()
            assert (run.folder / name).read_bytes() == alone, (run.id, name)


def test_a_bundle_loads_the_model_once_and_each_run_has_its_log(runs, monkeypatch, caplog):
    caplog.set_level("INFO", logger="grace_bench")
    loads = []
    plain = module.load_model
    monkeypatch.setattr(module, "load_model", lambda *a: loads.append(a) or plain(*a))
    monkeypatch.setattr(edit, "load_model", None)
    do(runs)
    assert len(loads) == 1
    logs = [(run.folder / "run.log").read_text() for run in runs]
    for run, log in zip(runs, logs, strict=True):
        assert f"done: {run.id}" in log
        assert log.count("done: ") == 1


def test_a_failed_run_fails_alone(runs, monkeypatch):
    def edit(self, batch):
        raise ValueError("a bug of mine")

    monkeypatch.setattr(FinetuneEditor, "edit", edit)
    do(runs)
    assert [read_json(run.folder / "run.json")["status"] for run in runs] == [
        *("complete", "failed", "complete", "complete")
    ]


def test_an_editor_that_cannot_be_made_keeps_no_other_from_being_done(runs, monkeypatch):
    def wrong(self, *_args):
        raise TypeError("a bug of mine")

    monkeypatch.setattr(FinetuneEditor, "__init__", wrong)
    with pytest.raises(EditorError, match=r"'ft' cannot be created \(TypeError: a bug of mine\)"):
        do(runs)
    assert [(run.folder / "run.json").exists() for run in runs] == [True, False, True, True]


def test_a_mistake_in_one_run_is_told_when_the_others_are_done(runs):
    wrong = runs[1].spec.model_copy(
        update={"model": runs[1].spec.model.model_copy(update={"layer": "no.such.layer"})}
    )
    some = [runs[0], Run(wrong, runs[0].results), runs[2]]
    with pytest.raises(ModelError, match=r"no\.such\.layer"):
        do(some)
    assert [(run.folder / "run.json").exists() for run in some] == [True, False, True]
    assert "error: " in (some[1].folder / "run.log").read_text()


def test_what_is_done_is_not_done_again(runs):
    assert do(runs[:3])["done_now"] == [run.id for run in runs[:3]]
    before = {run.id: (run.folder / "run.json").read_bytes() for run in runs[:3]}
    for run in runs[:3]:  # as Snakemake does before it makes a bundle again
        for name in ("run.json", "steps.parquet", "probes.parquet", "predictions.parquet"):
            (run.folder / name).unlink()
    assert do(runs)["done_now"] == [runs[3].id]
    assert {run.id: (run.folder / "run.json").read_bytes() for run in runs[:3]} == before


def test_a_run_done_by_a_job_of_its_own_is_taken_over(runs):
    pipeline.edit(runs[0])
    before = (runs[0].folder / "run.json").read_bytes()
    assert do(runs[:2])["done_now"] == [runs[1].id]
    assert (runs[0].folder / "run.json").read_bytes() == before
    assert (runs[0].folder / KEPT / "codebook.safetensors").exists()


@pytest.mark.parametrize("change", ["other inputs", "damage", "no record"])
def test_what_is_not_as_it_was_is_done_again(runs, change):
    do(runs[:1])
    kept = runs[0].folder / KEPT
    (runs[0].folder / "run.json").unlink()
    if change == "other inputs":
        manifest = runs[0].dataset_folder / "manifest.json"
        record = manifest.read_text().replace(read_json(manifest)["data_hash"], "0" * 64)
        manifest.write_text(record)
        (runs[0].baseline_folder / "baseline.json").write_text(
            (runs[0].baseline_folder / "baseline.json")
            .read_text()
            .replace(read_json(kept / "run.json")["data_hash"], "0" * 64)
        )
    elif change == "damage":
        content = (kept / "codebook.safetensors").read_bytes()
        (kept / "codebook.safetensors").unlink()
        (kept / "codebook.safetensors").write_bytes(content[:-1] + b"x")
    else:
        (kept / "run.json").unlink()
    assert do(runs[:1])["done_now"] == [runs[0].id]


def test_an_interrupted_bundle_keeps_the_finished_and_goes_on_in_the_middle(
    runs, monkeypatch, caplog
):
    caplog.set_level("INFO", logger="grace_bench")
    plain = FinetuneEditor.edit

    def edit(self, batch):
        if batch.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(FinetuneEditor, "edit", edit)
        with pytest.raises(Interrupted):
            do(runs)
    assert do(runs)["done_now"] == [run.id for run in runs[1:]]
    assert read_json(runs[1].folder / "run.json")["restarts"] == [3]
    log = (runs[1].folder / "run.log").read_text()
    assert log.index("step 3/6") < log.index("resuming from the checkpoint of step 3")


def test_runs_are_bundled_by_base_model():
    other = spec("ft").model_copy(
        update={"model": spec().model.model_copy(update={"name": "other"})}
    )
    some = [Run(one) for one in (*SPECS, other)]
    found = bundles(some, 3)
    assert {name: len(members) for name, members in found.items()} == {
        "tiny-qa/seed-0/000": 3,
        "tiny-qa/seed-0/001": 1,
        "other-qa/seed-0/000": 1,
    }
