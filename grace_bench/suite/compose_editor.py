"""Composes one editor of a suite: its file, the suite's own settings, `--set`. Torch-free."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from grace_bench.errors import ConfigError
from grace_bench.registry import EDITORS
from grace_bench.suite.overrides import merge, section

logger = logging.getLogger(__name__)

SETTINGS = ("hyperparameters", "per_dataset", "sweep")
"""The parts of an editor's entry that override those of its file."""


def hyperparameter_names(editor: Mapping[str, Any]) -> set[str] | None:
    """Return the names of an editor's hyperparameters; None: the editor is unknown."""
    name = editor.get("editor")
    if name not in EDITORS.names():
        return None
    return set(EDITORS.get(name).hyperparameters_class().model_fields)


def compose_editor(
    editor: dict[str, Any],
    own: Mapping[str, dict[str, Any]],
    overrides: dict[str, Any],
    where: str,
) -> dict[str, Any]:
    """Override an editor's file by the suite's own settings, and those by `--set`.

    The suite's hyperparameters also override the file's `per_dataset`, though not the suite's own.
    A file's settings are tuned for its `rules`: under other rules only its layer is used.

    Args:
        editor: what its file says.
        own: the suite's SETTINGS.
        overrides: the hyperparameters of `--set`.
        where: place of the entry, for messages.
    """
    tuned = {part: section(editor.get(part), f"{where}.{part}") for part in SETTINGS}
    by_dataset = [
        {
            name: section(value, f"{where}.per_dataset.{name}")
            for name, value in part["per_dataset"].items()
        }
        for part in (tuned, own)
    ]
    sweep = {**tuned["sweep"], **own["sweep"]}
    _refuse_several_rules(sweep, by_dataset[1], where)
    if _has_other_rules(editor, tuned["hyperparameters"], own["hyperparameters"] | overrides):
        tuned["hyperparameters"] = _layer_of(tuned["hyperparameters"])
        by_dataset[0] = {name: _layer_of(value) for name, value in by_dataset[0].items()}
    editor["hyperparameters"] = merge(tuned["hyperparameters"], own["hyperparameters"]) | overrides
    editor["per_dataset"] = {}
    for name in {**by_dataset[0], **by_dataset[1]}:
        files, suites = (part.get(name, {}) for part in by_dataset)
        left = {key: value for key, value in files.items() if key not in own["hyperparameters"]}
        settings = merge(left, suites)
        editor["per_dataset"][name] = {k: v for k, v in settings.items() if k not in overrides}
    for key in sorted(sweep.keys() & overrides.keys()):
        logger.warning(
            "--set: %s now has one value of '%s' instead of a sweep.", editor["name"], key
        )
    editor["sweep"] = {key: values for key, values in sweep.items() if key not in overrides}
    return editor


def _refuse_several_rules(
    sweep: Mapping[str, Any], per_dataset: Mapping[str, Any], where: str
) -> None:
    by_dataset = [f"per_dataset.{name}" for name, own in per_dataset.items() if "rules" in own]
    for place in [*(["sweep"] if "rules" in sweep else []), *by_dataset]:
        raise ConfigError(
            f"{where}.{place}: an editor's file is tuned for one value of 'rules'; define one "
            "editor per value: {name: NAME, base: EDITOR, hyperparameters: {rules: ...}}."
        )


def _has_other_rules(
    editor: Mapping[str, Any], tuned: Mapping[str, Any], given: Mapping[str, Any]
) -> bool:
    """Return whether a suite asks for other `rules` than the editor's file is tuned for."""
    if "rules" not in given or editor.get("editor") not in EDITORS.names():
        return False
    schema = EDITORS.get(editor["editor"]).hyperparameters_class()
    if "rules" not in schema.model_fields:
        return False
    return given["rules"] != tuned.get("rules", schema.model_fields["rules"].default)


def _layer_of(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in hyperparameters.items() if key == "layer"}
