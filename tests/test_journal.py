"""Going back in a codebook, and merging two: by random edits, byte for byte."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_bench.codebook.codebook import Codebook
from grace_bench.codebook.file import export_codebook, import_codebook, save_codebook
from grace_bench.codebook.journal import rewind, trained_values
from grace_bench.codebook.keys import KeyInfo, Label
from grace_bench.codebook.merge import find_conflicts, merge
from grace_bench.errors import DataError, EditorError
from grace_bench.store.files import read_parquet, write_parquet
from grace_bench.store.schemas import CODEBOOK_EXPORT, JOURNAL

NAMES = ("Paris", "Rome", "Oslo")
RULES = ("add_radius", "to_distance", "moving_average")
RADIUS = 1.0
EDIT = ("add_radius", False)
CHANGE = {"step": 1, "key": 0, "radius": 1.0, "changed_at_step": 1, "n_examples": 1}

points = st.tuples(st.integers(-6, 6), st.integers(-6, 6))
edits = st.lists(
    st.tuples(points, st.sampled_from(NAMES), st.sampled_from(RULES), st.booleans()), max_size=12
)


def edit(codebook: Codebook, step: int, point, name: str, rule: str, retrain: bool) -> list[dict]:
    """Change a codebook as Algorithm 1 does, with all rules of the released code."""
    query = torch.tensor(point, dtype=torch.float32) / 2
    label = Label((NAMES.index(name), 1), 0.5, name)
    info = KeyInfo(label, (f"e{step}",), step, step)
    value = torch.full((3,), step + 0.1)
    distance, nearest = (found[0] for found in codebook.nearest(query[None]))
    key = int(nearest)
    with codebook.recording(step) as changes:
        if key < 0 or distance > RADIUS + codebook.radii[key]:
            codebook.add(query, value, RADIUS, info)
        elif codebook.info[key].label.same_as(label, "exact"):
            if not distance < codebook.radii[key]:
                codebook.expand(key, query, distance, RADIUS, rule)
            codebook.note(key, info.example_ids, step, changed=True)
            if retrain:
                codebook.set_value(key, value)
        elif distance == 0:
            codebook.overwrite(key, value, info)
        else:
            codebook.add(query, value, codebook.split(key, distance, RADIUS, "half"), info)
            codebook.note(key, (), step, changed=True)
    return changes


def content(codebook: Codebook, folder) -> bytes:
    save_codebook(folder / "c.safetensors", codebook, layer="l", model="m")
    return (folder / "c.safetensors").read_bytes()


def after(stream, first: int = 1) -> tuple[Codebook, list[dict]]:
    codebook, journal = Codebook(2, 3), []
    for step, one in enumerate(stream, first):
        journal += edit(codebook, step, *one)
    return codebook, journal


@settings(max_examples=60, deadline=None)
@given(edits, st.integers(0, 12))
def test_a_codebook_goes_back_to_any_step(tmp_path_factory, stream, step):
    folder = tmp_path_factory.mktemp("codebook")
    codebook, journal = after(stream)
    write_parquet(folder / "journal.parquet", journal, JOURNAL)
    rewind(codebook, read_parquet(folder / "journal.parquet", JOURNAL).to_pylist(), step)
    then, rest = after(stream[:step])
    assert content(codebook, folder) == content(then, folder)
    for number, one in enumerate(stream[step:], step + 1):  # and goes on from there
        edit(codebook, number, *one)
    assert content(codebook, folder) == content(after(stream)[0], folder)
    assert rest == [row for row in journal if row["step"] <= step]


@settings(max_examples=60, deadline=None)
@given(edits)
def test_the_value_of_each_new_key_or_label_is_found_again(stream):
    codebook, journal = after(stream)
    found = trained_values(codebook, journal)
    for step, value in found.items():
        assert value.tolist() == torch.full((3,), step + 0.1).tolist()
    new = {row["step"] for row in journal if "radius" not in row or "label" in row}
    assert found.keys() == new


@settings(max_examples=40, deadline=None)
@given(edits, edits)
def test_merging_what_lies_far_apart_is_one_stream(tmp_path_factory, first, second):
    folder = tmp_path_factory.mktemp("codebook")
    second = [((x + 100, y), *rest) for (x, y), *rest in second]
    older, newer = after(first)[0], after(second, len(first) + 1)[0]
    assert find_conflicts(older, newer) == []
    both = content(after([*first, *second])[0], folder)
    assert content(merge(older, newer), folder) == both


def part(codebook: Codebook, start: int, stop: int) -> Codebook:
    where = slice(start, stop)
    tensors = codebook.keys[where], codebook.values[where], codebook.radii[where]
    return Codebook.of(*tensors, codebook.info[where])


@settings(max_examples=60, deadline=None)
@given(edits, edits)
def test_a_merged_codebook_has_no_conflicts_left(first, second):
    older, newer = after(first)[0], after(second)[0]
    if find_conflicts(older, newer):
        with pytest.raises(EditorError, match="different answers where keys meet: key "):
            merge(older, newer)
    merged = merge(older, newer, "newer")
    kept = sum(info.made_at_step <= len(first) for info in merged.info)  # of the older codebook
    assert find_conflicts(part(merged, 0, kept), part(merged, kept, len(merged))) == []
    for info, vector in zip(newer.info, newer.keys, strict=True):
        _, at = merged.nearest(vector[None])
        if sum(torch.equal(vector, other) for other in newer.keys) == 1:
            assert merged.info[int(at)].label == info.label


def test_a_key_that_both_have_is_kept_once_with_the_larger_radius():
    older, _ = after([((0, 0), "Paris", *EDIT)])
    newer, _ = after([((0, 0), "Paris", *EDIT), ((3, 0), "Paris", *EDIT)])
    merged = merge(older, newer)
    assert merged.radii.tolist() == [2.0]
    assert list(merged.info[0].example_ids) == ["e1", "e2"]
    assert older.radii.tolist() == [1.0]


def test_a_newer_key_splits_and_replaces_older_ones():
    older, _ = after([((0, 0), "Paris", *EDIT), ((6, 0), "Rome", *EDIT), ((20, 0), "Oslo", *EDIT)])
    newer, _ = after([((3, 0), "Oslo", *EDIT), ((6, 0), "Paris", *EDIT), ((21, 0), "Oslo", *EDIT)])
    found = find_conflicts(older, newer)
    assert [(one.older, one.newer, one.distance) for one in found] == [
        (0, 0, 1.5),
        (1, 0, 1.5),
        (1, 1, 0.0),
    ]
    assert [label.text for label in found[0].answers] == ["Paris", "Oslo"]
    merged = merge(older, newer, "newer")
    assert merged.keys[:, 0].tolist() == [0.0, 10.0, 1.5, 3.0, 10.5]  # (3, 0) has a new answer
    assert [info.label.text for info in merged.info] == ["Paris", "Oslo", "Oslo", "Paris", "Oslo"]
    assert merged.radii.tolist() == [0.75, 1.0, 0.75, 0.75, 1.0]
    assert [info.made_at_step for info in merged.info] == [1, 3, 4, 5, 6]


def test_codebooks_of_layers_of_other_sizes_are_not_merged():
    with pytest.raises(EditorError, match="layers of 2 -> 3 and of 2 -> 4; merge two of the same"):
        merge(Codebook(2, 3), Codebook(2, 4))


def test_a_journal_of_another_codebook_is_refused():
    codebook, journal = after([((0, 0), "Paris", *EDIT), ((9, 0), "Rome", *EDIT)])
    for bad in (
        [*journal, {"step": 3, "key": 5}],
        [*journal, {"step": 3, "key": 0}],
        [{**CHANGE, "value": [1.0]}],
    ):
        with pytest.raises(ValueError, match=r"changes key|has values of 1 numbers"):
            rewind(after([((0, 0), "Paris", *EDIT), ((9, 0), "Rome", *EDIT)])[0], bad, 0)
    rewind(codebook, journal, 0)
    assert len(codebook) == 0


@settings(max_examples=20, deadline=None)
@given(edits)
def test_an_exported_codebook_is_imported_as_it_was(tmp_path_factory, stream):
    folder = tmp_path_factory.mktemp("codebook")
    codebook, _ = after(stream)
    export_codebook(folder / "c.parquet", codebook)
    if len(codebook):
        assert content(import_codebook(folder / "c.parquet"), folder) == content(codebook, folder)


def test_what_cannot_be_imported_is_one_sentence(tmp_path):
    path = tmp_path / "c.parquet"
    export_codebook(path, Codebook(2, 3))
    with pytest.raises(DataError, match=r"c\.parquet: has no keys"):
        import_codebook(path)
    export_codebook(path, after([((0, 0), "Paris", *EDIT)])[0])
    rows = [dict(read_parquet(path, CODEBOOK_EXPORT).to_pylist()[0]) for _ in range(2)]
    rows[1]["vector"] = [1.0]
    write_parquet(path, rows, CODEBOOK_EXPORT)
    with pytest.raises(DataError, match=r"c\.parquet: not a complete codebook"):
        import_codebook(path)
    with pytest.raises(DataError, match=r"no such file"):
        import_codebook(tmp_path / "none.parquet")
