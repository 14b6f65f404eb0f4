"""One run by hand, `grace-bench edit`. Torch-free.

A run's folder is named after its model, data set, editor and seed. Other settings that change its
numbers (the stream, say) are not part of the name, so an existing folder may be another experiment:
it is never overwritten.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from grace_bench.errors import ConfigError
from grace_bench.metrics import MEASURES, METRICS
from grace_bench.store.files import read_parquet, sha256_of
from grace_bench.store.json_records import try_read
from grace_bench.store.records import MANIFEST, RUN, TRAINING, Manifest, RunRecord, TrainingRecord
from grace_bench.store.schemas import PROBES
from grace_bench.suite.compose import check_part, entry_name, load_suite, read_suite
from grace_bench.suite.overrides import concerns, own_overrides, set_value, split_override
from grace_bench.suite.plan import (
    Run,
    base_model_settings,
    canonical_json,
    expand,
    moving_settings,
    without_labels,
)
from grace_bench.suite.schema import ModelConfig, PretrainedSource, RunSpec

logger = logging.getLogger(__name__)

MOST_DIFFERENCES = 4
LONGEST_SETTING = 80


NO_MODEL = ModelConfig(
    name="none",
    label="none",
    source=PretrainedSource(kind="folder", id="none"),
    layer="none",
)
"""Stands in where a data set is prepared for no model in particular."""


def single_run(
    suite: Path,
    config_dir: Path,
    model: str | None,
    dataset: str,
    editor: str,
    seed: int,
    overrides: Sequence[str] = (),
) -> Run:
    """Return one run, with the suite's own entries for its model, data set and editor.

    A part without an entry in the suite is taken from its file.

    Args:
        suite: path of a suite file.
        config_dir: folder of models, data sets and editors.
        model: its name; None: of no model in particular, for data sets.
        dataset: its name.
        editor: its name.
        seed: of the run.
        overrides: "editor.radius=3.0", "model.training.steps=10", "stream.facts=8", ...
    """
    if seed < 0:
        raise ConfigError(f"--seed {seed}: must be 0 or more.")
    common = read_suite(suite, config_dir)
    known = [e for e in common.get("experiments") or [] if isinstance(e, dict)]
    of_data = [e for e in known if entry_name(e.get("dataset")) == dataset]
    of_model = [e for e in known if entry_name(e.get("model")) == model]
    pairs = of_data if model is None else [e for e in of_data if e in of_model]
    own = pairs[0] if pairs else {}
    # The suite's own entry of a model or data set counts even if it is in another pair.
    model_entry = _mapping(
        {**_first(of_model), **own}.get("model", NO_MODEL.model_dump() if model is None else model)
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
    return next(Run(without_labels(run.spec)) for run in runs if not run.in_sweep)


def _first(entries: list[dict[str, Any]]) -> dict[str, Any]:
    return entries[0] if entries else {}


def _mapping(entry: Any) -> dict[str, Any]:
    return dict(entry) if isinstance(entry, dict) else {"name": entry}


def result_there(run: Run) -> RunRecord | None:
    """Return the record of a run that is already done with its present settings; None: do it.

    Raises:
        ConfigError: the existing run, or one of its inputs, was made with other settings.
    """
    refuse_other_inputs(run)
    record = try_read(run.folder / RUN, RunRecord)
    if record is None:
        return None
    refuse_to_replace(run.folder, _settings_of_record(record), moving_settings(run.spec))
    if record.content_hash != run.content_hash:
        return None
    if any(not _is_same(run.folder / name, sha256) for name, sha256 in record.files.items()):
        return None
    logger.info("%s is already done; remove its folder to repeat it.", run.id)
    return record


def refuse_other_inputs(run: Run) -> None:
    """Refuse a run whose data set or base model already exists with other settings.

    Raises:
        ConfigError: replacing it would change it for all other runs.
    """
    spec = run.spec
    data = try_read(run.dataset_folder / MANIFEST, Manifest)
    if data is not None and data.config:
        refuse_to_replace(run.dataset_folder, data.config, spec.dataset.model_dump(mode="json"))
    model = try_read(run.model_folder / TRAINING, TrainingRecord)
    if model is not None and model.config:
        compute = {key: getattr(spec.compute, key) for key in model.compute}
        here = base_model_settings({**spec.model.model_dump(mode="json"), "compute": compute})
        there = base_model_settings({**model.config, "compute": model.compute})
        refuse_to_replace(run.model_folder, there, here)


def refuse_to_replace(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise ConfigError if a folder's settings differ from those that would replace them."""
    found = list(differences(there, here))
    if not found:
        return
    listed = ", ".join(found[:MOST_DIFFERENCES])
    if len(found) > MOST_DIFFERENCES:
        listed += f" and {len(found) - MOST_DIFFERENCES} more"
    raise ConfigError(
        f"{folder}: was made with other settings ({listed}); add --set name=NAME to write to "
        "results/NAME instead, or remove the folder to replace it."
    )


def differences(there: Any, here: Any, place: str = "") -> Iterator[str]:
    """Yield "stream.facts: 64 there, 2 here" for each setting that differs."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted({*there, *here} - {"label"}):
            inner = f"{place}.{key}" if place else key
            yield from differences(there.get(key), here.get(key), inner)
    elif canonical_json(there) != canonical_json(here):
        texts = [canonical_json(value)[:LONGEST_SETTING] for value in (there, here)]
        yield f"{place}: {texts[0]} there, {texts[1]} here"


def describe_result(run: Run, record: RunRecord) -> str:
    """Return a run's scores and its folder, in two lines."""
    if record.failure is not None:
        scores = f"failed at step {record.failure.step}: {record.failure.message}"
    else:
        measure, counts = record.measure, record.counts
        table = read_parquet(run.folder / "probes.parquet", PROBES)
        rows = table.filter(pc.equal(table["measure"], measure)).to_pylist()
        last = {row["metric"]: row["value"] for row in rows}  # in the order of the steps
        values = [
            f"{METRICS[name].label} {last[name]:.2f}"
            for name in ("es", "err", "trr", "holdout")
            if last.get(name) is not None
        ]
        keys = "" if counts.get("keys") is None else f", {counts['keys']} keys"
        made = f"{counts.get('edits')} edits of {counts.get('steps')} steps{keys}"
        scores = f"{', '.join(values) or 'no scores'} ({MEASURES[measure].label}); {made}"
    return f"{scores}\n{run.folder}"


def _settings_of_record(record: RunRecord) -> dict[str, Any]:
    try:
        return moving_settings(RunSpec.model_validate(record.spec.model_dump(mode="json")))
    except ValueError:  # written by a version with other settings
        return {"spec": "of another version"}


def _is_same(path: Path, sha256: str) -> bool:
    try:
        return sha256_of(path) == sha256
    except OSError:
        return False
