"""One function per command; each parses options and calls a step."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from grace_bench.cli.options import (
    MINUTES_OPTION,
    PLAN_OPTION,
    POLICY_OPTIONS,
    RUN_OPTIONS,
    SUITE_OPTIONS,
    SUMMARY_OPTIONS,
    URI_OPTION,
    Option,
    option,
    policy_of,
    run_of,
    suite_of,
)
from grace_bench.errors import ConfigError, DataError
from grace_bench.steps import pipeline
from grace_bench.steps.single import describe_result
from grace_bench.suite.plan import RESULTS, expand
from grace_bench.suite.planned import planned_runs, write_plan
from grace_bench.suite.section import is_name

Function = Callable[[argparse.Namespace], None]

COMMANDS: list[tuple[Function, Sequence[Option]]] = []


def command(*options: Option) -> Callable[[Function], Function]:
    """Register a function as the command of its name; its docstring's first line is the help."""

    def register(function: Function) -> Function:
        COMMANDS.append((function, options))
        return function

    return register


@command(*RUN_OPTIONS)
def prepare_data(options: argparse.Namespace) -> None:
    """Write a data set's roles as Parquet, with a manifest.

    Rows depend on no model.
    """
    pipeline.prepare_dataset(run_of(options, without_model=True))


@command(*RUN_OPTIONS)
def prepare_model(options: argparse.Namespace) -> None:
    """Build or load a base model, train it, save it."""
    pipeline.prepare_model(run_of(options))


@command(*RUN_OPTIONS)
def baseline(options: argparse.Namespace) -> None:
    """Predict every role with the unedited model."""
    pipeline.baseline(run_of(options))


@command(*RUN_OPTIONS, MINUTES_OPTION)
def prepare_editor(options: argparse.Namespace) -> None:
    """Make what an editor needs before any run."""
    pipeline.prepare_editor(run_of(options), policy_of(options))


@command(*RUN_OPTIONS, *POLICY_OPTIONS)
def edit(options: argparse.Namespace) -> None:
    """Do one run: a stream of edits for one editor on one model.

    Without --plan, what the run needs is prepared first.
    """
    run, policy = run_of(options), policy_of(options)
    if options.plan is None and options.editor is None:
        raise ConfigError("give --editor (a file in config/editors; unedited is the control).")
    record = pipeline.edit(run, policy, prepare_missing=options.plan is None)
    print(describe_result(run, record))


@command(
    PLAN_OPTION,
    option("--runs", nargs="+", required=True, metavar="ID", help="runs of the plan"),
    option("--output", type=Path, required=True, help="JSON file that lists them"),
    *POLICY_OPTIONS,
)
def edit_bundle(options: argparse.Namespace) -> None:
    """Do several runs of one model on one data set, loading it once."""
    runs = planned_runs(options.plan, options.runs)
    pipeline.edit_bundle(runs, options.output, policy_of(options))


@command(
    *SUITE_OPTIONS,
    option("--output", type=Path, help="write the plan as JSON instead of listing it"),
)
def plan(options: argparse.Namespace) -> None:
    """List the runs of a suite."""
    suite = suite_of(options)
    runs = expand(suite)
    if options.output:
        write_plan(suite, runs, options.output)
        return
    for run in runs:
        print(run.id)
    print(f"{len(runs)} runs in suite '{suite.name}'", file=sys.stderr)


@command(
    *SUITE_OPTIONS,
    option("--plan", type=Path, help="plan.json of the suite, instead of the suite"),
    option("--json", action="store_true", help="write JSON, with every run in it"),
    option(
        "--watch",
        type=float,
        nargs="?",
        const=10.0,
        metavar="SECONDS",
        help="repeat every SECONDS (10) until nothing is left to do",
    ),
)
def status(options: argparse.Namespace) -> None:
    """Show what a suite has, what is running, what failed and what is left."""
    from grace_bench.results.status import StatusReader
    from grace_bench.results.status_text import show

    plan_given = options.plan is not None
    if plan_given and (options.suite or options.overrides):
        raise ConfigError("--plan replaces --suite and --set; leave those out.")
    if plan_given:
        reader = StatusReader.of_plan(options.plan)
    else:
        reader = StatusReader.of_suite(suite_of(options))
    show(reader, sys.stdout, options.json, options.watch)


@command(
    option("sources", type=Path, nargs="+", metavar="DIR", help="a results/<suite>, or a results"),
    option("--output", type=Path, required=True, help="results folder to copy to"),
    option("--with-models", action="store_true", help="copy base models and editors' assets too"),
)
def collect(options: argparse.Namespace) -> None:
    """Combine a suite's runs from several machines."""
    from grace_bench.results.collect import collect as combine

    done = combine(options.sources, options.output, options.with_models)
    for line in done.notes:
        print(line)
    print(f"{len(done.copied)} runs copied, {done.kept} there already, {done.inputs} inputs copied")
    for line in done.problems:
        print(f"problem: {line}", file=sys.stderr)
    if done.problems:
        raise DataError(f"{len(done.problems)} problems; what they name was not copied.")


@command()
def cluster(options: argparse.Namespace) -> None:
    """Show what Slurm is like here, and what the profile will ask of it."""
    from grace_bench.jobs.slurm import look

    print(look().describe())


@command(
    PLAN_OPTION, option("--output", type=Path, required=True, help="folder of the Parquet files")
)
def summarise(options: argparse.Namespace) -> None:
    """Gather all runs of a plan into summary and curves."""
    from grace_bench.reporting.summary.write import summarise as gather

    gather(options.plan, options.output / "summary.parquet")


@command(*SUMMARY_OPTIONS)
def tables(options: argparse.Namespace) -> None:
    """Write LaTeX, CSV and Markdown tables."""
    from grace_bench.reporting.tables.write import write_tables

    write_tables(options.summary / "summary.parquet", options.output)


@command(*SUMMARY_OPTIONS)
def figures(options: argparse.Namespace) -> None:
    """Write figures as PDF and PNG."""
    from grace_bench.reporting.figures.write import write_figures

    folder = options.summary
    write_figures(folder / "summary.parquet", folder / "curves.parquet", options.output)


@command(PLAN_OPTION, *SUMMARY_OPTIONS)
def paper_figures(options: argparse.Namespace) -> None:
    """Draw the paper's Figs. 3 to 6 from a plan's runs."""
    from grace_bench.reporting.figures.paper.write import write_paper_figures

    folder = options.summary
    summary, curves = folder / "summary.parquet", folder / "curves.parquet"
    write_paper_figures(options.plan, summary, curves, options.output)


@command(*SUMMARY_OPTIONS)
def report(options: argparse.Namespace) -> None:
    """Write one HTML file with all tables and figures."""
    from grace_bench.reporting.report import write_report

    folder = options.summary
    write_report(
        folder / "summary.parquet", folder / "figures", options.output, folder / "paper-figures"
    )


@command(
    PLAN_OPTION,
    option("--summary", type=Path, required=True, help="folder of the summary"),
    URI_OPTION,
    option("--log-model", metavar="RUN", help="id of a run whose edited model is logged, too"),
)
def track(options: argparse.Namespace) -> None:
    """Export all runs of a plan to MLflow; repeating it is harmless."""
    from grace_bench.reporting.mlflow.export import track as export

    chosen = planned_runs(options.plan, [options.log_model]) if options.log_model else []
    exported = export(options.plan, options.summary, options.uri)
    if chosen:
        from grace_bench.library import load_run
        from grace_bench.reporting.mlflow.model import log_model

        with TemporaryDirectory() as folder:
            load_run(chosen[0].folder).save_pretrained(folder)
            print(log_model(Path(folder), chosen[0].id, exported, options.summary))


@command(
    option("kind", choices=("editor", "dataset", "task")),
    option("name", help="of the editor, data set or task, and of the package"),
    option("--output", type=Path, help="folder to create; default: the name"),
)
def new(options: argparse.Namespace) -> None:
    """Write a starter package with an editor, a data set or a task."""
    from grace_bench.steps.skeleton import write_skeleton

    folder = options.output or Path(options.name)
    written = write_skeleton(options.kind, options.name, folder)
    print(*written, sep="\n")
    print(f"install it: pip install --no-build-isolation --no-deps -e {folder}")
    for path in written:
        if path.suffix == ".yaml":
            print(f"let suites find it: cp {path} {path.relative_to(folder).parent}/")
    print(f"try it: cd {folder} && pytest")


@command(option("--output", type=Path, default=RESULTS / "toy", help="folder to write to"))
def toy(options: argparse.Namespace) -> None:
    """Draw the paper's toy (Fig. 2) after GRACE and after finetuning."""
    from grace_bench.reporting.figures.paper.toy import write_toy

    for path in write_toy(options.output):
        print(path)


@command()
def reference(options: argparse.Namespace) -> None:
    """Print the reference of all settings (config/README.md)."""
    from grace_bench.suite.settings_reference import render

    print(render(), end="")


@command(
    option("suite", nargs="?", default="default", help="name of the suite"),
    URI_OPTION,
    option("--host", default="127.0.0.1", help="address to listen on"),
    option("--port", type=int, default=5000),
)
def ui(options: argparse.Namespace) -> None:
    """Open the MLflow UI on this machine."""
    from grace_bench.reporting.mlflow.export import exported_to
    from grace_bench.reporting.mlflow.store import tracking_uri_for
    from grace_bench.reporting.mlflow.ui import addresses
    from grace_bench.reporting.mlflow.ui import ui as serve

    if not is_name(options.suite):
        raise ConfigError(
            f"'{options.suite}' is not a valid suite name; use a folder name from results/."
        )
    folder = RESULTS / options.suite
    if (export := exported_to(folder)) is not None:
        print(f"the runs of {options.suite}, in about ten seconds:")
        for title, address in addresses(export, options.host, options.port).items():
            print(f"  {title}: {address}", flush=True)
    serve(tracking_uri_for(folder, options.uri), options.host, options.port)
