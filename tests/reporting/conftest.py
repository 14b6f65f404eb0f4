"""Synthetic yet valid run folders: what the edit step would write, without any model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from grace_bench.metrics import per_example
from grace_bench.reporting.figures.write import write_figures
from grace_bench.reporting.summary.write import summarise
from grace_bench.reporting.tables.write import write_tables
from grace_bench.store import files, schemas

TASKS = {
    "question_answering": ("facts-qa", "Facts QA", "facts-t5", "T5 (tiny)", "f1"),
    "classification": ("terms_cls", "Terms & Topics", "terms-bert", "BERT", "accuracy"),
    "language_modelling": ("bios-lm", "Biographies", "bios-gpt2", "GPT-2", "perplexity"),
}
LABELS = {
    "unedited": "Unedited",
    "ft": "FT",
    "ft_ewc": "FT+EWC",
    "ft_retrain": "FT+Retrain",
    "defer": "Defer",
    "memory": "Memory",
    "grace": "GRACE",
}
# Final (TRR, ERR) of the scores; perplexities are made from them.
QUALITY = {
    "unedited": (0.72, 0.31),
    "ft": (0.56, 0.82),
    "ft_ewc": (0.51, 0.82),
    "ft_retrain": (0.27, 0.99),
    "defer": (0.72, 0.33),
    "memory": (0.25, 0.27),
    "grace": (0.69, 0.96),
}


def _scores(rng: np.random.Generator, task: str, share: float, n: int) -> dict[str, np.ndarray]:
    """Draw scores whose mean is near `share` of the task's best."""
    right = rng.random(n) < share
    if task == "classification":
        return {"accuracy": right.astype(float)}
    if task == "language_modelling":
        loss = 2.0 + 6.0 * (1 - share) + rng.normal(0, 0.4, n)
        return {"loss": loss, "perplexity": np.exp(loss)}
    f1 = np.where(right, 1.0, rng.choice([0.0, 0.4], n))
    return {
        "f1": f1,
        "exact_match": right.astype(float),
        "f1_released": 0.25 + 0.75 * f1,
        "token_accuracy": np.clip(f1 + 0.1, 0, 1),
    }


def write_run(
    results: Path,
    task: str = "question_answering",
    editor: str = "grace",
    seed: int = 0,
    edits: int = 24,
    every: int = 8,
    upstream: int = 40,
    hyperparameters: dict[str, Any] | None = None,
    in_sweep: bool = False,
    suite: str = "synthetic",
    name: str | None = None,
    label: str | None = None,
    shift: float = 0.0,
    gradient_steps: int = 10,
    block: int | None = None,
    latency: int = 0,
    failed_at: int | None = None,
    kind: str = "diverged",
    message: str = "the loss is not a number (nan).",
) -> Path:
    """Write one run folder and return it.

    With `failed_at`, that of a run that failed at this step, of which nothing is there but what was
    before; at 0, before anything was.
    """
    dataset, dataset_label, model, model_label, main = TASKS[task]
    layer = "encoder.block.2.wo" if block is None else f"encoder.block.{block}.wo"
    if block is not None:
        model, model_label = f"{model}-block-{block}", f"{model_label}, block {block}"
    hyperparameters = {"rules": "corrected"} if hyperparameters is None else hyperparameters
    variant = ",".join(f"{k}={v}" for k, v in sorted(hyperparameters.items()) if k != "rules")
    variant = variant or "default"
    name = name or editor
    run_id = f"{model}/{dataset}/{name}/{variant}/seed-{seed}"
    key = hashlib.sha256(f"{run_id}{shift}".encode()).hexdigest()
    rng = np.random.default_rng([seed, int(key[:8], 16)])
    trr, err = QUALITY[editor]
    trr, err = min(1.0, trr + shift), min(1.0, err + shift)
    start = QUALITY["unedited"]
    radius = float(hyperparameters.get("radius", 1.0))
    n_steps, with_keys = edits + 6, editor in ("grace", "memory")

    predictions: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []
    probes: list[dict[str, Any]] = []
    timed: list[dict[str, Any]] = []
    fact_keys: dict[str, int] = {}  # the key that the fact's edits fell to

    def predict(role: str, share: float, names: list[str], step: int, made: int) -> None:
        scores = _scores(rng, task, share, len(names))
        predictions.extend(
            {
                "step": step,
                "n_edits": made,
                "role": role,
                "example_id": f"{role}-{example}",
                "fact_id": example.split("#")[0],
                "prediction": "a text",
                **{measure: float(values[i]) for measure, values in scores.items()},
                "key": _key(role, i, example),
            }
            for i, example in enumerate(names)
        )

    def _key(role: str, number: int, example: str) -> int | None:
        """An edit has its fact's key; of holdouts a share that grows with the radius has one."""
        key = fact_keys.get(example.split("#")[0])
        if role == "holdout" and key is not None:
            of_another = number % 7 == 0
            return (key // 2 if of_another else key) if number % 5 < 1 + radius else None
        return key if role in ("edit", "edits") else None

    def probe(step: int, made: int) -> None:
        done = made / edits
        predict("upstream", start[0] + (trr - start[0]) * done, ups, step, made)
        if made:
            predict("edits", err + (1 - err) * (1 - done) * 0.5, facts[:made], step, made)
        if task == "language_modelling":
            predict("accurate", min(1.0, 0.2 + trr), ups[:20], step, made)
        else:
            predict("holdout", start[1] + (err * 0.8 - start[1]) * done, facts, step, made)
        for number in range(latency if made else 0):
            base = 0.01 * (1 + 0.1 * number)
            timed.append(
                {
                    "step": step,
                    "n_edits": made,
                    "n_keys": max(1, round(keys)) if with_keys else None,
                    "example_id": f"upstream-u{number}",
                    "n_tokens": 8 + number,
                    "repeats": 3,
                    "seconds": base * (1.3 + 0.02 * rng.random()),
                    "seconds_unedited": base,
                }
            )

    ups = [f"u{i}" for i in range(upstream)]
    facts = [f"e{i // 2}#{i % 2}" for i in range(edits)]
    if failed_at != 0:
        probe(0, 0)
    keys = 0.0
    for step in range(1, n_steps + 1):
        if failed_at is not None and step >= failed_at:
            break
        made = min(step, edits)
        edited = step <= edits and editor != "unedited"
        share = 1.0 if editor == "memory" else edits ** (-0.15 * radius)
        keys += share * rng.random() * 2 * edited if editor == "grace" else edited
        seconds = float(0.1 + 0.05 * rng.random()) if edited else None
        if edited and editor == "grace":
            fact_keys.setdefault(facts[step - 1].split("#")[0], max(0, round(keys) - 1))
        if step <= edits:
            before = len(predictions)
            predict("edit", 0.95 if editor != "unedited" else 0.3, [facts[step - 1]], step, made)
            es = predictions[before][main]
        steps.append(
            {
                "step": step,
                "n_edits": made,
                "example_id": f"edits-{facts[made - 1]}",
                "fact_id": facts[made - 1].split("#")[0],
                "is_error": step <= edits,
                "edited": edited,
                "branch": "add" if with_keys and edited else None,
                "key": fact_keys.get(facts[made - 1].split("#")[0]) if edited else None,
                "n_keys": max(1, round(keys)) if with_keys else None,
                "gradient_steps": gradient_steps if edited else None,
                "loss_last": 0.01 * step if edited else None,
                "edit_seconds": seconds,
                "es": es if edited else None,
            }
        )
        if step == n_steps or (made % every == 0 and made < edits):
            probe(step, made)

    for step in sorted({row["step"] for row in predictions if row["role"] != "edit"}):
        for metric, role in (
            ("es", "edit"), ("err", "edits"), ("trr", "upstream"),
            ("arr", "accurate"), ("holdout", "holdout"),
        ):  # fmt: skip
            rows = [
                row
                for row in predictions
                if row["role"] == role
                and (row["step"] <= step if role == "edit" else row["step"] == step)
            ]
            for measure in (m for m in per_example() if rows and m in rows[0]):
                made = min(step, edits)
                mean = float(np.mean([row[measure] for row in rows]))
                value = {"metric": metric, "measure": measure, "value": mean}
                probes.append({"step": step, "n_edits": made, "n": len(rows), **value})

    folder = results / suite / "runs" / run_id
    files.write_parquet(folder / "steps.parquet", steps, schemas.STEPS)
    files.write_parquet(folder / "probes.parquet", probes, schemas.PROBES)
    files.write_parquet(folder / "predictions.parquet", predictions, schemas.predictions_schema())
    if timed:
        files.write_parquet(folder / "latency.parquet", timed, schemas.LATENCY)
    state = "codebook.safetensors" if with_keys else "editor.safetensors"
    (folder / state).write_bytes(b"tensors of " + run_id.encode())
    if with_keys:
        files.write_parquet(folder / "codebook.parquet", [], schemas.CODEBOOK)
    n_keys = max(1, round(keys)) if with_keys else None
    spent = [row["edit_seconds"] for row in steps if row["edit_seconds"] is not None]
    files.write_json(
        folder / "run.json",
        {
            "format": "grace-bench run",
            "version": 1,
            "id": run_id,
            "content_hash": key[:16],
            "variant": variant,
            "in_sweep": in_sweep,
            "spec": {
                "suite": suite,
                "model": {"name": model, "label": model_label, "layer": layer},
                "dataset": {"name": dataset, "label": dataset_label, "task": task},
                "editor": {
                    "name": name,
                    "label": label or (LABELS[editor] if name == editor else name),
                    "editor": editor,
                    "hyperparameters": hyperparameters,
                },
                "seed": seed,
                "stream": {"facts": edits // 2, "max_edits": None, "order": "shuffled"},
                "probes": {"every": every},
                "compute": {"device": "cpu"},
            },
            "status": "complete" if failed_at is None else "failed",
            "failure": None
            if failed_at is None
            else {
                "kind": kind,
                "step": failed_at or None,
                "example_id": f"edits-{facts[failed_at - 1]}" if failed_at else None,
                "message": message,
                "type": "Diverged",
            },
            "counts": {
                "steps": len(steps),
                "edits": edits if failed_at is None else min(edits, len(steps)),
                "keys": n_keys,
                "edits_per_key": edits / n_keys if n_keys else None,
            },
            "seconds": {
                "load": 1.0,
                "edit": sum(spent),
                "evaluation": 2.0,
                "total": 3.0 + sum(spent),
                "per_edit_mean": float(np.mean(spent)) if spent else None,
                "per_edit_sd": float(np.std(spent, ddof=1)) if spent else None,
                "per_edit_median": float(np.median(spent)) if spent else None,
            },
            "peak_memory_mib": 512.5,
            "measure": main,
            "data_hash": hashlib.sha256(dataset.encode()).hexdigest(),
            "model_hash": hashlib.sha256(model.encode()).hexdigest(),
            "files": {
                path.name: files.sha256_of(path)
                for path in sorted(folder.iterdir())
                if path.name != "run.json"
            },
            "provenance": {
                "grace_bench": "0.1.0",
                "git_commit": "0123456789abcdef",
                "git_dirty": False,
                "python": "3.11.2",
                "torch": "2.13.0",
                "transformers": "5.0.0",
                "device": "cpu",
                "platform": "Linux",
                "started": f"2026-01-0{1 + seed}T12:00:00+00:00",
            },
        },
    )
    return folder


def write_suite(
    results: Path,
    tasks: tuple[str, ...] = ("question_answering", "classification"),
    editors: tuple[str, ...] = ("unedited", "ft", "defer", "grace"),
    seeds: tuple[int, ...] = (0, 1),
    radii: tuple[float, ...] = (0.5, 1.0, 3.0),
    edits: int = 24,
    upstream: int = 40,
) -> list[Path]:
    """Write a whole suite: every editor on every task, and a radius sweep of GRACE."""
    folders = []
    for task in tasks:
        for seed in seeds:
            for editor in editors:
                settings = [({"rules": "corrected"}, False)]
                if editor == "grace":
                    settings = [
                        ({"rules": "corrected", "radius": radius}, radius != 1.0)
                        for radius in radii
                    ]
                for hyperparameters, in_sweep in settings:
                    # Seeds end after different numbers of edits, as they do in life.
                    made = edits if task == "question_answering" else edits + 3 * seed
                    folders.append(
                        write_run(
                            results,
                            task,
                            editor,
                            seed,
                            made,
                            max(2, edits // 8),
                            upstream,
                            hyperparameters,
                            in_sweep,
                        )
                    )
    return folders


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """The function that writes one run folder; a fixture, so that no test imports a conftest."""
    return write_run


@pytest.fixture(scope="session")
def replace_rows() -> Callable[..., None]:
    """The function that writes a run's file anew and lists it in run.json."""

    def replace(folder: Path, name: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
        files.write_parquet(folder / name, rows, schema)
        record = files.read_json(folder / "run.json")
        record["files"][name] = files.sha256_of(folder / name)
        files.write_json(folder / "run.json", record)

    return replace


@pytest.fixture(scope="session")
def suite_folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The run folders of a small suite: two tasks, four editors, two seeds, three radii."""
    return write_suite(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="session")
def reported(suite_folders: list[Path]) -> Path:
    """A suite's folder with summary, tables and figures."""
    suite = suite_folders[0].parents[4]
    summary = suite / "summary.parquet"
    curves = summarise(suite_folders, summary)
    write_tables(summary, suite / "tables")
    write_figures(summary, curves, suite / "figures")
    return suite
