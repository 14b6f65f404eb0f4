"""Weights in the form of GGUF files, and tokenizers that lie elsewhere than the weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from grace_bench.errors import ModelError
from grace_bench.models.loading import load_pretrained
from grace_bench.store.files import sha256_of
from grace_bench.suite.schema import PretrainedSource

TOKENS = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "he", "hel"]
MERGES = ["h e", "he l"]
SHAPE = {
    "vocab_size": len(TOKENS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder rows of a query or key projection as GGUF files have them."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


@pytest.fixture(scope="module")
def tiny() -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A Llama-like model of 8-bit weights in one GGUF file."""
    path = tmp_path_factory.mktemp("gguf")
    writer = GGUFWriter(path / "tiny.gguf", "llama")
    writer.add_context_length(SHAPE["max_position_embeddings"])
    writer.add_embedding_length(SHAPE["hidden_size"])
    writer.add_block_count(SHAPE["num_hidden_layers"])
    writer.add_feed_forward_length(SHAPE["intermediate_size"])
    writer.add_head_count(SHAPE["num_attention_heads"])
    writer.add_head_count_kv(SHAPE["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(tiny.config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for name, tensor in tiny.state_dict().items():
        weight = tensor.numpy()
        if name == "lm_head.weight":
            continue  # shared with the embedding
        if "q_proj" in name or "k_proj" in name:
            heads = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
            weight = interleaved(weight, SHAPE[heads])
        if weight.ndim == 1:
            writer.add_tensor(gguf_name(name), weight)
            continue
        kind = GGMLQuantizationType.Q8_0
        writer.add_tensor(gguf_name(name), quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(name: str) -> str:
    if not name.startswith("model.layers."):
        return {
            "model.embed_tokens.weight": "token_embd.weight",
            "model.norm.weight": "output_norm.weight",
        }[name]
    _, _, block, rest = name.split(".", 3)
    return f"blk.{block}.{NAMES[rest.removesuffix('.weight')]}.weight"


def source(folder, **changes) -> PretrainedSource:
    return PretrainedSource(**{"kind": "folder", "id": str(folder), "gguf": "tiny.gguf", **changes})


def test_quantised_weights_give_the_model_they_came_from(folder, tiny):
    model, tokenizer = load_pretrained(source(folder), "question_answering", None)
    ids = torch.tensor([tokenizer("hello")["input_ids"]])
    assert tokenizer.convert_ids_to_tokens(ids[0])[-3:] == ["hel", "l", "o"]
    with torch.no_grad():
        difference = model(ids).logits - tiny(ids).logits
    assert difference.abs().max() < 0.02  # 8 bits a weight
    assert model.dtype == torch.float32


def test_a_dequantised_model_can_be_saved_and_read_again(folder, tmp_path):
    model, _ = load_pretrained(source(folder), "language_modelling", None)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_the_hash_is_that_of_the_gguf_file(folder):
    right = sha256_of(folder / "tiny.gguf")
    load_pretrained(source(folder, sha256=right), "language_modelling", None)
    with pytest.raises(ModelError, match=r"tiny\.gguf: sha256 is .* the config expects 0000"):
        load_pretrained(source(folder, sha256="0" * 64), "language_modelling", None)


def test_a_missing_gguf_file_is_one_sentence(folder):
    with pytest.raises(ModelError, match=r"holds no other\.gguf; point the model's source"):
        load_pretrained(source(folder, gguf="other.gguf"), "language_modelling", None)


@pytest.mark.parametrize("kept", [0, 10, 700, 2000, 9000])
def test_a_gguf_file_that_is_cut_short_is_one_sentence(folder, tmp_path, kept):
    (tmp_path / "tiny.gguf").write_bytes((folder / "tiny.gguf").read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"cannot be loaded: ") as caught:
        load_pretrained(source(tmp_path), "language_modelling", None)
    assert "\n" not in str(caught.value)


def test_the_tokenizer_may_lie_elsewhere_than_the_weights(folder, tmp_path):
    model, tokenizer = load_pretrained(source(folder), "language_modelling", None)
    model.save_pretrained(tmp_path / "weights")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    apart = PretrainedSource(
        kind="folder", id=str(tmp_path / "weights"), tokenizer=str(tmp_path / "tokenizer")
    )
    _, found = load_pretrained(apart, "language_modelling", None)
    assert found("hello")["input_ids"] == tokenizer("hello")["input_ids"]


def test_a_hub_model_that_is_not_in_the_cache_says_how_to_reach_the_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = PretrainedSource(kind="hub", id="nobody/no-such-model", revision="main")
    with pytest.raises(ModelError, match=r"cannot be loaded: .*\(HF_HUB_OFFLINE=0\)"):
        load_pretrained(source, "question_answering", None)
