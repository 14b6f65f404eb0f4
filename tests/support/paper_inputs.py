"""The inputs of the paper's suites in miniature: its models' architectures, its files' forms.

    inputs = write_inputs(tmp_path)
    lines = inputs.overrides("t5-small-ssm-nq", "zsre") + ["stream.max_edits=5"]
    load_suite("config/suites/paper.yaml", overrides=lines)      # or under a suite's key `set`

Models are Hugging Face folders (safetensors, random weights) with tokenizers of their own; rows are
few and made up, enough for five edits of each task.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from grace_bench.models.scratch import train_tokenizer

MODELS = {"t5-small": "t5", "scotus-bert": "bert", "gpt2-xl": "gpt2"}
"""How the names of the paper's models begin, and which of ours takes their place."""

VOCABULARY = 400
ZSRE = "structured_zeroshot-dev-new_annotated_final.jsonl"
CITIES = ["Oslo", "Lima", "Quito", "Rome", "Accra", "Hanoi", "Riga", "Cairo", "Paris", "Delhi"]
TOPICS = ["taxes", "unions", "speech", "due process"]
NAMES = ["ada byron", "tim finchem", "jo marsh", "carl linnaeus , botanist"]


@dataclass(frozen=True)
class PaperInputs:
    """Where everything was written: `models/{t5,bert,gpt2}` and `data/`."""

    folder: Path

    def overrides(self, *names: str) -> list[str]:
        """Return the lines of a suite's `set` that put these inputs in the place of the real ones.

        Args:
            names: of models and data sets in the suite; they begin as those of `config/` do, such
                as "t5-small-ssm-nq-block-2" or "zsre-released".
        """
        return [line for name in names for line in self._of(name)]

    def model(self, kind: str) -> Path:
        """Return the folder of a model: "t5", "bert" or "gpt2"."""
        return self.folder / "models" / kind

    def data(self, name: str) -> Path:
        """Return a data file, or the folder of a data set."""
        return self.folder / "data" / name

    def _of(self, name: str) -> list[str]:
        kind = next((kind for start, kind in MODELS.items() if name.startswith(start)), None)
        if kind is not None:
            place = {"kind": "folder", "id": str(self.model(kind))}
            lines = [f"models.{name}.source={json.dumps(place)}"]
            if kind == "gpt2":  # of four blocks
                lines.append(f"models.{name}.layer=transformer.h.2.mlp.c_fc")
            return lines
        options = f"datasets.{name}.options"
        if name.startswith("zsre"):
            paths = {"edits": ZSRE, "upstream": "nq_train.json"}
        elif name.startswith("scotus"):
            paths = {"edits": "grace-scotus", "upstream": "grace-scotus"}
        else:
            paths = {"edits": "wikibio.json", "web": "web.jsonl"}
            paths["concepts"] = "wiki_bio_concepts.txt"
        lines = [f"{options}.{key}.path={self.data(path)}" for key, path in paths.items()]
        if name.startswith("zsre"):  # of twelve facts
            lines.append(f"{options}.edit_facts=4")
        return lines


def write_inputs(folder: Path) -> PaperInputs:
    """Write models and data files under `folder`; always the same ones."""
    inputs = PaperInputs(folder)
    folder.joinpath("data").mkdir(parents=True)
    zsre = [zsre_record(number) for number in range(12)]
    nq = {f"which is the city of number {n}": CITIES[n % 10] for n in range(40)}
    _write_lines(inputs.data(ZSRE), zsre)
    questions = {"questions": list(nq), "answers": list(nq.values())}
    inputs.data("nq_train.json").write_text(json.dumps(questions))
    passages = [passage(number) for number in range(4)]
    inputs.data("wikibio.json").write_text(json.dumps(passages))
    inputs.data("wiki_bio_concepts.txt").write_text("".join(f"{name}\n" for name in NAMES))
    web = [f"Text {n} of the web goes on\n\nand on about {CITIES[n % 10]}." for n in range(24)]
    _write_lines(inputs.data("web.jsonl"), [{"text": text} for text in web])
    cases = write_scotus(inputs.data("grace-scotus"))
    asked = [text for r in zsre for text in (r["input"], *r["filtered_rephrases"])]
    said = [p["gpt3_text"] + p["wiki_bio_text"] for p in passages]
    write_model(inputs.model("t5"), "t5", [*asked, *nq, *CITIES])
    write_model(inputs.model("bert"), "bert", cases)
    write_model(inputs.model("gpt2"), "gpt2", [*said, *web])
    return inputs


def zsre_record(number: int) -> dict:
    """Return a record of the paper's jsonl: a question with ten rephrasings."""
    asked = ["In which city is", "Where would one find", "What is the city of"]
    rephrased = [f"{asked[n % 3]} thing {number}, way {n}?" for n in range(10)]
    return {
        "id": f"r{number}",
        "input": f"Which city has thing {number}?",
        "output": [{"answer": f"{CITIES[number % 10]} {number}", "provenance": []}],
        "meta": {},
        "rephrases": rephrased,
        "filtered_rephrases": rephrased,
        "prediction": "Berne",
        "alternatives": ["Berne"],
    }


def passage(number: int) -> dict:
    """Return a record of the hub's form: the second and the last of four sentences are false."""
    name = NAMES[number].split()[0].title()
    said = [f"{name} was known.", f"{name} lived in Rome.", "That is so.", "It ended in 1900."]
    place = CITIES[number + 4]
    return {
        "gpt3_text": " ".join(said),
        "wiki_bio_text": f"{name} was well known. {name} lived in {place}. It ended well.",
        "gpt3_sentences": said,
        "annotation": ["accurate", "minor_inaccurate", "accurate", "major_inaccurate"],
        "wiki_bio_test_idx": 100 + number,
        "gpt3_text_samples": [],
    }


def write_scotus(folder: Path) -> list[str]:
    """Write `train.csv` and `test.csv` (text, label) and return the older opinions."""
    folder.mkdir()
    older = [(f"An older case on {TOPICS[n % 4]}, number {n}.", n % 4) for n in range(32)]
    later = [(f"A case of later terms, {n}, on {TOPICS[n // 2 % 4]}.", n % 4) for n in range(16)]
    for name, rows in (("train", older), ("test", later)):
        with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("text", "label"), *rows])
    return [text for text, _ in older]


def write_model(folder: Path, kind: str, texts: Iterable[str]) -> None:
    """Write a random model of an architecture, with a tokenizer trained on the texts."""
    tokenizer = train_tokenizer(kind, texts, VOCABULARY)
    torch.manual_seed(0)
    model = {"t5": _t5, "bert": _bert, "gpt2": _gpt2}[kind](len(tokenizer), tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _t5(size: int, tokenizer) -> PreTrainedModel:
    """Build T5 v1.1 with the paper's eight blocks in the encoder, so that block 4 is there."""
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=size,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=8,
            num_decoder_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
    )


def _bert(size: int, tokenizer) -> PreTrainedModel:
    """Build BERT without a classification head, as the hub has it; twelve blocks."""
    return BertForMaskedLM(
        BertConfig(
            vocab_size=size,
            hidden_size=16,
            num_hidden_layers=12,
            num_attention_heads=2,
            intermediate_size=32,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _gpt2(size: int, tokenizer) -> PreTrainedModel:
    """Build GPT-2 of four blocks; the paper's layers do not exist in it."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=size,
            n_embd=16,
            n_layer=4,
            n_head=2,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def _write_lines(path: Path, rows: Iterable[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
