"""One run by hand, `grace-bench edit`: it takes nothing of another experiment's place. Torch-free.

A run's folder is called by its model, data set, editor and seed. What else moves its numbers (the
stream, say) stands in no name, so what is there already may be another experiment, which is kept.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from grace_bench.errors import ConfigError
from grace_bench.metrics import MEASURES, METRICS
from grace_bench.store.files import read_parquet, sha256_of
from grace_bench.store.json_records import try_read
from grace_bench.store.schemas import PROBES
from grace_bench.suite.plan import Run, base_model_settings, canonical_json, moving_settings
from grace_bench.suite.schema import RunSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

logger = logging.getLogger(__name__)

MOST_DIFFERENCES = 4
LONGEST_SETTING = 80


def result_there(run: Run) -> dict[str, Any] | None:
    """Return the record of a run that is done already, as it would be done now; None: do it.

    Raises:
        ConfigError: what is there, or an input of it, was made with other settings.
    """
    refuse_other_inputs(run)
    record = try_read(run.folder / "run.json")
    if record is None or record.get("status") not in ("complete", "failed"):
        return None
    refuse_to_replace(run.folder, _settings_of_record(record), moving_settings(run.spec))
    files = record.get("files")
    if record.get("content_hash") != run.content_hash or not isinstance(files, dict):
        return None
    if any(not _is_same(run.folder / name, sha256) for name, sha256 in files.items()):
        return None
    logger.info("%s is done already; remove its folder to have it done again.", run.id)
    return record


def refuse_other_inputs(run: Run) -> None:
    """Refuse a run whose data set or base model stands there with other settings.

    Raises:
        ConfigError: made again for this run, it would be another one for all others.
    """
    spec = run.spec
    for path, part in (
        (run.dataset_folder / "manifest.json", spec.dataset),
        (run.model_folder / "training.json", spec.model),
    ):
        record = try_read(path) or {}
        there, here = record.get("config"), part.model_dump(mode="json")
        if not isinstance(there, dict) or not there:
            continue
        compute = {key: getattr(spec.compute, key) for key in record.get("compute") or {}}
        here = base_model_settings({**here, "compute": compute})
        there = base_model_settings({**there, "compute": record.get("compute") or {}})
        refuse_to_replace(path.parent, there, here)


def refuse_to_replace(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise ConfigError if a folder's settings differ from those that would replace them."""
    found = list(differences(there, here))
    if not found:
        return
    told = ", ".join(found[:MOST_DIFFERENCES])
    if len(found) > MOST_DIFFERENCES:
        told += f" and {len(found) - MOST_DIFFERENCES} more"
    raise ConfigError(
        f"{folder}: was made with other settings ({told}); add --set name=NAME to write to "
        "results/NAME instead, or remove the folder to replace it."
    )


def differences(there: Any, here: Any, place: str = "") -> Iterator[str]:
    """Yield "stream.facts: 64 there, 2 here" for each setting that is not the same."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted({*there, *here} - {"label"}):
            inner = f"{place}.{key}" if place else key
            yield from differences(there.get(key), here.get(key), inner)
    elif canonical_json(there) != canonical_json(here):
        texts = [canonical_json(value)[:LONGEST_SETTING] for value in (there, here)]
        yield f"{place}: {texts[0]} there, {texts[1]} here"


def describe_result(run: Run, record: Mapping[str, Any]) -> str:
    """Return where a run's result is and its scores, in two lines."""
    if record["status"] == "failed":
        failure = record.get("failure") or {}
        scores = f"failed at step {failure.get('step')}: {failure.get('message')}"
    else:
        measure, counts = record["measure"], record["counts"]
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


def _settings_of_record(record: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return moving_settings(RunSpec.model_validate(record["spec"]))
    except (LookupError, ValueError):  # written by a version with other settings
        return {"spec": "of another version"}


def _is_same(path: Path, sha256: str) -> bool:
    try:
        return sha256_of(path) == sha256
    except OSError:
        return False
