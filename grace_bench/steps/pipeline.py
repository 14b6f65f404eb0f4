"""The steps of the workflow as functions; the command line and the rules call nothing else.

Heavy packages are imported inside the steps that need them, so that planning stays quick.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from grace_bench.errors import ConfigError
from grace_bench.jobs.lease import Lease
from grace_bench.jobs.refusals import kept
from grace_bench.steps.single import result_there
from grace_bench.store.files import write_json
from grace_bench.store.json_records import try_read
from grace_bench.suite.compose import (
    check_part,
    concerns,
    entry_name,
    load_suite,
    own_overrides,
    read_suite,
    set_value,
    split_override,
)
from grace_bench.suite.outdated import (
    assets_made_from,
    baseline_made_from,
    check_parts,
    data_made_from,
    model_made_from,
    parts_of,
)
from grace_bench.suite.plan import (
    RESULTS,
    Run,
    asset_settings,
    canonical_json,
    expand,
    find_builder,
    resolve_dataset,
    resolve_editor,
    without_labels,
)
from grace_bench.suite.schema import (
    CHECKPOINT_MINUTES,
    DatasetConfig,
    EditorConfig,
    ModelConfig,
    PretrainedSource,
    RunSpec,
    SuiteConfig,
    validate,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from grace_bench.steps.edit import Saving

logger = logging.getLogger(__name__)


def prepare_dataset(dataset: DatasetConfig, folder: Path) -> None:
    """Write one data set's roles and its manifest into `folder`."""
    from grace_bench.datasets.base import prepare

    made_from = data_made_from(dataset)
    with kept(folder, made_from):
        prepare(
            find_builder(dataset),
            folder,
            task=dataset.task,
            config=dataset.model_dump(mode="json"),
            made_from=made_from,
        )


def prepare_model(spec: RunSpec, results: Path = RESULTS) -> None:
    """Build or load, train and save the base model of a run."""
    from grace_bench.steps.model import prepare_model as prepare

    run = Run(spec, results)
    check_parts(run, "data set")
    made_from = model_made_from(spec)
    with Lease(run.model_folder) as lease:
        if lease.waited and _is_made(run, "model"):
            logger.info("model %s was made by the other process.", spec.model.name)
            return
        folders = run.dataset_folder, run.model_folder
        with kept(run.model_folder, made_from):
            prepare(spec.model, spec.dataset, *folders, spec.compute, made_from)


def baseline(spec: RunSpec, results: Path = RESULTS) -> None:
    """Predict every role with the unedited model of a run."""
    from grace_bench.steps.baseline import run_baseline

    run = Run(spec, results)
    check_parts(run, "data set", "model")
    folders = run.dataset_folder, run.model_folder, run.baseline_folder
    run_baseline(spec, *folders, baseline_made_from(spec))


def prepare_editor(
    spec: RunSpec, results: Path = RESULTS, minutes: float = CHECKPOINT_MINUTES
) -> None:
    """Make what the editor of a run needs before it, with a checkpoint every so many minutes."""
    from grace_bench.steps.precompute import make_assets

    run = Run(spec, results)
    if run.assets_folder is None:
        raise ConfigError(f"editor '{spec.editor.editor}' needs nothing before a run.")
    check_parts(run, "data set", "model")
    made_from = assets_made_from(spec)
    with Lease(run.assets_folder) as lease:
        if lease.waited and _is_made(run, "assets"):
            logger.info("the assets of %s were made by the other process.", spec.editor.name)
            return
        folders = run.dataset_folder, run.model_folder, run.assets_folder
        with kept(run.assets_folder, made_from):
            make_assets(spec, *folders, made_from, minutes)


def _is_made(run: Run, kind: str) -> bool:
    return next(part for part in parts_of(run) if part.kind == kind).is_current()


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
    from grace_bench.steps.edit import Saving, do_run

    run, saving = Run(spec, results), saving or Saving()
    if prepare_missing:
        if (found := result_there(run)) is not None:
            return found
        ensure_prepared(run, saving.minutes)
    check_parts(run, "data set", "model", "baseline", "assets")
    return do_run(run, saving)


def edit_bundle(
    specs: Sequence[RunSpec],
    output: Path,
    results: Path = RESULTS,
    saving: Saving | None = None,
) -> None:
    """Do several runs of one base model in this process, and list them in `output`."""
    from grace_bench.steps.bundle import run_bundle

    runs = [Run(spec, results) for spec in specs]
    for run in runs:
        check_parts(run, "data set", "model", "baseline", "assets")
    write_json(output, run_bundle(runs, saving))


def ensure_prepared(run: Run, minutes: float) -> None:
    """Make what a run is made from where it is missing or was made from something else."""
    makers: dict[str, Callable[[], None]] = {
        "data set": lambda: prepare_dataset(run.spec.dataset, run.dataset_folder),
        "model": lambda: prepare_model(run.spec, run.results),
        "baseline": lambda: baseline(run.spec, run.results),
        "assets": lambda: prepare_editor(run.spec, run.results, minutes),
    }
    again: set[str] = set()
    for part in parts_of(run):
        upstream = {"data set", "model"} & again
        if upstream or not part.is_current():
            logger.info("preparing %s %s", part.kind, part.record.parent)
            makers[part.kind]()
            again.add(part.kind)


def plan(suite: SuiteConfig, results: Path = RESULTS) -> list[dict[str, Any]]:
    """Return one entry a run: id, folder, content hash, and whether only a sweep reaches it."""
    return plan_of(expand(suite, results))


def plan_of(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Return the entries of these runs."""
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
        for run in runs
    ]


def is_plan_outdated(suite: str, runs: Iterable[Run], results: Path = RESULTS) -> bool:
    """Say whether a suite's plan.json is missing or lists other runs than these."""
    return try_read(results / suite / "plan.json") != {"suite": suite, "runs": plan_of(runs)}


def write_plan(suite: SuiteConfig, output: Path, results: Path = RESULTS) -> None:
    """Write the list of a suite's runs: what aggregation reads, and nothing else."""
    write_json(output, {"suite": suite.name, "runs": plan(suite, results)})


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
    parts = {"dataset": resolve_dataset(spec.dataset), "editor": resolve_editor(spec.editor)}
    return spec.model_copy(update=parts)


def single_spec(
    suite: Path,
    config_dir: Path,
    model: str | None,
    dataset: str,
    editor: str,
    seed: int,
    overrides: Sequence[str] = (),
) -> RunSpec:
    """Return the spec of one run, with the suite's own entries of its model, data set and editor.

    A part that the suite has no entry of is taken from its file. Without a model, which rows do not
    depend on, it is that of the suite's first experiment on the data set, or none. `overrides` are
    "editor.radius=3.0", "model.training.steps=10", "stream.facts=8", ...
    """
    common = read_suite(suite, config_dir)
    known = [e for e in common.get("experiments") or [] if isinstance(e, dict)]
    of_data = [e for e in known if entry_name(e.get("dataset")) == dataset]
    of_model = [e for e in known if entry_name(e.get("model")) == model]
    pairs = of_data if model is None else [e for e in of_data if e in of_model]
    own = pairs[0] if pairs else {}
    # A model or a data set that the suite has in another pair is the suite's own, too.
    model_entry = _mapping(
        {**_first(of_model), **own}.get("model", _NO_MODEL.model_dump() if model is None else model)
    )
    dataset_entry = _mapping({**_first(of_data), **own}.get("dataset", dataset))
    model = entry_name(model_entry)
    editors = common.get("editors")
    entries = [e for e in editors if entry_name(e) == editor] if isinstance(editors, list) else []
    editor_entry = {**_mapping(entries[0] if entries else editor), "sweep": {}, "datasets": None}
    names = {"model": model, "dataset": dataset, "editor": editor}
    for kind, entry in zip(names, (model_entry, dataset_entry, editor_entry), strict=True):
        check_part(config_dir, kind, entry, f"--{kind}")
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


def _first(entries: list[dict[str, Any]]) -> dict[str, Any]:
    return entries[0] if entries else {}


def _mapping(entry: Any) -> dict[str, Any]:
    return dict(entry) if isinstance(entry, dict) else {"name": entry}
