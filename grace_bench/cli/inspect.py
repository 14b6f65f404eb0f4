"""The commands that look: at a suite before it runs, and at what its runs did."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from grace_bench.cli.commands import command
from grace_bench.cli.options import SUITE_OPTIONS, option, suite_of
from grace_bench.errors import ConfigError
from grace_bench.suite.plan import expand

KINDS = ("editors", "models", "datasets", "measures", "suites", "runs")

RESULTS_OPTION = option(
    "--suite", default="default", metavar="NAME", help="name of the suite, or its results folder"
)


@command(*SUITE_OPTIONS)
def validate(options: argparse.Namespace) -> None:
    """Check a suite before it runs: settings, files, models, layers, editors."""
    from grace_bench.steps.validate import validate as check

    runs = expand(suite := suite_of(options))
    check(runs)
    print(f"suite '{suite.name}': {len(runs)} runs, nothing is missing")


@command(
    option("kind", choices=KINDS, metavar="KIND", help=", ".join(KINDS)),
    RESULTS_OPTION,
    option("--config-dir", type=Path, default=Path("config"), help="folder of the named parts"),
)
def list_(options: argparse.Namespace) -> None:
    """List what there is to choose from, or the runs of a suite with their scores."""
    from grace_bench.results.catalogue import catalogue

    print(catalogue(options.kind, options.config_dir, options.suite))


@command(
    option("which", metavar="RUN", help="a finished run: its folder, its id, or words of its id"),
    RESULTS_OPTION,
    option("--edit", type=int, metavar="STEP", help="what the edit of this step did"),
    option("--example", metavar="ID", help="what became of an example of any role"),
    option("--forgotten", type=int, metavar="N", help="the N examples that lost most"),
)
def show(options: argparse.Namespace) -> None:
    """Show what a run did: its scores, an edit, an example, what was forgotten."""
    from grace_bench.results.frames import load
    from grace_bench.results.show import RunViewer

    chosen = [options.edit is not None, options.example is not None, options.forgotten is not None]
    if sum(chosen) > 1:
        raise ConfigError("give one of --edit, --example and --forgotten.")
    if options.forgotten is not None and options.forgotten < 1:
        raise ConfigError(f"--forgotten {options.forgotten}: must be 1 or more.")
    viewer = RunViewer(load(options.suite), options.which)
    if options.edit is not None:
        text = viewer.edit(options.edit)
    elif options.example is not None:
        text = viewer.example(options.example)
    elif options.forgotten is not None:
        text = viewer.forgotten(options.forgotten)
    else:
        text = viewer.overview()
    sys.stdout.write(f"{text}\n")
