"""The results of a suite as pandas frames.

    results = load("default")
    results.probes.query("metric == 'trr'").groupby(["editor", "step"])["value"].mean()

Each frame's first columns say which run a row is of: `run` (its id), `model`, `dataset`, `editor`,
`variant` and `seed`. The others are those of the run's Parquet files (store/schemas.py).
Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import pandas as pd
import pyarrow as pa

from grace_bench.errors import DataError
from grace_bench.reporting.summary.run_folder import RunFolder, read_planned_run
from grace_bench.store.files import read_parquet
from grace_bench.store.json_records import is_plain_name, read_record
from grace_bench.store.records import PLAN, RUN, Plan, PlanEntry
from grace_bench.store.schemas import EXAMPLES, predictions_schema
from grace_bench.suite.plan import RESULTS

NAMES = ("run", "model", "dataset", "editor", "variant", "seed")
"""The first columns of every frame of runs."""


def load(suite: str | Path = "default") -> Results:
    """Return the results of a suite.

    Args:
        suite: its name, for results/<suite>, or the path of such a folder.

    Raises:
        DataError: there are no results.
    """
    folder = Path(suite)
    if len(folder.parts) == 1 and not (folder / PLAN).is_file():
        folder = RESULTS / folder
    if not (folder / PLAN).is_file():
        raise DataError(
            f"{folder}: has no {PLAN}, so it is not a suite's results; give the name of a suite "
            f"that was run, or a folder like {RESULTS}/default."
        )
    return Results(folder)


class Results:
    """The runs of a suite that are finished; each frame is read when it is first used.

    Args:
        folder: results/<suite>.

    Attributes:
        folder: the same.
        plan: of the suite.

    Raises:
        DataError: the plan is damaged; (any frame) a file is damaged, or a run was made with other
            settings than the plan's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plan = read_record(folder / PLAN, Plan)
        for entry in self.plan.runs:
            parts = entry.id.split("/")
            whole = len(parts) == len(NAMES) - 1 and re.fullmatch(r"seed-\d{1,18}", parts[-1])
            if not (whole and all(map(is_plain_name, parts))):
                raise DataError(f"{folder / PLAN}: {entry.id!r} is not a run's id; plan again.")

    def find(self, run: str) -> RunFolder:
        """Return a finished run.

        Args:
            run: its folder, its id, or words that are parts of no other run's id: "grace radius=3".

        Raises:
            DataError: no run or several have them, or the run is not finished.
        """
        name = run.removeprefix(f"{self.folder}/runs/").rstrip("/")
        found = [entry for entry in self.plan.runs if entry.id == name]
        if not found:
            words = run.split()
            found = [entry for entry in self.plan.runs if all(word in entry.id for word in words)]
        if len(found) != 1:
            some = "\n  ".join(entry.id for entry in (found or self.plan.runs)[:10])
            what = f"{len(found)} runs have" if found else "no run has"
            raise DataError(f"{what} '{run}' in the id; give one of\n  {some}")
        if not (self._place(found[0]) / RUN).is_file():
            raise DataError(f"{found[0].id}: is not finished; `grace-bench status` says more.")
        return self._read(found[0])

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row per run of the plan.

        `status` is complete, failed or unfinished; `in_sweep` marks settings that only a sweep
        reached, which the main table leaves out.
        """
        rows = []
        for entry in self.plan.runs:
            names = {**dict(zip(NAMES, _names(entry), strict=True)), "in_sweep": entry.in_sweep}
            if not (self._place(entry) / RUN).is_file():
                rows.append({**names, "status": "unfinished"})
                continue
            record = self._read(entry).record
            failure = record.failure
            rows.append(
                {
                    **names,
                    "method": record.spec.editor.editor,
                    "status": record.status,
                    "failure": None if failure is None else failure.message,
                    "measure": record.measure,
                    **record.counts,
                    "edit_seconds": record.seconds.get("edit"),
                    "total_seconds": record.seconds.get("total"),
                    "peak_memory_mib": record.peak_memory_mib,
                    "folder": str(self._place(entry)),
                }
            )
        return pd.DataFrame(rows)

    @cached_property
    def steps(self) -> pd.DataFrame:
        """`steps.parquet` of all runs: one row per position of the edit stream."""
        return self._joined("steps.parquet")

    @cached_property
    def probes(self) -> pd.DataFrame:
        """`probes.parquet` of all runs: one row per metric and measure at a probe."""
        return self._joined("probes.parquet")

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """`predictions.parquet` of all runs: one row per example at a probe."""
        return self._joined("predictions.parquet")

    @cached_property
    def codebooks(self) -> pd.DataFrame:
        """`codebook.parquet` of the runs that have one: one row per key."""
        return self._joined("codebook.parquet")

    @cached_property
    def baselines(self) -> pd.DataFrame:
        """What the unedited models said: `predictions.parquet` of all baselines."""
        bases = sorted({entry.base_model for entry in self.plan.runs})
        paths = {base: self.folder / "baselines" / base / "predictions.parquet" for base in bases}
        frames = [
            read_parquet(path, predictions_schema()).to_pandas().assign(base_model=base)
            for base, path in paths.items()
            if path.is_file()
        ]
        return self._together(frames, "baselines")

    @cached_property
    def examples(self) -> pd.DataFrame:
        """The texts and labels of all data sets: `dataset`, `role` and the columns of the roles."""
        paths = sorted((self.folder / "data").glob("*/*.parquet"))
        frames = [
            read_parquet(path, EXAMPLES)
            .to_pandas()
            .assign(dataset=path.parent.name, role=path.stem)
            for path in paths
        ]
        return self._together(frames, "data")

    def _joined(self, name: str) -> pd.DataFrame:
        frames = [_named(entry, table).to_pandas() for entry, table in self._tables(name)]
        return self._together(frames, f"finished run with a {name}")

    def _together(self, frames: list[pd.DataFrame], what: str) -> pd.DataFrame:
        if not frames:
            raise DataError(f"{self.folder}: has no {what}; run the suite.")
        return pd.concat(frames, ignore_index=True)

    def _tables(self, name: str) -> Iterator[tuple[PlanEntry, pa.Table]]:
        for entry in self.plan.runs:
            if (self._place(entry) / RUN).is_file():
                run = self._read(entry)
                if name in run.record.files:
                    yield entry, run.table(name)

    def _place(self, entry: PlanEntry) -> Path:
        return self.folder / "runs" / entry.id

    def _read(self, entry: PlanEntry) -> RunFolder:
        return read_planned_run(entry.model_copy(update={"folder": str(self._place(entry))}))


def _names(entry: PlanEntry) -> tuple[str, str, str, str, str, int]:
    model, dataset, editor, variant, seed = entry.id.split("/")
    return entry.id, model, dataset, editor, variant, int(seed.removeprefix("seed-"))


def _named(entry: PlanEntry, table: pa.Table) -> pa.Table:
    for place, (name, value) in enumerate(zip(NAMES, _names(entry), strict=True)):
        table = table.add_column(place, name, pa.array([value] * len(table)))
    return table
