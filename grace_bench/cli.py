"""The commands: `grace-bench <command>`, or `python -m grace_bench <command>`. No logic here.

Exit codes: 0 done; 2 the user can fix the problem (the message says how); 75 the machine is in
trouble (retry); 143 asked to stop (the same command resumes); 1 anything else. A run whose editor
failed counts as done: the failure is its result.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grace_bench import __version__
from grace_bench.errors import ConfigError, DataError, GraceBenchError, Interrupted, ResultError
from grace_bench.jobs.resumable import CHECKPOINT_MINUTES, CheckpointPolicy
from grace_bench.steps import pipeline
from grace_bench.steps.single import describe_result, single_run
from grace_bench.store.files import describe_os_error
from grace_bench.store.json_records import read_record
from grace_bench.suite.compose import find_suite, load_suite
from grace_bench.suite.plan import RESULTS, expand
from grace_bench.suite.planned import planned_runs, write_plan
from grace_bench.suite.section import is_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from grace_bench.suite.plan import Run
    from grace_bench.suite.schema import SuiteConfig

    Function = Callable[[argparse.Namespace], None]
    Option = tuple[tuple[str, ...], dict[str, Any]]

logger = logging.getLogger(__name__)

COMMANDS: list[tuple[Function, Sequence[Option]]] = []


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    for name in ("httpx", "fontTools"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        options.run(options)
    except GraceBenchError as error:
        if options.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if options.debug:
            raise
        place = error.filename or "a file"
        print(f"error: {describe_os_error(place, error)}", file=sys.stderr)
        return ResultError.exit_code
    except KeyboardInterrupt:
        print("error: interrupted; rerun the same command to resume.", file=sys.stderr)
        return Interrupted.exit_code
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="grace-bench", description="A benchmark suite for lifelong model editing."
    )
    parser.add_argument("--version", action="version", version=f"grace-bench {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for function, options in COMMANDS:
        name, text = function.__name__.replace("_", "-"), function.__doc__.splitlines()[0]
        one = commands.add_parser(name, help=text, description=text)
        one.set_defaults(run=function)
        one.add_argument("--debug", action="store_true", help="show the traceback of an error")
        for names, settings in options:
            one.add_argument(*names, **settings)
    return parser


def option(*names: str, **settings: Any) -> Option:
    """Return the arguments of `add_argument`."""
    return names, settings


def command(*options: Option) -> Callable[[Function], Function]:
    """Register a function as the command of its name; its docstring's first line is the help."""

    def register(function: Function) -> Function:
        COMMANDS.append((function, options))
        return function

    return register


SUITE_OPTIONS = (
    option("--suite", type=Path, help="suite file, or its name; default config/config.yaml"),
    option("--suite-json", help="content of a suite as JSON, or @file"),
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
    if options.suite_json is not None:
        source = from_json(options.suite_json, "--suite-json")
        return load_suite(source, options.config_dir, options.overrides)
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


def from_json(text: str, where: str) -> dict:
    """Parse a JSON object given on the command line, or in a file: "@suite.json"."""
    if text.startswith("@"):
        return read_record(text[1:])
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid JSON ({error}).") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: must be a JSON object.")
    return value


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
    from grace_bench.results.status import Look
    from grace_bench.results.status_text import show

    plan_given = options.plan is not None
    if plan_given and (options.suite or options.suite_json or options.overrides):
        raise ConfigError("--plan replaces --suite, --suite-json and --set; leave those out.")
    look = Look.of_plan(options.plan) if plan_given else Look.of_suite(suite_of(options))
    show(look, sys.stdout, options.json, options.watch)


@command(
    option("sources", type=Path, nargs="+", metavar="DIR", help="a results/<suite>, or a results"),
    option("--output", type=Path, required=True, help="results folder to copy to"),
    option("--with-models", action="store_true", help="copy base models and editors' assets too"),
)
def collect(options: argparse.Namespace) -> None:
    """Combine a suite's runs from several machines."""
    from grace_bench.results.collect import collect as combine

    done = combine(options.sources, options.output, options.with_models)
    for line in done.told:
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
)
def track(options: argparse.Namespace) -> None:
    """Export all runs of a plan to MLflow; repeating it is harmless."""
    from grace_bench.reporting.mlflow.export import track as export

    export(options.plan, options.summary, options.uri)


@command(
    option("kind", choices=("editor", "dataset", "task")),
    option("name", help="of the editor, data set or task, and of the package"),
    option("--output", type=Path, help="folder to create; default: the name"),
)
def new(options: argparse.Namespace) -> None:
    """Write a starter package with an editor, a data set or a task."""
    from grace_bench.steps.skeleton import write_skeleton

    folder = options.output or Path(options.name)
    for path in write_skeleton(options.kind, options.name, folder):
        print(path)
    print(f"install it: pip install --no-build-isolation --no-deps -e {folder}")
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
    from grace_bench.reporting.mlflow.export import experiment_of, tracking_uri_for
    from grace_bench.reporting.mlflow.export import ui as serve

    if not is_name(options.suite):
        raise ConfigError(
            f"'{options.suite}' is not a valid suite name; use a folder name from results/."
        )
    folder = RESULTS / options.suite
    if (experiment := experiment_of(folder)) is not None:
        address = f"http://{options.host}:{options.port}/#/experiments/{experiment}/runs"
        print(f"the runs of {options.suite}, in about ten seconds: {address}", flush=True)
    serve(tracking_uri_for(folder, options.uri), options.host, options.port)
