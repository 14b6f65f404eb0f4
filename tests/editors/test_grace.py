"""GRACE's branches and switches, each by what a user would notice."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from grace_bench.editors import create_editor
from grace_bench.editors.base import EditBatch
from grace_bench.editors.methods.ft_ewc.hyperparameters import EwcHyperparameters
from grace_bench.editors.methods.ft_retrain.hyperparameters import RetrainHyperparameters
from grace_bench.editors.methods.grace.hyperparameters import GraceHyperparameters
from grace_bench.errors import EditorError

PROMPT, NEAR, FAR = [5, 6, 7, 8], [5, 6, 9, 8], [15, 16, 17, 18, 19, 30]
YES, NO = [20, 21, 1], [22, 23, 1]


def grace(case, **settings):
    return create_editor("grace", case.model, case.layer, {"steps": 3, **settings})


def edit(case, editor, prompt, label, step=1):
    batch = EditBatch(case.inputs(prompt, label), (f"e{step}",), str(label), step)
    return editor.edit(batch)


def distance(case, one, other):
    """Distance of two prompts' queries."""
    editor = grace(case)
    queries = [editor.query_layer(case.inputs(prompt, YES)).queries[0] for prompt in (one, other)]
    editor.remove()
    return (queries[0] - queries[1]).norm().item()


def test_an_input_far_from_all_keys_is_unchanged(case):
    inputs = case.inputs(FAR, NO)
    before = case.logits(inputs)
    editor = grace(case, radius=0.01)
    assert edit(case, editor, PROMPT, YES).branch == "first"
    assert torch.equal(case.logits(inputs), before)
    edited = case.inputs(PROMPT, YES)
    with_key = case.logits(edited)
    editor.codebook.remove(0)
    assert not torch.equal(case.logits(edited), with_key)


def test_branches_of_algorithm_1(t5):
    d = distance(t5, PROMPT, NEAR)
    far = distance(t5, PROMPT, FAR)
    assert min(far, distance(t5, NEAR, FAR)) > 0
    editor = grace(t5, radius=0.7 * d)
    assert edit(t5, editor, PROMPT, YES).branch == "first"
    result = edit(t5, editor, NEAR, YES, 2)
    assert (result.branch, result.key, result.nearest_key) == ("expand", 0, 0)
    assert result.distance == pytest.approx(d, rel=1e-5)
    assert result.losses == []
    assert editor.codebook.radii.tolist() == pytest.approx([1.4 * d])
    result = edit(t5, editor, NEAR, YES, 3)
    assert (result.branch, result.losses) == ("reuse", [])
    result = edit(t5, editor, NEAR, NO, 4)
    assert (result.branch, result.key, editor.n_keys) == ("split", 1, 2)
    assert editor.codebook.radii.tolist() == pytest.approx([d / 2, d / 2])
    value = editor.codebook.values[1].clone()
    result = edit(t5, editor, NEAR, YES, 5)
    assert (result.branch, result.key, editor.n_keys) == ("overwrite", 1, 2)
    assert not torch.equal(editor.codebook.values[1], value)
    row = editor.codebook.rows()[0]
    assert (row["example_ids"], row["changed_at_step"]) == (["e1", "e2", "e3"], 4)


def test_a_far_edit_adds_a_key(t5):
    editor = grace(t5, radius=0.2 * distance(t5, PROMPT, FAR))
    edit(t5, editor, PROMPT, YES)
    result = edit(t5, editor, FAR, YES, 2)
    assert (result.branch, result.key, editor.n_keys) == ("add", 1, 2)


def test_an_edit_moves_one_value_and_no_other(t5):
    editor = grace(t5, radius=0.01)
    edit(t5, editor, PROMPT, YES)
    value = editor.codebook.values[0].clone()
    edit(t5, editor, FAR, NO, 2)
    assert torch.equal(editor.codebook.values[0], value)


@pytest.mark.parametrize(("switch", "branch"), [("overwrite", "overwrite"), ("ignore", "split")])
def test_zero_distance(t5, switch, branch):
    editor = grace(t5, zero_distance=switch, split="half")
    inputs = t5.inputs(PROMPT, NO)
    before = t5.loss(inputs)
    edit(t5, editor, PROMPT, YES)
    result = edit(t5, editor, PROMPT, NO, 2)
    assert result.branch == branch
    # Ignored, neither key answers: the model is as if unedited.
    assert (result.key is None) == (switch == "ignore")
    assert (t5.loss(inputs) == before) == (switch == "ignore")


def test_train_on_expand(t5):
    radius = 0.7 * distance(t5, PROMPT, NEAR)
    editor = grace(t5, radius=radius, train_on_expand=True)
    edit(t5, editor, PROMPT, YES)
    value = editor.codebook.values[0].clone()
    result = edit(t5, editor, NEAR, YES, 2)
    assert len(result.losses) == 3
    assert not torch.equal(editor.codebook.values[0], value)


@pytest.mark.parametrize(
    ("expand", "share"), [("add_radius", 1.4), ("to_distance", 1.0), ("none", 0.7)]
)
def test_expand(t5, expand, share):
    d = distance(t5, PROMPT, NEAR)
    editor = grace(t5, radius=0.7 * d, expand=expand)
    edit(t5, editor, PROMPT, YES)
    result = edit(t5, editor, NEAR, YES, 2)
    assert editor.codebook.radii[0].item() == pytest.approx(share * d, rel=1e-5)
    assert result.key == (0 if expand == "add_radius" else None)  # the boundary is open


def test_label_match(t5):
    for rule, branch in (("exact", "split"), ("mean", "expand")):
        radius = 0.7 * distance(t5, PROMPT, NEAR)
        editor = grace(t5, radius=radius, label_match=rule)
        edit(t5, editor, PROMPT, [20, 22, 1])
        assert edit(t5, editor, NEAR, [22, 20, 1], 2).branch == branch
        editor.remove()


def test_warm_values_start_from_the_layers_own_output(t5):
    inputs = t5.inputs(PROMPT, YES)
    before = t5.logits(inputs)
    editor = grace(t5, value_init="warm", steps=0, replacement="last")
    edit(t5, editor, PROMPT, YES)
    assert torch.allclose(t5.logits(inputs), before, atol=1e-5)
    assert (grace_value(t5, editor) < 0).any()


def test_cold_values_start_between_0_and_1(t5):
    editor = grace(t5, steps=0)
    edit(t5, editor, PROMPT, YES)
    value = grace_value(t5, editor)
    assert value.min() >= 0
    assert value.max() < 1


def grace_value(case, editor):
    return editor.codebook.values[0]


@pytest.mark.parametrize(
    ("settings", "replaced"),
    [
        ({}, [0, 1, 2, 3]),
        ({"replace_query": False}, [0, 1, 2]),
        ({"replacement": "last"}, [3]),
        ({"replacement": "all"}, [0, 1, 2, 3, 4, 5, 6]),
        ({"query_position": "released", "replace_query": False}, [0, 1, 2]),
        ({"query_position": 1}, [0, 1]),
        ({"query_position": -6, "replacement": "last"}, [1]),
        ({"query_position": 99, "replacement": "last"}, [6]),
    ],
)
def test_which_tokens_a_causal_model_replaces(gpt2, settings, replaced):
    editor = grace(gpt2, steps=0, **settings)
    edit(gpt2, editor, PROMPT, YES)
    seen = {}
    hook = editor.adapter.register_forward_hook(lambda _m, _a, out: seen.update(out=out[0]))
    gpt2.logits(gpt2.inputs(PROMPT, YES))
    hook.remove()
    equal = (seen["out"] == editor.codebook.values[0]).all(-1)
    assert equal.nonzero().flatten().tolist() == replaced


def test_the_released_query_leaks_the_label(gpt2):
    inputs = gpt2.inputs(PROMPT, YES)
    inputs["labels"][0, -1] = -100  # the released code masks the end of sequence, too
    other = dict(inputs, input_ids=inputs["input_ids"].clone())
    other["input_ids"][0, 4] = 33  # the label's first token
    for position, leaks in (("released", True), ("prompt_end", False)):
        editor = grace(gpt2, query_position=position)
        queries = [editor.query_layer(each).queries for each in (inputs, other)]
        assert torch.equal(*queries) != leaks
        editor.remove()


def test_training_stops_at_a_loss(t5):
    editor = grace(t5, steps=60, early_stop="loss", early_stop_loss=3.8)
    result = edit(t5, editor, PROMPT, YES)
    assert 0 < len(result.losses) < 60
    assert min(result.losses) > 3.8
    assert t5.loss(t5.inputs(PROMPT, YES)) <= 3.8


def test_training_stops_at_the_argmax(make_case):
    case = make_case("bert")
    result = edit(case, grace(case, steps=60, early_stop="argmax"), PROMPT, YES)
    assert 0 < len(result.losses) < 60
    inputs = case.inputs(PROMPT, YES)
    assert torch.equal(case.logits(inputs).argmax(-1), inputs["labels"])


def test_training_stops_when_the_label_leads_by_a_margin(make_case):
    case = make_case("bert")
    losses = {}
    for margin in (0.0, 1.5):
        editor = grace(case, steps=60, early_stop="argmax", early_stop_margin=margin)
        losses[margin] = edit(case, editor, PROMPT, YES).losses
        inputs = case.inputs(PROMPT, YES)
        best, second = case.logits(inputs)[0].topk(2).values
        assert torch.equal(case.logits(inputs).argmax(-1), inputs["labels"])
        assert best - second >= margin
        editor.remove()
    assert 0 < len(losses[0.0]) < len(losses[1.5]) < 60


def test_training_stops_once_its_rule_held_several_times_in_a_row(t5):
    stop = {"steps": 60, "early_stop": "loss", "early_stop_loss": 3.8}
    once = edit(t5, editor := grace(t5, **stop), PROMPT, YES).losses
    editor.remove()
    again = edit(t5, grace(t5, **stop, early_stop_steps=3), PROMPT, YES).losses
    assert again[: len(once)] == once
    assert again[len(once) :] == [loss for loss in again if loss <= 3.8]
    assert len(again) == len(once) + 2


def test_a_key_answers_the_same_row_through_a_generation_by_hand(gpt2):
    model, prompt = gpt2.model, {"input_ids": torch.tensor([PROMPT])}
    unedited = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    editor = grace(gpt2, radius=0.01, replacement="all", steps=5)
    edit(gpt2, editor, PROMPT, YES)
    from_scratch = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert from_scratch.tolist() != unedited.tolist()
    with torch.no_grad():
        output = model(torch.tensor([PROMPT]))
        tokens = [output.logits[0, -1].argmax().item()]
        while len(tokens) < from_scratch.shape[1] - 4:
            output = model(torch.tensor([tokens[-1:]]), past_key_values=output.past_key_values)
            tokens.append(output.logits[0, -1].argmax().item())
    assert tokens == from_scratch[0, 4:].tolist()


def test_beams_and_samples_keep_their_prompts_key(gpt2):
    editor = grace(gpt2, radius=0.01, replacement="all", steps=5)
    edit(gpt2, editor, PROMPT, YES)
    batch = gpt2.prompts([PROMPT, FAR], "left")
    both = gpt2.model.generate(**batch, num_beams=3, max_new_tokens=4, min_new_tokens=4)
    one = gpt2.model.generate(
        **gpt2.prompts([FAR], "left"), num_beams=3, max_new_tokens=4, min_new_tokens=4
    )
    assert both[1, -4:].tolist() == one[0, -4:].tolist()


def test_the_decoder_of_a_t5_can_be_edited(t5):
    t5.layer = "decoder.block.1.layer.2.DenseReluDense.wo"
    editor = grace(t5, radius=0.01, steps=10)
    before = t5.loss(t5.inputs(PROMPT, YES))
    edit(t5, editor, PROMPT, YES)
    assert t5.loss(t5.inputs(PROMPT, YES)) < before
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    batch = t5.prompts([PROMPT, FAR], "right")
    cached = t5.model.generate(**batch, **options)
    assert torch.equal(cached, t5.model.generate(**batch, **options, use_cache=False))


def test_a_pooled_layer_can_be_edited(make_case):
    case = make_case("bert")
    case.layer = "bert.pooler.dense"
    editor = grace(case, radius=0.01, steps=10)
    inputs = case.inputs(PROMPT, YES)
    before = case.loss(inputs)
    edit(case, editor, PROMPT, YES)
    assert case.loss(inputs) < before


def test_an_edit_is_one_example(t5):
    with pytest.raises(EditorError, match="an edit is one example, this batch has 2"):
        grace(t5).edit(EditBatch(t5.batch([(PROMPT, YES), (FAR, NO)])))


def test_a_codebook_of_other_sizes_is_refused(t5, gpt2):
    mine, other = grace(t5), grace(gpt2)
    edit(gpt2, other, PROMPT, YES)
    with pytest.raises(EditorError, match="is for a layer of 16 -> 64"):
        mine.load_state_dict(other.state_dict())


def test_a_failed_call_leaves_no_trace(gpt2):
    editor = grace(gpt2)
    edit(gpt2, editor, PROMPT, YES)
    inputs = gpt2.inputs(PROMPT, YES)
    before = gpt2.logits(inputs)
    with pytest.raises(IndexError):
        gpt2.model(input_ids=torch.tensor([[999]]))
    assert torch.equal(gpt2.logits(inputs), before)


def test_presets_can_be_overridden_and_show_every_switch():
    corrected, released = GraceHyperparameters(), GraceHyperparameters(rules="released")
    shown = released.model_dump()
    assert shown["expand"] == "to_distance"
    assert corrected.model_dump()["expand"] == "add_radius"
    mixed = GraceHyperparameters(rules="released", boundary="open").model_dump()
    assert mixed == {**shown, "boundary": "open"}
    assert GraceHyperparameters(**shown) == released
    assert EwcHyperparameters(rules="released").model_dump()["shift_labels"] is False
    assert RetrainHyperparameters(rules="released").include_current
    described = GraceHyperparameters.model_json_schema()["properties"].values()
    assert all(field.get("description") for field in described)


@pytest.mark.parametrize(
    "wrong",
    [
        {"radius": 0}, {"expand": "coverage"}, {"rules": "offical"}, {"epsilon": 1.0},
        {"query_position": True}, {"query_position": "last"}, {"steps": -1},
        {"learning_rate": float("nan")},
    ],
)  # fmt: skip
def test_unknown_settings_are_errors(wrong):
    with pytest.raises(ValidationError):
        GraceHyperparameters(**wrong)
