# What all rules share: the suite, its runs, and where files are. Helper functions live here only.
import itertools
import re
import shlex
import sys
import uuid
from pathlib import Path

from snakemake.exceptions import WorkflowError

# A clone's workflow runs that clone's code. An installed one, or one that Snakemake fetched from a
# repository, runs the code that is installed.
CLONE = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parents[1]
if (CLONE / "grace_bench").is_dir():
    sys.path.insert(0, str(CLONE))

try:
    from grace_bench.jobs import slurm
    from grace_bench.suite.compose import load_suite
    from grace_bench.errors import GraceBenchError
    from grace_bench.metrics import MEASURES
    from grace_bench.registry import FIGURES, TABLES
    from grace_bench.suite.outdated import outdated
    from grace_bench.suite.plan import RUN_FILES, bundles, expand as expand_runs
    from grace_bench.suite.planned import frozen_plan, is_plan_outdated
except ModuleNotFoundError as error:
    raise WorkflowError(
        f"this snakemake runs on {sys.executable}, which has no '{error.name}'; activate the "
        "environment that `make install` made (in the clone: . .venv/bin/activate), or the one that "
        "grace-bench is installed in, and start it again."
    )

if "conda" in map(str, workflow.deployment_settings.deployment_method):
    raise WorkflowError(
        "--sdm conda: not offered, as jobs run in the environment that Snakemake runs in; leave it out "
        "(environment.yml makes such an environment)."
    )

if workflow.modifier.path_modifier.prefix:
    raise WorkflowError(
        "module prefix: grace-bench writes to results/<suite>, whatever the prefix; leave it out."
    )

if Path("results").exists() and not Path("results").is_dir():
    raise WorkflowError("results: is a file, not a folder; move it away.")

# Every rule calls the python that Snakemake itself runs on; jobs on other nodes parse this too.
# Slurm sends TERM to all processes of a job at once. The shell must outlive the python that then
# writes its checkpoint: with the shell gone, the job is over and python is killed.
HERE = shlex.quote(str(Path(sys.executable).parent))
shell.prefix(f"trap : TERM; export PATH={HERE}:$PATH; ")

try:
    SUITE = load_suite(dict(config))
    RUNS = {run.id: run for run in expand_runs(SUITE)}
    OF_BASE_MODEL = {run.spec.base_model: run for run in RUNS.values()}
    BUNDLES = bundles(list(RUNS.values()), SUITE.bundle) if SUITE.bundle > 1 else {}
    BUNDLE_OF = {run.id: name for name, runs in BUNDLES.items() for run in runs}
    # Jobs on other nodes parse this too; there it is settled what is done.
    OUTDATED = outdated(RUNS.values()) if workflow.is_main_process else set()
except GraceBenchError as error:
    raise WorkflowError(str(error))

RESULTS = f"results/{SUITE.name}"
PLAN = f"{RESULTS}/plan.json"
DATA = f"{RESULTS}/data/{{dataset}}"
MODEL = f"{RESULTS}/models/{{base_model}}"
BASELINE = f"{RESULTS}/baselines/{{base_model}}"
ASSETS = f"{RESULTS}/assets/{{base_model}}/{{assets}}"
BUNDLE = f"{RESULTS}/bundles/{{base_model}}/{{bundle}}.json"
RUN = f"{RESULTS}/runs/{{model}}/{{dataset}}/{{editor}}/{{variant}}/seed-{{seed}}"
ROLES = ("train", "upstream", "edits", "holdout", "accurate")
THREADS = SUITE.compute.threads
TOY = [f"{RESULTS}/paper-figures/toy.png"] if SUITE.toy else []

# What is outdated is decided by contents (grace_bench/suite/outdated.py), and Snakemake is told by this
# file: it is an input of every job, a new one for jobs to do again, and of no account for others.
MARK = Path(f".snakemake/grace-bench/{SUITE.name}")
PLAN_OUTDATED = workflow.is_main_process and is_plan_outdated(SUITE, RUNS.values())
if workflow.is_main_process and (OUTDATED or PLAN_OUTDATED or not MARK.exists()):
    MARK.parent.mkdir(parents=True, exist_ok=True)
    MARK.write_text(uuid.uuid4().hex)


class Argument:
    """A rule's parameter whose changes start no job again: contents decide that."""

    def __init__(self, text):
        self.text = text

    def __str__(self):
        return self.text


# What jobs are to do, whatever becomes of config/ meanwhile.
try:
    FROZEN_PLAN = Argument(str(frozen_plan(SUITE, RUNS.values(), MARK.parent)))
except GraceBenchError as error:
    raise WorkflowError(str(error))


def a_run(wildcards):
    """Return the id of the run that the wildcards name, or of one that needs what they name."""
    names = dict(wildcards.items())
    if "seed" in names:
        return Argument(run_of(wildcards).id)
    if "assets" in names:
        folder = Path(ASSETS.format(**names))
        return Argument(next(r.id for r in RUNS.values() if r.assets_folder == folder))
    if "base_model" in names:
        return Argument(OF_BASE_MODEL[names["base_model"]].id)
    wanted = names["dataset"]
    return Argument(next(r.id for r in RUNS.values() if r.spec.dataset.name == wanted))


def of_account(files, again):
    """Return input files that start a job again, or that it only needs to be there."""
    return files if again else [ancient(file) for file in files]


def mark(again):
    """Return the mark as the input of a job that is to be done again, or of another."""
    return of_account([str(MARK)], again)


def inputs_of(record, *functions):
    """Return the function that gives the mark, and these files, to the job that writes a record."""

    def files(wildcards):
        again = Path(record.format(**wildcards)) in OUTDATED
        return inputs_of_job(again, functions, wildcards)

    return files


def inputs_of_job(again, functions, wildcards):
    """Return the mark and the files that the functions name."""
    found = [function(wildcards) for function in functions]
    lists = [[files] if isinstance(files, str) else files for files in found]
    return of_account([str(MARK), *itertools.chain(*lists)], again)


def plugins(*registries):
    """Return what other packages add; as a parameter of a rule, a change starts its job again.

    Which files their tables and figures write is known only from the results.
    """
    origins = [item for registry in registries for item in registry.origins().items()]
    return "; ".join(" ".join(pair) for pair in origins)


def either(names):
    """Return the pattern of just these names."""
    return "|".join(re.escape(name) for name in sorted(set(names)))


wildcard_constraints:
    base_model=either(OF_BASE_MODEL),
    model=either(run.spec.model.name for run in RUNS.values()),
    dataset=either(run.spec.dataset.name for run in RUNS.values()),
    editor="[^/]+",
    variant="[^/]+",
    assets="[^/]+",
    seed=r"\d+",
    bundle=r"\d+",


def say_how_slurm_is():
    """Print which of Slurm's commands tells how jobs are, where jobs go to Slurm."""
    if getattr(workflow.executor_plugin, "name", "") == "slurm":
        print(slurm.look().headline(), file=sys.stderr)


def asks(rule, resource):
    """Return the function that says how much of a resource a rule's jobs ask for."""

    def amount(wildcards, attempt):
        shared = rule == "prepare_data"
        model = None if shared else run_of_base_model(wildcards).spec.model.name
        return SUITE.resources.amount(rule, resource, model, attempt)

    return amount


def run_files(wildcards):
    """Return every run's files, by kind; a function, as only summarise needs so long a list."""
    return {
        Path(n).stem: [f"{run.folder}/{n}" for run in RUNS.values()] for n in RUN_FILES
    }


def run_of(wildcards):
    """Return the run that the wildcards name."""
    return RUNS["{model}/{dataset}/{editor}/{variant}/seed-{seed}".format(**wildcards)]


def runs_of_bundle(wildcards):
    """Return the runs of the bundle that the wildcards name."""
    return BUNDLES["{base_model}/{bundle}".format(**wildcards)]


def bundle_runs(wildcards):
    """Return the ids of a bundle's runs; no shell sees more in them than names."""
    return Argument(" ".join(run.id for run in runs_of_bundle(wildcards)))


def bundle_assets(wildcards):
    """Return the records of what the editors of a bundle's runs need."""
    folders = {run.assets_folder for run in runs_of_bundle(wildcards)}
    return sorted(f"{folder}/assets.json" for folder in folders - {None})


def bundle_runtime(wildcards, attempt):
    """Return the minutes that a bundle asks for: those of all its runs."""
    runs = runs_of_bundle(wildcards)
    model = runs[0].spec.model.name
    return SUITE.resources.amount("edit", "runtime", model, attempt, len(runs))


def bundle_of_run(wildcards):
    """Return the record of the bundle that does the run, if runs are bundled."""
    name = BUNDLE_OF[
        "{model}/{dataset}/{editor}/{variant}/seed-{seed}".format(**wildcards)
    ]
    return f"{RESULTS}/bundles/{name}.json"


def run_assets(wildcards):
    """Return the record of what the run's editor needs, if it needs anything."""
    folder = run_of(wildcards).assets_folder
    return [] if folder is None else f"{folder}/assets.json"


def run_of_base_model(wildcards):
    """Return one of the runs that edit the base model that the wildcards name, or will name."""
    if "base_model" in wildcards.keys():
        return OF_BASE_MODEL[wildcards.base_model]
    return run_of(wildcards)


def data_files(wildcards):
    """Return the files of a data set; how long answers are is asked of all its roles."""
    folder = run_of_base_model(wildcards).dataset_folder
    return [*(f"{folder}/{role}.parquet" for role in ROLES), f"{folder}/manifest.json"]


def model_files(wildcards):
    """Return the files that say what a base model is."""
    folder = run_of_base_model(wildcards).model_folder
    return [f"{folder}/training.json", f"{folder}/model.safetensors"]


def baseline_file(wildcards):
    """Return the record of the unedited model's predictions."""
    return f"{run_of_base_model(wildcards).baseline_folder}/baseline.json"


def bundle_inputs(wildcards):
    """Return the inputs of the bundle that the wildcards name."""
    records = {run.folder / RUN_FILES[0] for run in runs_of_bundle(wildcards)}
    functions = data_files, model_files, baseline_file, bundle_assets
    return inputs_of_job(not records.isdisjoint(OUTDATED), functions, wildcards)
