"""What of a suite must be made again. Reads only records and source files; torch-free.

    again = outdated(runs)                 # the records (run.json, training.json) to write again
    Path("results/s/runs/.../run.json") in again

`grace-bench status`, the Snakefile and `grace-bench edit` all ask this module, so they agree.
Contents count, not times: a folder may be copied, moved or touched. Whatever depends on something
that is made again is made again too; a missing input is made again only if a pending run needs it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grace_bench import NUMERICS_VERSION
from grace_bench.errors import DataError
from grace_bench.store.json_records import read_record, try_read
from grace_bench.store.records import (
    ASSETS,
    BASELINE,
    MANIFEST,
    RUN,
    TRAINING,
    Made,
    RunOutcome,
    TrainingRecord,
)
from grace_bench.store.schemas import ROLES
from grace_bench.suite.origins import (
    origins_of_dataset,
    origins_of_editor,
    origins_of_measures,
    origins_of_model,
)
from grace_bench.suite.plan import Run, asset_settings, base_model_settings, digest
from grace_bench.suite.schema import DatasetConfig, ProbeConfig, RunSpec


@dataclass(frozen=True)
class Part:
    """An input of a run.

    Args:
        kind: "data set", "model", "baseline" or "assets".
        record: the file that is written last.
        others: its other required files.
        made_from: hash of everything it depends on; its record repeats it.
    """

    kind: str
    record: Path
    others: tuple[str, ...]
    made_from: str

    def is_current(self) -> bool:
        """Return whether it exists, is complete, and would come out the same now."""
        found = try_read(self.record, Made)
        if found is None or found.made_from != self.made_from:
            return False
        return all((self.record.parent / name).is_file() for name in self.others)


def parts_of(run: Run) -> list[Part]:
    """Return the inputs of a run, each after its own inputs."""
    spec = run.spec
    data, model = data_made_from(spec.dataset), model_made_from(spec)
    baseline = baseline_made_from(spec)
    roles = tuple(f"{role}.parquet" for role in ROLES)
    parts = [
        Part("data set", run.dataset_folder / MANIFEST, roles, data),
        Part("model", run.model_folder / TRAINING, ("model.safetensors",), model),
        Part("baseline", run.baseline_folder / BASELINE, ("predictions.parquet",), baseline),
    ]
    if run.assets_folder is not None:
        made_from = assets_made_from(spec)
        parts.append(Part("assets", run.assets_folder / ASSETS, (), made_from))
    return parts


def check_parts(run: Run, *kinds: str) -> None:
    """Raise DataError if inputs of a run are missing or outdated.

    Otherwise a source file that changes during a workflow would count as the run's input.
    """
    for part in parts_of(run):
        if part.kind not in kinds:
            continue
        if read_record(part.record, Made).made_from not in (None, part.made_from):
            raise DataError(
                f"{part.record.parent}: was made from other settings, files or code than the "
                "present ones; make it again."
            )


def data_made_from(dataset: DatasetConfig) -> str:
    """Return the hash of everything that a data set depends on."""
    return _digest(dataset, origins_of_dataset(dataset))


def model_made_from(spec: RunSpec) -> str:
    """Return the hash of everything that a base model depends on."""
    model = base_model_settings(spec.model.model_dump(mode="json"))
    compute = [spec.compute.precision, spec.compute.threads]
    made_from = [data_made_from(spec.dataset), model, compute, origins_of_model(spec.model)]
    return _digest(*made_from)


def baseline_made_from(spec: RunSpec) -> str:
    """Return the hash of all that the unedited model's recorded predictions depend on.

    The size of batches moves last bits. With the default and without plug-ins it is the model's.
    """
    model, batch_size = model_made_from(spec), spec.probes.batch_size
    own = {"batch_size": batch_size} if batch_size != ProbeConfig().batch_size else {}
    others = [part for part in (origins_of_measures(), own) if part]
    return _digest(model, *others) if others else model


def assets_made_from(spec: RunSpec) -> str:
    """Return the hash of everything that an editor's assets depend on."""
    editor = spec.editor
    own = [editor.editor, asset_settings(editor), spec.model.layer]
    return _digest(model_made_from(spec), own, origins_of_editor(editor.editor))


def _digest(*parts: Any) -> str:
    plain = [
        part.model_dump(mode="json", exclude={"label"}) if hasattr(part, "model_dump") else part
        for part in parts
    ]
    return digest([NUMERICS_VERSION, *plain], 16)


def why_outdated(
    record: RunOutcome | None, content_hash: str, model_hash: str | None
) -> str | None:
    """Return why a run is outdated; None: it is up to date.

    Args:
        record: content of its run.json.
        content_hash: of the run as it would be done now.
        model_hash: of the present base model; None: there is none.
    """
    if record is None:
        return "it is not done"
    if record.content_hash != content_hash:
        return "the existing run has other settings, sources or code"
    if model_hash is not None and record.model_hash != model_hash:
        return "the existing run has other weights"
    return None


def model_hash_of(folder: Path) -> str | None:
    """Return the hash of a base model's weights from its record; None: there is none."""
    found = try_read(folder / TRAINING, TrainingRecord)
    return None if found is None else found.sha256


def outdated(runs: Iterable[Run]) -> set[Path]:
    """Return the records of runs and of their inputs that must be made again."""
    runs = list(runs)
    weights = {folder: model_hash_of(folder) for folder in {run.model_folder for run in runs}}
    again = {
        record
        for run in runs
        if why_outdated(
            try_read(record := run.folder / RUN, RunOutcome),
            run.content_hash,
            weights[run.model_folder],
        )
    }
    if not again:
        return again
    parts = {id(run): parts_of(run) for run in runs}
    current: dict[Part, bool] = {}
    before = -1
    while before < len(again):
        before = len(again)
        for run in runs:
            needed, record = parts[id(run)], run.folder / RUN
            if record in again:
                for part in needed:
                    if part not in current:
                        current[part] = part.is_current()
                    # Whatever depends on something that is made again is made again too.
                    upstream = needed[: needed.index(part)] if part.kind != "assets" else needed[:2]
                    if not current[part] or any(other.record in again for other in upstream):
                        again.add(part.record)
            elif any(part.record in again for part in needed):
                again.add(record)
    return again
