"""Models and tokenizers made from nothing."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from grace_bench.errors import ConfigError
from grace_bench.models.scratch import build_model, train_tokenizer
from grace_bench.suite.schema import ScratchSource

TEXTS = ["What is the capital of France?", "Paris", "It's 3.14 — naïve 日本 🦀, or  two  spaces\n"]
SMALL = {
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
    "bert": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    },
}
ARCHITECTURES = sorted(SMALL)


def source(architecture: str, **shape) -> ScratchSource:
    return ScratchSource(
        kind="scratch", architecture=architecture, shape={**SMALL[architecture], **shape}
    )


def task_of(architecture: str) -> str:
    return "classification" if architecture == "bert" else "question_answering"


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def tokenizer(architecture):
    return train_tokenizer(architecture, TEXTS, 320)


def test_text_comes_back_from_its_tokens_even_unseen_text(tokenizer):
    for text in (*TEXTS, "Ünseen Ж words!", "tabs\tand 'quotes'"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True).removeprefix(" ") == text
        assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids


def test_a_tokenizer_is_the_same_after_saving(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.special_tokens_map == tokenizer.special_tokens_map


def test_the_same_texts_give_the_same_tokenizer(architecture, tokenizer):
    again = train_tokenizer(architecture, iter(TEXTS), 320)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_sequences_end_as_the_architecture_expects(architecture, tokenizer):
    ids = tokenizer("Paris")["input_ids"]
    plain = tokenizer("Paris", add_special_tokens=False)["input_ids"]
    ends = {
        "t5": [*plain, tokenizer.eos_token_id],
        "gpt2": plain,
        "bert": [tokenizer.cls_token_id, *plain, tokenizer.sep_token_id],
    }
    assert ids == ends[architecture]


def test_weights_depend_on_the_seed_alone(architecture, tokenizer):
    def weights(seed: int) -> dict[str, torch.Tensor]:
        model = build_model(
            source(architecture), task_of(architecture), tokenizer, ["a", "b"], seed
        )
        return model.state_dict()

    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    first = weights(0)
    assert torch.equal(torch.rand(1), expected)  # the global generator is where it was
    again, other = weights(0), weights(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_classes_get_their_names(tokenizer, architecture):
    if architecture != "bert":
        return
    model = build_model(source("bert"), "classification", tokenizer, ["x", "y", "z"], 0)
    assert model.config.id2label == {0: "x", 1: "y", 2: "z"}
    assert model.classifier.out_features == 3


@pytest.mark.parametrize(
    ("name", "shape", "sentence"),
    [
        ("t5", {"d_modl": 16}, "t5 shape: unknown key 'd_modl'; did you mean 'd_model'?"),
        ("gpt2", {"n_embd": "big"}, "gpt2 shape: no model can be built from it ("),
        ("gpt2", {"n_embd": 15}, "`embed_dim` must be divisible by num_heads"),
        ("t5", {"d_model": -1}, "t5 shape: no model can be built from it ("),
        ("bert", {"hidden_size": 15}, "bert shape: no model can be built from it ("),
        ("t5", {"feed_forward_proj": "gated-foo"}, "t5 shape: no model can be built from it ("),
    ],
)
def test_a_shape_that_makes_no_model_is_one_sentence(name, shape, sentence):
    tokenizer = train_tokenizer(name, TEXTS, 320)
    with pytest.raises(ConfigError) as caught:
        build_model(source(name, **shape), task_of(name), tokenizer, None, 0)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
