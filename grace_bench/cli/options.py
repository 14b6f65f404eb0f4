"""Options that several commands share, and what they choose: a suite, a run, a policy."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from grace_bench.errors import ConfigError
from grace_bench.jobs.resumable import CHECKPOINT_MINUTES, CheckpointPolicy
from grace_bench.steps.single import single_run
from grace_bench.suite.compose import find_suite, load_suite
from grace_bench.suite.plan import Run
from grace_bench.suite.planned import planned_runs
from grace_bench.suite.schema import SuiteConfig

Option = tuple[tuple[str, ...], dict[str, Any]]


def option(*names: str, **settings: Any) -> Option:
    """Return the arguments of `add_argument`."""
    return names, settings


SUITE_OPTIONS = (
    option("--suite", type=Path, help="suite file, or its name; default config/config.yaml"),
    option(
        "--config-dir",
        type=Path,
        default=Path("config"),
        help="folder of models, data sets, editors and suites, searched before the clone's own",
    ),
    option(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a setting: editor.radius=3.0, stream.facts=8, model.training.steps=10",
    ),
)
PLAN_OPTION = option("--plan", type=Path, required=True, help="plan.json of the suite")
RUN_OPTIONS = (
    option("--plan", type=Path, help="plan.json of a suite; with --run"),
    option("--run", dest="run_id", metavar="ID", help="a run of the plan"),
    option("--model", help="a file in config/models"),
    option("--dataset", help="a file in config/datasets"),
    option("--editor", help="a file in config/editors; unedited is the control"),
    option("--seed", type=int, default=0),
    *SUITE_OPTIONS,
)
MINUTES_OPTION = option(
    "--checkpoint-minutes",
    type=float,
    metavar="M",
    default=os.environ.get("GRACE_BENCH_CHECKPOINT_MINUTES", str(CHECKPOINT_MINUTES)),
    help="minutes between checkpoints; 0: only when asked to stop; "
    f"default GRACE_BENCH_CHECKPOINT_MINUTES or {CHECKPOINT_MINUTES:g}",
)
POLICY_OPTIONS = (
    MINUTES_OPTION,
    option("--checkpoint-steps", type=int, metavar="N", help="most steps between checkpoints"),
)
SUMMARY_OPTIONS = (
    option("--summary", type=Path, required=True, help="folder of the summary"),
    option("--output", type=Path, required=True, help="folder to write to"),
)
URI_OPTION = option("--uri", help="tracking URI; default MLFLOW_TRACKING_URI or sqlite")


def policy_of(options: argparse.Namespace) -> CheckpointPolicy:
    """Return when checkpoints are written; no result depends on it."""
    if not options.checkpoint_minutes >= 0:
        raise ConfigError("--checkpoint-minutes must be 0 or more.")
    steps = getattr(options, "checkpoint_steps", None)
    if steps is not None and steps < 1:
        raise ConfigError("--checkpoint-steps must be 1 or more.")
    return CheckpointPolicy(options.checkpoint_minutes, steps)


def suite_of(options: argparse.Namespace) -> SuiteConfig:
    """Return the suite that the options choose."""
    path = find_suite(options.suite, options.config_dir)
    return load_suite(path, options.config_dir, options.overrides)


def run_of(options: argparse.Namespace, *, without_model: bool = False) -> Run:
    """Return the run that the options choose; `without_model`: --model may be missing."""
    if (options.plan is None) != (options.run_id is None):
        raise ConfigError("--plan and --run go together; give both.")
    if options.plan is not None:
        return planned_runs(options.plan, [options.run_id])[0]
    if options.dataset is None or (options.model is None and not without_model):
        raise ConfigError("give --model and --dataset (names of files in config/).")
    return single_run(
        find_suite(options.suite, options.config_dir),
        options.config_dir,
        options.model,
        options.dataset,
        "unedited" if options.editor is None else options.editor,
        options.seed,
        options.overrides,
    )
