"""The schema of suites, and how a suite is composed from the files in `config/`.

A suite names models, data sets and editors; each name is a file `config/<kind>s/<name>.yaml`, and
a mapping with a `name` overrides keys of that file:

    experiments:
      - {model: facts-t5, dataset: facts-qa}
      - {model: {name: facts-t5, training: {steps: 100}}, dataset: facts-qa}

Torch-free: the Snakefile reads suites through this module at every parse.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from grace_bench.errors import ConfigError, unknown_name

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]

DEFAULT_SUITE = Path("config.yaml")
SHARED_KEYS = ("stream", "probes", "set")
"""Keys of a suite's file that go into its experiments and editors."""

KIND_FOLDERS = {"model": "models", "dataset": "datasets", "editor": "editors"}


class Section(BaseModel):
    """Base of all sections: no unknown keys, immutable, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TrainingConfig(Section):
    """How a base model is trained or fine-tuned by the workflow (AdamW, linear warm-up, cosine)."""

    steps: int = Field(ge=1, description="optimiser steps")
    batch_size: int = Field(32, ge=1, description="examples per step")
    learning_rate: float = Field(gt=0, description="peak learning rate")
    warmup_steps: int = Field(50, ge=0, description="steps of linear warm-up")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="keeps a small model from being certain of everything"
    )
    freeze: tuple[str, ...] = Field((), description="name prefixes of parameters kept as they are")
    seed: int = Field(0, ge=0, description="seed of weights and of the order of examples")


class PretrainedSource(Section):
    """Weights that exist already: a hub id, a local folder, or a folder of an installed package."""

    kind: Literal["hub", "folder", "package"] = Field(description="where it is")
    id: str = Field(min_length=1, description="hub id, folder path or package name")
    revision: str | None = Field(None, description="hub revision; wanted for hub ids")
    subfolder: str = Field("", description="folder inside the package or repository")
    sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="expected hash of model.safetensors"
    )


class ScratchSource(Section):
    """A model built from a configuration, with a tokenizer trained on the data set's train role."""

    kind: Literal["scratch"] = Field(description="built here")
    architecture: Literal["t5", "gpt2", "bert"] = Field(description="model family")
    shape: dict[str, int | float | str | bool] = Field(
        default_factory=dict, description="keys of the Hugging Face configuration"
    )
    vocabulary_size: int = Field(2000, ge=300, description="size of the byte-level BPE vocabulary")


class ModelConfig(Section):
    """A base model: where its weights come from, how it is trained, which layer is edited."""

    name: Name = Field(description="the file's name")
    label: str = Field(description="name in tables and figures")
    source: PretrainedSource | ScratchSource = Field(
        discriminator="kind", description="where the weights come from"
    )
    layer: str = Field(min_length=1, description="dotted name of the edited module")
    training: TrainingConfig | None = Field(
        None, description="how it is trained; null: used as it comes"
    )
    max_length: int = Field(128, ge=4, description="longest input in tokens")


class DatasetConfig(Section):
    """A data set: its builder with options, and the task its rows are for."""

    name: Name = Field(description="the file's name")
    label: str = Field(description="name in tables and figures")
    task: Literal["question_answering", "classification", "language_modelling"] = Field(
        description="what the rows are for"
    )
    builder: str = Field(description="who makes the rows; options below")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the builder")


class EditorConfig(Section):
    """An editor with its hyperparameters; defaults that are not named come from its class."""

    name: Name
    label: str = Field(description="name in tables and figures")
    editor: str = Field(description="registered editor")
    hyperparameters: dict[str, Any] = Field(default_factory=dict)


class StreamConfig(Section):
    """Which edits come, and in which order."""

    facts: int | None = Field(64, ge=1, description="first so many facts; null for all")
    max_edits: int | None = Field(None, ge=1, description="stop after so many edits")
    order: Literal["shuffled", "given"] = Field(
        "shuffled",
        description="by the run's seed, or the data set's order (terms, time)",
    )
    edit: Literal["errors", "all"] = Field(
        "errors", description="edit only what is wrong when it comes, or everything"
    )


class ProbeConfig(Section):
    """When the roles are evaluated, and on how many examples at most."""

    every: int = Field(16, ge=1, description="probe after every so many edits, and at the end")
    upstream: int | None = Field(None, ge=1, description="examples of upstream; null for all")
    holdout: int | None = Field(None, ge=1, description="examples of holdout; null for all")
    accurate: int | None = Field(None, ge=1, description="examples of accurate; null for all")
    batch_size: int = Field(64, ge=1, description="examples evaluated at once")


class ComputeConfig(Section):
    """Where and how numbers are computed."""

    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto, cpu, mps, cuda or cuda:1; auto takes a GPU where there is one",
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="autocast type of forward passes; weights stay float32"
    )
    threads: int = Field(1, ge=1, le=256, description="CPU threads of a run")


class RunSpec(Section):
    """All that a run depends on: model x data set x editor x hyperparameters x seed."""

    suite: Name
    model: ModelConfig
    dataset: DatasetConfig
    editor: EditorConfig
    seed: int = Field(ge=0)
    stream: StreamConfig = StreamConfig()
    probes: ProbeConfig = ProbeConfig()
    compute: ComputeConfig = ComputeConfig()


class ExperimentConfig(Section):
    """One model on one data set, with what differs from the suite's common settings."""

    model: ModelConfig = Field(description="a name, or a name with overrides")
    dataset: DatasetConfig = Field(description="a name, or a name with overrides")
    stream: StreamConfig = Field(description="over the suite's `stream`")
    probes: ProbeConfig = Field(description="over the suite's `probes`")


class EditorEntry(Section):
    """One editor of a suite, with an optional sweep and per-data-set hyperparameters."""

    name: Name = Field(description="the file's name")
    label: str = Field(description="name in tables and figures")
    editor: str = Field(description="registered editor")
    hyperparameters: dict[str, Any] = Field(
        default_factory=dict, description="of the editor, see below"
    )
    per_dataset: dict[Name, dict[str, Any]] = Field(
        default_factory=dict, description="hyperparameters on one data set"
    )
    sweep: dict[str, list[Any]] = Field(
        default_factory=dict, description="lists of values; their product is run as well"
    )
    datasets: list[Name] | None = Field(None, description="only on these; null for all")

    @field_validator("sweep")
    @classmethod
    def _no_empty_sweep(cls, sweep: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key, values in sweep.items():
            if not values:
                raise ValueError(f"the sweep over '{key}' has no values")
        return sweep


class SuiteConfig(Section):
    """A whole suite, every name resolved."""

    name: Name = Field(description="results go to results/<name>/")
    description: str = Field("", description="for people")
    experiments: list[ExperimentConfig] = Field(
        min_length=1, description="models on data sets; `stream` and `probes` beside it are shared"
    )
    editors: list[EditorEntry] = Field(
        min_length=1, description="names, or names with overrides; each on every experiment"
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        [0], min_length=1, description="one run each: order of the stream, editor's randomness"
    )
    compute: ComputeConfig = Field(ComputeConfig(), description="where numbers are computed")

    @model_validator(mode="after")
    def _unique(self) -> SuiteConfig:
        pairs = [(e.model.name, e.dataset.name) for e in self.experiments]
        if len(set(pairs)) < len(pairs):
            raise ValueError("the same model and data set stand twice under 'experiments'")
        folders: dict[str, tuple[str, str]] = {}
        for model, dataset in pairs:
            other = folders.setdefault(f"{model}-{dataset}", (model, dataset))
            if other != (model, dataset):
                raise ValueError(
                    f"model '{model}' on '{dataset}' and model '{other[0]}' on '{other[1]}' would "
                    "share a folder; rename one of them"
                )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed stands twice under 'seeds'")
        known = {dataset for _, dataset in pairs}
        for index, entry in enumerate(self.editors):
            for dataset in entry.datasets or ():
                if dataset not in known:
                    raise ValueError(
                        unknown_name("data set", dataset, known, f"editors[{index}].datasets")
                    )
        for name in known:
            configs = {
                e.dataset.model_dump_json() for e in self.experiments if e.dataset.name == name
            }
            if len(configs) > 1:
                raise ValueError(f"data set '{name}' stands twice with different options")
        return self


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number, as everybody who writes it means it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?)$"
    ),
    list("-+0123456789."),
)
# Integers come before floats in the list of resolvers, so "3" stays an int.


def parse_value(text: str) -> Any:
    """Parse one YAML value as it would be read from a file: "3.0", "1e-4", "[1, 2]", "true"."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"'{text}' is not a value: {_first_line(error)}.") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping."""
    try:
        with open(path, encoding="utf-8") as stream:
            content = yaml.load(stream, Loader=_Loader)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); check the file.") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date like 2024-02-30
        raise ConfigError(f"{path}: not valid YAML ({_first_line(error)}); mend it.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold a mapping of keys to values.")
    return content


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `overrides` laid over it; mappings merge, all else is replaced.

    A mapping of another `kind` (a source, say) replaces the whole: its keys are others.
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
    """Set `target["a"]["b"]` for "a.b", making mappings on the way."""
    *parents, last = dotted.split(".")
    for parent in parents:
        child = target.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {dotted}: '{parent}' is a value, not a section.")
        target = child
    target[last] = value


def available(config_dir: Path, kind: str) -> list[str]:
    """Return the names that `config/<kind>s/` offers."""
    return sorted(path.stem for path in (config_dir / KIND_FOLDERS[kind]).glob("*.yaml"))


def load_named(
    config_dir: Path, kind: str, entry: str | Mapping[str, Any], where: str = ""
) -> dict[str, Any]:
    """Return the mapping of a named file with the entry's own keys laid over it.

    Args:
        config_dir: the folder that holds `models/`, `datasets/` and `editors/`.
        kind: "model", "dataset" or "editor".
        entry: a name, or a mapping with a `name` and overrides. A mapping that brings all keys
            itself may carry a name that has no file.
        where: place of the entry, for messages.
    """
    overrides: Mapping[str, Any] = {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(overrides, Mapping) or not isinstance(overrides.get("name"), str):
        raise ConfigError(f"{where or kind}: must be a name or a mapping with a 'name'.")
    name = overrides["name"]
    names = available(config_dir, kind)
    if name in names:
        return merge(read_yaml(config_dir / KIND_FOLDERS[kind] / f"{name}.yaml"), overrides)
    if "base" in overrides:
        base = load_named(config_dir, kind, overrides["base"], f"{where}.base")
        rest = {key: value for key, value in overrides.items() if key != "base"}
        return merge(base, rest)
    if len(overrides) > 1 and {"source", "builder", "editor"} & set(overrides):
        return dict(overrides)
    label = "data set" if kind == "dataset" else kind
    raise ConfigError(unknown_name(label, name, names, where))


def validate(schema: type[BaseModel], value: Any, where: str, glue: str = ".") -> Any:
    """Return `value` as a `schema`, or raise ConfigError with one line per mistake.

    A message names its place as `where` + `glue` + key: ".", or ": " if `where` is a file.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        lines = [_sentence(schema, where, glue, e) for e in error.errors()]
        raise ConfigError("\n".join(lines)) from error


def _sentence(schema: type[BaseModel], where: str, glue: str, error: Mapping[str, Any]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"])
    keys = "".join(parts).strip(".")
    place = glue.join(filter(None, (where, keys))) or "config"
    if error["type"] == "extra_forbidden":
        key = str(error["loc"][-1])
        fields = _fields_at(schema, error["loc"][:-1])
        return unknown_name("key", key, fields, place)
    if error["type"] == "missing":
        return f"{place}: is missing; add it."
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{place}: {message}."
    return f"{place}: {message[0].lower() + message[1:]} (got {_shown(error['input'])})."


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _fields_at(schema: type[BaseModel], location: Sequence[Any]) -> Iterable[str]:
    """Follow field names down to the section a mistake is in, and list its keys."""
    current: Any = schema
    for part in location:
        if isinstance(part, int) or not hasattr(current, "model_fields"):
            continue
        annotation = current.model_fields[part].annotation if part in current.model_fields else None
        options = [annotation, *getattr(annotation, "__args__", ())]
        sections = [o for o in options if hasattr(o, "model_fields")]
        if len(sections) > 1:
            tagged = [s for s in sections if _is_tagged(s, location)]
            sections = tagged or sections
        current = sections[0] if sections else current
    fields = current.model_fields if hasattr(current, "model_fields") else ()
    return [*fields, *SHARED_KEYS] if current is SuiteConfig else fields


def _is_tagged(section: Any, location: Sequence[Any]) -> bool:
    kind = section.model_fields.get("kind")
    return kind is not None and any(p in getattr(kind.annotation, "__args__", ()) for p in location)


def load_suite(
    source: Path | str | Mapping[str, Any],
    config_dir: Path | str = "config",
    overrides: Iterable[str] = (),
) -> SuiteConfig:
    """Read a suite file (or mapping) and resolve every name in it.

    A mapping without `experiments` (what `snakemake --config seeds=[0]` gives) is laid over the
    default suite, `config/config.yaml`.

    Args:
        source: path of a suite file, or its content.
        config_dir: folder of the named parts.
        overrides: "editor.radius=3.0", "stream.facts=8", "seeds=[0,1]": laid over at the end,
            like the list under the source's own key `set`.

    Raises:
        ConfigError: one line per mistake, each with its place and what is allowed.
    """
    config_dir = Path(config_dir)
    if isinstance(source, Mapping):
        raw, where = copy.deepcopy(dict(source)), "config"
        if "experiments" not in raw:
            raw = merge(read_yaml(config_dir / DEFAULT_SUITE), raw)
    else:
        raw, where = read_yaml(Path(source)), str(source)
    editor_overrides: dict[str, Any] = {}
    for override in [*own_overrides(raw.pop("set", None), where), *overrides]:
        key, value = split_override(override)
        if key.startswith("editor."):
            set_value(editor_overrides, key.removeprefix("editor."), value)
        else:
            set_value(raw, key, value)
    return _compose(raw, editor_overrides, config_dir, where)


def own_overrides(given: Any, where: str) -> list[str]:
    """Return the overrides under a suite's key `set`: none, one, or a list."""
    overrides = [given] if isinstance(given, str) else given or []
    if not isinstance(overrides, list) or not all(isinstance(o, str) for o in overrides):
        raise ConfigError(f"{where}: set: must be a list of key=value (got {_shown(given)}).")
    return overrides


def split_override(text: str) -> tuple[str, Any]:
    """Split "editor.radius=3.0" into its key and its parsed value."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text}: write it as key=value, e.g. editor.radius=3.0.")
    return key.strip(), parse_value(value)


def _compose(
    raw: dict[str, Any], editor_overrides: dict[str, Any], config_dir: Path, where: str
) -> SuiteConfig:
    stream = _section(raw.pop("stream", None), f"{where}: stream")
    probes = _section(raw.pop("probes", None), f"{where}: probes")
    experiments = raw.get("experiments")
    editors = raw.get("editors")
    if not isinstance(experiments, list) or not isinstance(editors, list):
        raise ConfigError(f"{where}: 'experiments' and 'editors' must be lists; add them.")
    raw["experiments"] = [
        _compose_experiment(entry, stream, probes, config_dir, f"{where}: experiments[{i}]")
        for i, entry in enumerate(experiments)
    ]
    raw["editors"] = [
        _compose_editor(entry, editor_overrides, config_dir, f"{where}: editors[{i}]")
        for i, entry in enumerate(editors)
    ]
    return validate(SuiteConfig, raw, where, ": ")


def _section(value: Any, where: str) -> dict[str, Any]:
    """Return a section as a dict; one that is left empty, which YAML reads as null, is empty."""
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{where}: must be a section of keys and values (got {_shown(value)}).")
    return dict(value or {})


def _compose_editor(
    entry: Any, overrides: Mapping[str, Any], config_dir: Path, where: str
) -> dict[str, Any]:
    """Lay a suite's own hyperparameters, and then `--set`, over an editor's file.

    What is laid over also wins over the file's `per_dataset` (not over the suite's own), and
    `--set` over everything.
    """
    editor = load_named(config_dir, "editor", entry, where)
    for part in ("hyperparameters", "per_dataset", "sweep"):
        editor[part] = _section(editor.get(part), f"{where}.{part}")
    given = entry if isinstance(entry, Mapping) else {}
    own = given.get("hyperparameters") or {}
    own_per_dataset = given.get("per_dataset") or {}
    editor["hyperparameters"] |= overrides
    for dataset, value in editor["per_dataset"].items():
        settings = _section(value, f"{where}.per_dataset.{dataset}")
        dropped = overrides.keys() | (own.keys() - (own_per_dataset.get(dataset) or {}).keys())
        editor["per_dataset"][dataset] = {k: v for k, v in settings.items() if k not in dropped}
    editor["sweep"] = {k: v for k, v in editor["sweep"].items() if k not in overrides}
    return editor


def _compose_experiment(
    entry: Any,
    stream: Mapping[str, Any],
    probes: Mapping[str, Any],
    config_dir: Path,
    where: str,
) -> dict[str, Any]:
    if not isinstance(entry, Mapping) or not {"model", "dataset"} <= set(entry):
        raise ConfigError(f"{where}: must be a mapping with 'model' and 'dataset'.")
    return {
        **entry,
        "model": load_named(config_dir, "model", entry["model"], f"{where}.model"),
        "dataset": load_named(config_dir, "dataset", entry["dataset"], f"{where}.dataset"),
        "stream": merge(stream, _section(entry.get("stream"), f"{where}.stream")),
        "probes": merge(probes, _section(entry.get("probes"), f"{where}.probes")),
    }


def canonical(value: Any) -> Any:
    """Return `value` with numbers and mappings in the one form that is hashed.

    1, 1.0 and "1.0" are different values to YAML but the first two are the same setting; floats
    that are whole become ints, so that `radius: 3` and `radius: 3.0` are one run.
    """
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(f"{value} is not a number that a setting can have.")
        return int(value) if value.is_integer() and abs(value) < 1e15 else value
    if isinstance(value, Mapping):
        return {str(key): canonical(value[key]) for key in sorted(value)}
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    return value
