"""Editors by name. A new one is one module, one hyperparameter class and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grace_bench.errors import ConfigError, EditorError, GraceBenchError
from grace_bench.registry import Registry, import_target

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    from grace_bench.editors.base import AssetRequest, Editor
    from grace_bench.editors.hyperparameters import EditorHyperparameters


@dataclass(frozen=True)
class EditorSpec:
    """Where an editor's two classes are; strings "module:Class", imported when needed.

    `assets` names a function that makes what the editor needs before any run (`assets.py`).
    """

    hyperparameters: str
    editor: str
    assets: str = ""

    def hyperparameters_class(self) -> type[EditorHyperparameters]:
        """Import and return the hyperparameter class (torch-free)."""
        return import_target(self.hyperparameters)

    def editor_class(self) -> type[Editor]:
        """Import and return the editor class."""
        return import_target(self.editor)

    def make_assets(self) -> Callable[[AssetRequest], dict[str, Any]]:
        """Import and return the function that makes the editor's assets."""
        return import_target(self.assets)


EDITORS: Registry[EditorSpec] = Registry("editor", group="grace_bench.editors")

_HYPERPARAMETERS = "grace_bench.editors.hyperparameters"
for _name, _hyperparameters, _editor, *_assets in (
    ("unedited", "UneditedHyperparameters", "unedited:UneditedEditor"),
    ("grace", "GraceHyperparameters", "grace:GraceEditor"),
    ("ft", "FinetuneHyperparameters", "finetune:FinetuneEditor"),
    ("ft_ewc", "EwcHyperparameters", "ewc:EwcEditor"),
    ("ft_retrain", "RetrainHyperparameters", "retrain:RetrainEditor"),
    ("defer", "DeferHyperparameters", "defer:DeferEditor"),
    ("memory", "MemoryHyperparameters", "memory:MemoryEditor"),
    ("mend", "MendHyperparameters", "mend:MendEditor", "mend_training:make_assets"),
    ("rome", "RomeHyperparameters", "rome:RomeEditor", "rome:make_assets"),
):
    EDITORS.register(
        _name,
        EditorSpec(
            f"{_HYPERPARAMETERS}:{_hyperparameters}",
            *(f"grace_bench.editors.{target}" for target in (_editor, *_assets)),
        ),
    )


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
        hyperparameters: an instance of the editor's class, or its fields; None for defaults.
        seed: of the editor's own random generator, or the generator itself (CPU).
        engine: how gradient steps run the model: lean, replay or direct (`replay/steps.py`).

    Raises:
        ConfigError: no editor is called `name`, or the hyperparameters are another editor's.
        EditorError: the editor's own code fails before any edit.
        ModelError: the model has no such layer, or it is not a linear one.
    """
    import torch

    from grace_bench.models.layers import layer_name
    from grace_bench.replay.steps import Prefix

    spec = EDITORS.get(name)
    wanted = spec.hyperparameters_class()
    if hyperparameters is None or isinstance(hyperparameters, Mapping):
        hyperparameters = wanted(**(hyperparameters or {}))
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
            f"editor '{name}' cannot be made ({type(error).__name__}: {error}); mend its code "
            "(--debug shows where)."
        ) from error
    editor.prefix = Prefix(model, engine, leave_out_unread=not editor.rounding_grows)
    return editor
