"""From a suite to its runs: products of hyperparameters, readable ids, hashes and paths.

    for run in expand(suite):
        print(run.id)      # facts-t5/facts-qa/grace/radius=3.0/seed-0

Torch-free; the Snakefile plans with it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from grace_bench import NUMERICS_VERSION
from grace_bench.errors import ConfigError
from grace_bench.registry import DATASETS, EDITORS, TASKS
from grace_bench.suite.origins import (
    origins_of_dataset,
    origins_of_editor,
    origins_of_measures,
    origins_of_model,
)
from grace_bench.suite.schema import DatasetConfig, EditorConfig, EditorEntry, RunSpec, SuiteConfig
from grace_bench.suite.section import validate

RESULTS = Path("results")
LONGEST_VARIANT = 80
MOST_RUNS = 100_000
"""Most runs of a suite; larger workflows cannot be planned."""

UNFIT_FOR_NAMES = re.compile(r"[^A-Za-z0-9_.=+-]")
"""Characters that a variant's name must not have.

The others are safe in folder names on every system, in shells, and in Snakemake, which passes
wildcards to cluster jobs separated by commas.
"""

RUN_FILES = ("run.json", "steps.parquet", "probes.parquet", "predictions.parquet")
"""Files of every run; codebook editors add codebook.*, weight editors editor.safetensors."""


def canonical(value: Any) -> Any:
    """Return `value` with numbers and mappings in the canonical form that is hashed.

    Whole floats become ints, so that `radius: 3` and `radius: 3.0` are the same run.
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


def canonical_json(value: Any) -> str:
    """Return the canonical JSON text of a setting; equal settings have equal texts."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any, length: int = 12) -> str:
    """Return the first hex digits of the sha256 of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


@dataclass(frozen=True)
class Run:
    """One run: its spec, its id and its folders."""

    spec: RunSpec
    results: Path = RESULTS
    in_sweep: bool = False  # only in a sweep; the main table shows the others

    @cached_property
    def variant(self) -> str:
        """The hyperparameters that differ from the editor's defaults: "radius=3.0+steps=50"."""
        return variant_name(self.spec.editor)

    @property
    def id(self) -> str:
        """`model/dataset/editor/variant/seed-k`, unique within a suite."""
        spec = self.spec
        names = (spec.model.name, spec.dataset.name, spec.editor.name, self.variant)
        return "/".join((*names, f"seed-{spec.seed}"))

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return self.results / self.spec.suite / "runs" / self.id

    @property
    def dataset_folder(self) -> Path:
        """Where the prepared data set is."""
        return dataset_folder(self.spec.suite, self.spec.dataset.name, self.results)

    @property
    def model_folder(self) -> Path:
        """Where the prepared base model is."""
        return self.results / self.spec.suite / "models" / self.spec.base_model

    @property
    def baseline_folder(self) -> Path:
        """Where the predictions of the unedited base model are."""
        return self.results / self.spec.suite / "baselines" / self.spec.base_model

    @cached_property
    def assets(self) -> str:
        """Name of what the editor needs before the run, shared by many runs; "": nothing."""
        editor = self.spec.editor
        if not EDITORS.get(editor.editor).assets:
            return ""
        return f"{editor.editor}-{digest(asset_settings(editor))}"

    @property
    def assets_folder(self) -> Path | None:
        """Where the editor's assets are; None: it needs none."""
        if not self.assets:
            return None
        return self.results / self.spec.suite / "assets" / self.spec.base_model / self.assets

    @cached_property
    def content_hash(self) -> str:
        """Hash of everything that can change a number; labels and the suite's name cannot."""
        return content_hash(self.spec)


def bundles(runs: Sequence[Run], size: int) -> dict[str, list[Run]]:
    """Return the runs in bundles of one base model each, by "facts-t5-facts-qa/seed-0/000"."""
    shared: dict[str, list[Run]] = {}
    for run in runs:
        shared.setdefault(run.spec.base_model, []).append(run)
    return {
        f"{base_model}/{start // size:03d}": some[start : start + size]
        for base_model, some in shared.items()
        for start in range(0, len(some), size)
    }


def content_hash(spec: RunSpec) -> str:
    """Return the hash of everything that can change a number: settings, sources, plug-ins."""
    parts = {**moving_settings(spec), "numerics_version": NUMERICS_VERSION}
    found = origins(spec)
    return digest({**parts, "origins": found} if found else parts, 16)


def origins(spec: RunSpec) -> dict[str, Any]:
    """Return hashes of what changes numbers besides settings: sources, weights, plug-ins."""
    return {
        **origins_of_dataset(spec.dataset),
        **origins_of_model(spec.model),
        **origins_of_editor(spec.editor.editor),
        **origins_of_measures(),
    }


def moving_settings(spec: RunSpec) -> dict[str, Any]:
    """Return the settings that can change a number: no labels, no suite, no device."""
    settings = without_labels(spec).model_dump(mode="json")
    settings.pop("suite")
    settings["compute"].pop("device")
    settings["model"] = {**settings["model"], **base_model_settings(settings["model"])}
    return settings


def base_model_settings(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return those settings of a model, as JSON, that its weights depend on."""
    settings = {key: value for key, value in model.items() if key not in ("label", "layer")}
    if settings.get("training"):
        training = settings["training"].items()
        settings["training"] = {k: v for k, v in training if k != "checkpoint_minutes"}
    return settings


def asset_settings(editor: EditorConfig) -> dict[str, Any]:
    """Return the hyperparameters that an editor's assets depend on."""
    settings = resolve_editor(editor).hyperparameters
    names = EDITORS.get(editor.editor).hyperparameters_class().ASSET_FIELDS
    return {name: settings[name] for name in names}


def with_asset_settings(spec: RunSpec) -> RunSpec:
    """Return the spec whose editor has only those settings that its assets depend on."""
    editor = EditorConfig(
        name=spec.editor.editor,
        label=spec.editor.editor,
        editor=spec.editor.editor,
        hyperparameters=asset_settings(spec.editor),
    )
    return spec.model_copy(update={"editor": resolve_editor(editor)})


def without_labels(spec: RunSpec) -> RunSpec:
    """Return the spec with every label replaced by the name: changing a label reruns nothing."""
    parts = {part: getattr(spec, part) for part in ("model", "dataset", "editor")}
    return spec.model_copy(
        update={k: part.model_copy(update={"label": part.name}) for k, part in parts.items()}
    )


def dataset_folder(suite: str, dataset: str, results: Path = RESULTS) -> Path:
    """Return the folder of a prepared data set."""
    return results / suite / "data" / dataset


def expand(suite: SuiteConfig, results: Path = RESULTS) -> list[Run]:
    """Return all runs of a suite, sorted by id.

    Raises:
        ConfigError: an editor, a builder, a hyperparameter or an option is unknown or out of range,
            or two entries of the suite describe different runs with the same id.
    """
    n_runs = sum(
        math.prod(map(len, entry.sweep.values())) + 1 if entry.sweep else 1
        for experiment in suite.experiments
        for entry in suite.editors
        if entry.datasets is None or experiment.dataset.name in entry.datasets
    ) * len(suite.seeds)
    if n_runs > MOST_RUNS:
        raise ConfigError(
            f"suite '{suite.name}': describes {n_runs} runs, more than {MOST_RUNS}; shorten its "
            "sweeps or split the suite."
        )
    experiments = [
        experiment.model_copy(update={"dataset": resolve_dataset(experiment.dataset)})
        for experiment in suite.experiments
    ]
    runs = [
        Run(
            RunSpec(
                suite=suite.name,
                model=experiment.model,
                dataset=experiment.dataset,
                editor=editor,
                seed=seed,
                stream=experiment.stream,
                probes=experiment.probes,
                compute=suite.compute,
            ),
            results,
            in_sweep,
        )
        for experiment in experiments
        for entry in suite.editors
        if entry.datasets is None or experiment.dataset.name in entry.datasets
        for editor, in_sweep in variants(entry, experiment.dataset)
        for seed in suite.seeds
    ]
    unique: dict[str, Run] = {}
    for run in runs:
        # The same setting reached twice (a default inside a sweep) is one run.
        known = unique.setdefault(run.id, run)
        if known is not run and known.content_hash != run.content_hash:
            raise ConfigError(
                f"suite '{suite.name}': two different runs share the id '{run.id}'; "
                "give one of the editors another name."
            )
        if known.in_sweep and not run.in_sweep:
            unique[run.id] = run  # another entry has it as its own setting
    return [unique[name] for name in sorted(unique)]


def variants(entry: EditorEntry, dataset: DatasetConfig) -> Iterator[tuple[EditorConfig, bool]]:
    """Yield the editor as configured for a data set, then once per point of its sweep.

    The second item of a pair is whether only the sweep reaches the point.
    """
    base = {**entry.hyperparameters, **entry.per_dataset.get(dataset.name, {})}
    keys = sorted(entry.sweep)
    points = itertools.product(*(entry.sweep[key] for key in keys)) if keys else ()
    overlays = [{}, *(dict(zip(keys, values, strict=True)) for values in points)]
    for index, overlay in enumerate(overlays):
        editor = EditorConfig(
            name=entry.name,
            label=entry.label,
            editor=entry.editor,
            hyperparameters={**base, **overlay},
        )
        yield resolve_editor(editor), index > 0


def find_builder(dataset: DatasetConfig) -> Any:
    """Return the data set's builder, a DatasetBuilder with its options checked."""
    place = f"datasets.{dataset.name}"
    TASKS.check(dataset.task, f"{place}.task")
    builder_class = DATASETS.get(dataset.builder, f"{place}.builder")
    options = validate(builder_class.options_class, dataset.options, f"{place}.options")
    return builder_class(options)


def resolve_dataset(dataset: DatasetConfig) -> DatasetConfig:
    """Return the data set with its given options checked and converted to their types."""
    options = find_builder(dataset).options.model_dump(mode="json", exclude_unset=True)
    return dataset.model_copy(update={"options": options})


def resolve_editor(editor: EditorConfig) -> EditorConfig:
    """Return the editor with every hyperparameter filled in and checked."""
    schema = EDITORS.get(editor.editor, f"editors.{editor.name}").hyperparameters_class()
    settings = validate(schema, editor.hyperparameters, f"editors.{editor.name}")
    return editor.model_copy(update={"hyperparameters": settings.model_dump(mode="json")})


def variant_name(editor: EditorConfig) -> str:
    """Return the settings that differ from the class's defaults, as a folder name.

    Names that are too long or have unsuitable characters are cut and end in a hash of all settings.
    """
    schema = EDITORS.get(editor.editor).hyperparameters_class()
    rules = {k: v for k, v in editor.hyperparameters.items() if k == "rules"}
    defaults = schema.model_validate(rules).model_dump(mode="json")
    base = schema().model_dump(mode="json")
    parts = [
        f"{key}={_plain(value)}"
        for key, value in sorted(editor.hyperparameters.items())
        if value != (base if key == "rules" else defaults).get(key)
    ]
    name = "+".join(parts) or "default"
    readable = UNFIT_FOR_NAMES.sub("_", name)
    if len(name) <= LONGEST_VARIANT and readable == name:
        return name
    readable = readable[: LONGEST_VARIANT - 13]
    return f"{readable}-{digest(editor.hyperparameters)}"


def _plain(value: Any) -> str:
    return str(value).replace(" ", "")
