"""The second moment of a layer's inputs, and its files."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
from tiny_models import make
from transformers import BertModel

from grace_bench.errors import DataError, ModelError
from grace_bench.models.architecture import find_layer
from grace_bench.models.covariance import (
    Covariance,
    compute_covariance,
    load_covariance,
    save_covariance,
)

TEXTS = ["a fox", "the quick brown fox", "", "jumps", "over the lazy dog and away"]
LAYERS = {
    "gpt2": "transformer.h.1.mlp.c_proj",
    "llama": "model.layers.1.mlp.down_proj",
    "bert": "encoder.layer.1.output.dense",
    "t5": "encoder.block.1.layer.1.DenseReluDense.wo",
}


def ids_of(text: str) -> list[int]:
    return [ord(letter) % 30 for letter in text]


BLOCKS = {"num_hidden_layers": 2, "num_attention_heads": 2}
SHAPES = {
    "gpt2": {"n_layer": 2, "n_head": 2, "n_positions": 32},
    "llama": {**BLOCKS, "num_key_value_heads": 2, "max_position_embeddings": 32},
    "bert": {**BLOCKS, "model_class": BertModel},
    "t5": {"d_kv": 8, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.1},
}


def build(kind: str):
    return make(kind, vocab_size=30, **SHAPES[kind])


def compute(model, layer, texts=TEXTS, **options):
    return compute_covariance(model, ids_of, layer, texts, model_hash="abc", **options)


@torch.no_grad()
def direct(model, layer, texts):
    """Text by text, through the whole model."""
    keys = []
    hook = find_layer(model, layer).register_forward_pre_hook(lambda _, a: keys.append(a[0][0]))
    for text in filter(None, texts):
        ids = torch.tensor([ids_of(text)])
        more = {"decoder_input_ids": ids[:, :1]} if model.config.is_encoder_decoder else {}
        model(input_ids=ids, **more)
    hook.remove()
    stacked = torch.cat(keys).double()
    return sum(torch.outer(key, key) for key in stacked) / len(stacked)


@pytest.mark.parametrize("kind", LAYERS)
def test_it_is_the_mean_over_all_tokens(kind):
    model = build(kind)
    found = compute(model, LAYERS[kind], batch_size=3)
    assert found.n_tokens == sum(map(len, TEXTS))
    assert found.n_texts == len(TEXTS)
    assert found.dtype == "float64"
    wanted = direct(model, LAYERS[kind], TEXTS)
    assert torch.allclose(found.second_moment, wanted, rtol=1e-5, atol=1e-8)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_batch_size_and_padding_change_nothing(kind):
    model = build(kind)
    alone = compute(model, LAYERS[kind], batch_size=1)
    for size in (2, 5, 50):
        together = compute(model, LAYERS[kind], batch_size=size)
        assert together.n_tokens == alone.n_tokens
        assert together.corpus == alone.corpus
        assert torch.allclose(together.second_moment, alone.second_moment, rtol=1e-5, atol=1e-8)


def test_single_precision_agrees():
    model = build("gpt2")
    single = compute(model, LAYERS["gpt2"], dtype=torch.float32)
    double = compute(model, LAYERS["gpt2"])
    assert single.dtype == "float32"
    assert torch.allclose(single.second_moment.double(), double.second_moment, rtol=1e-4, atol=1e-7)


def test_long_texts_go_on_as_further_sequences():
    model = build("gpt2")
    text = "the quick brown fox jumps over the lazy dog"
    found = compute(model, LAYERS["gpt2"], [text], max_length=10)
    pieces = [text[i : i + 10] for i in range(0, len(text), 10)]
    assert found.n_tokens == len(text)
    assert torch.allclose(
        found.second_moment, direct(model, LAYERS["gpt2"], pieces), rtol=1e-5, atol=1e-8
    )
    assert compute(model, LAYERS["gpt2"], [text]).n_tokens == len(text)  # 32 positions


def test_the_corpus_hash_tells_texts_apart():
    model = build("gpt2")
    hashes = {
        compute(model, LAYERS["gpt2"], texts).corpus
        for texts in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc"])
    }
    assert len(hashes) == 4


def test_texts_are_read_once_and_may_be_any_iterable():
    model = build("gpt2")
    found = compute(model, LAYERS["gpt2"], iter(TEXTS))
    assert torch.equal(found.second_moment, compute(model, LAYERS["gpt2"]).second_moment)


def test_a_file_gives_back_what_was_saved(tmp_path):
    path = tmp_path / "folder" / "covariance.safetensors"
    covariance = compute(build("gpt2"), LAYERS["gpt2"])
    save_covariance(path, covariance)
    loaded = load_covariance(path, layer="transformer.h[1].mlp.c_proj.weight", model="abc", d_in=64)
    assert torch.equal(loaded.second_moment, covariance.second_moment)
    for name in ("layer", "model", "corpus", "n_texts", "n_tokens", "dtype"):
        assert getattr(loaded, name) == getattr(covariance, name)
    first = path.read_bytes()
    save_covariance(path, loaded)
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (
            {"layer": "transformer.h.0.mlp.c_proj"},
            "made for layer 'transformer.h.1.mlp.c_proj', no",
        ),
        ({"model": "def"}, "made for model 'abc', not for 'def'"),
        ({"d_in": 32}, "made for width '64', not for '32'"),
    ],
)
def test_a_file_for_something_else_is_refused(tmp_path, wanted, sentence):
    path = tmp_path / "covariance.safetensors"
    save_covariance(path, compute(build("gpt2"), LAYERS["gpt2"]))
    with pytest.raises(DataError, match=sentence):
        load_covariance(path, **wanted)


def test_files_that_are_no_covariance_are_refused(tmp_path):
    path = tmp_path / "covariance.safetensors"
    with pytest.raises(DataError, match="no such file"):
        load_covariance(path)
    save_covariance(path, compute(build("gpt2"), LAYERS["gpt2"]))
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(DataError, match="not a complete covariance"):
        load_covariance(path)
    path.write_bytes(safetensors.torch.save({"second_moment": torch.eye(3)}))
    with pytest.raises(DataError, match="no covariance header"):
        load_covariance(path)


@pytest.mark.parametrize(
    ("matrix", "changes", "sentence"),
    [
        (torch.ones(3, 4), {}, r"its matrix is \(3, 4\)"),
        (torch.eye(3, dtype=torch.float16), {}, "float16"),
        (torch.eye(3) * torch.nan, {}, "not finite"),
        (torch.eye(3), {"format": 2}, "reads format 1 only"),
        (torch.eye(3), {"n_tokens": "many"}, "no usable 'n_tokens'"),
    ],
)
def test_damaged_contents_are_refused(tmp_path, matrix, changes, sentence):
    header = {
        "format": 1, "layer": "l", "model": "m", "corpus": "c", "n_texts": 1, "n_tokens": 2,
        **changes,
    }  # fmt: skip
    path = tmp_path / "covariance.safetensors"
    metadata = {"grace_bench.covariance": json.dumps(header)}
    path.write_bytes(safetensors.torch.save({"second_moment": matrix}, metadata=metadata))
    with pytest.raises(DataError, match=sentence):
        load_covariance(path)


def test_what_has_no_covariance_is_refused():
    model = build("gpt2")
    with pytest.raises(DataError, match="the 2 texts for a covariance have no token"):
        compute(model, LAYERS["gpt2"], ["", ""])
    with pytest.raises(ModelError, match="did you mean"):
        compute(model, "transformer.h.1.mlp.c_prj")
    with pytest.raises(ModelError, match="which cannot be edited"):
        compute(model, "transformer.h.1.mlp")
    with pytest.raises(ModelError, match="float32 or float64"):
        compute(model, LAYERS["gpt2"], dtype=torch.bfloat16)
    with pytest.raises(ModelError, match="model's 32 positions"):
        compute(model, LAYERS["gpt2"], max_length=33)
    with pytest.raises(ModelError, match="does not see the tokens"):
        compute(build("bert"), "pooler.dense")
    with pytest.raises(ModelError, match="from input ids alone"):
        compute(build("t5"), "decoder.block.1.layer.2.DenseReluDense.wo")
    with torch.no_grad():
        find_layer(model, "transformer.h.0.mlp.c_proj").weight.fill_(torch.inf)
    with pytest.raises(ModelError, match="not finite"):
        compute(model, LAYERS["gpt2"])


def test_the_type_of_the_sums_is_that_of_the_matrix():
    covariance = Covariance(torch.eye(2), "layer", "model", "corpus", 1, 1)
    assert covariance.dtype == "float32"
