"""Checks a suite before its hours: do its files, models and layers exist, and do its editors fit?

No weight is loaded and nothing is trained, so it takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from pydantic import BaseModel
from torch import nn

from grace_bench.datasets.options import Source
from grace_bench.datasets.reading.files import find_files
from grace_bench.editors import create_editor
from grace_bench.errors import ConfigError, GraceBenchError
from grace_bench.models.loading import load_outline
from grace_bench.models.scratch import build_model, train_tokenizer
from grace_bench.suite.plan import Run, find_builder
from grace_bench.suite.schema import DatasetConfig, ModelConfig, ScratchSource

OF_OUTLINES = (NotImplementedError, RuntimeError)
"""What PyTorch raises where an editor reads a number of a model without weights."""


def validate(runs: Iterable[Run]) -> None:
    """Check what runs need and cannot be made by the workflow.

    Raises:
        ConfigError: one line for each missing file, model or layer, and each editor that does not
            fit its model.
    """
    specs = [run.spec for run in runs]
    datasets = {spec.dataset.name: spec.dataset for spec in specs}
    problems = [text for dataset in datasets.values() for text in _missing_files(dataset)]
    pairs = {(spec.model.name, spec.dataset.name): spec for spec in specs}
    for (model, dataset), spec in pairs.items():
        place = f"models.{model} (for {dataset})"
        try:
            outline = _outline(spec.model, spec.dataset.task)
        except GraceBenchError as error:
            problems.append(f"{place}: {error}")
            continue
        editors = {
            (one.editor.name, repr(one.editor.hyperparameters)): one.editor
            for one in specs
            if (one.model.name, one.dataset.name) == (model, dataset)
        }
        found = (_misfit(outline, spec.model.layer, editor) for editor in editors.values())
        problems += [f"{place}: {text}" for text in dict.fromkeys(found) if text]
    if problems:
        raise ConfigError("\n".join(problems))


def _missing_files(dataset: DatasetConfig) -> Iterator[str]:
    for name, source in _sources(find_builder(dataset).options):
        try:
            find_files(source, f"'{name}'")
        except GraceBenchError as error:
            yield f"datasets.{dataset.name}: {error}"


def _sources(options: BaseModel) -> Iterator[tuple[str, Source]]:
    """Yield the files among a builder's options."""
    for name, value in options:
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(one, Source):
                yield name, one
            elif isinstance(one, BaseModel):
                yield from _sources(one)


def _outline(model: ModelConfig, task: str) -> nn.Module:
    """Return a model with its modules but without weights; its vocabulary may be smaller."""
    source = model.source
    if not isinstance(source, ScratchSource):
        return load_outline(source, task)
    tokenizer = train_tokenizer(source.architecture, [], source.vocabulary_size)
    with torch.device("meta"):
        return build_model(source, task, tokenizer, None, seed=0)


def _misfit(outline: nn.Module, layer: str, editor: Any) -> str | None:
    """Return why an editor cannot own a model; None: it can."""
    try:
        create_editor(editor.editor, outline, layer, editor.hyperparameters).remove()
    except GraceBenchError as error:
        if not isinstance(error.__cause__, OF_OUTLINES):
            return str(error)
    return None
