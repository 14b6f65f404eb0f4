"""ROME: its update, what an edit does to a trained model, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from tiny_models import make as make_model

from grace_bench.editors import create_editor
from grace_bench.editors.base import EditBatch
from grace_bench.editors.methods.rome.hyperparameters import RomeHyperparameters
from grace_bench.editors.methods.rome.request import read_request
from grace_bench.errors import DataError, EditorError
from grace_bench.models.architecture import find_layer
from grace_bench.models.covariance import Covariance, compute_covariance, save_covariance
from grace_bench.replay.steps import labelled_columns

START = 1
LAYERS = {"gpt2": "transformer.h.1.mlp.c_proj", "llama": "model.layers.1.mlp.down_proj"}
CAPITAL, RIVER = [30, 31], [32, 33]
# subject: (its tokens, capital, river)
FACTS = [([2 + 2 * i, 3 + 2 * i], 18 + i, 34 + i % 4) for i in range(6)]


SHAPES = {
    "gpt2": {
        "n_embd": 32, "n_layer": 3, "n_positions": 48, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "llama": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
        "max_position_embeddings": 48, "tie_word_embeddings": False,
    },
}  # fmt: skip


def build(kind: str):
    return make_model(kind, bos_token_id=START, eos_token_id=START, **SHAPES[kind])


def sentences() -> list[list[int]]:
    """Every fact alone and behind another one, so that prefixes are nothing new."""
    told = [r + s + [o] for s, c, v in FACTS for r, o in ((CAPITAL, c), (RIVER, v))]
    return [one + other for one in told for other in told]


def ids_of(text: str) -> list[int]:
    """Read a text of token ids."""
    return [START, *map(int, text.split())]


@pytest.fixture(scope="module", params=LAYERS)
def trained(request):
    """A model that knows FACTS, its layer, and the covariance of its layer's inputs."""
    torch.set_num_threads(1)
    model, layer = build(request.param), LAYERS[request.param]
    rows = torch.tensor([[START, *sentence] for sentence in sentences()])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(250):
        batch = rows[torch.randint(len(rows), (32,), generator=order)]
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.requires_grad_(False)
    texts = [" ".join(map(str, sentence)) for sentence in sentences()]
    return model, layer, compute_covariance(model, ids_of, layer, texts, model_hash="m")


@pytest.fixture
def taught(trained):
    """A copy of the trained model to edit."""
    model, layer, covariance = trained
    return copy.deepcopy(model), layer, covariance


def batch_of(prompt: list[int], target: list[int], subject=(3, 5), padding: int = 0) -> EditBatch:
    labels = [-100] * (padding + 1 + len(prompt)) + target
    inputs = {
        "input_ids": torch.tensor([[0] * padding + [START, *prompt, *target]]),
        "attention_mask": torch.tensor([[0] * padding + [1] * (1 + len(prompt) + len(target))]),
        "labels": torch.tensor([labels]),
    }
    if subject is not None:
        subject = (subject[0] + padding, subject[1] + padding)
    return EditBatch(inputs, subject=subject)


@torch.no_grad()
def answer(model, prompt: list[int]) -> int:
    return model(input_ids=torch.tensor([[START, *prompt]])).logits[0, -1].argmax().item()


def answers(model) -> list[int]:
    return [answer(model, relation + s) for s, _, _ in FACTS for relation in (CAPITAL, RIVER)]


def make(model, layer, seed=0, covariance=None, engine="lean", **given):
    # The defaults are for models whose layers say vectors of larger norm than these (.1 to .8).
    settings = {"learning_rate": 0.1, "weight_decay": 0.1, "clamp_norm_factor": 10.0, "ridge": 1e-3}
    settings |= {"contexts_per_length": 3, "context_lengths": (3, 5), **given}
    editor = create_editor("rome", model, layer, settings, seed, engine)
    editor.covariance = covariance
    return editor


def random_covariance(d_in: int) -> torch.Tensor:
    keys = torch.randn(4 * d_in, d_in, dtype=torch.float64)
    return keys.T @ keys / len(keys)


# The update


@pytest.mark.parametrize("kind", LAYERS)
def test_the_update_solves_the_constrained_least_squares_problem(kind):
    """W' = argmin |W' K - V| with W' k* = v*, from its optimality conditions, all at once."""
    model, layer = build(kind), LAYERS[kind]
    module = find_layer(model, layer)
    d_in, d_out = (128, 32) if kind == "gpt2" else (64, 32)
    keys = torch.randn(d_in, 300, dtype=torch.float64)
    values = torch.randn(d_out, 300, dtype=torch.float64)
    key, value = torch.randn(d_in).double(), torch.randn(d_out).double()
    bias = torch.zeros(d_out).double()
    if kind == "gpt2":
        torch.nn.init.normal_(module.bias)
        bias = module.bias.detach().double()
    first = torch.linalg.lstsq(keys.T, values.T).solution  # (d_in, d_out): the layer remembers V
    system = torch.zeros(d_in + 1, d_in + 1, dtype=torch.float64)
    system[:d_in, :d_in], system[:d_in, d_in], system[d_in, :d_in] = keys @ keys.T, key, key
    right = torch.cat([keys @ values.T, (value - bias)[None]])
    wanted = torch.linalg.solve(system, right)[:d_in]  # (d_in, d_out)
    with torch.no_grad():
        module.weight.copy_(first if kind == "gpt2" else first.T)
    editor = create_editor("rome", model, layer)
    editor.covariance = keys @ keys.T / keys.shape[1]
    editor.write(key, value)
    found = module.weight.double() if kind == "gpt2" else module.weight.double().T
    assert torch.allclose(found, wanted, atol=2e-5)
    assert torch.allclose(editor.output_of(key), value, atol=2e-5)
    assert torch.linalg.matrix_rank((found - first), tol=1e-4).item() == 1


def test_without_a_covariance_the_update_is_the_smallest_that_does():
    model = build("llama")
    module = find_layer(model, LAYERS["llama"])
    before = module.weight.detach().double()
    key, value = torch.randn(64).double(), torch.randn(32).double()
    create_editor("rome", model, LAYERS["llama"], {"ridge": 0.3}).write(key, value)
    wanted = before + torch.outer(value - before @ key, torch.linalg.pinv(key[None])[:, 0])
    assert torch.allclose(module.weight.double(), wanted, atol=1e-5)


@pytest.mark.parametrize(("starts", "head"), [(None, 1), (0, 0), (1, 1), (2, 2)])
def test_contexts_stand_behind_as_many_start_tokens_as_the_prompt_has(starts, head):
    batch = dataclasses.replace(batch_of([START, *CAPITAL, 2, 3], [20], (4, 6)), starts=starts)
    request = read_request(batch, "subject_last", START)
    inputs, _ = request.behind([torch.tensor([7, 8])])
    assert inputs["input_ids"][0].tolist().index(7) == request.head == head


@pytest.mark.parametrize("exact_for", ["mean", "prompt"])
@pytest.mark.parametrize("kind", LAYERS)
def test_an_edit_writes_the_value_it_found(kind, exact_for):
    model, layer = build(kind), LAYERS[kind]
    settings = {"learning_rate": 0.05, "weight_decay": 0.0, "exact_for": exact_for}
    editor = make(model, layer, covariance=random_covariance(d_of(kind)), **settings)
    batch = batch_of([*CAPITAL, 2, 3], [20])
    request = read_request(batch, "subject_last", START)
    found, find = [], editor._find_change

    def watched(*args):
        found.append(find(*args))
        return found[-1]

    editor._find_change = watched
    written, write = [], editor.write

    def watched_write(key, value, direction):
        written.append((key, value))
        write(key, value, direction)

    editor.write = watched_write
    before = editor.output_of
    inputs, columns = request.behind(editor._prefixes(request))
    keys = direct_keys(model, layer, inputs, columns)
    own = before(keys[0])
    result = editor.edit(batch)
    (change, losses), (key, value) = found[0], written[0]
    assert len(losses) == len(result.losses) == 20
    assert losses[-1] < losses[0]
    assert torch.allclose(key, keys.mean(0) if exact_for == "mean" else keys[0], atol=1e-5)
    assert torch.allclose(value, own + change, atol=1e-5)
    assert torch.allclose(editor.output_of(key), value, atol=1e-4)


def d_of(kind: str) -> int:
    return 128 if kind == "gpt2" else 64


@torch.no_grad()
def direct_keys(model, layer, inputs, columns):
    """Row by row, without padding."""
    keys = []
    hook = find_layer(model, layer).register_forward_pre_hook(lambda _, args: keys.append(args[0]))
    for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        model(input_ids=row[mask.bool()][None])
    hook.remove()
    return torch.stack([k[0, c] for k, c in zip(keys, columns, strict=True)]).double()


# What an edit does to a model that knows something


@pytest.mark.slow
def test_the_new_fact_is_the_top_answer_and_other_facts_stay(taught):
    model, layer, covariance = taught
    before = answers(model)
    assert before == [o for _, capital, river in FACTS for o in (capital, river)]
    editor = make(model, layer, covariance=covariance.second_moment)
    subject, capital, _ = FACTS[0]
    result = editor.edit(batch_of(CAPITAL + subject, [FACTS[3][1]]))
    assert result.losses[-1] < result.losses[0]
    after = answers(model)
    assert after[0] == FACTS[3][1] != capital
    assert after[2:] == before[2:]  # all other subjects
    behind = RIVER + FACTS[4][0] + [FACTS[4][2]]
    assert answer(model, behind + CAPITAL + subject) == FACTS[3][1]
    assert answer(model, behind + CAPITAL + FACTS[1][0]) == FACTS[1][1]


def test_edits_follow_one_another(taught):
    model, layer, covariance = taught
    before = answers(model)
    editor = make(model, layer, covariance=covariance.second_moment)
    for index in (0, 1):
        editor.edit(batch_of(CAPITAL + FACTS[index][0], [FACTS[index + 3][1]]))
    after = answers(model)
    assert [after[0], after[2]] == [FACTS[3][1], FACTS[4][1]]
    assert after[4:] == before[4:]


def test_the_covariance_keeps_other_keys_better_than_none(taught):
    model, layer, covariance = taught
    states = []
    for moment in (covariance.second_moment, None):
        editor = make(model, layer, covariance=moment)
        editor.edit(batch_of(CAPITAL + FACTS[0][0], [FACTS[3][1]]))
        change = (editor.weight - editor.original).double()
        change = change.T if "c_proj" in layer else change
        states.append(torch.trace(change @ covariance.second_moment @ change.T).item())
        editor.remove()
    assert states[0] < states[1]


def test_without_a_subject_the_prompts_last_token_is_edited(taught):
    model, layer, covariance = taught
    states, branches = [], []
    for subject, query in (
        (None, "subject_last"),
        ((1, 3), "prompt_last"),
        ((4, 5), "subject_last"),
    ):
        editor = make(model, layer, covariance=covariance.second_moment, query=query)
        done = editor.edit(batch_of(CAPITAL + FACTS[0][0], [FACTS[3][1]], subject))
        branches.append(done.branch)
        assert answer(model, CAPITAL + FACTS[0][0]) == FACTS[3][1]
        states.append(editor.state_dict()["weight"])
        editor.remove()
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])
    assert branches == ["prompt_last", "prompt_last", "subject_last"]


def test_a_heavier_divergence_keeps_what_is_said_of_the_subject(taught):
    model, layer, covariance = taught

    @torch.no_grad()
    def said():
        ids = torch.tensor([[START, *FACTS[0][0], 32]])
        return model(input_ids=ids).logits[0, -1].double().log_softmax(-1)

    before, drifts = said(), []
    for factor in (0.0, 1e5):  # so heavy that the difference is far above rounding
        editor = make(
            model, layer, covariance=covariance.second_moment, kl_factor=factor,
            essence_suffix=(32,), exact_for="prompt", context_lengths=(),
        )  # fmt: skip
        editor.edit(batch_of(CAPITAL + FACTS[0][0], [FACTS[3][1]]))
        after = said()
        drifts.append((after.exp() * (after - before)).sum().item())
        editor.remove()
    assert drifts[1] < 0.7 * drifts[0]


def test_the_value_stays_within_its_bounds():
    model, layer = build("gpt2"), LAYERS["gpt2"]
    batch = batch_of([*CAPITAL, 2, 3], [20])
    for factor in (0.5, 4.0):
        editor = make(
            model, layer, learning_rate=50.0, clamp_norm_factor=factor, exact_for="prompt",
            weight_decay=0.0,
        )  # fmt: skip
        request = read_request(batch, "subject_last", START)
        inputs, columns = request.behind(editor._prefixes(request))
        key = direct_keys(model, layer, inputs, columns)[0]
        own = editor.output_of(key)
        editor.edit(batch)
        change = (editor.output_of(key) - own).norm()
        assert change.item() == pytest.approx(factor * own.norm().item(), rel=1e-3)
        editor.remove()


# The owner of a model


def test_remove_restores_every_bit(taught):
    model, layer, covariance = taught
    before = {name: part.clone() for name, part in model.state_dict().items()}
    editor = make(model, layer, covariance=covariance.second_moment)
    for index in (0, 1):
        editor.edit(batch_of(CAPITAL + FACTS[index][0], [20]))
    changed = [n for n, part in model.state_dict().items() if not torch.equal(part, before[n])]
    assert changed == [f"{layer}.weight"]
    editor.remove()
    assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_a_state_goes_on_as_its_owner_would(taught, tmp_path):
    model, layer, covariance = taught
    twin = copy.deepcopy(model)
    editor = make(model, layer, seed=3, covariance=covariance.second_moment)
    editor.edit(batch_of(CAPITAL + FACTS[0][0], [20]))
    other = make(twin, layer, seed=4, covariance=covariance.second_moment)
    other.load_state_dict(editor.state_dict())
    assert torch.equal(editor.weight, other.weight)
    second = batch_of(CAPITAL + FACTS[1][0], [21])
    assert editor.edit(second).losses == other.edit(second).losses
    mine, theirs = editor.state_dict(), other.state_dict()
    assert list(mine) == list(theirs) == ["weight", "contexts/00003", "contexts/00005"]
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert editor.save(tmp_path, "m") == ["editor.safetensors"]
    with pytest.raises(EditorError, match="not for layer"):
        other.load_state_dict({"weight": torch.ones(2, 2)})


def test_the_same_seed_gives_the_same_bits(taught):
    model, layer, covariance = taught
    states = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed + len(states))  # nothing may hang on the global generator
        editor = make(model, layer, seed=seed, covariance=covariance.second_moment)
        editor.edit(batch_of(CAPITAL + FACTS[0][0], [20]))
        states.append(editor.state_dict())
        editor.remove()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["contexts/00005"], states[2]["contexts/00005"])


def test_engines_agree(taught):
    model, layer, covariance = taught
    weights = {}
    for engine in ("direct", "replay", "lean"):
        editor = make(model, layer, covariance=covariance.second_moment, engine=engine)
        editor.edit(batch_of(CAPITAL + FACTS[0][0], [20]))
        assert engine == "direct" or editor.replay.reason is None
        weights[engine] = editor.weight.detach().clone()
        editor.remove()
    assert torch.equal(weights["direct"], weights["replay"])
    assert torch.allclose(weights["direct"], weights["lean"], atol=1e-3)


def test_half_precision_models_can_be_edited():
    model, layer = build("llama").to(torch.bfloat16), LAYERS["llama"]
    before = find_layer(model, layer).weight.detach().clone()
    editor = make(model, layer)
    editor.edit(batch_of([*CAPITAL, 2, 3], [20]))
    assert editor.weight.dtype == torch.bfloat16
    assert not torch.equal(editor.weight, before)
    editor.remove()
    assert torch.equal(editor.weight, before)


# Requests and contexts


def test_contexts_are_written_once_by_the_model_itself(taught):
    model, layer, _ = taught
    editor = create_editor("rome", model, layer)
    editor.edit(batch_of(CAPITAL + FACTS[0][0], [20]))
    first = {length: rows.clone() for length, rows in editor.contexts.items()}
    assert {length: rows.shape for length, rows in first.items()} == {5: (10, 5), 10: (10, 10)}
    assert not any((rows == START).any() for rows in first.values())
    openings = {CAPITAL[0], RIVER[0]}
    said = [row[0].item() in openings for row in first[10]]
    assert sum(said) >= 8  # this model begins every text with a relation
    editor.edit(batch_of(CAPITAL + FACTS[1][0], [20]))
    assert all(torch.equal(editor.contexts[length], rows) for length, rows in first.items())


def test_a_batch_puts_prefixes_behind_the_start_token():
    request = read_request(
        batch_of([2, 3, 30, 31], [20, 21], (1, 3), padding=2), "subject_last", START
    )
    inputs, columns = request.behind([torch.tensor([], dtype=torch.long), torch.tensor([8, 9])])
    assert inputs["input_ids"].tolist() == [
        [1, 2, 3, 30, 31, 20, 21, 0, 0],
        [1, 8, 9, 2, 3, 30, 31, 20, 21],
    ]
    assert inputs["attention_mask"].sum(1).tolist() == [7, 9]
    assert labelled_columns(inputs["labels"]).tolist() == [4, 5, 6, 7]
    assert columns.tolist() == [2, 4]
    tokens, column = request.essence((7,))
    assert (tokens.tolist(), column.tolist()) == ([[1, 2, 3, 7]], [2])
    tokens, column = request.essence(())
    assert (tokens.tolist(), column.tolist()) == ([[1, 2, 3]], [2])


def test_the_start_token_itself_stays_where_it_is():
    request = read_request(batch_of([], [20, 21], None), "subject_last", START)
    inputs, columns = request.behind([torch.tensor([], dtype=torch.long), torch.tensor([8, 9])])
    assert inputs["input_ids"].tolist() == [[1, 20, 21, 0, 0], [1, 8, 9, 20, 21]]
    assert columns.tolist() == [0, 0]
    assert request.essence(()) is None
    model = build("gpt2")
    assert make(model, LAYERS["gpt2"]).edit(batch_of([], [20, 21], None)).losses


def test_the_essence_is_left_out_where_it_is_the_edits_own_prompt():
    request = read_request(batch_of([2, 3], [20], (1, 3)), "subject_last", START)
    assert request.essence(()) is None
    assert request.essence((7,)) is not None


def test_padding_before_an_edit_changes_nothing():
    weights = []
    for padding in (0, 3):
        model = build("gpt2")
        editor = make(model, LAYERS["gpt2"])
        editor.edit(batch_of([*CAPITAL, 2, 3], [20], padding=padding))
        weights.append(editor.weight.detach().clone())
    assert torch.equal(*weights)


def test_contexts_that_do_not_fit_are_left_out_with_a_warning(caplog):
    model = build("gpt2")
    editor = make(model, LAYERS["gpt2"], context_lengths=(3, 5))
    editor.edit(batch_of([*CAPITAL, 2, 3] * 11, [20]))  # 46 of 48 positions
    assert "too long for contexts of 3" in caplog.text
    assert "too long for contexts of 5" in caplog.text


def test_a_model_without_a_start_token_can_be_edited():
    model = build("llama")
    model.config.bos_token_id = model.config.eos_token_id = None
    editor = make(model, LAYERS["llama"])
    assert editor.start_token is None
    assert len(editor.edit(batch_of([*CAPITAL, 2, 3], [20])).losses) == 20


def test_released_is_what_romes_own_code_does():
    released = RomeHyperparameters(rules="released")
    assert (released.steps, released.exact_for, released.early_stop) == (19, "prompt", "loss")
    assert RomeHyperparameters().model_dump()["context_lengths"] == (5, 10)


# Refusals


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_only_causal_language_models_are_edited(make_case, kind):
    case = make_case(kind)
    with pytest.raises(EditorError, match=r"edits causal language models, and .* is not one"):
        create_editor("rome", case.model, case.layer)


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        (batch_of([2, 3, 4], [20], (3, 9)), r"subject \[3, 9\) is not a span"),
        (batch_of([2, 3, 4], [20], (3, 3)), r"subject \[3, 3\) is not a span"),
        (batch_of([2, 3, 4], [20], (-2, 1), padding=1), r"subject \[-1, 2\) is not a span"),
        (batch_of([2, 3, 4], [20], (-1, 2), padding=1), r"subject \[0, 3\) is not a span"),
        (batch_of([2, 3, 4], [20], (3, 5)), "no target follows the edit's subject"),
        (batch_of([2, 3, 4], [], None), "has no target"),
        (EditBatch({"input_ids": torch.ones(2, 3).long()}), "a batch of one"),
    ],
)
def test_edits_without_sense_are_refused(batch, sentence):
    model = build("gpt2")
    editor = make(model, LAYERS["gpt2"])
    with pytest.raises(EditorError, match=sentence):
        editor.edit(batch)
    assert torch.equal(editor.weight, editor.original)


def test_a_covariance_that_does_not_fit_is_refused(tmp_path):
    model, layer = build("gpt2"), LAYERS["gpt2"]
    editor = make(model, layer, ridge=0.0)
    with pytest.raises(EditorError, match=r"the covariance is \(3, 3\)"):
        editor.covariance = torch.eye(3)
    few = torch.randn(5, 128).double()
    editor.covariance = few.T @ few / 5
    with pytest.raises(EditorError, match=r"the covariance is singular; .* ridge above 0"):
        editor.edit(batch_of([*CAPITAL, 2, 3], [20]))
    assert torch.equal(editor.weight, editor.original)
    assert make(model, layer, covariance=few.T @ few / 5, ridge=0.1).edit(
        batch_of([*CAPITAL, 2, 3], [20])
    )
    path = tmp_path / "covariance.safetensors"
    save_covariance(path, Covariance(torch.eye(128), layer, "m", "c", 1, 1))
    editor = create_editor("rome", model, layer, {"covariance": str(path)})
    assert torch.equal(editor.covariance, torch.eye(128))
    with pytest.raises(DataError, match="made for layer 'transformer"):
        create_editor("rome", model, "transformer.h.0.mlp.c_proj", {"covariance": str(path)})


def test_other_settings_that_do_not_fit_are_refused():
    model, layer = build("gpt2"), LAYERS["gpt2"]
    with pytest.raises(EditorError, match="none of the model's 40 tokens"):
        create_editor("rome", model, layer, {"essence_suffix": (40,)})
    editor = make(model, layer)
    with pytest.raises(EditorError, match="non-finite update and was skipped"):
        editor.write(torch.ones(128), torch.full((32,), torch.inf))
    assert torch.equal(editor.weight, editor.original)
