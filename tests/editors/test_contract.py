"""What every registered editor promises, on tiny random T5, BERT and GPT-2."""

from __future__ import annotations

import pytest
import torch

from grace_bench.editors import create_editor
from grace_bench.editors.base import EditBatch
from grace_bench.models.device import autocast
from grace_bench.registry import EDITORS
from grace_bench.suite.schema import ComputeConfig

PARIS = ([5, 6, 7, 8], [20, 21, 1])
ROME = ([9, 10, 11, 12, 13, 14], [22, 23, 1])
OTHER = ([15, 16, 17], [24, 25, 1])
NAMES = EDITORS.names()
EDITING = [name for name in NAMES if name != "unedited"]
FIELDS = {name: EDITORS.get(name).hyperparameters_class().model_fields for name in NAMES}
WITH_RULES = [
    (name, rules)
    for name in EDITING
    for rules in (["corrected", "released"] if "rules" in FIELDS[name] else [None])
]
ADAPTERS = ("grace", "defer", "memory")
OWN = {
    "grace": {"radius": 0.01},  # tiny random models: within it nothing but the edit itself
    "ft_retrain": {"retrain_every": 2},
    "mend": {"rank": 4, "edit_lr": 1e-3},  # takes its one step by a map
}


def settings(name, rules=None, **more):
    """An editor's defaults, but for few steps where it has any."""
    few = {"steps": 5} if "steps" in FIELDS[name] else {}
    preset = {"rules": rules} if rules else {}
    return {**few, **OWN.get(name, {}), **preset, **more}


def edit_with(case, name, examples, rules=None, seed=0, **more):
    editor = create_editor(name, case.model, case.layer, settings(name, rules, **more), seed)
    results = [
        editor.edit(EditBatch(case.inputs(*example), (f"example-{i}",), f"label {i}", i + 1))
        for i, example in enumerate(examples)
    ]
    return editor, results


@pytest.mark.parametrize(("name", "rules"), WITH_RULES)
def test_an_edit_makes_the_label_more_likely(case, name, rules):
    inputs = case.inputs(*PARIS)
    before = case.loss(inputs)
    # Released, a causal Defer may shut its gate again; its loss is then the unedited one.
    editor, (result,) = edit_with(case, name, [PARIS], rules)
    after = case.loss(inputs)
    assert after < before or (name == "defer" and after == pytest.approx(before))
    assert "steps" not in FIELDS[name] or len(result.losses) <= 5
    assert editor.n_keys in ([1] if name == "grace" else [None, 1])


@pytest.mark.parametrize("name", EDITING)
def test_losses_fall_in_half_precision(case, name):
    compute = ComputeConfig(device="cpu", precision="bfloat16")
    more = {"edit_lr": 0.1} if name == "mend" else {}  # above what bfloat16 rounds away
    inputs = case.inputs(*PARIS)
    with autocast(compute, torch.device("cpu")):
        before = case.loss(inputs)
        _, (result,) = edit_with(case, name, [PARIS], **more)
        after = case.loss(inputs)
    # Copies of weights that are trained must not be kept from one step to the next.
    assert len(result.losses) < 2 or result.losses[-1] < result.losses[0]
    assert after < before


@pytest.mark.parametrize("name", ["ft", "ft_ewc", "ft_retrain"])
def test_finetuning_stops_when_the_label_is_the_argmax(case, name):
    example = PARIS[0], [20]
    _, (result,) = edit_with(case, name, [example], learning_rate=0.1, steps=40)
    assert 0 < len(result.losses) < 40
    inputs = case.inputs(*example)
    logits, labels = case.logits(inputs), inputs["labels"]
    if case.kind == "gpt2":
        logits, labels = logits[:, :-1], labels[:, 1:]
    assert (logits.argmax(-1) == labels)[labels != -100].all()


@pytest.mark.parametrize("name", NAMES)
def test_remove_restores_the_model_bit_for_bit(case, name):
    inputs = case.inputs(*OTHER)
    state = {k: v.clone() for k, v in case.model.state_dict().items()}
    case.model.get_parameter(next(iter(dict(case.model.named_parameters())))).requires_grad_(False)
    flags = [p.requires_grad for p in case.model.parameters()]
    before = case.logits(inputs)
    editor, _ = edit_with(case, name, [PARIS, ROME])
    editor.remove()
    editor.remove()
    assert torch.equal(case.logits(inputs), before)
    after = case.model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[k], v) for k, v in state.items())
    assert [p.requires_grad for p in case.model.parameters()] == flags
    assert "generate" not in vars(case.model)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in case.model.modules())


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_is_left_on_base_weights(case, name):
    flags = [p.requires_grad for p in case.model.parameters()]
    parameters = list(case.model.parameters())
    edit_with(case, name, [PARIS, ROME])
    assert all(p.grad is None for p in case.model.parameters())
    assert [p.requires_grad for p in parameters] == flags


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_state_gives_equal_outputs_and_goes_on_equally(case, make_case, name):
    editor, _ = edit_with(case, name, [PARIS, ROME])
    twin = make_case(case.kind)
    other = create_editor(name, twin.model, twin.layer, settings(name), seed=99)
    other.load_state_dict(editor.state_dict())
    for example in (PARIS, ROME, OTHER):
        inputs = case.inputs(*example)
        assert torch.equal(case.logits(inputs), twin.logits(inputs))
    other.generator.set_state(editor.generator.get_state())
    batch = EditBatch(case.inputs(*OTHER), ("c",), "third", 3)
    assert editor.edit(batch).losses == other.edit(batch).losses
    mine, theirs = editor.state_dict(), other.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_state(case, make_case, name):
    first, _ = edit_with(case, name, [PARIS, ROME], seed=7)
    torch.manual_seed(123)
    global_state = torch.get_rng_state()
    second, _ = edit_with(make_case(case.kind), name, [PARIS, ROME], seed=7)
    assert all(torch.equal(a, second.state_dict()[k]) for k, a in first.state_dict().items())
    third = make_case(case.kind)
    torch.set_rng_state(global_state)
    edit_with(third, name, [PARIS], seed=8)
    assert torch.equal(torch.get_rng_state(), global_state)


# BERT classifies by its first position, padding or not, so it is never padded on the left.
PADDED = [("t5", "left"), ("t5", "right"), ("gpt2", "left"), ("gpt2", "right"), ("bert", "right")]


@pytest.mark.parametrize(("kind", "side"), PADDED)
@pytest.mark.parametrize("name", NAMES)
def test_a_padded_batch_equals_one_by_one(make_case, kind, name, side):
    case = make_case(kind)
    edit_with(case, name, [PARIS, ROME])
    examples = [PARIS, ROME, OTHER]
    together = case.batch(examples, side)
    logits = case.logits(together)
    for row, example in enumerate(examples):
        alone = case.logits(case.inputs(*example))[0]
        mine = logits[row]
        if case.kind == "gpt2":
            mine = mine[together["attention_mask"][row].bool()]
        elif case.kind == "t5":
            mine = mine[: len(alone)]
        assert torch.allclose(mine, alone, atol=1e-4), (row, (mine - alone).abs().max())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_generating_with_a_cache_equals_without_and_one_by_one(make_case, kind, name):
    case = make_case(kind)
    edit_with(case, name, [PARIS, ROME])
    prompts = [PARIS[0], ROME[0], OTHER[0]]
    batch = case.prompts(prompts, "left" if kind == "gpt2" else "right")
    options = {"max_new_tokens": 6, "do_sample": False, "min_new_tokens": 6}
    cached = case.model.generate(**batch, **options)
    assert torch.equal(cached, case.model.generate(**batch, **options, use_cache=False))
    new = slice(-6, None)
    for row, prompt in enumerate(prompts):
        alone = case.model.generate(**case.prompts([prompt], "left"), **options)
        assert torch.equal(alone[0, new], cached[row, new])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_generating_equals_teacher_forcing_on_the_generated_text(make_case, kind, name):
    case = make_case(kind)
    edit_with(case, name, [PARIS])
    prompt = case.prompts([PARIS[0]], "right")
    text = case.model.generate(**prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False)[0]
    answer = text[-5:].tolist()
    logits = case.logits(case.inputs(PARIS[0], answer))[0]
    forced = logits[-6:-1] if kind == "gpt2" else logits
    # min_new_tokens forbids the end of sequence in generation.
    forced[:, 1] = -torch.inf
    assert forced.argmax(-1).tolist() == answer


@pytest.mark.parametrize("name", NAMES)
def test_training_mode_means_nothing_to_an_editor(case, name):
    edit_with(case, name, [PARIS])
    inputs = case.inputs(*PARIS)
    before = case.logits(inputs)
    case.model.train()
    assert torch.equal(case.logits(inputs), before)


@pytest.mark.parametrize("name", ADAPTERS)
def test_half_precision_models_can_be_edited(make_case, name):
    for kind in ("t5", "gpt2"):
        case = make_case(kind)
        case.model.to(torch.bfloat16)
        inputs = case.inputs(*PARIS)
        before = case.loss(inputs)
        _, (result,) = edit_with(case, name, [PARIS])
        assert case.logits(inputs).dtype == torch.bfloat16
        assert result.losses[-1] < result.losses[0]
        assert case.loss(inputs) < before


def test_an_unknown_layer_names_the_nearest(t5):
    from grace_bench.errors import ModelError

    with pytest.raises(ModelError, match=r"did you mean 'encoder\.block\.1\.layer\.1\.Dense"):
        create_editor("grace", t5.model, "encoder.block[1].layer[1].DenseReluDens.wo")
    with pytest.raises(ModelError, match="cannot be edited"):
        create_editor("ft", t5.model, "encoder.block[1]")


def test_wrong_hyperparameters_are_refused(t5):
    from grace_bench.editors.methods.ft.hyperparameters import FinetuneHyperparameters
    from grace_bench.errors import ConfigError

    with pytest.raises(ConfigError, match="takes GraceHyperparameters"):
        create_editor("grace", t5.model, t5.layer, FinetuneHyperparameters())
    with pytest.raises(ConfigError, match="did you mean 'grace'"):
        create_editor("grce", t5.model, t5.layer)
