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
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from grace_bench.errors import ConfigError, unknown_name
from grace_bench.registry import EDITORS
from grace_bench.suite.compose_editor import SETTINGS, compose_editor, hyperparameter_names
from grace_bench.suite.overrides import (
    COMMON,
    KIND_FOLDERS,
    LABELS,
    Overrides,
    merge,
    own_overrides,
    section,
    set_value,
    sort_overrides,
    split_override,
)
from grace_bench.suite.safe_yaml import (
    BAD_YAML,
    LARGEST_FILE,
    check_plain,
    first_line,
    load_yaml,
)
from grace_bench.suite.schema import ProbeConfig, StreamConfig, SuiteConfig
from grace_bench.suite.section import validate
from grace_bench.suite.shipped import CONFIG as SHIPPED

DEFAULT_SUITE = Path("config.yaml")
OWN = Path("config")
"""The user's folder, which need not exist beside a clone."""

MOST_ENTRIES = 1000


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
        raise ConfigError(f"{path}: not valid YAML ({first_line(error)}); fix it.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold a mapping of keys to values.")
    check_plain(content, str(path), ": ")
    return content


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
    if not config_dir.is_dir() and (config_dir != OWN or not SHIPPED.is_dir()):
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
            continue
        _check_part_is_named(key)
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


def _check_part_is_named(key: str) -> None:
    """Raise ConfigError if an override's key is a setting of a part, without the part's name."""
    if key.partition(".")[0] in (*SuiteConfig.model_fields, *SuiteConfig.COMPOSED_KEYS):
        return
    of_editors = (hyperparameter_names({"editor": name}) or () for name in EDITORS.names())
    fields = {
        "editor": set(chain.from_iterable(of_editors)),
        "stream": set(StreamConfig.model_fields),
        "probes": set(ProbeConfig.model_fields),
    }
    for part in (part for part in COMMON if key in fields[part]):
        raise ConfigError(f"--set {key}: no setting of a suite; did you mean {part}.{key}?")


def entry_name(entry: Any) -> str:
    """Return the name of an entry (a name or a mapping with one); "": it has none."""
    name = entry.get("name") if isinstance(entry, Mapping) else entry
    return name if isinstance(name, str) else ""


def _compose(
    raw: dict[str, Any], late: Iterable[tuple[str, Any]], config_dir: Path, where: str
) -> SuiteConfig:
    stream = section(raw.pop("stream", None), f"{where}: stream")
    probes = section(raw.pop("probes", None), f"{where}: probes")
    experiments = raw.get("experiments")
    editors = raw.get("editors")
    if not isinstance(experiments, list) or not isinstance(editors, list):
        keys = [*SuiteConfig.model_fields, *SuiteConfig.COMPOSED_KEYS]
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
    overrides = sort_overrides(late, names)
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
        own = {part: section(given.get(part), f"{place}.{part}") for part in SETTINGS}
        bare = {key: value for key, value in given.items() if key not in SETTINGS}
        editor = load_named(config_dir, "editor", bare or entry, place)
        known = hyperparameter_names(editor)
        shared = {key: value for key, value in common.items() if known is None or key in known}
        unused -= shared.keys()
        every |= known or set()
        laid_over = shared | overrides.named["editor"].get(entry_name(entry), {})
        raw["editors"].append(compose_editor(editor, own, laid_over, place))
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


def _compose_experiment(
    entry: Any,
    stream: Mapping[str, Any],
    probes: Mapping[str, Any],
    overrides: Overrides,
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
        own = merge(common, section(entry.get(part), f"{where}.{part}"))
        composed[part] = merge(own, overrides.common[part])
    return composed
