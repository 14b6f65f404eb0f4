"""Build small models from a configuration, and train a byte-level BPE tokenizer for each."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    BertConfig,
    GPT2Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

from grace_bench.errors import ConfigError, unknown_name
from grace_bench.models.loading import model_class
from grace_bench.suite.schema import ScratchSource

CONFIGS: dict[str, type[PretrainedConfig]] = {
    "t5": T5Config,
    "gpt2": GPT2Config,
    "bert": BertConfig,
}
SPECIAL_TOKENS = {
    # In the order of their ids.
    "t5": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    "gpt2": {"eos_token": "<|endoftext|>"},
    "bert": {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
    },
}


def train_tokenizer(
    architecture: str, texts: Iterable[str], vocabulary_size: int
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with the special tokens the architecture uses."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    special = SPECIAL_TOKENS[architecture]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=architecture != "gpt2")
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(special.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if architecture == "t5":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
        )
    elif architecture == "bert":
        ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=ends
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **special, clean_up_tokenization_spaces=False
    )


def build_model(
    source: ScratchSource,
    task: str,
    tokenizer: PreTrainedTokenizerFast,
    labels: list[str] | None,
    seed: int,
) -> nn.Module:
    """Return a randomly initialised model; its weights depend only on `seed`.

    Raises:
        ConfigError: `source.shape` has a key that the architecture's configuration lacks, or values
            that no model can have.
    """
    schema = CONFIGS[source.architecture]
    known = set(schema().to_dict())
    for key in source.shape:
        if key not in known:
            raise ConfigError(unknown_name("key", key, known, f"{source.architecture} shape"))
    settings = {**source.shape, "vocab_size": len(tokenizer)}
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    settings |= {
        "t5": {"pad_token_id": pad, "eos_token_id": end, "decoder_start_token_id": pad},
        "gpt2": {"bos_token_id": end, "eos_token_id": end},
        "bert": {"pad_token_id": pad},
    }[source.architecture]
    if labels:
        settings |= {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
        }
    try:
        config = schema(**settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return model_class(task, config.is_encoder_decoder).from_config(config)
    except (ValueError, TypeError, KeyError, RuntimeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{source.architecture} shape: no model can be built from it ({reason})."
        ) from error
