"""The commands: `grace-bench <command>`, or `python -m grace_bench <command>`. No logic here.

Exit codes: 0 done, 2 the user can mend it (the message says how), 75 the machine is in trouble (try
again), 143 asked to stop (the same command goes on), 1 anything else. A run whose editor failed is
done: that it failed is its result.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from grace_bench import __version__
from grace_bench.errors import ConfigError, DataError, GraceBenchError, Interrupted, ResultError
from grace_bench.steps import pipeline
from grace_bench.store.files import describe_os_error
from grace_bench.store.json_records import read_record
from grace_bench.suite.compose import find_suite, load_suite
from grace_bench.suite.plan import RESULTS
from grace_bench.suite.schema import CHECKPOINT_MINUTES, is_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grace_bench.steps.edit import Saving
    from grace_bench.suite.schema import RunSpec, SuiteConfig

logger = logging.getLogger(__name__)


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
        print("error: interrupted; the same command goes on from what is there.", file=sys.stderr)
        return Interrupted.exit_code
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="grace-bench", description="A benchmark suite for lifelong model editing."
    )
    parser.add_argument("--version", action="version", version=f"grace-bench {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, help_text: str, run) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help_text, description=help_text)
        command.set_defaults(run=run)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return command

    def add_run(name: str, help_text: str, run) -> argparse.ArgumentParser:
        command = add(name, help_text, run)
        add_run_options(command)
        return command

    add_run(
        "prepare-data",
        "Write a data set's roles as Parquet, with a manifest.",
        prepare_data,
    )
    add_run("prepare-model", "Build or load a base model, train it, save it.", prepare_model)
    add_run("baseline", "Predict every role with the unedited model.", baseline)
    command = add_run("prepare-editor", "Make what an editor needs before any run.", prepare_editor)
    add_checkpoint_minutes(command)
    command = add_run("edit", "Do one run: a stream of edits for one editor on one model.", edit)
    add_saving_options(command)
    command = add(
        "edit-bundle", "Do several runs of one model on one data set, loading it once.", edit_bundle
    )
    command.add_argument("--specs", required=True, help="the runs as JSON (the workflow's)")
    command.add_argument("--output", type=Path, required=True, help="JSON file that lists them")
    add_saving_options(command)

    command = add("plan", "List the runs of a suite.", plan)
    add_suite_options(command)
    command.add_argument("--output", type=Path, help="write the plan as JSON instead of listing it")

    command = add("status", "Say what a suite has, what runs, what failed, what is left.", status)
    add_suite_options(command)
    command.add_argument("--plan", type=Path, help="plan.json of the suite, instead of the suite")
    command.add_argument("--json", action="store_true", help="write JSON, with every run in it")
    command.add_argument(
        "--watch",
        type=float,
        nargs="?",
        const=10.0,
        metavar="SECONDS",
        help="say it again every so many seconds (10), until nothing is left to do",
    )

    command = add("collect", "Bring together a suite's runs from several machines.", collect)
    command.add_argument(
        "sources", type=Path, nargs="+", metavar="DIR", help="a results/<suite>, or a results"
    )
    command.add_argument("--output", type=Path, required=True, help="folder of results to copy to")
    command.add_argument(
        "--with-models", action="store_true", help="copy base models and editors' assets too"
    )

    add("cluster", "Say what Slurm is like here, and what the profile will ask of it.", cluster)

    command = add("summarise", "Gather all runs of a plan into summary and curves.", summarise)
    command.add_argument("--plan", type=Path, required=True, help="plan.json of the suite")
    command.add_argument("--output", type=Path, required=True, help="folder of the Parquet files")

    command = add("tables", "Write LaTeX, CSV and Markdown tables.", tables)
    add_summary_options(command)
    command = add("figures", "Write figures as PDF and PNG.", figures)
    add_summary_options(command)
    command = add(
        "paper-figures", "Draw the paper's Figs. 3 to 6 from a plan's runs.", paper_figures
    )
    command.add_argument("--plan", type=Path, required=True, help="plan.json of the suite")
    add_summary_options(command)
    command = add("report", "Write one HTML file with all tables and figures.", report)
    add_summary_options(command)

    command = add("track", "Export all runs of a plan to MLflow; again is harmless.", track)
    command.add_argument("--plan", type=Path, required=True, help="plan.json of the suite")
    command.add_argument("--summary", type=Path, required=True, help="folder of the summary")
    command.add_argument("--uri", help="tracking URI; default MLFLOW_TRACKING_URI or sqlite")

    command = add("new", "Write a package with an editor, a data set or a task to begin from.", new)
    command.add_argument("kind", choices=("editor", "dataset", "task"))
    command.add_argument("name", help="of the editor, data set or task, and of the package")
    command.add_argument("--output", type=Path, help="folder to make; default: the name")

    command = add("toy", "Draw the paper's toy (Fig. 2) after GRACE and after finetuning.", toy)
    command.add_argument("--output", type=Path, default=RESULTS / "toy", help="folder to write to")

    command = add("reference", "Print the reference of all settings (config/README.md).", reference)

    command = add("ui", "Open the MLflow UI on this machine.", ui)
    command.add_argument("suite", nargs="?", default="default", help="name of the suite")
    command.add_argument("--uri", help="tracking URI; default MLFLOW_TRACKING_URI or sqlite")
    command.add_argument("--host", default="127.0.0.1", help="address to listen on")
    command.add_argument("--port", type=int, default=5000)
    return parser


def add_suite_options(command: argparse.ArgumentParser) -> None:
    """Add the options that choose a suite."""
    command.add_argument(
        "--suite", type=Path, help="suite file, or its name; default config/config.yaml"
    )
    command.add_argument("--suite-json", help="content of a suite as JSON")
    command.add_argument(
        "--config-dir",
        type=Path,
        default=Path("config"),
        help="folder of models, data sets, editors and suites, searched before the clone's own",
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a setting: editor.radius=3.0, stream.facts=8, model.training.steps=10",
    )


def add_run_options(command: argparse.ArgumentParser) -> None:
    """Add the options that choose one run: its spec, or its parts by name."""
    command.add_argument("--spec", help="the run as JSON (what the workflow passes)")
    command.add_argument("--model", help="a file in config/models")
    command.add_argument("--dataset", help="a file in config/datasets")
    command.add_argument("--editor", help="a file in config/editors; unedited is the control")
    command.add_argument("--seed", type=int, default=0)
    add_suite_options(command)


def add_checkpoint_minutes(command: argparse.ArgumentParser) -> None:
    """Add how often a checkpoint is written; no result depends on it."""
    command.add_argument(
        "--checkpoint-minutes",
        type=float,
        metavar="M",
        default=os.environ.get("GRACE_BENCH_CHECKPOINT_MINUTES", str(CHECKPOINT_MINUTES)),
        help="minutes between checkpoints; 0: only when asked to stop; "
        f"default GRACE_BENCH_CHECKPOINT_MINUTES or {CHECKPOINT_MINUTES:g}",
    )


def add_saving_options(command: argparse.ArgumentParser) -> None:
    """Add how often a run writes a checkpoint; no result depends on it."""
    add_checkpoint_minutes(command)
    command.add_argument(
        "--checkpoint-steps", type=int, metavar="N", help="at most so many steps between two"
    )


def saving_of(options: argparse.Namespace) -> Saving:
    """Return how often checkpoints are written."""
    from grace_bench.steps.edit import Saving

    steps = options.checkpoint_steps
    if steps is not None and steps < 1:
        raise ConfigError("--checkpoint-steps must be 1 or more.")
    return Saving(checkpoint_minutes(options), steps)


def checkpoint_minutes(options: argparse.Namespace) -> float:
    """Return the minutes between two checkpoints."""
    if not options.checkpoint_minutes >= 0:
        raise ConfigError("--checkpoint-minutes must be 0 or more.")
    return options.checkpoint_minutes


def add_summary_options(command: argparse.ArgumentParser) -> None:
    """Add the folder of the summary and the output."""
    command.add_argument("--summary", type=Path, required=True, help="folder of the summary")
    command.add_argument("--output", type=Path, required=True, help="folder to write to")


def suite_of(options: argparse.Namespace) -> SuiteConfig:
    """Return the suite that the options choose."""
    if options.suite_json is not None:
        source = from_json(options.suite_json, "--suite-json")
        return load_suite(source, options.config_dir, options.overrides)
    path = find_suite(options.suite, options.config_dir)
    return load_suite(path, options.config_dir, options.overrides)


def spec_of(options: argparse.Namespace, *, without_model: bool = False) -> RunSpec:
    """Return the run that the options choose, which may be of no model in particular."""
    if options.spec is not None:
        return pipeline.checked_spec(from_json(options.spec, "--spec"), "--spec")
    if options.dataset is None or (options.model is None and not without_model):
        raise ConfigError("give --model and --dataset (names of files in config/), or --spec.")
    return pipeline.single_spec(
        find_suite(options.suite, options.config_dir),
        options.config_dir,
        options.model,
        options.dataset,
        "unedited" if options.editor is None else options.editor,
        options.seed,
        options.overrides,
    )


def from_json(text: str, where: str) -> dict:
    """Parse a JSON object given on the command line, or in a file: "@spec.json"."""
    if text.startswith("@"):
        return read_record(text[1:])
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid JSON ({error}).") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: must be a JSON object.")
    return value


def prepare_data(options: argparse.Namespace) -> None:
    """`grace-bench prepare-data`; rows depend on no model."""
    spec = spec_of(options, without_model=True)
    pipeline.prepare_dataset(spec.dataset, pipeline.Run(spec).dataset_folder)


def prepare_model(options: argparse.Namespace) -> None:
    """`grace-bench prepare-model`."""
    pipeline.prepare_model(spec_of(options))


def baseline(options: argparse.Namespace) -> None:
    """`grace-bench baseline`."""
    pipeline.baseline(spec_of(options))


def prepare_editor(options: argparse.Namespace) -> None:
    """`grace-bench prepare-editor`."""
    pipeline.prepare_editor(spec_of(options), minutes=checkpoint_minutes(options))


def edit(options: argparse.Namespace) -> None:
    """`grace-bench edit`; without --spec, what the run needs is prepared first."""
    from grace_bench.steps.single import describe_result

    spec, saving = spec_of(options), saving_of(options)
    if options.spec is None and options.editor is None:
        raise ConfigError("give --editor (a file in config/editors; unedited is the control).")
    record = pipeline.edit(spec, prepare_missing=options.spec is None, saving=saving)
    print(describe_result(pipeline.Run(spec), record))


def edit_bundle(options: argparse.Namespace) -> None:
    """`grace-bench edit-bundle`."""
    value = from_json(options.specs, "--specs")
    specs = pipeline.checked_bundle(value, "--specs")
    pipeline.edit_bundle(specs, options.output, saving=saving_of(options))


def plan(options: argparse.Namespace) -> None:
    """`grace-bench plan`."""
    suite = suite_of(options)
    if options.output:
        pipeline.write_plan(suite, options.output)
        return
    runs = pipeline.plan(suite)
    for run in runs:
        print(run["id"])
    print(f"{len(runs)} runs in suite '{suite.name}'", file=sys.stderr)


def status(options: argparse.Namespace) -> None:
    """`grace-bench status`."""
    from grace_bench.results.status import StatusReader
    from grace_bench.results.status_text import show

    if options.plan is not None and (options.suite or options.suite_json or options.overrides):
        raise ConfigError("--plan: says all; leave --suite, --suite-json and --set out.")
    plan_given = options.plan is not None
    if plan_given:
        reader = StatusReader.of_plan(options.plan)
    else:
        reader = StatusReader.of_suite(suite_of(options))
    show(reader, sys.stdout, options.json, options.watch)


def collect(options: argparse.Namespace) -> None:
    """`grace-bench collect`."""
    from grace_bench.results.collect import collect as bring_together

    done = bring_together(options.sources, options.output, options.with_models)
    for line in done.notes:
        print(line)
    print(f"{len(done.copied)} runs copied, {done.kept} there already, {done.inputs} inputs copied")
    for line in done.problems:
        print(f"problem: {line}", file=sys.stderr)
    if done.problems:
        raise DataError(f"{len(done.problems)} problems; what they name was not copied.")


def cluster(options: argparse.Namespace) -> None:
    """`grace-bench cluster`."""
    from grace_bench.jobs.slurm import look

    print(look().describe())


def summarise(options: argparse.Namespace) -> None:
    """`grace-bench summarise`."""
    from grace_bench.reporting.summary.write import summarise as gather

    gather(options.plan, options.output / "summary.parquet")


def tables(options: argparse.Namespace) -> None:
    """`grace-bench tables`."""
    from grace_bench.reporting.tables.write import write_tables

    write_tables(options.summary / "summary.parquet", options.output)


def figures(options: argparse.Namespace) -> None:
    """`grace-bench figures`."""
    from grace_bench.reporting.figures.write import write_figures

    folder = options.summary
    write_figures(folder / "summary.parquet", folder / "curves.parquet", options.output)


def paper_figures(options: argparse.Namespace) -> None:
    """`grace-bench paper-figures`."""
    from grace_bench.reporting.figures.paper.write import write_paper_figures

    folder = options.summary
    summary, curves = folder / "summary.parquet", folder / "curves.parquet"
    write_paper_figures(options.plan, summary, curves, options.output)


def report(options: argparse.Namespace) -> None:
    """`grace-bench report`."""
    from grace_bench.reporting.report import write_report

    folder = options.summary
    write_report(
        folder / "summary.parquet",
        folder / "figures",
        options.output,
        folder / "paper-figures",
    )


def track(options: argparse.Namespace) -> None:
    """`grace-bench track`."""
    from grace_bench.reporting.mlflow.export import track as export

    export(options.plan, options.summary, options.uri)


def new(options: argparse.Namespace) -> None:
    """`grace-bench new`."""
    from grace_bench.steps.skeleton import write_skeleton

    folder = options.output or Path(options.name)
    for path in write_skeleton(options.kind, options.name, folder):
        print(path)
    print(f"install it: pip install --no-build-isolation --no-deps -e {folder}")
    print(f"try it: cd {folder} && pytest")


def toy(options: argparse.Namespace) -> None:
    """`grace-bench toy`."""
    from grace_bench.reporting.figures.paper.toy import write_toy

    for path in write_toy(options.output):
        print(path)


def reference(options: argparse.Namespace) -> None:
    """`grace-bench reference`."""
    from grace_bench.suite.settings_reference import render

    print(render(), end="")


def ui(options: argparse.Namespace) -> None:
    """`grace-bench ui`."""
    from grace_bench.reporting.mlflow.export import experiment_of, tracking_uri_for
    from grace_bench.reporting.mlflow.export import ui as serve

    if not is_name(options.suite):
        raise ConfigError(f"'{options.suite}' is no name of a suite; give one of results/.")
    folder = RESULTS / options.suite
    if (experiment := experiment_of(folder)) is not None:
        address = f"http://{options.host}:{options.port}/#/experiments/{experiment}/runs"
        print(f"the runs of {options.suite}, in about ten seconds: {address}", flush=True)
    serve(tracking_uri_for(folder, options.uri), options.host, options.port)
