"""Geometry of the codebook by hand-worked numbers, and its file."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_bench.codebook.codebook import Codebook
from grace_bench.codebook.file import (
    codebook_from_state,
    codebook_state,
    load_codebook,
    save_codebook,
)
from grace_bench.codebook.keys import KeyInfo, Label
from grace_bench.errors import DataError, EditorError
from grace_bench.store.files import read_parquet, write_parquet
from grace_bench.store.schemas import CODEBOOK

PARIS, ROME = Label((7, 1), 4.0, "Paris"), Label((9, 1), 5.0, "Rome")


def info(label=PARIS, *examples, step=1):
    return KeyInfo(label, examples, step, step)


def plane(*points, radius=1.0):
    """A codebook in the plane; values are the points' numbers."""
    codebook = Codebook(2, 3)
    for index, point in enumerate(points):
        codebook.add(torch.tensor(point), torch.full((3,), float(index)), radius, info(PARIS, "a"))
    return codebook


def test_nearest_gives_euclidean_distance_and_the_oldest_of_equals():
    codebook = plane((0.0, 0.0), (6.0, 8.0), (0.0, 0.0))
    distances, keys = codebook.nearest(torch.tensor([[3.0, 4.0], [0.0, 0.0], [6.0, 7.0]]))
    assert distances.tolist() == [5.0, 0.0, 1.0]
    assert keys.tolist() == [0, 0, 1]


@pytest.mark.parametrize(("boundary", "inside"), [("open", False), ("closed", True)])
def test_only_a_closed_boundary_belongs_to_the_key(boundary, inside):
    codebook = plane((0.0, 0.0))
    distances, keys = codebook.nearest(torch.tensor([[0.0, 1.0], [0.0, 0.5], [0.0, 1.5]]))
    assert codebook.inside(distances, keys, boundary).tolist() == [inside, True, False]


@pytest.mark.parametrize(
    ("rule", "key", "radius"),
    [
        ("add_radius", [0.0, 0.0], 2.0),
        ("to_distance", [0.0, 0.0], 1.5),
        ("moving_average", [0.75, 0.0], 1.5),
        ("none", [0.0, 0.0], 1.0),
    ],
)
def test_expand(rule, key, radius):
    codebook = plane((0.0, 0.0), (9.0, 9.0))
    codebook.expand(0, torch.tensor([1.5, 0.0]), 1.5, 1.0, rule)
    assert codebook.keys[0].tolist() == key
    assert codebook.radii.tolist() == [radius, 1.0]
    assert codebook.values[0].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("rule", "old", "distance", "radii"),
    [
        ("half", 1.0, 1.0, (0.5, 0.5)),
        # G7: a radius of .25 grows to .6 by the paper's rule.
        ("half", 0.25, 1.25, (0.625, 0.625)),
        ("shrink", 0.25, 1.25, (0.25, 0.625)),
        ("shrink", 4.0, 4.5, (2.25, 1.0)),
    ],
)
def test_split(rule, old, distance, radii):
    codebook = plane((0.0, 0.0), radius=old)
    new = codebook.split(0, distance, 1.0, rule)
    assert (codebook.radii[0].item(), new.item()) == radii


def test_the_split_margin_comes_off_the_old_key():
    codebook = plane((0.0, 0.0))
    assert codebook.split(0, 1.0, 1.0, "half", margin=1e-5).item() == 0.5
    assert codebook.radii[0].item() == pytest.approx(0.49999)


def test_the_matrix_product_loses_the_distance_zero_above_25_keys():
    torch.manual_seed(0)
    points = torch.randn(26, 1024) * 5
    codebook = Codebook(1024, 1)
    for point in points[:25]:
        codebook.add(point, torch.zeros(1), 1.0, info())
    assert codebook.nearest(points[:1], "matrix_product")[0].item() == 0
    codebook.add(points[25], torch.zeros(1), 1.0, info())
    assert codebook.nearest(points, "exact")[0].max().item() == 0
    assert codebook.nearest(points, "matrix_product")[0].max().item() > 1e-3


def test_overwrite_keeps_place_radius_and_age():
    codebook = plane((0.0, 0.0))
    codebook.overwrite(0, torch.ones(3), info(ROME, "b", step=5))
    assert codebook.values.tolist() == [[1.0, 1.0, 1.0]]
    assert codebook.radii.tolist() == [1.0]
    (row,) = codebook.rows()
    assert row["label"] == "Rome"
    assert row["example_ids"] == ["b"]
    assert (row["made_at_step"], row["changed_at_step"]) == (1, 5)


def test_remove_rolls_one_key_back():
    codebook = plane((0.0, 0.0), (5.0, 0.0), (9.0, 0.0))
    codebook.remove(1)
    assert codebook.keys.tolist() == [[0.0, 0.0], [9.0, 0.0]]
    assert codebook.values[:, 0].tolist() == [0.0, 2.0]
    assert len(codebook.rows()) == 2
    with pytest.raises(EditorError, match="no key 2; the codebook has 2"):
        codebook.remove(2)


def test_labels_match_by_ids_or_by_means():
    one = Label.of(torch.tensor([[-100, 10, 11, 1]]))
    assert one.ids == (10, 11, 1)
    other = Label.of(torch.tensor([[-100, 11, 10, 1]]))
    longer_prompt = Label.of(torch.tensor([[-100, -100, 10, 11, 1]]))
    assert not one.same_as(other, "exact")
    assert one.same_as(other, "mean")
    assert one.same_as(longer_prompt, "exact")
    assert not one.same_as(longer_prompt, "mean")
    assert Label.of(torch.tensor([3])).ids == (3,)


def test_rows_fit_the_record(tmp_path):
    codebook = plane((0.0, 0.0), (5.0, 0.0))
    codebook.note(0, ["b", "a"], step=4, changed=True)
    write_parquet(tmp_path / "codebook.parquet", codebook.rows(), CODEBOOK)
    table = read_parquet(tmp_path / "codebook.parquet", CODEBOOK)
    assert table["example_ids"].to_pylist() == [["a", "b"], ["a"]]
    assert table["changed_at_step"].to_pylist() == [4, 1]


def test_each_version_of_a_value_has_a_stamp_of_its_own():
    codebook = plane((0.0, 0.0), (5.0, 0.0), (9.0, 0.0))
    assert codebook.value_versions.tolist() == [1, 2, 3]
    codebook.set_value(1, torch.ones(3))
    codebook.overwrite(0, torch.ones(3), info())
    codebook.expand(2, torch.tensor([9.0, 1.0]), 1.0, 1.0, "moving_average")
    codebook.split(2, 1.0, 1.0, "half")
    codebook.note(2, ["b"], step=3, changed=True)
    assert codebook.value_versions.tolist() == [5, 4, 3]
    codebook.remove(1)
    codebook.add(torch.zeros(2), torch.zeros(3), 1.0, info())
    assert codebook.value_versions.tolist() == [5, 3, 6]
    assert codebook_from_state(codebook_state(codebook)).value_versions.tolist() == [1, 2, 3]


def test_only_what_moves_an_old_key_counts_as_a_move():
    codebook = plane((0.0, 0.0), (5.0, 0.0))
    codebook.add(torch.ones(2), torch.zeros(3), 1.0, info())
    codebook.expand(0, torch.ones(2), 1.4, 1.0, "to_distance")
    codebook.split(0, 1.0, 1.0, "half")
    codebook.set_value(0, torch.ones(3))
    codebook.overwrite(0, torch.ones(3), info())
    assert codebook.moves == 0
    codebook.expand(0, torch.ones(2), 1.4, 1.0, "moving_average")
    assert codebook.moves == 1
    codebook.remove(2)
    assert codebook.moves == 2


@pytest.mark.timeout(20)
def test_many_examples_may_stand_behind_one_key():
    codebook, names = plane((0.0, 0.0)), [f"e{i}" for i in range(40_000)]
    for name in names:
        codebook.note(0, ["a", name], step=2, changed=False)
    assert codebook.rows()[0]["example_ids"] == ["a", *names]
    assert codebook.rows()[0]["n_examples"] == 40_001


def test_a_codebook_has_infos_of_its_own():
    shared = KeyInfo(PARIS, ("a",), 1, 1)
    first, second = (
        Codebook.of(torch.zeros(2, 2), torch.zeros(2, 2), torch.ones(2), [shared, shared])
        for _ in range(2)
    )
    first.note(0, ["b"], step=5, changed=True)
    assert [row["example_ids"] for row in first.rows()] == [["a", "b"], ["a"]]
    assert [row["example_ids"] for row in second.rows()] == [["a"], ["a"]]
    assert shared == KeyInfo(PARIS, ("a",), 1, 1)


points = st.lists(
    st.tuples(*[st.integers(-100, 100).map(float)] * 2), min_size=1, max_size=40, unique=True
)


@settings(max_examples=15, deadline=None)
@given(points)
def test_every_key_is_its_own_nearest_and_survives_a_round_trip(keys):
    codebook = plane(*keys)
    distances, nearest = codebook.nearest(codebook.keys)
    assert distances.tolist() == [0.0] * len(keys)
    copy = codebook_from_state(codebook_state(codebook))
    assert torch.equal(copy.keys, codebook.keys)
    assert copy.info == codebook.info
    assert nearest.tolist() == list(range(len(keys)))


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 10), st.floats(0.01, 10), st.floats(1e-9, 1))
def test_shrinking_never_enlarges_and_the_balls_do_not_overlap(old, radius, share):
    distance = share * (old + radius)
    codebook = plane((0.0, 0.0), radius=old)
    new = codebook.split(0, distance, radius, "shrink").item()
    assert codebook.radii[0].item() <= old * (1 + 1e-6)
    assert new <= radius * (1 + 1e-6)
    assert codebook.radii[0].item() + new <= distance * (1 + 1e-6)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "codebook.safetensors"
    codebook = plane((0.0, 1.0), (5.0, 0.0))
    save_codebook(path, codebook, layer="h.2.fc", model="gpt2@abc", settings={"radius": 1.0})
    return path


def test_a_saved_codebook_comes_back(saved):
    codebook = load_codebook(saved, layer="h.2.fc", model="gpt2@abc")
    assert codebook.keys.tolist() == [[0.0, 1.0], [5.0, 0.0]]
    assert codebook.info[0] == info(PARIS, "a")
    codebook.add(torch.zeros(2), torch.zeros(3), 1.0, info())
    assert len(codebook) == 3


def test_the_same_codebook_gives_the_same_bytes(saved, tmp_path):
    again = tmp_path / "again.safetensors"
    save_codebook(
        again, load_codebook(saved), layer="h.2.fc", model="gpt2@abc", settings={"radius": 1.0}
    )
    assert again.read_bytes() == saved.read_bytes()


def test_a_codebook_of_another_layer_or_model_is_refused(saved):
    with pytest.raises(EditorError, match=r"made for layer 'h\.2\.fc', not for 'h\.3\.fc'"):
        load_codebook(saved, layer="h.3.fc")
    with pytest.raises(EditorError, match="made for model 'gpt2@abc', not for 't5'"):
        load_codebook(saved, model="t5")


def test_an_empty_codebook_can_be_saved(tmp_path):
    save_codebook(tmp_path / "c", Codebook(4, 5), layer="x", model="y")
    codebook = load_codebook(tmp_path / "c")
    assert (len(codebook), codebook.d_in, codebook.d_out) == (0, 4, 5)


def good_header(**changes):
    key = {
        "label": "Paris", "label_ids": [1], "label_mean": 1.0, "example_ids": ["a"],
        "made_at_step": 1, "changed_at_step": 1,
    }  # fmt: skip
    header = {"format": 1, "layer": "x", "model": "y", "settings": {}, "keys": [key]}
    return json.dumps({**header, **changes})


@pytest.mark.parametrize(
    ("header", "tensors"),
    [
        (good_header(format=99), {}),
        (good_header(keys=[]), {}),
        (good_header(keys=[{}]), {}),
        (good_header(keys=7), {}),
        (good_header(layer=None), {}),
        (good_header(settings=[]), {}),
        ("[" * 100_000, {}),
        ("not json", {}),
        (good_header(), {"keys": torch.zeros(2)}),
        (good_header(), {"radii": torch.zeros(3)}),
        (good_header(), {"radii": torch.tensor([float("nan")])}),
        (good_header(), {"values": torch.zeros(1, 3, dtype=torch.int64)}),
        (good_header(), {"more": torch.zeros(1)}),
    ],
)
def test_a_hostile_file_is_one_sentence(tmp_path, header, tensors):
    path = tmp_path / "c.safetensors"
    good = {"keys": torch.zeros(1, 2), "values": torch.zeros(1, 3), "radii": torch.ones(1)}
    metadata = {"grace_bench.codebook": header}
    path.write_bytes(safetensors.torch.save({**good, **tensors}, metadata))
    with pytest.raises(DataError, match="not a complete codebook") as error:
        load_codebook(path)
    assert str(path) in str(error.value)


def test_missing_truncated_and_foreign_files_are_one_sentence(saved, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_codebook(tmp_path / "nowhere")
    content = saved.read_bytes()
    for damaged in (content[:-5], content[:20], b"", b"\xff" * 64):
        saved.write_bytes(damaged)
        with pytest.raises(DataError, match="not a complete codebook"):
            load_codebook(saved)
    saved.write_bytes(safetensors.torch.save({"w": torch.zeros(1)}))
    with pytest.raises(DataError, match="no codebook header"):
        load_codebook(saved)


def test_a_state_that_is_none_is_refused():
    with pytest.raises(EditorError, match="not a codebook's state"):
        codebook_from_state({"weight": torch.zeros(1)})
