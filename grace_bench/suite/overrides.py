"""Overrides: `set` and `--set`, and how mappings are merged. Torch-free."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from grace_bench.errors import ConfigError, unknown_name
from grace_bench.suite.safe_yaml import BAD_YAML, DEEPEST, first_line, load_yaml, shown, shown_keys

KIND_FOLDERS = {"model": "models", "dataset": "datasets", "editor": "editors"}
LABELS = {"model": "model", "dataset": "data set", "editor": "editor"}
COMMON = ("editor", "stream", "probes")
"""Parts that `set` overrides in every editor or every experiment: `editor.steps=10`."""


def parse_value(text: str) -> Any:
    """Parse one YAML value as it would be read from a file: "3.0", "1e-4", "[1, 2]", "true"."""
    try:
        return load_yaml(text)
    except BAD_YAML as error:
        raise ConfigError(f"{shown(text)} is not a value: {first_line(error)}.") from error


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` overridden by `overrides`; mappings merge, other values are replaced.

    A mapping with another `kind` (of source, say) replaces the whole mapping: its keys differ.
    """
    if overrides.get("kind", base.get("kind")) != base.get("kind"):
        return copy.deepcopy(dict(overrides))
    merged = copy.deepcopy(dict(base))
    for key, value in overrides.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def set_value(target: dict[str, Any], dotted: str, value: Any) -> None:
    """Set `target["a"]["b"]` for "a.b", creating mappings on the way."""
    *parents, last = dotted.split(".")
    if len(parents) > DEEPEST:
        raise ConfigError(f"--set {shown_keys(dotted)}: is more than {DEEPEST} levels deep.")
    for parent in parents:
        child = target.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {dotted}: '{parent}' is a value, not a section.")
        target = child
    target[last] = value


def own_overrides(given: Any, where: str) -> list[str]:
    """Return the overrides under a suite's key `set`: none, one or a list."""
    overrides = [given] if isinstance(given, str) else given or []
    if not isinstance(overrides, list) or not all(isinstance(o, str) for o in overrides):
        raise ConfigError(f"{where}: set: must be a list of key=value (got {shown(given)}).")
    return overrides


def split_override(text: str) -> tuple[str, Any]:
    """Split "editor.radius=3.0" into its key and its parsed value."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text[:200]}: write it as key=value, e.g. editor.radius=3.0.")
    return key.strip(), parse_value(value)


@dataclass(frozen=True)
class Overrides:
    """Overrides of a suite's composed parts.

    Attributes:
        common: by "editor", "stream" or "probes": for each of them.
        named: by kind and name: for the model, data set or editor of that name.
    """

    common: dict[str, dict[str, Any]]
    named: dict[str, dict[str, dict[str, Any]]]


def sort_overrides(late: Iterable[tuple[str, Any]], names: Mapping[str, set[str]]) -> Overrides:
    """Sort overrides by the parts they override; names may contain dots.

    Raises:
        ConfigError: the suite has no part of that name, or no key follows the name.
    """
    folders = {folder: kind for kind, folder in KIND_FOLDERS.items()}
    found = Overrides({part: {} for part in COMMON}, {kind: {} for kind in KIND_FOLDERS})
    for key, value in late:
        part, _, rest = key.partition(".")
        if part in COMMON:
            set_value(found.common[part], rest, value)
            continue
        kind = folders[part]
        if rest in names[kind]:
            raise ConfigError(f"--set {key}: name a key, as in {key}.label=...")
        fitting = [name for name in names[kind] if rest.startswith(f"{name}.")]
        if not fitting:
            name = rest.split(".")[0]
            raise ConfigError(unknown_name(LABELS[kind], name, names[kind], f"--set {key}"))
        name = max(fitting, key=len)
        set_value(found.named[kind].setdefault(name, {}), rest.removeprefix(f"{name}."), value)
    return found


def concerns(override: str, **names: str) -> bool:
    """Return whether an override is for one of these names (model="minilm") or for no name."""
    part, _, rest = override.partition(".")
    kind = next((kind for kind in names if KIND_FOLDERS[kind] == part), None)
    return kind is None or rest.startswith(f"{names[kind]}.")


def section(value: Any, where: str) -> dict[str, Any]:
    """Return a section as a dict; an empty one, which YAML reads as null, is {}."""
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{where}: must be a section of keys and values (got {shown(value)}).")
    return dict(value or {})
