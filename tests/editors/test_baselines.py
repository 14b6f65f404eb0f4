"""Switches of the baselines, each by what a user would notice."""

from __future__ import annotations

import pytest
import torch

from grace_bench.editors import create_editor
from grace_bench.editors.base import EditBatch
from grace_bench.errors import EditorError

FIRST, SECOND, THIRD = ([5, 6, 7, 8], [20, 21, 1]), ([9, 10, 11], [22, 1]), ([15, 16], [24, 1])


def make(case, name, **settings):
    return create_editor(name, case.model, case.layer, {"steps": 3, **settings})


def edit(case, editor, example):
    return editor.edit(EditBatch(case.inputs(*example)))


def weight_after(make_case, name, examples, **settings):
    case = make_case("t5")
    editor = make(case, name, **settings)
    for example in examples:
        edit(case, editor, example)
    return editor.state_dict()["weight"]


def test_the_unshifted_stop_test_of_a_causal_model_misses_that_the_edit_is_done(make_case):
    steps = {}
    for shift in (True, False):
        case = make_case("gpt2")
        editor = make(case, "ft", steps=40, learning_rate=0.1, shift_labels=shift)
        steps[shift] = len(edit(case, editor, FIRST).losses)
    assert steps[True] < steps[False] == 40


def test_finetuning_without_early_stop_takes_all_steps(t5):
    editor = make(t5, "ft", steps=30, learning_rate=0.1, early_stop="none")
    assert len(edit(t5, editor, FIRST).losses) == 30


def test_a_finetuning_state_of_another_layer_is_refused(t5, gpt2):
    with pytest.raises(EditorError, match=r"is not for layer 'encoder\.block\.1"):
        make(t5, "ft").load_state_dict(make(gpt2, "ft").state_dict())


def test_ewc_holds_the_weight_back(make_case):
    def change(strength):
        start = make_case("t5").model.get_submodule("encoder.block.1.layer.1.DenseReluDense.wo")
        after = weight_after(make_case, "ft_ewc", [FIRST, SECOND], ewc_lambda=strength)
        return (after - start.weight).norm()

    assert change(1e6) < change(0.0)


@pytest.mark.parametrize(
    "switch",
    [
        {"include_current": True},
        {"anchor": "shrunken"},
        {"zero_gradients": False},
        {"divide_by": "memory"},
        {"memory": 1},
    ],
)
def test_every_ewc_switch_changes_the_third_edit(make_case, switch):
    examples, base = [FIRST, SECOND, THIRD], {"ewc_lambda": 100.0, "early_stop": "none"}
    one = weight_after(make_case, "ft_ewc", examples, **base)
    other = weight_after(make_case, "ft_ewc", examples, **base, **switch)
    assert not torch.equal(one, other)


def test_ewc_computes_what_the_weight_cannot_change_once_for_each_past_edit(make_case):
    def third_edit(engine):
        case = make_case("t5")
        settings = {"steps": 3, "early_stop": "none"}
        editor = create_editor("ft_ewc", case.model, case.layer, settings, engine=engine)
        edit(case, editor, FIRST)
        edit(case, editor, SECOND)
        edit(case, editor, THIRD)
        ran = []
        before = case.model.get_submodule("encoder.block.0.layer.0.SelfAttention.q")
        before.register_forward_hook(lambda *_: ran.append(1))
        edit(case, editor, FIRST)
        return len(ran), editor.state_dict()["weight"]

    whole, expected = third_edit("direct")
    kept, weight = third_edit("lean")
    assert whole == 6  # three past edits, three gradient steps
    assert kept == 2  # the edit before this one, and this one
    assert torch.equal(weight, expected)


def test_without_past_edits_ewc_is_finetuning(make_case):
    ewc = weight_after(make_case, "ft_ewc", [FIRST])
    assert torch.equal(ewc, weight_after(make_case, "ft", [FIRST]))


@pytest.mark.parametrize(
    "switch",
    [{"include_current": True}, {"memory": 1}, {"epochs": 1}, {"retrain_from": "original"}],
)
def test_every_retrain_switch_changes_the_third_edit(make_case, switch):
    base = {"retrain_every": 3, "early_stop": "none"}
    one = weight_after(make_case, "ft_retrain", [FIRST, SECOND, THIRD], **base)
    other = weight_after(make_case, "ft_retrain", [FIRST, SECOND, THIRD], **base, **switch)
    assert not torch.equal(one, other)


def test_before_its_time_retraining_is_finetuning(make_case):
    one = weight_after(make_case, "ft_retrain", [FIRST, SECOND], retrain_every=3)
    assert torch.equal(one, weight_after(make_case, "ft", [FIRST, SECOND]))


def test_a_shut_gate_leaves_the_model_alone(t5):
    inputs = t5.inputs(*SECOND)
    before = t5.logits(inputs)
    shut = make(t5, "defer", threshold=1.0)
    assert torch.equal(t5.logits(inputs), before)
    edit(t5, shut, FIRST)
    assert torch.equal(t5.logits(inputs), before)
    shut.remove()
    wide = make(t5, "defer", threshold=0.0)
    edit(t5, wide, FIRST)
    assert not torch.equal(t5.logits(inputs), before)


def test_the_released_defer_does_not_honour_its_threshold(t5):
    inputs, logits = t5.inputs(*FIRST), []
    for threshold in (0.0, 1.0):
        editor = make(t5, "defer", threshold=threshold, rules="released")
        edit(t5, editor, FIRST)
        logits.append(t5.logits(inputs))
        editor.remove()
    assert torch.equal(*logits)


@pytest.mark.parametrize(("when", "equal"), [("until_edited", True), ("never", False)])
def test_when_memory_lets_the_original_layer_answer(t5, when, equal):
    inputs = t5.inputs(*FIRST)
    before = t5.logits(inputs)
    editor = make(t5, "memory", original_layer=when, size=4)
    assert torch.equal(t5.logits(inputs), before) == equal
    edit(t5, editor, FIRST)
    assert not torch.equal(t5.logits(inputs), before)


def test_a_memory_of_another_size_is_refused(t5):
    small = make(t5, "memory", size=4)
    state = small.state_dict()
    small.remove()
    with pytest.raises(EditorError, match="does not fit editor 'memory'"):
        make(t5, "memory", size=5).load_state_dict(state)
