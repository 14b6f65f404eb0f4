"""A data set of four capitals, and tiny models that are trained on it in a second."""

from __future__ import annotations

from grace_bench.datasets.base import BuiltDataset, DatasetBuilder
from grace_bench.datasets.options import DatasetOptions
from grace_bench.suite.schema import ComputeConfig, DatasetConfig, ModelConfig

CPU = ComputeConfig(device="cpu")
CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Peru": "Lima"}


def row(role: str, country: str, text: str, label: str) -> dict[str, str]:
    return {
        "example_id": f"{role}/{country}",
        "fact_id": f"{role}/{country}",
        "text": text,
        "label": label,
    }


class Capitals(DatasetBuilder[DatasetOptions]):
    name = "capitals"
    options_class = DatasetOptions

    def build(self) -> BuiltDataset:
        def rows(role: str, question: str) -> list[dict[str, str]]:
            return [row(role, c, question.format(c), name) for c, name in CAPITALS.items()]

        roles = {
            "train": rows("train", "What is the capital of {}?"),
            "upstream": rows("upstream", "Which city is the capital of {}?"),
            "edits": rows("edits", "Name the capital of {} before 1900."),
        }
        return BuiltDataset(roles, sources=[], labels=sorted(CAPITALS.values()))


def model_config(**changes) -> ModelConfig:
    settings = {
        "name": "tiny",
        "label": "Tiny",
        "source": {
            "kind": "scratch",
            "architecture": "gpt2",
            "vocabulary_size": 300,
            "shape": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
        },
        "layer": "transformer.h.0.mlp.c_fc",
        "max_length": 48,
        "training": {"steps": 5, "batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 2},
    }
    return ModelConfig.model_validate({**settings, **changes})


def trained(**changes) -> dict:
    return {**model_config().training.model_dump(), **changes}


def dataset_config(task: str = "question_answering") -> DatasetConfig:
    return DatasetConfig(name="capitals", label="Capitals", task=task, builder="capitals")
