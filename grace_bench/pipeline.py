"""The steps of the workflow as functions; the command line and the rules call nothing else.

Heavy packages are imported inside the steps that need them, so that planning stays quick.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from grace_bench.checked import read_record
from grace_bench.config import (
    DatasetConfig,
    EditorConfig,
    ModelConfig,
    PretrainedSource,
    RunSpec,
    SuiteConfig,
    validate,
)
from grace_bench.errors import ConfigError
from grace_bench.lease import Lease
from grace_bench.records import write_json
from grace_bench.runs import (
    RESULTS,
    Run,
    asset_settings,
    canonical_json,
    digest,
    expand,
    find_builder,
    resolve_editor,
    without_labels,
)
from grace_bench.single import result_there
from grace_bench.suites import (
    concerns,
    entry_name,
    load_suite,
    own_overrides,
    read_yaml,
    set_value,
    split_override,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from grace_bench.execution import Saving

logger = logging.getLogger(__name__)

DATASETS_CACHE = ".cache/datasets"


def prepare_dataset(dataset: DatasetConfig, folder: Path, results: Path = RESULTS) -> None:
    """Write one data set's roles and its manifest into `folder`."""
    from grace_bench.datasets.base import prepare

    prepare(
        find_builder(dataset),
        folder,
        task=dataset.task,
        config=dataset.model_dump(mode="json"),
        cache_dir=results / DATASETS_CACHE,
    )


def prepare_model(spec: RunSpec, results: Path = RESULTS) -> None:
    """Build or load, train and save the base model of a run."""
    from grace_bench.models.training import prepare_model as prepare

    run = Run(spec, results)
    with Lease(run.model_folder) as lease:
        if lease.waited and _made_with(run.model_folder / "training.json", **_model_inputs(run)):
            logger.info("model %s was made by the other process.", spec.model.name)
            return
        prepare(spec.model, spec.dataset, run.dataset_folder, run.model_folder, spec.compute)


def _data_hash(run: Run) -> str:
    return read_record(run.dataset_folder / "manifest.json", data_hash=str)["data_hash"]


def _model_hash(run: Run) -> str:
    return read_record(run.model_folder / "training.json", sha256=str)["sha256"]


def _model_inputs(run: Run) -> dict[str, Any]:
    data_hash = _data_hash(run)
    return {"config": run.spec.model, "data_hash": data_hash}


def baseline(spec: RunSpec, results: Path = RESULTS) -> None:
    """Predict every role with the unedited model of a run."""
    from grace_bench.baseline import run_baseline

    run = Run(spec, results)
    run_baseline(spec, run.dataset_folder, run.model_folder, run.baseline_folder)


def prepare_editor(spec: RunSpec, results: Path = RESULTS) -> None:
    """Make what the editor of a run needs before it."""
    from grace_bench.assets import make_assets

    run = Run(spec, results)
    if run.assets_folder is None:
        raise ConfigError(f"editor '{spec.editor.editor}' needs nothing before a run.")
    with Lease(run.assets_folder) as lease:
        if lease.waited and _made_with(run.assets_folder / "assets.json", **_assets_inputs(run)):
            logger.info("the assets of %s were made by the other process.", spec.editor.name)
            return
        make_assets(spec, run.dataset_folder, run.model_folder, run.assets_folder)


def _assets_inputs(run: Run) -> dict[str, Any]:
    return {
        "data_hash": _data_hash(run),
        "model_hash": _model_hash(run),
        "layer": run.spec.model.layer,
    }


def edit(
    spec: RunSpec,
    results: Path = RESULTS,
    prepare_missing: bool = False,
    saving: Saving | None = None,
) -> dict[str, Any]:
    """Do one run; with `prepare_missing` make its data, model and baseline first if needed.

    If another process is doing it, wait for that one, and take its result.

    Raises:
        ConfigError: with `prepare_missing`, what is there was made with other settings.
    """
    from grace_bench.execution import do_run

    run = Run(spec, results)
    if prepare_missing:
        if (found := result_there(run)) is not None:
            return found
        ensure_prepared(run)
    return do_run(run, saving)


def edit_bundle(
    specs: Sequence[RunSpec],
    output: Path,
    results: Path = RESULTS,
    saving: Saving | None = None,
) -> None:
    """Do several runs of one base model in this process, and list them in `output`."""
    from grace_bench.bundle import run_bundle

    runs = [Run(spec, results) for spec in specs]
    write_json(output, run_bundle(runs, saving))


def ensure_prepared(run: Run) -> None:
    """Make a run's data, model and baseline where they are missing or of another config."""
    spec = run.spec
    manifest, training = run.dataset_folder / "manifest.json", run.model_folder / "training.json"
    if not _made_with(manifest, config=spec.dataset):
        logger.info("preparing data set %s", spec.dataset.name)
        prepare_dataset(spec.dataset, run.dataset_folder, run.results)
    data_hash = _data_hash(run)
    if not _made_with(training, **_model_inputs(run)):
        logger.info("preparing model %s", spec.model.name)
        prepare_model(spec, run.results)
    model_hash = _model_hash(run)
    predicted = run.baseline_folder / "baseline.json"
    if not _made_with(predicted, data_hash=data_hash, model_hash=model_hash):
        logger.info("predicting with the unedited model")
        baseline(spec, run.results)
    if run.assets_folder is not None:
        made = run.assets_folder / "assets.json"
        if not _made_with(made, **_assets_inputs(run)):
            logger.info("preparing editor %s", spec.editor.name)
            prepare_editor(spec, run.results)


def _made_with(path: Path, **expected: Any) -> bool:
    """Say whether the JSON file exists and has these values."""
    found = read_record(path) if path.is_file() else {}
    return all(canonical_json(found.get(k)) == canonical_json(v) for k, v in expected.items())


def plan(suite: SuiteConfig, results: Path = RESULTS) -> list[dict[str, Any]]:
    """Return one entry a run: id, folder, content hash, and whether only a sweep reaches it."""
    return [
        {
            "id": run.id,
            "folder": str(run.folder),
            "content_hash": run.content_hash,
            "in_sweep": run.in_sweep,
            "base_model": run.spec.base_model,
            "labels": {
                "model": run.spec.model.label,
                "dataset": run.spec.dataset.label,
                "editor": run.spec.editor.label,
            },
        }
        for run in expand(suite, results)
    ]


def write_plan(suite: SuiteConfig, output: Path, results: Path = RESULTS) -> None:
    """Write the list of a suite's runs: what aggregation reads, and nothing else."""
    write_json(output, {"suite": suite.name, "runs": plan(suite, results)})


def plan_hash(suite: SuiteConfig) -> str:
    """Return a hash of everything that stands in the plan."""
    return digest(plan(suite))


def spec_json(spec: RunSpec) -> str:
    """Return the JSON text of a run's settings, labels left out: they move no number."""
    return canonical_json(without_labels(spec))


def bundle_json(runs: Sequence[Run]) -> str:
    """Return the JSON text of several runs: the first one's settings, and what differs in others.

    A shell's argument may have 128 kB, which 200 whole runs would not fit into.
    """
    first, *others = (without_labels(run.spec).model_dump(mode="json") for run in runs)
    changes = [{k: v for k, v in other.items() if v != first[k]} for other in others]
    return canonical_json({"first": first, "others": changes})


def checked_bundle(value: Mapping[str, Any], where: str) -> list[RunSpec]:
    """Return the runs of `bundle_json`, checked."""
    first, others = value.get("first"), value.get("others")
    if not isinstance(first, dict) or not isinstance(others, list):
        raise ConfigError(f"{where}: must have 'first', a run, and 'others', a list.")
    known = [o if isinstance(o, dict) else {"": o} for o in others]
    return [checked_spec({**first, **changes}, where) for changes in ({}, *known)]


def dataset_spec_json(suite: SuiteConfig, dataset: str) -> str:
    """Return the JSON text of a run in which all but the data set is a constant.

    A rule's parameters decide what reruns, so nothing may stand in them that the rule's output
    does not depend on.
    """
    experiment = next(e for e in suite.experiments if e.dataset.name == dataset)
    return spec_json(_bare_spec(suite, _NO_MODEL, experiment.dataset))


def model_spec_json(suite: SuiteConfig, run: Run) -> str:
    """Return the JSON text of a run in which all but base model and data set is a constant."""
    return spec_json(_bare_spec(suite, run.spec.model, run.spec.dataset))


def assets_spec_json(suite: SuiteConfig, run: Run) -> str:
    """Return the JSON text of a run in which all is a constant that its assets don't depend on."""
    bare = _bare_spec(suite, run.spec.model, run.spec.dataset)
    editor = EditorConfig(
        name=run.spec.editor.editor,
        label=run.spec.editor.editor,
        editor=run.spec.editor.editor,
        hyperparameters=asset_settings(run.spec.editor),
    )
    return spec_json(bare.model_copy(update={"editor": resolve_editor(editor)}))


_NO_MODEL = ModelConfig(
    name="none",
    label="none",
    source=PretrainedSource(kind="folder", id="none"),
    layer="none",
)


def _bare_spec(suite: SuiteConfig, model: ModelConfig, dataset: DatasetConfig) -> RunSpec:
    editor = EditorConfig(name="unedited", label="unedited", editor="unedited")
    return RunSpec(
        suite=suite.name,
        model=model,
        dataset=dataset,
        editor=editor,
        seed=0,
        compute=suite.compute,
    )


def checked_spec(value: Mapping[str, Any], where: str) -> RunSpec:
    """Return a run given as a mapping, its editor's and data set's settings checked too."""
    spec = validate(RunSpec, value, where, ": ")
    find_builder(spec.dataset)
    return spec.model_copy(update={"editor": resolve_editor(spec.editor)})


def single_spec(
    suite: Path,
    config_dir: Path,
    model: str,
    dataset: str,
    editor: str,
    seed: int,
    overrides: Sequence[str] = (),
) -> RunSpec:
    """Return the spec of one run, with the suite's own entries of its model, data set and editor.

    A part that the suite has no entry of is taken from its file. `overrides` are
    "editor.radius=3.0", "model.training.steps=10", "stream.facts=8", ...
    """
    common = read_yaml(suite)
    known = [e for e in common.get("experiments") or [] if isinstance(e, dict)]
    pair = (model, dataset)
    own = next(
        (e for e in known if (entry_name(e.get("model")), entry_name(e.get("dataset"))) == pair),
        {},
    )
    model_entry: dict[str, Any] = _mapping(own.get("model", model))
    dataset_entry: dict[str, Any] = _mapping(own.get("dataset", dataset))
    editors = common.get("editors")
    entries = [e for e in editors if entry_name(e) == editor] if isinstance(editors, list) else []
    editor_entry = {**_mapping(entries[0] if entries else editor), "sweep": {}, "datasets": None}
    names = {"model": model, "dataset": dataset, "editor": editor}
    given = own_overrides(common.get("set"), str(suite))
    suite_overrides = [override for override in given if concerns(override, **names)]
    for override in overrides:
        key, value = split_override(override)
        part, _, rest = key.partition(".")
        if part in ("model", "dataset") and rest:
            set_value(model_entry if part == "model" else dataset_entry, rest, value)
        else:
            suite_overrides.append(override)
    raw = {
        **common,
        "experiments": [{**own, "model": model_entry, "dataset": dataset_entry}],
        "editors": [editor_entry],
        "seeds": [seed],
        "set": suite_overrides,
    }
    runs = expand(load_suite(raw, config_dir))
    return next(without_labels(run.spec) for run in runs if not run.in_sweep)


def _mapping(entry: Any) -> dict[str, Any]:
    return dict(entry) if isinstance(entry, dict) else {"name": entry}
