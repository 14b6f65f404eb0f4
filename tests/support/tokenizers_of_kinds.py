"""Tokenizers of every kind that models come with, trained on a few sentences."""

from __future__ import annotations

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from grace_bench.models.scratch import train_tokenizer

PAIRS = [
    ("Who wrote Emma?", "Jane Austen"),
    ("What is the capital of France?", "Paris"),
    ("Who wrote the long play about the river?", "Nobody knows"),
]
TEXTS = [f"{question} {answer}" for question, answer in PAIRS] * 3
BOS, EOS, PAD, UNK = "<s>", "</s>", "<pad>", "<unk>"


def _trained(model, trainer, normalizer=None, pre_tokenizer=None, decoder=None, template=None):
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.train_from_iterator(TEXTS, trainer)
    if template is not None:
        tokenizer.post_processor = _template(tokenizer, template)
    return tokenizer


def _template(tokenizer, template):
    special = [(t, tokenizer.token_to_id(t)) for t in template.split() if t != "$A"]
    return processors.TemplateProcessing(single=template, special_tokens=special)


def _bpe(size: int = 150, **options):
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[UNK, BOS, EOS, PAD], show_progress=False
    )
    return _trained(models.BPE(unk_token=UNK), trainer, **options)


def _unsplit(across_words: bool = False) -> Tokenizer:
    """Return merges of texts that are not split before, learnt within words as Llama's or not."""
    if across_words:
        learnt = _bpe(400, normalizer=normalizers.Replace(" ", "\u2581"))
    else:
        learnt = _bpe(pre_tokenizer=pre_tokenizers.Metaspace())
    tokenizer = Tokenizer(learnt.model)
    tokenizer.add_special_tokens([UNK, BOS, EOS, PAD])
    steps = [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def prepend() -> PreTrainedTokenizerFast:
    """As Llama 2 and Mistral: a normaliser puts the first space; the template is lost."""
    tokenizer = _unsplit()
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, unk_token=UNK
    )


def across() -> PreTrainedTokenizerFast:
    """Merges over the borders of words: tokens span the end of prompts."""
    tokenizer = _unsplit(across_words=True)
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, unk_token=UNK)


def metaspace() -> PreTrainedTokenizerFast:
    """As T5: its template ends texts."""
    tokenizer = _bpe(
        pre_tokenizer=pre_tokenizers.Metaspace(),
        decoder=decoders.Metaspace(),
        template="$A </s>",
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD, unk_token=UNK
    )


def metaspace_started() -> PreTrainedTokenizerFast:
    """As Llama's newer files: its template begins texts."""
    tokenizer = _unsplit()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizer.post_processor = _template(tokenizer, "<s> $A")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, unk_token=UNK
    )


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2: neither a start token nor padding."""
    return train_tokenizer("gpt2", TEXTS, 300)


def byte_level_chat() -> PreTrainedTokenizerFast:
    """As SmolLM2 and Qwen: a start token that its texts do not begin with."""
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level().backend_tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )


def word_piece() -> PreTrainedTokenizerFast:
    """As BERT, in lower case; a separator ends texts."""
    trainer = trainers.WordPieceTrainer(
        vocab_size=150,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
        show_progress=False,
    )
    tokenizer = _trained(
        models.WordPiece(unk_token="[UNK]"),
        trainer,
        normalizer=normalizers.BertNormalizer(),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
        decoder=decoders.WordPiece(),
        template="[CLS] $A [SEP]",
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def normalising() -> PreTrainedTokenizerFast:
    """As T5's and mT5's files: texts are rewritten (NFKC) before they are cut."""
    tokenizer = _bpe(
        normalizer=normalizers.NFKC(),
        pre_tokenizer=pre_tokenizers.Metaspace(),
        decoder=decoders.Metaspace(),
        template="$A </s>",
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, unk_token=UNK)


KINDS = {
    make.__name__: make
    for make in (
        *(prepend, across, metaspace, metaspace_started),
        *(byte_level, byte_level_chat, word_piece, normalising),
    )
}
