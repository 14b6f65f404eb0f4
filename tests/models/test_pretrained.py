"""Models as people have them: in shards, with classes of their own, with odd files, damaged."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import make

from grace_bench.errors import ModelError
from grace_bench.models.loading import load_pretrained, weights_hash
from grace_bench.models.scratch import train_tokenizer
from grace_bench.suite.schema import PretrainedSource
from grace_bench.tasks.kinds.question_answering import QuestionAnswering

TEXTS = ["Who wrote Emma? Jane Austen", "Capital of France? Paris", "a b c d e f g"] * 3
QUESTIONS = [
    {"example_id": str(i), "fact_id": str(i), "text": text, "label": "x"}
    for i, text in enumerate(("Who wrote Emma?", "Capital of France?"))
]


def save_gpt2(folder, change=None, **options):
    tokenizer = train_tokenizer("gpt2", TEXTS, 300)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eos_token_id)
    shape = {"n_layer": 2, "n_head": 2, "initializer_range": 0.5}
    model = make("gpt2", vocab_size=len(tokenizer), **shape, **ends)
    if change is not None:
        with torch.no_grad():
            change(model)
    model.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    return model


def load(folder, task="question_answering", labels=None, **changes):
    source = PretrainedSource(kind="folder", id=str(folder), **changes)
    return load_pretrained(source, task, labels)


def test_weights_in_several_files_are_loaded(tmp_path):
    saved = save_gpt2(tmp_path, max_shard_size="10KB")
    assert not (tmp_path / "model.safetensors").exists()
    model, _ = load(tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), saved.parameters(), strict=True)
    )


def test_the_hash_of_several_files_is_over_all_of_them(tmp_path):
    save_gpt2(tmp_path, max_shard_size="10KB")
    index = tmp_path / "model.safetensors.index.json"
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    sha256 = weights_hash([index, *shards])
    load(tmp_path, sha256=sha256)
    content = shards[-1].read_bytes()
    shards[-1].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelError, match="sha256 is"):
        load(tmp_path, sha256=sha256)


@pytest.mark.parametrize("name", ["../../other.safetensors", "", 3])
def test_an_index_that_leads_elsewhere_is_refused(tmp_path, name):
    save_gpt2(tmp_path, max_shard_size="10KB")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"wte": name}}))
    with pytest.raises(ModelError, match="no index of weights"):
        load(tmp_path, sha256="0" * 64)


def test_a_file_of_decoding_rules_moves_no_answer(tmp_path):
    plain, odd = tmp_path / "plain", tmp_path / "odd"
    save_gpt2(plain)
    save_gpt2(odd)
    rules = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "min_new_tokens": 12}
    (odd / "generation_config.json").write_text(json.dumps(rules))
    said = []
    for folder in (plain, odd):
        model, tokenizer = load(folder)
        task = QuestionAnswering(tokenizer, model.config, max_length=64)
        said.append([p.text for p in task.predict(model.eval(), QUESTIONS)])
    assert said[0] == said[1]
    model.save_pretrained(tmp_path / "again")
    kept = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert not kept.keys() & rules.keys()


@pytest.mark.parametrize(
    "missing", [("decoder_start_token_id",), ("decoder_start_token_id", "pad_token_id")]
)
def test_a_t5_that_does_not_say_how_answers_begin_begins_them_with_its_padding(tmp_path, missing):
    tokenizer = train_tokenizer("t5", TEXTS, 300)
    pads = dict.fromkeys(("decoder_start_token_id", "pad_token_id"), tokenizer.pad_token_id)
    whole, bare = tmp_path / "whole", tmp_path / "bare"
    model = make("t5", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **pads)
    for folder in (whole, bare):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    (bare / "generation_config.json").unlink()
    written = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(
        json.dumps({key: value for key, value in written.items() if key not in missing})
    )
    said = []
    for folder in (whole, bare):
        model, tokenizer = load(folder)
        task = QuestionAnswering(tokenizer, model.config, max_length=64)
        said.append([(p.text, p.scores["loss"]) for p in task.predict(model.eval(), QUESTIONS)])
    assert said[0] == said[1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    def spoil(model):
        model.transformer.wte.weight[5, 3] = value

    save_gpt2(tmp_path, spoil)
    with pytest.raises(
        ModelError, match=r"weight 'transformer\.wte\.weight' has values that are not"
    ):
        load(tmp_path)


def save_classifier(folder, names):
    tokenizer = train_tokenizer("bert", TEXTS, 300)
    classes = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    shape = {"vocab_size": len(tokenizer), "num_labels": len(names), **classes}
    make("bert", **shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_a_trained_classifier_keeps_the_order_of_its_classes(tmp_path):
    save_classifier(tmp_path, ["law", "art"])
    model, _ = load(tmp_path, "classification", ["art", "law"])
    assert model.config.id2label == {0: "law", 1: "art"}


def test_a_classifier_of_other_classes_is_refused_unless_it_is_trained(tmp_path):
    save_classifier(tmp_path, ["law", "art"])
    with pytest.raises(ModelError, match="sorts into law, art, the data set into art, music"):
        load(tmp_path, "classification", ["art", "music"])
    source = PretrainedSource(kind="folder", id=str(tmp_path))
    model, _ = load_pretrained(source, "classification", ["art", "music"], trains=True)
    assert model.config.id2label == {0: "art", 1: "music"}
