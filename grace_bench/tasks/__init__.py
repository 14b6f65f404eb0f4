"""Tasks by name: how a row becomes tokens, a prediction, scores, and when it is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grace_bench.registry import Registry

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from grace_bench.config import DatasetConfig
    from grace_bench.tasks.base import Task

TASKS: Registry[type[Task]] = Registry("task", group="grace_bench.tasks")
TASKS.register("question_answering", "grace_bench.tasks.question_answering:QuestionAnswering")
TASKS.register("classification", "grace_bench.tasks.classification:Classification")
TASKS.register("language_modelling", "grace_bench.tasks.language_modelling:LanguageModelling")


def create_task(
    dataset: DatasetConfig,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    max_length: int,
) -> Task:
    """Return the task of a data set for a model.

    Raises:
        ConfigError: the model has fewer positions than `max_length`.
    """
    task = TASKS.get(dataset.task)(tokenizer, config, max_length)
    task.generates = dataset.generate
    return task
