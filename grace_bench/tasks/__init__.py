"""Tasks by name: how a row becomes tokens, a prediction, scores, and when it is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grace_bench.registry import Registry

if TYPE_CHECKING:
    from grace_bench.tasks.base import Task

TASKS: Registry[type[Task]] = Registry("task", group="grace_bench.tasks")
TASKS.register("question_answering", "grace_bench.tasks.question_answering:QuestionAnswering")
TASKS.register("classification", "grace_bench.tasks.classification:Classification")
TASKS.register("language_modelling", "grace_bench.tasks.language_modelling:LanguageModelling")
