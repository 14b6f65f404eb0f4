"""What of a suite has to be made again. Reads records and source files only; torch-free.

    again = outdated(runs)                 # the records, run.json or training.json, to write anew
    Path("results/s/runs/.../run.json") in again

`grace-bench status`, the Snakefile and `grace-bench edit` ask here, so that they agree. Contents
count, not times: a folder may be copied, moved or touched. What is made again takes with it all
that was made from it, since other weights may come out; what is missing is made again only if a
run that is to be done needs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grace_bench import NUMERICS_VERSION
from grace_bench.errors import DataError
from grace_bench.store.json_records import read_record, try_read
from grace_bench.store.schemas import MANIFEST, ROLES
from grace_bench.suite.origins import (
    origins_of_dataset,
    origins_of_editor,
    origins_of_measures,
    origins_of_model,
)
from grace_bench.suite.plan import asset_settings, base_model_settings, digest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from grace_bench.suite.plan import Run
    from grace_bench.suite.schema import DatasetConfig, RunSpec

DONE = ("complete", "failed")


@dataclass(frozen=True)
class Part:
    """Something that a run is made from.

    Args:
        kind: "data set", "model", "baseline" or "assets".
        record: the file that is written last.
        others: the other files that are needed of it.
        made_from: hash of all that it depends on, which its record repeats.
    """

    kind: str
    record: Path
    others: tuple[str, ...]
    made_from: str

    def is_current(self) -> bool:
        """Say whether it is there, whole, and would be made the same now."""
        found = try_read(self.record)
        if found is None or found.get("made_from") != self.made_from:
            return False
        return all((self.record.parent / name).is_file() for name in self.others)


def parts_of(run: Run) -> list[Part]:
    """Return what a run is made from, each after what it is itself made from."""
    spec = run.spec
    data, model = data_made_from(spec.dataset), model_made_from(spec)
    baseline = baseline_made_from(spec)
    roles = tuple(f"{role}.parquet" for role in ROLES)
    parts = [
        Part("data set", run.dataset_folder / MANIFEST, roles, data),
        Part("model", run.model_folder / "training.json", ("model.safetensors",), model),
        Part("baseline", run.baseline_folder / "baseline.json", ("predictions.parquet",), baseline),
    ]
    if run.assets_folder is not None:
        made_from = assets_made_from(spec)
        parts.append(Part("assets", run.assets_folder / "assets.json", (), made_from))
    return parts


def check_parts(run: Run, *kinds: str) -> None:
    """Raise DataError if parts of a run are missing, or were made from something else than now.

    A source file that changes while a suite goes would else count as what the run was made from.
    """
    for part in parts_of(run):
        if part.kind not in kinds:
            continue
        if read_record(part.record).get("made_from") not in (None, part.made_from):
            raise DataError(
                f"{part.record.parent}: was made from other settings, files or code than there "
                "are now; make it again."
            )


def data_made_from(dataset: DatasetConfig) -> str:
    """Return the hash of all that a data set depends on."""
    return _digest(dataset, origins_of_dataset(dataset))


def model_made_from(spec: RunSpec) -> str:
    """Return the hash of all that a base model depends on."""
    model = base_model_settings(spec.model.model_dump(mode="json"))
    compute = [spec.compute.precision, spec.compute.threads]
    made_from = [data_made_from(spec.dataset), model, compute, origins_of_model(spec.model)]
    return _digest(*made_from)


def baseline_made_from(spec: RunSpec) -> str:
    """Return the hash of all that the unedited model's recorded predictions depend on."""
    measures = origins_of_measures()
    return _digest(model_made_from(spec), measures) if measures else model_made_from(spec)


def assets_made_from(spec: RunSpec) -> str:
    """Return the hash of all that what an editor needs before a run depends on."""
    editor = spec.editor
    own = [editor.editor, asset_settings(editor), spec.model.layer]
    return _digest(model_made_from(spec), own, origins_of_editor(editor.editor))


def _digest(*parts: Any) -> str:
    plain = [
        part.model_dump(mode="json", exclude={"label"}) if hasattr(part, "model_dump") else part
        for part in parts
    ]
    return digest([NUMERICS_VERSION, *plain], 16)


def why_outdated(record: dict[str, Any] | None, content_hash: str, model_hash: Any) -> str | None:
    """Return why a run that is done does not count, from its run.json; None: it counts.

    Args:
        record: what its run.json holds.
        content_hash: of the run as it would be done now.
        model_hash: of the base model as it is now; None: it is not there.
    """
    if record is None or record.get("status") not in DONE:
        return "it is not done"
    if record.get("content_hash") != content_hash:
        return "what is there was run with other settings, sources or code"
    if model_hash is not None and record.get("model_hash") != model_hash:
        return "what is there was run with other weights"
    return None


def model_hash_of(folder: Path) -> Any:
    """Return the hash of a base model's weights as its record has it; None: it has none."""
    return (try_read(folder / "training.json") or {}).get("sha256")


def outdated(runs: Iterable[Run]) -> set[Path]:
    """Return the records of the runs, and of what they are made from, that are to be made again."""
    runs = list(runs)
    weights = {folder: model_hash_of(folder) for folder in {run.model_folder for run in runs}}
    again = {
        record
        for run in runs
        if why_outdated(
            try_read(record := run.folder / "run.json"),
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
            needed, record = parts[id(run)], run.folder / "run.json"
            if record in again:
                for part in needed:
                    if part not in current:
                        current[part] = part.is_current()
                    # What is made from something that is made again is made again, too.
                    upstream = needed[: needed.index(part)] if part.kind != "assets" else needed[:2]
                    if not current[part] or any(other.record in again for other in upstream):
                        again.add(part.record)
            elif any(part.record in again for part in needed):
                again.add(record)
    return again
