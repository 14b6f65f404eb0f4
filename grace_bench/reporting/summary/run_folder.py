"""Reads the folders of finished runs, complete or failed. Torch-free.

Missing or damaged files and runs of another suite are refused.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grace_bench.errors import DataError
from grace_bench.metrics import MEASURES
from grace_bench.reporting.summary.failures import Failure, read_failure
from grace_bench.store import files, schemas
from grace_bench.store.json_records import check_record, read_record
from grace_bench.suite.plan import canonical_json, digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pyarrow as pa

FORMAT = "grace-bench run"
VERSION = 1
PLUGINS = ("editor", "data set builder", "task", "measures")
"""Keys of a run's origins that name plug-ins: package, version, hash of the code."""

NEEDED = ("id", "content_hash", "variant", "spec", "counts", "seconds", "measure", "files")
TABLES = {
    "steps.parquet": schemas.STEPS,
    "probes.parquet": schemas.PROBES,
    "predictions.parquet": schemas.predictions_schema(),
    "latency.parquet": schemas.LATENCY,  # of runs that time inputs
}


@dataclass(frozen=True)
class RunFolder:
    """A finished run: its folder and its run.json."""

    folder: Path
    record: dict[str, Any]

    @property
    def id(self) -> str:
        """`model/dataset/editor/variant/seed-k`."""
        return self.record["id"]

    @property
    def spec(self) -> dict[str, Any]:
        """The run's settings, as JSON."""
        return self.record["spec"]

    @property
    def measure(self) -> str:
        """The task's main measure."""
        return self.record["measure"]

    @cached_property
    def failure(self) -> Failure | None:
        """How the run failed; its files hold what it did before that. None: it is complete."""
        return read_failure(self.folder / "run.json", self.record)

    @property
    def in_sweep(self) -> bool:
        """Whether only a sweep reached this setting."""
        return bool(self.record.get("in_sweep", False))

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions, device and time of the run."""
        return self.record.get("provenance") or {}

    @property
    def files_hash(self) -> str:
        """Hash of what the run wrote, run.json included."""
        return digest({"record": self.record, "files": self.record["files"]}, 16)

    @property
    def hyperparameters(self) -> str:
        """The editor's hyperparameters as canonical JSON."""
        return canonical_json(self.spec["editor"].get("hyperparameters", {}))

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read columns of one of the run's Parquet files and check the file against run.json.

        Raises:
            DataError: the file is missing, truncated or not the one that run.json lists.
        """
        path = self.folder / name
        table = files.read_parquet(path, TABLES[name], columns)
        wanted = self.record["files"].get(name)
        if wanted is not None and files.sha256_of(path) != wanted:
            raise DataError(
                f"{path}: is not the file that run.json lists; it was changed or belongs to "
                "another run. Delete the run's folder and run it again."
            )
        return table


def read_run_folder(folder: Path | str) -> RunFolder:
    """Read a run's run.json.

    Raises:
        DataError: it is missing, damaged, incomplete or of another format.
    """
    folder = Path(folder)
    path = folder / "run.json"
    record = files.read_json(path)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DataError(f"{path}: is not the record of a run; run the edit step again.")
    if record.get("version") != VERSION:
        raise DataError(
            f"{path}: written in format {record.get('version')}, this version reads {VERSION}; "
            "make it again or use the version that wrote it."
        )
    if missing := [key for key in NEEDED if key not in record]:
        raise DataError(f"{path}: lacks {missing}; run the edit step again.")
    _check_types(path, record)
    read_failure(path, record)
    return RunFolder(folder, record)


def _check_types(path: Path, record: dict[str, Any]) -> None:
    """Raise DataError unless the record has the fields that are read, in their types."""
    types = {"id": str, "content_hash": str, "variant": str, "measure": str, "files": dict}
    maybe = (dict, type(None))
    check_record(path, record, **types, spec=dict, provenance=maybe, rows=maybe)
    place = f"{path}: spec"
    parts = {part: dict for part in ("model", "dataset", "editor")}
    spec = check_record(place, record["spec"], suite=str, seed=int, **parts)
    for part in parts:
        check_record(f"{place}.{part}", spec[part], name=str, label=str)
    check_record(f"{place}.dataset", spec["dataset"], task=str)
    check_record(f"{place}.editor", spec["editor"], editor=str)
    number = (int, float, type(None))
    check_record(path, record, counts=dict, seconds=dict, peak_memory_mib=number)
    for value in (*record["counts"].values(), *record["seconds"].values()):
        check_record(f"{path}: counts and seconds", {"each": value}, each=number)
    if record["measure"] not in MEASURES:
        raise DataError(
            f"{path}: the measure '{record['measure']}' does not exist; install the package that "
            "has it, or run the edit step again."
        )
    if not all(isinstance(sha256, str) for sha256 in record["files"].values()):
        raise DataError(f"{path}: 'files' must hold the files' hashes; run the edit step again.")


def read_planned_run(entry: Mapping[str, Any]) -> RunFolder:
    """Read one run of a plan, with the plan's labels and sweep mark.

    Both may change without a new run, as no number depends on them.

    Raises:
        DataError: as in `read_run_folder`, or the run was made with other settings.
    """
    run = read_run_folder(entry["folder"])
    if run.record["content_hash"] != entry["content_hash"]:
        raise DataError(
            f"{run.folder}: was run with other settings than the plan's; run the edit step again."
        )
    parts = {part: {**run.spec[part], "label": label} for part, label in entry["labels"].items()}
    spec = {**run.spec, **parts}
    return RunFolder(run.folder, {**run.record, "spec": spec, "in_sweep": entry["in_sweep"]})


def read_plan(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a suite's plan.json.

    Raises:
        DataError: it is missing or damaged, or an entry is incomplete.
    """
    wanted = {"id": str, "folder": str, "content_hash": str, "in_sweep": bool}
    wanted |= {"base_model": str, "labels": dict}
    entries = read_record(path, runs=list)["runs"]
    for number, entry in enumerate(entries):
        place = f"{path}: runs[{number}]"
        check_record(place, entry, **wanted)
        check_record(f"{place}.labels", entry["labels"], model=str, dataset=str, editor=str)
        if len(entry["labels"]) != 3:
            raise DataError(f"{place}.labels: has other keys than model, dataset and editor.")
    return entries


def read_run_folders(folders: Path | Iterable[Path | str]) -> list[RunFolder]:
    """Read the runs of one suite, sorted by id.

    Args:
        folders: the runs' folders, or the path of the suite's plan.json.

    Raises:
        DataError: there are none, they belong to several suites, or two have the same id.
    """
    if isinstance(folders, Path):
        entries = read_plan(folders)
        found = [read_planned_run(entry) for entry in entries]
        _check_weights(entries, found)
    else:
        found = [read_run_folder(folder) for folder in folders]
    runs = sorted(found, key=lambda run: run.id)
    if not runs:
        raise DataError("no run folders were given; run the edit step first.")
    suites = sorted({run.spec["suite"] for run in runs})
    if len(suites) > 1:
        raise DataError(
            f"the runs belong to the suites {', '.join(suites)}; give the runs of one suite."
        )
    for first, second in itertools.pairwise(runs):
        if first.id == second.id:
            raise DataError(
                f"{first.folder} and {second.folder} are both the run {first.id}; give one of them."
            )
    return runs


def _check_weights(entries: Sequence[Mapping[str, Any]], runs: Sequence[RunFolder]) -> None:
    """Raise DataError if runs of one base model were made with different weights."""
    first: dict[str, RunFolder] = {}
    for entry, run in zip(entries, runs, strict=True):
        other = first.setdefault(entry["base_model"], run)
        if other.record.get("model_hash") != run.record.get("model_hash"):
            raise DataError(
                f"{run.folder}: was made with other weights of the base model than "
                f"{other.folder}; run the suite again, or remove one of the folders."
            )


def suite_provenance(runs: Sequence[RunFolder]) -> dict[str, str]:
    """Return where a suite's numbers come from, as flat strings without dates."""

    def distinct(values: Iterable[Any]) -> str:
        return " ".join(sorted({str(value) for value in values if value is not None})) or "unknown"

    data = {f"{run.spec['dataset']['name']}:{run.record.get('data_hash')}" for run in runs}
    models = {
        f"{run.spec['model']['name']}-{run.spec['dataset']['name']}:{run.record.get('model_hash')}"
        for run in runs
    }
    dirty = any(run.provenance.get("git_dirty") for run in runs)
    plugins = {
        origin
        for run in runs
        for name, origin in (run.provenance.get("origins") or {}).items()
        if name in PLUGINS
    }
    return {
        "suite": runs[0].spec["suite"],
        "n_runs": str(len(runs)),
        "n_failed": str(sum(run.failure is not None for run in runs)),
        "runs_hash": digest([[run.id, run.record["content_hash"]] for run in runs]),
        "code_version": distinct(run.provenance.get("grace_bench") for run in runs),
        "git_commit": distinct(run.provenance.get("git_commit") for run in runs)
        + (" (modified)" if dirty else ""),
        **({"plugins": ", ".join(sorted(map(str, plugins)))} if plugins else {}),
        "data_hashes": " ".join(sorted(data)),
        "model_hashes": " ".join(sorted(models)),
    }
