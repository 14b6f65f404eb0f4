"""The paper's toy (Fig. 2): one key repairs the disc, and finetuning breaks the plane."""

from __future__ import annotations

import itertools

import pytest
import torch

from grace_bench.reporting.figures.paper.toy import draw_toy, write_toy
from grace_bench.reporting.figures.style import PAGE, new_figure
from grace_bench.steps.toy import edit_toy, make_toy, predict


@pytest.fixture(scope="module", params=[0, 1, 2])
def toy(request):
    return make_toy(request.param)


def test_the_network_knows_the_upstream_points_and_is_wrong_on_the_disc(toy):
    assert torch.equal(predict(toy.network, toy.upstream), toy.classes)
    assert (predict(toy.network, toy.edits) == 0).all()


def test_grace_repairs_the_disc_with_one_key_and_leaves_the_rest(toy):
    outcome = edit_toy(toy, "grace")
    assert outcome.n_keys == 1
    assert outcome.disc_accuracy == 1.0
    assert outcome.upstream_accuracy > 0.95
    assert outcome.changed_elsewhere < 0.01


def test_finetuning_repairs_the_disc_and_breaks_the_rest(toy):
    grace, finetuned = edit_toy(toy, "grace"), edit_toy(toy, "ft")
    assert finetuned.disc_accuracy > 0.9
    assert finetuned.upstream_accuracy < grace.upstream_accuracy
    assert finetuned.changed_elsewhere > 0.2


def test_titles_of_the_picture_keep_out_of_each_others_way(toy):
    outcomes = {"GRACE": edit_toy(toy, "grace"), "FT": edit_toy(toy, "ft")}
    with new_figure(PAGE, 1.9) as figure:
        draw_toy(figure, toy, outcomes)
        figure.canvas.draw()
        titles = [axes.title for axes in figure.axes]
        boxes = [title.get_window_extent() for title in titles]
    assert not any("\\" in title.get_text() for title in titles)
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    assert boxes[-1].x1 <= figure.bbox.x1


def test_the_picture_is_drawn(tmp_path):
    paths = write_toy(tmp_path)
    assert {path.name for path in paths} == {"toy.pdf", "toy.png", "toy.csv"}
    assert all(path.stat().st_size > 5000 for path in paths)
