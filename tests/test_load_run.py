"""Runs of a suite, loaded as they were after any step."""

from __future__ import annotations

import shutil

import pytest
import torch
from small_runs import SHORT_MEND, WIDE, spec

from grace_bench.errors import DataError, EditorError
from grace_bench.library import EditedModel, load_run
from grace_bench.run.stream import StreamRun
from grace_bench.steps.edit import RunFolders, run_stream
from grace_bench.steps.precompute import make_assets
from grace_bench.store.json_records import read_record, write_record
from grace_bench.store.records import RUN, RunRecord
from grace_bench.suite.plan import Run, with_asset_settings

SETTINGS = {
    "grace": {**WIDE, "radius": 2.0},
    "ft": {"steps": 2},
    "ft_retrain": {"steps": 2, "retrain_every": 2},
    "memory": {"steps": 2},
    "mend": SHORT_MEND,
}


@pytest.fixture
def results(small_inputs, tmp_path):
    """Return a function that does a run in a results folder: the folder, and every step's state."""
    root = tmp_path / "results"
    data, model, baseline = small_inputs
    some = Run(spec(), root)
    for source, target in (
        (data, some.dataset_folder),
        (model, some.model_folder),
        (baseline, some.baseline_folder),
    ):
        shutil.copytree(source, target)

    def do(editor: str, monkeypatch, settings=None, **changes):
        run = Run(spec(editor, hyperparameters=settings or SETTINGS[editor], **changes), root)
        states, plain = [], StreamRun.step

        def step(self, *arguments):
            if not states:
                states.append(copy_of(self.editor.state_dict()))
            made = plain(self, *arguments)
            states.append(copy_of(self.editor.state_dict()))
            return made

        monkeypatch.setattr(StreamRun, "step", step)
        if run.assets_folder is not None:
            of_assets = with_asset_settings(run.spec)
            make_assets(of_assets, run.dataset_folder, run.model_folder, run.assets_folder)
        run_stream(run.spec, RunFolders.of(run))
        monkeypatch.setattr(StreamRun, "step", plain)
        return run.folder, states

    return do


def copy_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def same(state: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return state.keys() == other.keys() and all(
        torch.equal(tensor, other[name]) for name, tensor in state.items()
    )


@pytest.mark.parametrize("editor", SETTINGS)
def test_a_run_is_loaded_as_it_was_after_any_step(editor, results, monkeypatch):
    folder, states = results(editor, monkeypatch)
    assert len(states) == 7
    for step in (0, 1, 3, 5, 6):
        edited = load_run(folder, step)
        assert same(edited.editor.state_dict(), states[step]), step
        assert [receipt.number for receipt in edited.receipts] == list(range(1, step + 1))
    assert same(load_run(folder).editor.state_dict(), states[-1])
    assert not same(states[2], states[3])
    first = load_run(folder, 1).receipts[0]
    assert first.prompt.startswith(("Capital of", "Name the new capital of"))
    assert first.example_id.startswith("edits/")


def test_a_codebook_is_loaded_without_making_an_edit(results, monkeypatch):
    folder, _ = results("grace", monkeypatch)

    def refuse(*_):
        raise AssertionError("an edit was made")

    monkeypatch.setattr("grace_bench.editors.methods.grace.editor.GraceEditor.edit", refuse)
    edited = load_run(folder, 4)
    assert len(edited.receipts) == 4
    assert edited.explain(edited.receipts[3].prompt).answers


def test_an_edit_of_a_run_is_undone_and_the_values_of_the_others_stay(results, monkeypatch):
    at_once = {"device": "cpu", "edits_at_once": 6}  # their last bits differ from single edits'
    folder, _ = results("grace", monkeypatch, {"steps": 2, "radius": 0.01}, compute=at_once)
    undone, never = load_run(folder, 5), load_run(folder, 1)
    values = {info.made_at_step: value for info, value in keys_of(load_run(folder, 5))}

    def refuse(*_):
        raise AssertionError("a value was trained again")

    monkeypatch.setattr("grace_bench.editors.methods.grace.editor.train_on_edit", refuse)
    undone.undo(undone.receipts[1])
    assert [receipt.number for receipt in undone.receipts] == [1, 3, 4, 5]
    assert all(torch.equal(value, values[info.made_at_step]) for info, value in keys_of(undone))
    for receipt in reversed(undone.receipts[1:]):
        undone.undo(receipt)
    assert same(undone.editor.state_dict(), never.editor.state_dict())


def keys_of(edited: EditedModel):
    return zip(edited.codebook.info, edited.codebook.values, strict=True)


def test_a_loaded_run_is_edited_saved_and_loaded_on(results, monkeypatch, tmp_path):
    folder, _ = results("grace", monkeypatch)
    edited = load_run(folder, 4)
    edited.edit("Who wrote Emma?", "Rome")
    edited.save_pretrained(tmp_path / "saved")
    loaded = EditedModel.from_pretrained(tmp_path / "saved")  # finds the run's base model
    assert same(loaded.editor.state_dict(), edited.editor.state_dict())
    assert loaded.receipts == edited.receipts
    assert (loaded.receipts[-1].number, loaded.next_number) == (5, 6)


def test_a_run_without_a_journal_is_edited_again(results, monkeypatch):
    folder, states = results("grace", monkeypatch, compute={"device": "cpu", "edits_at_once": 1})
    record = read_record(folder / RUN, RunRecord)
    files = {name: of for name, of in record.files.items() if name != "journal.parquet"}
    write_record(folder / RUN, record.model_copy(update={"files": files}))
    assert same(load_run(folder, 3).editor.state_dict(), states[3])


def test_mistakes_are_one_sentence(results, monkeypatch, tmp_path):
    folder, _ = results("grace", monkeypatch)
    for step in (-1, 7):
        with pytest.raises(DataError, match=f"has no step {step}; its steps are 1 to 6"):
            load_run(folder, step)
    with pytest.raises(DataError, match=r"run\.json: no such file"):
        load_run(tmp_path)
    shutil.copytree(folder, tmp_path / "elsewhere")
    with pytest.raises(DataError, match="elsewhere: lies outside its results folder"):
        load_run(tmp_path / "elsewhere")
    folder, _ = results("mend", monkeypatch)
    record = read_record(folder / RUN, RunRecord)
    other = record.assets.model_copy(update={"files": {"mend.safetensors": "0"}})
    write_record(folder / RUN, record.model_copy(update={"assets": other}))
    with pytest.raises(DataError, match="its data set, base model or assets were made again"):
        load_run(folder)


def test_an_edit_that_came_later_and_a_damaged_journal_are_refused(results, monkeypatch):
    folder, _ = results("grace", monkeypatch)
    edited = load_run(folder, 2)
    receipt = load_run(folder, 3).receipts[2]
    with pytest.raises(EditorError, match=r"edit 3 .* is not one of this model's"):
        edited.undo(receipt)
    journal = folder / "journal.parquet"
    journal.write_bytes(journal.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"journal\.parquet"):
        load_run(folder, 2)
