"""Very small random models with tokenizers of their own, one of each architecture."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from grace_bench.models.scratch import build_model, train_tokenizer
from grace_bench.suite.schema import ScratchSource

SHAPES = {
    "t5": {
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 2,
        "dropout_rate": 0.0,
    },
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "bert": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
    },
}


def make(
    architecture: str, task: str, texts: Sequence[str], classes: list[str] | None = None
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Return a model, always with the same weights, and a tokenizer that is trained on `texts`."""
    tokenizer = train_tokenizer(architecture, texts, 330)
    source = ScratchSource(kind="scratch", architecture=architecture, shape=SHAPES[architecture])
    return build_model(source, task, tokenizer, classes, seed=1).eval(), tokenizer
