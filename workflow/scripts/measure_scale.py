"""Measure the workflow at scale: a dry run of many runs, and reports over many step rows.

    python workflow/scripts/measure_scale.py --output results/speed/scale.json

The dry run is of the default suite with a long sweep and many seeds. The reports (summary, tables
and figures) are of 100 made-up runs with the records that they read: one step in a hundred is an
edit, fifty probes score all past edits and 500 other examples, and runs with a codebook have
averages after every edit. The commands are the workflow's own, each in a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from grace_bench.metrics import METRICS
from grace_bench.store import provenance, schemas
from grace_bench.store.files import sha256_of, write_json
from grace_bench.suite.compose import read_yaml

REPOSITORY = Path(__file__).resolve().parents[2]
MAX_MIB = 4096
DRY_RUN_SECONDS = 90
REPORTS_SECONDS = 60

MEASURES = {
    "question_answering": ("f1", "exact_match", "f1_released", "token_accuracy"),
    "language_modelling": ("perplexity", "loss"),
}
RUNS = list(itertools.product(MEASURES, ("ft", "grace"), range(1, 6), range(5)))
"""Task, editor, setting and seed of each made-up run."""
STEPS_AN_EDIT = 100
PROBES = 50
EXAMPLES = {"upstream": 300, "accurate": 100, "holdout": 100}
REPORTS = (
    ("summarise", "--plan", "plan.json", "--output", "."),
    ("tables", "--summary", ".", "--output", "tables"),
    ("figures", "--summary", ".", "--output", "figures"),
)


def main() -> None:
    """Measure, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--runs", type=int, default=10_000, help="of the dry run, about")
    parser.add_argument("--step-rows", type=int, default=10_000_000, help="of all reported runs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        n_runs, planned = measure_dry_run(options.runs, Path(folder))
        n_rows, reported = measure_reports(options.step_rows, Path(folder))
    write_json(
        options.output,
        {
            "runs": n_runs,
            "step_rows": n_rows,
            "results": planned + reported,
            "machine": {**provenance.describe(), "cpus": os.cpu_count()},
        },
    )
    for row in planned + reported:
        limit = f" (at most {row['target']})" if row["target"] else ""
        print(f"{row['name']}: {row['measured']} {row['unit']}{limit}")


def measure(folder: Path, *command: str) -> tuple[float, float, float, str]:
    """Run a Python module; return its seconds, CPU seconds, peak MiB and what it wrote."""
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as Snakemake gives rules of one thread
    with tempfile.TemporaryFile("w+") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            env=one_thread,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        # Not Popen.wait(): this tells the usage of just this process.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise SystemExit(f"error: {' '.join(command)} failed:\n{text[-2000:]}")
    mib = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return seconds, usage.ru_utime + usage.ru_stime, mib, text


def result(name: str, target: float | None, measured: float, unit: str) -> dict[str, Any]:
    """Return one measurement beside the most it may be, if that is set."""
    return {"name": name, "target": target, "measured": round(measured, 1), "unit": unit}


def measure_dry_run(n_runs: int, folder: Path) -> tuple[int, list[dict[str, Any]]]:
    """Plan the default suite with so many seeds and radii that it has about `n_runs` runs."""
    suite = read_yaml(REPOSITORY / "config" / "config.yaml")
    editors = ["unedited", "ft", "ft_ewc", "ft_retrain", "defer", "memory"]
    seeds = max(1, n_runs // 200)
    radii = max(1, n_runs // (seeds * len(suite["experiments"])) - len(editors))
    swept = {"name": "grace", "sweep": {"radius": [10 + i for i in range(radii)]}}
    suite |= {"name": "scale", "editors": [*editors, swept], "seeds": list(range(seeds))}
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(suite))
    snakefile = ("--snakefile", str(REPOSITORY / "Snakefile"), "--configfile", str(path))
    seconds, cpu, mib, text = measure(folder, "snakemake", "--dry-run", "--cores", "2", *snakefile)
    return int(re.search(r"^edit\s+(\d+)$", text, re.MULTILINE)[1]), [
        result("dry run", DRY_RUN_SECONDS, seconds, "s"),
        result("dry run, CPU", None, cpu, "s"),
        result("dry run, peak memory", MAX_MIB, mib, "MiB"),
    ]


def measure_reports(n_rows: int, folder: Path) -> tuple[int, list[dict[str, Any]]]:
    """Summarise, tabulate and draw made-up runs that have `n_rows` steps in all."""
    n_steps = n_rows // len(RUNS)
    plan = [write_run(folder / "runs", n_steps, *run) for run in RUNS]
    write_json(folder / "plan.json", {"runs": plan})
    seconds, cpu, mib, _ = zip(*(measure(folder, "grace_bench", *c) for c in REPORTS), strict=True)
    steps = zip(REPORTS, seconds, strict=True)
    return n_steps * len(RUNS), [
        result("reports", REPORTS_SECONDS, sum(seconds), "s"),
        result("reports, CPU", None, sum(cpu), "s"),
        *(result(f"reports: {command[0]}", None, s, "s") for command, s in steps),
        result("reports, peak memory", MAX_MIB, max(mib), "MiB"),
    ]


def write_run(
    runs: Path, n_steps: int, task: str, editor: str, setting: int, seed: int
) -> dict[str, Any]:
    """Write the folder of one made-up run, and return its entry of the plan."""
    run_id = f"model/{task}/{editor}/radius={setting}/seed-{seed}"
    folder = runs / run_id
    folder.mkdir(parents=True)
    rng = np.random.default_rng([setting, seed])
    # The stream's edits, evenly spread: the steps at which they are made.
    edits = np.arange(STEPS_AN_EDIT, n_steps + 1, STEPS_AN_EDIT)
    steps = step_columns(n_steps, edits, editor == "grace", rng)
    write(folder / "steps.parquet", steps, schemas.STEPS)
    predictions = prediction_columns(edits, MEASURES[task], rng)
    write(folder / "predictions.parquet", predictions, schemas.predictions_schema())
    probed = edits if editor == "grace" else edits[probe_positions(edits)]
    averages = average_columns(probed, MEASURES[task], rng)
    write(folder / "probes.parquet", averages, schemas.PROBES)
    labels = {"model": "Model", "dataset": task, "editor": editor}
    files = {path.name: sha256_of(path) for path in folder.iterdir()}
    spec = {
        "suite": "scale",
        "model": {"name": "model", "label": labels["model"]},
        "dataset": {"name": task, "label": task, "task": task},
        "editor": {
            "name": editor,
            "label": editor,
            "editor": editor,
            "hyperparameters": {"radius": setting},
        },
        "seed": seed,
    }
    write_json(
        folder / "run.json",
        {
            "format": "grace-bench run",
            "version": 1,
            "id": run_id,
            "content_hash": run_id,
            "variant": f"radius={setting}",
            "spec": spec,
            "status": "complete",
            "counts": {"edits": len(edits)},
            "seconds": {"per_edit_mean": 1.0},
            "measure": MEASURES[task][0],
            "files": files,
        },
    )
    entry = {"id": run_id, "folder": str(folder), "content_hash": run_id, "labels": labels}
    return {**entry, "base_model": f"model-{task}/pretrained", "in_sweep": setting > 1}


def probe_positions(edits: np.ndarray) -> np.ndarray:
    """Return after which edits (numbers from 0) all that is kept is scored."""
    return np.unique(np.linspace(0, len(edits) - 1, PROBES).round().astype(int))


def average_columns(
    steps: np.ndarray, measures: tuple[str, ...], rng: np.random.Generator
) -> dict[str, Any]:
    """Return the columns of probes.parquet: averages after the edits made at these steps."""
    kinds = [(metric, measure) for metric in METRICS for measure in measures]
    each = len(kinds)
    return {
        "step": np.repeat(steps, each),
        "n_edits": np.repeat(steps // STEPS_AN_EDIT, each),
        "metric": [metric for metric, _ in kinds] * len(steps),
        "measure": [measure for _, measure in kinds] * len(steps),
        "value": rng.random(each * len(steps)),
        "n": np.full(each * len(steps), 500),
    }


def step_columns(
    n_steps: int, edits: np.ndarray, keys: bool, rng: np.random.Generator
) -> dict[str, Any]:
    """Return the columns of steps.parquet that such a run has."""
    step = np.arange(1, n_steps + 1)
    edited = np.isin(step, edits)
    n_edits = np.cumsum(edited)
    measured = ("loss_first", "loss_last", "edit_seconds", "es", *(["distance"] if keys else []))
    return {
        "step": step,
        "n_edits": n_edits,
        "example_id": names("edits", step),
        "fact_id": names("fact", step),
        "is_error": edited,
        "edited": edited,
        **({"n_keys": n_edits} if keys else {}),
        **{name: pa.array(rng.random(n_steps), mask=~edited) for name in measured},
    }


def prediction_columns(
    edits: np.ndarray, measures: tuple[str, ...], rng: np.random.Generator
) -> dict[str, Any]:
    """Return the columns of predictions.parquet: each edit when made, then every probe."""
    n = np.arange(len(edits))
    blocks = [("edit", edits, n + 1, n)]
    for made in np.unique(np.linspace(0, len(edits), PROBES + 1).astype(int)):
        step = edits[made - 1] if made else 0
        for role, size in {"edits": made, **EXAMPLES}.items():
            blocks.append((role, np.full(size, step), np.full(size, made), np.arange(size)))
    roles, *columns = zip(*blocks, strict=True)
    step, n_edits, example = (np.concatenate(column) for column in columns)
    loss = rng.gamma(4, size=len(step))
    return {
        "step": step,
        "n_edits": n_edits,
        "role": np.repeat(roles, [len(steps) for steps in columns[0]]),
        "example_id": names("example", example),
        "fact_id": names("fact", example),
        "prediction": names("text", example),
        **{name: np.exp(-loss) for name in measures},
        **({"loss": loss, "perplexity": np.exp(loss)} if "loss" in measures else {}),
    }


def write(path: Path, columns: Mapping[str, Any], schema: pa.Schema) -> None:
    """Write columns as `files.write_parquet` writes rows; those not given are null."""
    n = len(columns["step"])
    arrays = [
        pa.array(columns[field.name]).cast(field.type)
        if field.name in columns
        else pa.nulls(n, field.type)
        for field in schema
    ]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path, compression="zstd")


def names(prefix: str, numbers: np.ndarray) -> pa.Array:
    """Return "<prefix>-<number>" for each number."""
    return pc.binary_join_element_wise(prefix, pa.array(numbers).cast(pa.string()), "-")


if __name__ == "__main__":
    main()
