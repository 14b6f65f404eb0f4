"""Inputs of very small runs: six facts to edit on a tiny T5 or GPT-2, prepared in a second."""

from __future__ import annotations

from pathlib import Path

from grace_bench.datasets.base import BuiltDataset, DatasetBuilder, prepare
from grace_bench.datasets.options import DatasetOptions
from grace_bench.steps.baseline import run_baseline
from grace_bench.steps.model import prepare_model
from grace_bench.suite.schema import DatasetConfig, ModelConfig, RunSpec

CITIES = ["Paris", "Rome", "Madrid", "Lima", "Oslo", "Cairo", "Quito", "Tokyo"]
LANDS = ["France", "Italy", "Spain", "Peru", "Norway", "Egypt", "Ecuador", "Japan"]


def row(role: str, number: int, text: str, label: str, fact: str) -> dict[str, str]:
    return {"example_id": f"{role}/{number}", "fact_id": fact, "text": text, "label": label}


class Capitals(DatasetBuilder[DatasetOptions]):
    """Six facts to edit, two phrasings each, one more of each held out."""

    name = "capitals"
    options_class = DatasetOptions

    def build(self) -> BuiltDataset:
        pairs = list(zip(LANDS, CITIES, strict=True))
        wrong = list(zip(LANDS, reversed(CITIES), strict=True))[:6]
        edits = [
            row("edits", 2 * i + j, question.format(land), city, f"new/{land}") | {"subject": land}
            for i, (land, city) in enumerate(wrong)
            for j, question in enumerate(("Capital of {} now?", "Name the new capital of {}."))
        ]
        roles = {
            "train": [
                row("train", i, f"What is the capital of {land}?", city, f"old/{land}")
                for i, (land, city) in enumerate(pairs)
            ],
            "upstream": [
                row("upstream", i, f"Which is the capital of {land}?", city, f"old/{land}")
                for i, (land, city) in enumerate(pairs[:5])
            ],
            "edits": edits,
            "holdout": [
                row("holdout", i, f"The capital of {land} is now?", city, f"new/{land}")
                for i, (land, city) in enumerate(wrong)
            ],
            "accurate": [
                row("accurate", i, f"In {land}, the capital was?", city, f"old/{land}")
                for i, (land, city) in enumerate(pairs[:3])
            ],
        }
        return BuiltDataset(roles, sources=[])


MODEL = {
    "name": "tiny",
    "label": "Tiny",
    "source": {
        "kind": "scratch",
        "architecture": "t5",
        "vocabulary_size": 320,
        "shape": {
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 32,
            "num_layers": 2,
            "num_decoder_layers": 1,
            "num_heads": 2,
            "dropout_rate": 0.0,
        },
    },
    "layer": "encoder.block.0.layer.1.DenseReluDense.wo",
    "max_length": 48,
    "training": {"steps": 5, "learning_rate": 1e-3, "batch_size": 4, "seed": 0},
}
CAUSAL_MODEL = MODEL | {
    "name": "tiny-causal",
    "source": {
        "kind": "scratch",
        "architecture": "gpt2",
        "vocabulary_size": 320,
        "shape": {
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 64,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
    },
    "layer": "transformer.h.0.mlp.c_proj",
}
DATASET = {"name": "qa", "label": "QA", "task": "question_answering", "builder": "facts_qa"}


WIDE = {"steps": 2, "radius": 30.0}
"""Hyperparameters of GRACE under which keys answer more than their own edits."""

SHORT_MEND = {
    "training_steps": 2,
    "accumulate": 2,
    "check_every": 1,
    "checks": 2,
    "held_out": 0.4,
    "normalise_over": 4,
    "rank": 4,
}
"""Hyperparameters of MEND that train it for a second."""


def spec(editor: str = "ft", seed: int = 0, hyperparameters=None, **changes) -> RunSpec:
    if hyperparameters is None:
        hyperparameters = {} if editor == "unedited" else {"steps": 2}
    settings = {
        "suite": "s",
        "model": MODEL,
        "dataset": DATASET,
        "editor": {
            "name": editor,
            "label": editor,
            "editor": editor,
            "hyperparameters": hyperparameters,
        },
        "seed": seed,
        "stream": {"facts": 3},
        "probes": {"every": 4, "batch_size": 8},
        "compute": {"device": "cpu"},
        **changes,
    }
    return RunSpec.model_validate(settings)


def prepare_inputs(folder: Path, model_settings=MODEL) -> tuple[Path, Path, Path]:
    """Make data, model and baseline; return their folders."""
    data, model, baseline = (folder / name for name in ("data", "model", "baseline"))
    prepare(Capitals(DatasetOptions()), data, task="question_answering", config={})
    one = spec(model=model_settings)
    prepare_model(
        ModelConfig.model_validate(model_settings),
        DatasetConfig.model_validate(DATASET),
        data,
        model,
        one.compute,
    )
    run_baseline(one, data, model, baseline)
    return data, model, baseline
