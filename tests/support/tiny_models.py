"""Tiny random models of every kind, for tests of what must hold for all of them."""

from __future__ import annotations

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

VOCABULARY = 40


def t5() -> nn.Module:
    """Build three encoder blocks and two of a decoder."""
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=16,
            d_kv=4,
            d_ff=24,
            num_layers=3,
            num_decoder_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    )


def bert() -> nn.Module:
    """Build a classifier of four blocks."""
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=24,
            num_labels=3,
        )
    )


def gpt2() -> nn.Module:
    """Build a language model of four blocks."""
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=4, n_head=4, n_positions=64)
    )


MODERN = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
GROUPED = {**MODERN, "num_key_value_heads": 2}


def llama() -> nn.Module:
    """Build a language model of four blocks with grouped queries."""
    return LlamaForCausalLM(LlamaConfig(**GROUPED))


def qwen() -> nn.Module:
    """Build the same with biases in its attention."""
    return Qwen2ForCausalLM(Qwen2Config(**GROUPED))


def mistral() -> nn.Module:
    """Build the same with attention over a window of four tokens."""
    return MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=4))


def neox() -> nn.Module:
    """Build a language model whose blocks add attention and MLP in parallel."""
    return GPTNeoXForCausalLM(GPTNeoXConfig(**MODERN))


MODELS = {
    "t5-encoder": (t5, "encoder.block.1.layer.1.DenseReluDense.wo"),
    "t5-decoder": (t5, "decoder.block.1.layer.2.DenseReluDense.wo"),
    "bert": (bert, "bert.encoder.layer.2.output.dense"),
    "gpt2": (gpt2, "transformer.h.2.mlp.c_fc"),
    "llama": (llama, "model.layers.2.mlp.down_proj"),
    "qwen": (qwen, "model.layers.2.mlp.down_proj"),
    "mistral": (mistral, "model.layers.2.mlp.down_proj"),
    "neox": (neox, "gpt_neox.layers.2.mlp.dense_4h_to_h"),
}
"""How to build each, and a layer to edit with blocks before and behind it."""


def build(kind: str) -> tuple[nn.Module, str]:
    """Return a model, always with the same weights, and its layer."""
    make, layer = MODELS[kind]
    torch.manual_seed(0)
    return make().eval(), layer


def batch(kind: str, number: int = 0) -> dict[str, torch.Tensor]:
    """Return the arguments of one example: five tokens, and a label of three or a class."""
    prompt, answer = [3 + number, 9, 5, 11, 6], [7 + number, 12, 1]
    if kind == "bert":
        return {"input_ids": torch.tensor([prompt]), "labels": torch.tensor([number % 3])}
    if kind.startswith("t5"):
        return {"input_ids": torch.tensor([prompt]), "labels": torch.tensor([answer])}
    labels = [[-100] * len(prompt) + answer]
    return {"input_ids": torch.tensor([prompt + answer]), "labels": torch.tensor(labels)}
