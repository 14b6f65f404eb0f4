"""Editors. Each is a folder in `methods` with its `SPEC`, its hyperparameters and its class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from grace_bench.editors.hyperparameters import EditorHyperparameters
from grace_bench.errors import ConfigError, EditorError, GraceBenchError
from grace_bench.registry import EDITORS, EditorSpec
from grace_bench.suite.section import validate

if TYPE_CHECKING:
    import torch
    from torch import nn

    from grace_bench.editors.base import Editor


__all__ = ["EditorSpec", "create_editor"]


def create_editor(
    name: str,
    model: nn.Module,
    layer: str,
    hyperparameters: EditorHyperparameters | Mapping[str, Any] | None = None,
    seed: int | torch.Generator = 0,
    engine: str = "lean",
) -> Editor:
    """Make the editor called `name` the owner of `model`.

    Args:
        name: a registered name.
        model: a Hugging Face model in eval mode; changed in place until `remove()`.
        layer: name of the edited module, dotted or bracketed, with or without .weight.
        hyperparameters: an instance of the editor's class, or its fields; None: the defaults.
        seed: of the editor's own random generator, or the generator itself (CPU).
        engine: how gradient steps run the model: lean, replay or direct (`replay/steps.py`).

    Raises:
        ConfigError: no editor is called `name`, or the hyperparameters are another editor's or
            out of range.
        EditorError: the editor's own code fails before any edit.
        ModelError: the model has no such layer, or it is not linear.
    """
    import torch

    from grace_bench.models.architecture import layer_name
    from grace_bench.replay.steps import StepReplay

    spec = EDITORS.get(name)
    wanted = spec.hyperparameters_class()
    if hyperparameters is None or isinstance(hyperparameters, Mapping):
        hyperparameters = validate(wanted, dict(hyperparameters or {}), name)
    if not isinstance(hyperparameters, wanted):
        raise ConfigError(
            f"editor '{name}' takes {wanted.__name__}, not {type(hyperparameters).__name__}; "
            "give it its own hyperparameters."
        )
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    try:
        editor = spec.editor_class()(model, layer_name(layer), hyperparameters, generator)
    except GraceBenchError:
        raise
    except Exception as error:
        raise EditorError(
            f"editor '{name}' cannot be created ({type(error).__name__}: {error}); fix its code "
            "(--debug shows where)."
        ) from error
    editor.replay = StepReplay(model, engine, skip_unused=not editor.accumulates_rounding)
    return editor
