"""Composes a suite from the files in `config/`.

A suite names models, data sets and editors. Each name is a file `config/<kind>s/<name>.yaml`, in
the working directory or in the clone of grace-bench; a mapping with a `name` overrides keys of that
file:

    experiments:
      - {model: facts-t5, dataset: facts-qa}
      - {model: {name: facts-t5, training: {steps: 100}}, dataset: facts-qa}
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grace_bench.errors import ConfigError, unknown_name
from grace_bench.registry import EDITORS
from grace_bench.suite.safe_yaml import (
    BAD_YAML,
    DEEPEST,
    LARGEST_FILE,
    check_plain,
    load_yaml,
    shown,
    shown_keys,
)
from grace_bench.suite.schema import SHARED_KEYS, SuiteConfig, validate

logger = logging.getLogger(__name__)

DEFAULT_SUITE = Path("config.yaml")
SHIPPED = Path(__file__).parents[2] / "config"
"""The clone's own folder, searched after the user's."""

KIND_FOLDERS = {"model": "models", "dataset": "datasets", "editor": "editors"}
LABELS = {"model": "model", "dataset": "data set", "editor": "editor"}
MOST_ENTRIES = 1000
COMMON = ("editor", "stream", "probes")
"""Parts that `set` overrides in every editor or every experiment: `editor.steps=10`."""

SETTINGS = ("hyperparameters", "per_dataset", "sweep")
"""The parts of an editor's entry that override those of its file."""


def parse_value(text: str) -> Any:
    """Parse one YAML value as it would be read from a file: "3.0", "1e-4", "[1, 2]", "true"."""
    try:
        return load_yaml(text)
    except BAD_YAML as error:
        raise ConfigError(f"{shown(text)} is not a value: {_first_line(error)}.") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping."""
    try:
        with open(path, "rb") as stream:
            content = stream.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise ConfigError(f"{path}: is larger than any suite; check the file.")
        text = content.decode("utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; check the path.") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); check the file.") from error
    try:
        content = load_yaml(text)
    except BAD_YAML as error:
        raise ConfigError(f"{path}: not valid YAML ({_first_line(error)}); fix it.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold a mapping of keys to values.")
    check_plain(content, str(path), ": ")
    return content


def _first_line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return " ".join((str(error) or type(error).__name__).split())[:500]


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


def find_part(config_dir: Path, part: Path) -> Path | None:
    """Return the path of a file in a config folder or else in the clone's own; None: neither."""
    paths = (folder / part for folder in (config_dir, SHIPPED))
    return next((path for path in paths if path.is_file()), None)


def available(config_dir: Path, folder: str) -> list[str]:
    """Return the names of the files in a folder like `config/models/`, the clone's included."""
    return sorted(
        {p.stem for place in (config_dir, SHIPPED) for p in place.glob(f"{folder}/*.yaml")}
    )


def load_named(
    config_dir: Path, kind: str, entry: str | Mapping[str, Any], where: str = ""
) -> dict[str, Any]:
    """Return the mapping of a named file, overridden by the entry's own keys.

    Args:
        config_dir: the folder that holds `models/`, `datasets/` and `editors/`.
        kind: "model", "dataset" or "editor".
        entry: a name, or a mapping with a `name` and overrides. A mapping that has all keys itself
            may have a name without a file.
        where: place of the entry, for messages.
    """
    overrides: Mapping[str, Any] = {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(overrides, Mapping) or not isinstance(overrides.get("name"), str):
        raise ConfigError(f"{where or kind}: must be a name or a mapping with a 'name'.")
    name = overrides["name"]
    names = available(config_dir, KIND_FOLDERS[kind])
    if name in names:
        part = Path(KIND_FOLDERS[kind], f"{name}.yaml")
        return merge(read_yaml(find_part(config_dir, part) or config_dir / part), overrides)
    if "base" in overrides:
        base = load_named(config_dir, kind, overrides["base"], f"{where}.base")
        rest = {key: value for key, value in overrides.items() if key != "base"}
        return merge(base, rest)
    if len(overrides) > 1 and {"source", "builder", "editor"} & set(overrides):
        return dict(overrides)
    raise ConfigError(unknown_name(LABELS[kind], name, names, where))


def check_part(config_dir: Path, kind: str, entry: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError, starting with `where`, if an entry names no file."""
    names = available(config_dir, KIND_FOLDERS[kind])
    if entry["name"] not in names and not {"base", "source", "builder", "editor"} & set(entry):
        raise ConfigError(unknown_name(LABELS[kind], entry["name"], names, where))


def find_suite(given: Path | None, config_dir: Path) -> Path:
    """Return the path of a suite given by path or name; None: the default suite.

    Raises:
        ConfigError: there is no such suite; the message lists those that exist.
    """
    if not config_dir.is_dir():
        raise ConfigError(
            f"{config_dir}: no such folder; go to the clone of grace-bench or give --config-dir."
        )
    if given is None or str(given) == "default":
        return default_suite(config_dir)
    if given.suffix in (".yaml", ".yml", ".json") or given.exists():
        if given.exists() or given.parent != config_dir / "suites":
            return given
    elif named := find_part(config_dir, Path("suites", f"{given}.yaml")):
        return named
    names = available(config_dir, "suites")
    raise ConfigError(unknown_name("suite", given.stem, ["default", *names], f"--suite {given}"))


def default_suite(config_dir: Path) -> Path:
    """Return the path of the suite that runs if none is named."""
    return find_part(config_dir, DEFAULT_SUITE) or config_dir / DEFAULT_SUITE


def load_suite(
    source: Path | str | Mapping[str, Any],
    config_dir: Path | str = "config",
    overrides: Iterable[str] = (),
) -> SuiteConfig:
    """Read a suite file (or mapping) and resolve every name in it.

    A suite without `experiments` (as from `snakemake --config seeds=[0]`) overrides the default
    suite, `config/config.yaml`.

    Args:
        source: path of a suite file, or its content.
        config_dir: folder of the named parts; the clone's is searched after it.
        overrides: "models.minilm.training.steps=10", "datasets.zsre.options.edits.path=z.jsonl",
            "editors.grace.radius=3.0", "editor.steps=10" (every editor that has it),
            "stream.facts=8", "seeds=[0,1]": applied last, as is the list under the source's own key
            `set`.

    Raises:
        ConfigError: one line per mistake, each with its place and what is allowed.
    """
    config_dir = Path(config_dir)
    where = "config" if isinstance(source, Mapping) else str(source)
    raw = read_suite(source, config_dir)
    late: list[tuple[str, Any]] = []
    for override in [*own_overrides(raw.pop("set", None), where), *overrides]:
        key, value = split_override(override)
        part, _, rest = key.partition(".")
        if rest and part in (*COMMON, *KIND_FOLDERS.values()):
            late.append((key, value))
        else:
            set_value(raw, key, value)
    return _compose(raw, late, config_dir, where)


def read_suite(source: Path | str | Mapping[str, Any], config_dir: Path) -> dict[str, Any]:
    """Return a suite as written; without `experiments`, merged into the default suite."""
    if isinstance(source, Mapping):
        check_plain(source, "config", ": ")
        raw = copy.deepcopy(dict(source))
    else:
        raw = read_yaml(Path(source))
    return raw if "experiments" in raw else merge(read_yaml(default_suite(config_dir)), raw)


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
class _Overrides:
    """Overrides of a suite's composed parts.

    Attributes:
        common: by "editor", "stream" or "probes": for each of them.
        named: by kind and name: for the model, data set or editor of that name.
    """

    common: dict[str, dict[str, Any]]
    named: dict[str, dict[str, dict[str, Any]]]


def _sort_overrides(late: Iterable[tuple[str, Any]], names: Mapping[str, set[str]]) -> _Overrides:
    """Sort overrides by the parts they override; names may contain dots.

    Raises:
        ConfigError: the suite has no part of that name, or no key follows the name.
    """
    folders = {folder: kind for kind, folder in KIND_FOLDERS.items()}
    found = _Overrides({part: {} for part in COMMON}, {kind: {} for kind in KIND_FOLDERS})
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


def entry_name(entry: Any) -> str:
    """Return the name of an entry (a name or a mapping with one); "": it has none."""
    name = entry.get("name") if isinstance(entry, Mapping) else entry
    return name if isinstance(name, str) else ""


def without_resources(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return a suite without its settings for jobs, on which no result depends."""
    kept = {key: value for key, value in raw.items() if key not in ("resources", "bundle")}
    if isinstance(kept.get("set"), list):
        kept["set"] = [line for line in kept["set"] if not str(line).startswith("resources.")]
    return kept


def _compose(
    raw: dict[str, Any], late: Iterable[tuple[str, Any]], config_dir: Path, where: str
) -> SuiteConfig:
    stream = _section(raw.pop("stream", None), f"{where}: stream")
    probes = _section(raw.pop("probes", None), f"{where}: probes")
    experiments = raw.get("experiments")
    editors = raw.get("editors")
    if not isinstance(experiments, list) or not isinstance(editors, list):
        keys = [*SuiteConfig.model_fields, *SHARED_KEYS]
        for key in sorted(map(str, set(raw) - set(keys))):
            raise ConfigError(unknown_name("key", key, keys, f"{where}: {key}"))
        raise ConfigError(f"{where}: 'experiments' and 'editors' must be lists; add them.")
    if max(len(experiments), len(editors)) > MOST_ENTRIES:
        raise ConfigError(
            f"{where}: 'experiments' and 'editors' have at most {MOST_ENTRIES} entries each; split "
            "the suite."
        )
    pairs = [entry for entry in experiments if isinstance(entry, Mapping)]
    named = {kind: [entry.get(kind) for entry in pairs] for kind in ("model", "dataset")}
    named["editor"] = editors
    names = {kind: {*map(entry_name, entries)} - {""} for kind, entries in named.items()}
    overrides = _sort_overrides(late, names)
    raw["experiments"] = [
        _compose_experiment(
            entry, stream, probes, overrides, config_dir, f"{where}: experiments[{i}]"
        )
        for i, entry in enumerate(experiments)
    ]
    common, every = overrides.common["editor"], set[str]()
    raw["editors"], unused = [], set(common)
    for i, entry in enumerate(editors):
        place = f"{where}: editors[{i}]"
        given = entry if isinstance(entry, Mapping) else {}
        own = {part: _section(given.get(part), f"{place}.{part}") for part in SETTINGS}
        bare = {key: value for key, value in given.items() if key not in SETTINGS}
        editor = load_named(config_dir, "editor", bare or entry, place)
        known = _hyperparameters(editor)
        shared = {key: value for key, value in common.items() if known is None or key in known}
        unused -= shared.keys()
        every |= known or set()
        laid_over = shared | overrides.named["editor"].get(entry_name(entry), {})
        raw["editors"].append(_compose_editor(editor, own, laid_over, place))
    if unused:
        key = min(unused)
        one = editors[0] if len(editors) == 1 else None
        place = f"editors.{entry_name(one)}.{key}" if one else f"--set editor.{key}"
        raise ConfigError(unknown_name("key", key, every, place))
    _tell_apart(raw["editors"])
    for kind in ("model", "dataset"):
        _tell_apart([experiment[kind] for experiment in raw["experiments"]])
    return validate(SuiteConfig, raw, where, ": ")


def _tell_apart(parts: Iterable[dict[str, Any]]) -> None:
    """Append the name to every label that several parts share."""
    names: dict[str, set[str]] = {}
    parts = [part for part in parts if isinstance(part.get("label"), str)]
    for part in parts:
        names.setdefault(part["label"], set()).add(str(part["name"]))
    for part in parts:
        if len(names[part["label"]]) > 1:
            part["label"] = f"{part['label']} ({part['name']})"


def _section(value: Any, where: str) -> dict[str, Any]:
    """Return a section as a dict; an empty one, which YAML reads as null, is {}."""
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{where}: must be a section of keys and values (got {shown(value)}).")
    return dict(value or {})


def _hyperparameters(editor: Mapping[str, Any]) -> set[str] | None:
    """Return the names of an editor's hyperparameters; None: the editor is unknown."""
    name = editor.get("editor")
    if name not in EDITORS.names():
        return None
    return set(EDITORS.get(name).hyperparameters_class().model_fields)


def _compose_editor(
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
    tuned = {part: _section(editor.get(part), f"{where}.{part}") for part in SETTINGS}
    by_dataset = [
        {
            name: _section(value, f"{where}.per_dataset.{name}")
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


def _compose_experiment(
    entry: Any,
    stream: Mapping[str, Any],
    probes: Mapping[str, Any],
    overrides: _Overrides,
    config_dir: Path,
    where: str,
) -> dict[str, Any]:
    if not isinstance(entry, Mapping) or not {"model", "dataset"} <= set(entry):
        raise ConfigError(f"{where}: must be a mapping with 'model' and 'dataset'.")
    composed = dict(entry)
    for kind in ("model", "dataset"):
        named = load_named(config_dir, kind, entry[kind], f"{where}.{kind}")
        composed[kind] = merge(named, overrides.named[kind].get(entry_name(entry[kind]), {}))
    for part, common in (("stream", stream), ("probes", probes)):
        own = merge(common, _section(entry.get(part), f"{where}.{part}"))
        composed[part] = merge(own, overrides.common[part])
    return composed
