"""Reads the folders of finished runs, complete or failed. Torch-free.

Missing or damaged files and runs of another suite are refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from grace_bench.errors import DataError
from grace_bench.metrics import MEASURES
from grace_bench.reporting.summary.failures import Failure
from grace_bench.store import files, schemas
from grace_bench.store.json_records import read_record
from grace_bench.store.records import RUN, Plan, PlanEntry, RunRecord, RunSettings
from grace_bench.suite.plan import digest

PLUGINS = ("editor", "data set builder", "task", "measures")
"""Keys of a run's origins that name plug-ins: package, version, hash of the code."""

TABLES = {
    "steps.parquet": schemas.STEPS,
    "probes.parquet": schemas.PROBES,
    "predictions.parquet": schemas.predictions_schema(),
    "latency.parquet": schemas.LATENCY,  # of runs that time inputs
    "codebook.parquet": schemas.CODEBOOK,
    "journal.parquet": schemas.JOURNAL,
}


@dataclass(frozen=True)
class RunFolder:
    """A finished run: its folder and its run.json."""

    folder: Path
    record: RunRecord

    @property
    def id(self) -> str:
        """`model/dataset/editor/variant/seed-k`."""
        return self.record.id

    @property
    def spec(self) -> RunSettings:
        """The run's settings."""
        return self.record.spec

    @cached_property
    def failure(self) -> Failure | None:
        """How the run failed; its files hold what it did before that. None: it is complete."""
        found = self.record.failure
        return None if found is None else Failure(seed=self.spec.seed, **found.model_dump())

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions, device and time of the run."""
        return self.record.provenance or {}

    @property
    def files_hash(self) -> str:
        """Hash of what the run wrote, run.json included."""
        return digest(self.record.model_dump(mode="json"), 16)

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read columns of one of the run's Parquet files and check the file against run.json.

        Raises:
            DataError: the file is missing, truncated or not the one that run.json lists.
        """
        path = self.folder / name
        table = files.read_parquet(path, TABLES[name], columns)
        wanted = self.record.files.get(name)
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
    path = folder / RUN
    record = read_record(path, RunRecord)
    if record.measure not in MEASURES:
        raise DataError(
            f"{path}: the measure '{record.measure}' does not exist; install the package that "
            "has it, or run the edit step again."
        )
    return RunFolder(folder, record)


def read_planned_run(entry: PlanEntry) -> RunFolder:
    """Read one run of a plan, with the plan's labels and sweep mark.

    Both may change without a new run, as no number depends on them.

    Raises:
        DataError: as in `read_run_folder`, or the run was made with other settings.
    """
    run = read_run_folder(entry.folder)
    if run.record.content_hash != entry.content_hash:
        raise DataError(
            f"{run.folder}: was run with other settings than the plan's; run the edit step again."
        )
    parts = {
        part: getattr(run.spec, part).model_copy(update={"label": label})
        for part, label in entry.labels
    }
    spec = run.spec.model_copy(update=parts)
    update = {"spec": spec, "in_sweep": entry.in_sweep}
    return RunFolder(run.folder, run.record.model_copy(update=update))


def read_run_folders(folders: Path | Iterable[Path | str]) -> list[RunFolder]:
    """Read the runs of one suite, sorted by id.

    Args:
        folders: the runs' folders, or the path of the suite's plan.json.

    Raises:
        DataError: there are none, they belong to several suites, or two have the same id.
    """
    if isinstance(folders, Path):
        found = read_planned_runs(read_record(folders, Plan).runs)
    else:
        found = [read_run_folder(folder) for folder in folders]
    runs = sorted(found, key=lambda run: run.id)
    if not runs:
        raise DataError("no run folders were given; run the edit step first.")
    suites = sorted({run.spec.suite for run in runs})
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


def read_planned_runs(entries: Sequence[PlanEntry]) -> list[RunFolder]:
    """Read some runs of a plan, in its order.

    Raises:
        DataError: as in `read_planned_run`, or the weights of a base model differ.
    """
    found = [read_planned_run(entry) for entry in entries]
    _check_weights(entries, found)
    return found


def _check_weights(entries: Sequence[PlanEntry], runs: Sequence[RunFolder]) -> None:
    """Raise DataError if runs of one base model were made with different weights."""
    first: dict[str, RunFolder] = {}
    for entry, run in zip(entries, runs, strict=True):
        other = first.setdefault(entry.base_model, run)
        if other.record.model_hash != run.record.model_hash:
            raise DataError(
                f"{run.folder}: was made with other weights of the base model than "
                f"{other.folder}; run the suite again, or remove one of the folders."
            )


def suite_provenance(runs: Sequence[RunFolder]) -> dict[str, str]:
    """Return where a suite's numbers come from, as flat strings without dates."""

    def distinct(values: Iterable[Any]) -> str:
        return " ".join(sorted({str(value) for value in values if value is not None})) or "unknown"

    data = {f"{run.spec.dataset.name}:{run.record.data_hash}" for run in runs}
    models = {
        f"{run.spec.model.name}-{run.spec.dataset.name}:{run.record.model_hash}" for run in runs
    }
    dirty = any(run.provenance.get("git_dirty") for run in runs)
    plugins = {
        origin
        for run in runs
        for name, origin in (run.provenance.get("origins") or {}).items()
        if name in PLUGINS
    }
    return {
        "suite": runs[0].spec.suite,
        "n_runs": str(len(runs)),
        "n_failed": str(sum(run.failure is not None for run in runs)),
        "runs_hash": digest([[run.id, run.record.content_hash] for run in runs]),
        "code_version": distinct(run.provenance.get("grace_bench") for run in runs),
        "git_commit": distinct(run.provenance.get("git_commit") for run in runs)
        + (" (modified)" if dirty else ""),
        **({"plugins": ", ".join(sorted(map(str, plugins)))} if plugins else {}),
        "data_hashes": " ".join(sorted(data)),
        "model_hashes": " ".join(sorted(models)),
    }
