"""Plans: a suite's settings and its runs in one file, which jobs and aggregation read.

    write_plan(suite, expand(suite), Path("results/default/plan.json"))
    run = planned_runs(Path("results/default/plan.json"), ["facts-t5/.../seed-0"])[0]

Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from grace_bench.errors import ConfigError
from grace_bench.store.json_records import read_record, try_read, write_record
from grace_bench.store.records import PLAN, Labels, Plan, PlanEntry
from grace_bench.suite.plan import RESULTS, Run, digest, expand, without_labels
from grace_bench.suite.schema import SuiteConfig
from grace_bench.suite.section import validate

MOVES_NOTHING = {"description", "toy", "bundle", "resources"}
"""Settings of a suite that no run depends on."""


def plan_of(suite: SuiteConfig, runs: Iterable[Run]) -> Plan:
    """Return the content of `plan.json`: the suite's settings and one entry per run.

    An entry has the run's id, folder and content hash, and whether only a sweep reaches it.
    """
    entries = [
        PlanEntry(
            id=run.id,
            folder=str(run.folder),
            content_hash=run.content_hash,
            in_sweep=run.in_sweep,
            base_model=run.spec.base_model,
            labels=Labels(
                model=run.spec.model.label,
                dataset=run.spec.dataset.label,
                editor=run.spec.editor.label,
            ),
        )
        for run in runs
    ]
    settings = suite.model_dump(mode="json", exclude=MOVES_NOTHING)
    return Plan(suite=suite.name, settings=settings, runs=entries)


def is_plan_outdated(suite: SuiteConfig, runs: Iterable[Run], results: Path = RESULTS) -> bool:
    """Return whether a suite's plan.json is missing or differs from these settings and runs."""
    return try_read(results / suite.name / PLAN, Plan) != plan_of(suite, runs)


def write_plan(suite: SuiteConfig, runs: Iterable[Run], output: Path) -> None:
    """Write `plan.json`."""
    write_record(output, plan_of(suite, runs))


def frozen_plan(suite: SuiteConfig, runs: Iterable[Run], folder: Path) -> Path:
    """Write the plan under the name of its hash, unless it is there undamaged; return its path.

    Jobs of a workflow read it: whatever happens to the suite's files or its results meanwhile, they
    do what was planned.
    """
    plan = plan_of(suite, runs)
    path = folder / f"plan-{digest(plan)}.json"
    if try_read(path, Plan) != plan:
        write_record(path, plan)
    return path


def planned_runs(path: Path, ids: Sequence[str], results: Path = RESULTS) -> list[Run]:
    """Return runs of a plan by their ids, with labels replaced by names: no job depends on them.

    Raises:
        DataError: the file is missing or damaged.
        ConfigError: the plan has no such run, or was written by another version.
    """
    settings = read_record(path, Plan).settings
    suite = validate(SuiteConfig, settings, str(path), ": ")
    runs = {run.id: run for run in expand(suite, results)}
    for name in ids:
        if name not in runs:
            raise ConfigError(
                f"{path}: has no run '{name}'; `grace-bench plan` lists a suite's runs."
            )
    return [Run(without_labels(runs[name].spec), results) for name in ids]
