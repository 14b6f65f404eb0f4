"""What there is to choose from, and what was run, as lines of text. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from grace_bench.metrics import MEASURES, METRICS
from grace_bench.registry import DATASETS, EDITORS, Registry
from grace_bench.results.frames import load
from grace_bench.suite.compose import available, default_suite, find_part, load_named, read_yaml
from grace_bench.suite.overrides import KIND_FOLDERS

Row = tuple[str, ...]


def catalogue(kind: str, config_dir: Path, suite: str) -> str:
    """Return the things of a kind, a line each.

    Args:
        kind: a key of KINDS.
        config_dir: folder of the named parts; the shipped ones are listed, too.
        suite: whose runs are listed.
    """
    rows = list(KINDS[kind](config_dir, suite))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _parts(
    kind: str,
    about: Callable[[dict[str, Any]], str],
    registry: Registry[Any] | None = None,
    key: str = "",
) -> Callable[[Path, str], Iterator[Row]]:
    """Return a function that lists a kind's files, and what is registered but has no file."""

    def rows(config_dir: Path, _: str) -> Iterator[Row]:
        names = available(config_dir, KIND_FOLDERS[kind])
        parts = {name: load_named(config_dir, kind, name) for name in names}
        for name, part in parts.items():
            yield name, str(part.get("label", name)), about(part)
        used = {part.get(key) for part in parts.values()}
        for name in (name for name in (registry.names() if registry else ()) if name not in used):
            yield name, "", f"{key} without a file in config/{KIND_FOLDERS[kind]}"

    return rows


def _editor(part: dict[str, Any]) -> str:
    given = part.get("hyperparameters") or {}
    return " ".join([str(part.get("editor")), *(f"{k}={v}" for k, v in given.items())])


def _model(part: dict[str, Any]) -> str:
    source = part.get("source") or {}
    return f"{source.get('kind')} {source.get('id') or source.get('architecture')}"


def _dataset(part: dict[str, Any]) -> str:
    return f"{part.get('task')}, builder {part.get('builder')}"


def _measures(*_: object) -> Iterator[Row]:
    for measure in MEASURES.values():
        yield measure.name, f"{measure.title} {measure.arrow}", measure.definition


def _suites(config_dir: Path, _: str) -> Iterator[Row]:
    paths = {"default": default_suite(config_dir)}
    for name in available(config_dir, "suites"):
        part = Path("suites", f"{name}.yaml")
        paths[name] = find_part(config_dir, part) or config_dir / part
    for name, path in paths.items():
        yield name, str(read_yaml(path).get("description", ""))


def _runs(_: Path, suite: str) -> Iterator[Row]:
    results = load(suite)
    names = list(METRICS)
    yield "run", "state", *(METRICS[name].label for name in names)
    done = results.runs[results.runs["status"] != "unfinished"]
    probes = results.probes if len(done) else pd.DataFrame()
    for run in results.runs.itertuples():
        scores = ["-"] * len(names)
        if run.status != "unfinished":
            own = probes[(probes["run"] == run.run) & (probes["measure"] == run.measure)]
            last = own.drop_duplicates("metric", keep="last").set_index("metric")["value"]
            scores = [f"{last[name]:.3g}" if name in last else "-" for name in names]
        yield run.run, run.status, *scores


KINDS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    "editors": _parts("editor", _editor, EDITORS, "editor"),
    "models": _parts("model", _model),
    "datasets": _parts("dataset", _dataset, DATASETS, "builder"),
    "measures": _measures,
    "suites": _suites,
    "runs": _runs,
}
