"""All runs of a suite: summary.parquet (final state), curves.parquet and comparisons.parquet.

    runs = sorted(Path("results/smoke/runs").glob("*/*/*/*/seed-*"))
    summarise(runs, Path("results/smoke/summary.parquet"))

Tables, figures and the report need these files only. Values over all seeds are means of the
seeds' values; intervals come from the crossed bootstrap over facts and seeds of `statistics`. Seeds
whose run failed are in no mean: they have rows of their own (`failures`), and curves.parquet shows
how far each came.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from grace_bench import __version__
from grace_bench.metrics import MEASURES, METRICS
from grace_bench.reporting.comparison.runs import against_reference, corrected
from grace_bench.reporting.summary.comparison import as_good_as_the_best
from grace_bench.reporting.summary.failures import COLUMNS, failure_rows
from grace_bench.reporting.summary.run_folder import RunFolder, read_run_folders, suite_provenance
from grace_bench.reporting.summary.seed_group import SeedGroup, setting_keys
from grace_bench.store import files, schemas

Rows = list[dict[str, Any]]

CURVES_NAME = "curves.parquet"
COMPARISONS_NAME = "comparisons.parquet"

_KEYS = (
    ("suite", pa.string(), False),
    ("model", pa.string(), False),
    ("model_label", pa.string(), False),
    ("dataset", pa.string(), False),
    ("dataset_label", pa.string(), False),
    ("task", pa.string(), False),
    ("editor", pa.string(), False),  # the suite's name for it
    ("editor_label", pa.string(), False),
    ("editor_class", pa.string(), False),  # the registered editor
    ("variant", pa.string(), False),
    ("hyperparameters", pa.string(), False),  # canonical JSON
    ("in_sweep", pa.bool_(), False),  # only a sweep reached this setting
)
_VALUES = (
    ("metric", pa.string(), False),
    ("measure", pa.string(), True),  # of predictions; mean, sd, median of seconds; else null
    ("is_main", pa.bool_(), False),  # the task's main measure
    ("value", pa.float64(), True),
    ("low", pa.float64(), True),
    ("high", pa.float64(), True),
    ("n", pa.int32(), True),  # examples a seed, the largest over seeds; null: not over examples
    ("n_seeds", pa.int32(), False),  # in the value
    ("n_failed", pa.int32(), False),  # not in the value, as their runs failed
)
_COMPARED = ("is_best", pa.bool_(), True)  # as good as the best editor; null: not compared


def _schema(*fields: tuple[str, pa.DataType, bool]) -> pa.Schema:
    metadata = {"grace_bench.schema_version": str(schemas.SCHEMA_VERSION)}
    return pa.schema([pa.field(n, t, nullable=null) for n, t, null in fields], metadata=metadata)


SUMMARY = _schema(  # seed null: over all seeds
    *_KEYS, ("seed", pa.int32(), True), *_VALUES, _COMPARED, *COLUMNS
)
CURVES = _schema(  # seed null: over all completed seeds; else the seed of a failed run
    *_KEYS,
    ("seed", pa.int32(), True),
    ("step", pa.int32(), False),
    ("n_edits", pa.int32(), False),
    *_VALUES,
)

UNEDITED = "unedited"  # the editor class that is the control
PROVENANCE = "grace_bench."  # prefix of the provenance keys in the files' metadata


def summarise(run_folders: Path | Sequence[Path], output: Path) -> Path:
    """Write `output` (summary.parquet), curves.parquet and comparisons.parquet beside it.

    Args:
        run_folders: folders of one suite's runs, complete or failed, or the path of its plan.json.
        output: path of summary.parquet.

    Returns:
        The path of curves.parquet.

    Raises:
        DataError: no runs, runs of several suites, or a missing, damaged or changed file.
    """
    runs = read_run_folders(run_folders)
    metadata = {
        PROVENANCE + key: value
        for key, value in {**suite_provenance(runs), "summarised_by": __version__}.items()
    }
    rows: Rows = []
    points: Rows = []
    comparisons: Rows = []
    for _, members in itertools.groupby(runs, key=lambda run: run.id.split("/")[:2]):
        experiment = list(members)
        found = _summarise_experiment(experiment)
        rows += found[0]
        points += found[1]
        comparisons += against_reference(experiment)
    output = Path(output)
    curves = output.with_name(CURVES_NAME)
    files.write_parquet(curves, points, CURVES, metadata)
    compared = output.with_name(COMPARISONS_NAME)
    files.write_parquet(compared, corrected(comparisons), schemas.COMPARISONS, metadata)
    # Written last: a reader of the summary finds the files that belong to it.
    files.write_parquet(output, rows, SUMMARY, metadata)
    return curves


def _summarise_experiment(runs: list[RunFolder]) -> tuple[Rows, Rows]:
    """Return the rows of summary and curves of one model on one data set."""
    rows: Rows = []
    points: Rows = []
    competing: list[tuple[SeedGroup, Rows]] = []
    n_seeds = len({run.spec.seed for run in runs})
    for _, members in itertools.groupby(runs, key=lambda run: run.id.rsplit("/", 1)[0]):
        seeds = list(members)
        group, own, curves = _summarise_setting(seeds)
        points += curves
        keys = setting_keys(seeds[0])
        is_control = keys["editor_class"] == UNEDITED
        if group and len(group.runs) == n_seeds and not (keys["in_sweep"] or is_control):
            competing.append((group, own))
        rows += own
    best = as_good_as_the_best([group for group, _ in competing]) if competing else set()
    for index, (_, own) in enumerate(competing):
        for row in own:
            if row["seed"] is None and row["measure"] in MEASURES and row["metric"] in METRICS:
                row["is_best"] = (index, row["metric"], row["measure"]) in best
    return rows, points


def _summarise_setting(seeds: list[RunFolder]) -> tuple[SeedGroup | None, Rows, Rows]:
    """Return the completed seeds of one setting, and its rows of summary and curves."""
    whole = [run for run in seeds if run.failure is None]
    failed = [run for run in seeds if run.failure is not None]
    failures = [run.failure for run in failed]
    group = SeedGroup(whole, len(failed)) if whole else None
    rows = list(failure_rows(setting_keys(seeds[0]), failures, len(whole), seeds[0].record.measure))
    points: Rows = []
    if group:
        rows += group.summary_rows()
        points += group.curve_rows()
    for run in failed:
        points += [{**p, "seed": run.spec.seed} for p in SeedGroup([run]).curve_rows()]
    return group, rows, points
