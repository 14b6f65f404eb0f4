"""Tasks by name: how a row becomes tokens, a prediction and scores, and what is an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from grace_bench.errors import ConfigError, unknown_name
from grace_bench.metrics import MEASURES
from grace_bench.registry import TASKS

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from grace_bench.suite.schema import DatasetConfig, ModelConfig
    from grace_bench.tasks.base import Task


def create_task(
    dataset: DatasetConfig,
    model: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    examples: Iterable[Mapping[str, Any]] = (),
) -> Task:
    """Return the task of a data set for a model.

    Args:
        dataset: names the task.
        model: its `max_length`, `start_token` and `end_token`.
        tokenizer: the model's tokenizer.
        config: the model's configuration.
        examples: all that will have answers generated (`Task.make_room`).

    Raises:
        ConfigError: the model cannot do the task, or has fewer positions than `max_length`; or
            the task's main measure is unknown.
    """
    kind = TASKS.get(dataset.task)
    if kind.main_measure not in MEASURES:
        where = f"task '{dataset.task}', main_measure"
        raise ConfigError(unknown_name("measure", kind.main_measure, MEASURES, where))
    task = kind(tokenizer, config, model.max_length, model.start_token, model.end_token)
    task.generates = dataset.generate
    task.make_room(examples)
    return task
