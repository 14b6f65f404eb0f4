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
MODERN = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4,
}  # fmt: skip
GROUPED = {**MODERN, "num_key_value_heads": 2}
T5 = {
    "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4,
    "feed_forward_proj": "gated-gelu", "dropout_rate": 0.0, "decoder_start_token_id": 0,
}  # fmt: skip
ARCHITECTURES = {
    "t5": (T5ForConditionalGeneration, T5Config, T5),
    "bert": (BertForSequenceClassification, BertConfig, {**MODERN, "num_labels": 3}),
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config,
        {"n_embd": 16, "n_layer": 4, "n_head": 4, "n_positions": 64},
    ),
    "llama": (LlamaForCausalLM, LlamaConfig, GROUPED),
    "qwen": (Qwen2ForCausalLM, Qwen2Config, GROUPED),  # with biases in its attention
    "mistral": (MistralForCausalLM, MistralConfig, {**GROUPED, "sliding_window": 4}),
    "neox": (GPTNeoXForCausalLM, GPTNeoXConfig, MODERN),  # attention and MLP in parallel
}


def make(architecture: str, seed: int = 0, model_class: type | None = None, **shape) -> nn.Module:
    """Return a random model; `shape` overrides its configuration."""
    kind, config, defaults = ARCHITECTURES[architecture]
    torch.manual_seed(seed)
    config = config(**{"vocab_size": VOCABULARY, **defaults, **shape})
    return (model_class or kind)(config).eval()


MODELS = {
    "t5-encoder": ("t5", "encoder.block.1.layer.1.DenseReluDense.wo"),
    "t5-decoder": ("t5", "decoder.block.1.layer.2.DenseReluDense.wo"),
    "bert": ("bert", "bert.encoder.layer.2.output.dense"),
    "gpt2": ("gpt2", "transformer.h.2.mlp.c_fc"),
    "llama": ("llama", "model.layers.2.mlp.down_proj"),
    "qwen": ("qwen", "model.layers.2.mlp.down_proj"),
    "mistral": ("mistral", "model.layers.2.mlp.down_proj"),
    "neox": ("neox", "gpt_neox.layers.2.mlp.dense_4h_to_h"),
}
"""Architectures, and a layer to edit with blocks before and after it."""


def build(kind: str) -> tuple[nn.Module, str]:
    """Return a model, always with the same weights, and its layer."""
    architecture, layer = MODELS[kind]
    return make(architecture), layer


def batch(kind: str, number: int = 0) -> dict[str, torch.Tensor]:
    """Return the arguments of one example: five tokens, and a label of three or a class."""
    prompt, answer = [3 + number, 9, 5, 11, 6], [7 + number, 12, 1]
    if kind == "bert":
        return {"input_ids": torch.tensor([prompt]), "labels": torch.tensor([number % 3])}
    if kind.startswith("t5"):
        return {"input_ids": torch.tensor([prompt]), "labels": torch.tensor([answer])}
    labels = [[-100] * len(prompt) + answer]
    return {"input_ids": torch.tensor([prompt + answer]), "labels": torch.tensor(labels)}
