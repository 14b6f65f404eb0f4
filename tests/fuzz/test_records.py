"""Parquet and JSON files of any content: their rows as declared, or one sentence."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import (
    HOSTILE_TEXTS,
    VALUES,
    cases,
    changed,
    damaged,
    damages,
    sentence_of,
    tree_changes,
)
from hypothesis import strategies as st

from grace_bench.datasets.base import load_role, read_manifest
from grace_bench.metrics import per_example
from grace_bench.reporting.summary.write import summarise
from grace_bench.steps.baseline import load_baseline
from grace_bench.steps.precompute import check_assets
from grace_bench.store import files, schemas

EXAMPLE = {"fact_id": "f1", "text": "Where is Rome?", "label": "Italy", "subject": "Rome"}
NEEDED = ("example_id", "fact_id", "text", "label")
TYPES = (pa.int64(), pa.float32(), pa.string(), pa.large_string(), pa.binary(), pa.bool_(),
         pa.list_(pa.string()), pa.dictionary(pa.int32(), pa.string()), pa.date32())  # fmt: skip


@st.composite
def table_changes(draw: st.DrawFn) -> list[tuple[str, int, Any]]:
    """Draw changes of a table, whatever the table: (kind, which column, how)."""
    hows = {
        "drop": st.none(),
        "null": st.none(),
        "nulls": st.none(),
        "twice": st.none(),
        "repeat": st.none(),
        "rename": st.sampled_from(HOSTILE_TEXTS[:-1]),
        "retype": st.sampled_from(TYPES),
        "value": VALUES,
        "rows": st.sampled_from([0, 1, 2]),
        "version": st.sampled_from([b"1", b"2", b"\xff", b""]),
        "text": st.just(b"\xff\xfe half"),
    }
    which = st.integers(0, 20)
    change = st.one_of(*(st.tuples(st.just(kind), which, how) for kind, how in hows.items()))
    return draw(st.lists(change, min_size=1, max_size=2))


def remade(table: pa.Table, changes: list[tuple[str, int, Any]]) -> pa.Table:
    """Return a table with changes of `table_changes` made to it."""
    for kind, number, how in changes:
        if not table.num_columns:
            return table
        at = number % table.num_columns
        names, column = table.column_names, table.column(at)
        name = names[at]
        if kind == "drop":
            table = table.remove_column(at)
        elif kind == "twice":
            table = table.append_column(name, column)
        elif kind in ("null", "nulls"):
            values = column.to_pylist()
            lost = len(values) if kind == "nulls" else min(1, len(values))
            kept = [None] * lost + values[lost:]
            table = table.set_column(at, name, pa.array(kept, column.type))
        elif kind == "rename":
            name = how.encode("utf-8", "replace").decode()
            table = table.rename_columns([*names[:at], name, *names[at + 1 :]])
        elif kind == "rows":
            table = table.slice(0, how)
        elif kind == "repeat":
            table = pa.concat_tables([table, table])
        elif kind == "version":
            table = table.replace_schema_metadata({b"grace_bench.schema_version": how})
        else:
            try:
                if kind == "retype":
                    new = column.cast(how)
                elif kind == "text":  # bytes that are no UTF-8, said to be text
                    plain = pa.array([how] * len(column), pa.binary())
                    new = pa.Array.from_buffers(pa.string(), len(plain), plain.buffers())
                else:
                    new = pa.array([how, *column.to_pylist()[1:]], column.type)
                table = table.set_column(at, name, new)
            except (pa.ArrowException, OverflowError, TypeError, ValueError):
                table = table.set_column(at, name, pa.nulls(table.num_rows))
    return table


def write_table(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path, compression="zstd")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The folder of a small prepared data set, as `prepare` leaves it."""
    folder = tmp_path_factory.mktemp("data")
    for role in schemas.ROLES:
        rows = [{**EXAMPLE, "example_id": f"{role}-{n}"} for n in range(3)]
        files.write_parquet(folder / f"{role}.parquet", rows, schemas.EXAMPLES)
    described = {
        role: {
            "file": f"{role}.parquet",
            "rows": 3,
            "facts": 1,
            "sha256": files.sha256_of(folder / f"{role}.parquet"),
        }
        for role in schemas.ROLES
    }
    manifest = {"format": 1, "dataset": "x", "data_hash": "d", "labels": ["a"], "roles": described}
    files.write_json(folder / "manifest.json", manifest)
    return folder


def fresh(fence, source: Path) -> Path:
    return shutil.copytree(source, fence.emptied() / "work")


def check_role(fence, folder: Path, role: str = "edits") -> str | None:
    found = []
    said = sentence_of(lambda: found.extend(load_role(folder, role)))
    for row in found:
        assert list(row) == schemas.EXAMPLES.names
        assert all(
            isinstance(row[name], str) for name in ("example_id", "fact_id", "text", "label")
        )
        answers = row.pop("answers") or []
        assert all(isinstance(value, str | None) for value in [*row.values(), *answers])
    fence.check()
    return said


@cases(150, damage=damages())
def test_a_role_with_any_bytes_anywhere(fence, data, damage):
    path = fresh(fence, data) / "edits.parquet"
    path.write_bytes(damaged(path.read_bytes(), damage))
    check_role(fence, path.parent)


@cases(150, changes=table_changes())
def test_a_role_with_any_columns(fence, data, changes):
    path = fresh(fence, data) / "edits.parquet"
    write_table(path, remade(pq.read_table(path), changes))
    check_role(fence, path.parent)


@cases(100, changes=tree_changes())
def test_a_manifest_with_any_value_anywhere(fence, data, changes):
    folder = fresh(fence, data)
    path = folder / "manifest.json"
    path.write_text(json.dumps(changed(json.loads(path.read_text()), changes)))
    found = []
    if sentence_of(lambda: found.append(read_manifest(folder))) is None:
        [manifest] = found
        assert isinstance(manifest.data_hash, str)
        assert all(isinstance(label, str) for label in manifest.labels or [])
    check_role(fence, folder)


@cases(80, damage=damages(), kind=st.sampled_from(["manifest", "plan", "run"]))
def test_json_with_any_bytes_anywhere(fence, data, damage, kind):
    folder = fresh(fence, data)
    path = folder / "manifest.json"
    path.write_bytes(damaged(path.read_bytes(), damage))
    sentence_of(lambda: read_manifest(folder))
    sentence_of(lambda: summarise(path, folder / "summary.parquet"))
    fence.check()


PREDICTION = {
    "step": 0, "n_edits": 0, "role": "edits", "example_id": "e1", "fact_id": "f1",
    "prediction": "Rome", "f1": 1.0, "exact_match": 1.0, "loss": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def predicted(tmp_path_factory) -> Path:
    """The folder of a baseline."""
    folder = tmp_path_factory.mktemp("baseline")
    files.write_parquet(
        folder / "predictions.parquet", [PREDICTION] * 3, schemas.predictions_schema()
    )
    averages = {"edits": {"f1": 1.0, "n": 3}}
    told = {"data_hash": "d", "model_hash": "m", "averages": averages, "measure": "f1"}
    files.write_json(folder / "baseline.json", told)
    return folder


def check_baseline(fence, folder: Path) -> None:
    found = []
    sentence_of(lambda: found.extend(load_baseline(folder, "d", "m")))
    for row in found:
        assert isinstance(row["role"], str)
        assert isinstance(row["example_id"], str)
        assert all(isinstance(row[measure], float | None) for measure in per_example())
    fence.check()


@cases(80, damage=damages(), file=st.sampled_from(["predictions.parquet", "baseline.json"]))
def test_a_baseline_with_any_bytes_anywhere(fence, predicted, damage, file):
    path = fresh(fence, predicted) / file
    path.write_bytes(damaged(path.read_bytes(), damage))
    check_baseline(fence, path.parent)


@cases(80, changes=table_changes(), told=tree_changes())
def test_a_baseline_of_any_form(fence, predicted, changes, told):
    folder = fresh(fence, predicted)
    path = folder / "predictions.parquet"
    write_table(path, remade(pq.read_table(path), changes))
    check_baseline(fence, folder)
    path = folder / "baseline.json"
    path.write_text(json.dumps(changed(json.loads(path.read_text()), told)))
    check_baseline(fence, folder)


@pytest.fixture(scope="module")
def assets(tmp_path_factory) -> Path:
    """The folder of an editor's assets."""
    folder = tmp_path_factory.mktemp("assets")
    (folder / "transform.safetensors").write_bytes(b"tensors")
    hashes = {"transform.safetensors": files.sha256_of(folder / "transform.safetensors")}
    told = {"format": "grace-bench assets", "version": 1, "model_hash": "m", "files": hashes,
            "told": {}, "seconds": 0.5}  # fmt: skip
    files.write_json(folder / "assets.json", told)
    return folder


@cases(80, changes=tree_changes(), name=st.sampled_from([None, None, "../../secret/file.txt"]))
def test_assets_of_any_content(fence, assets, changes, name):
    folder = fresh(fence, assets)
    path = folder / "assets.json"
    told = changed(json.loads(path.read_text()), changes)
    if name is not None and isinstance(told, dict) and isinstance(told.get("files"), dict):
        told["files"][name] = files.sha256_of(fence.secret / "file.txt")
    path.write_text(json.dumps(told))
    said = sentence_of(lambda: check_assets(folder, "m"))
    assert said is not None or name is None
    fence.check()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a very small run."""
    folder = tmp_path_factory.mktemp("run")
    steps, predictions, probes = [], [], []
    for step in (1, 2):
        ids = {"example_id": f"e{step}", "fact_id": f"f{step}"}
        at = {"step": step, "n_edits": step}
        steps.append({**at, **ids, "is_error": True, "edited": True, "n_keys": step, "es": 1.0})
        for role in ("edit", "edits", "upstream", "holdout"):
            predictions.append({**at, **ids, "role": role, "f1": 1.0 / step, "exact_match": 0.0})
        for metric in ("es", "err", "trr", "holdout"):
            probes.append({**at, "metric": metric, "measure": "f1", "value": 1.0 / step, "n": 1})
    files.write_parquet(folder / "steps.parquet", steps, schemas.STEPS)
    files.write_parquet(folder / "predictions.parquet", predictions, schemas.predictions_schema())
    files.write_parquet(folder / "probes.parquet", probes, schemas.PROBES)
    part = {"name": "x", "label": "X"}
    record = {
        "format": "grace-bench run", "version": 1, "id": "x/x/x/default/seed-0",
        "content_hash": "c", "variant": "default", "in_sweep": False,
        "spec": {"suite": "s", "model": {**part, "layer": "l"},
                 "dataset": {**part, "task": "question_answering"},
                 "editor": {**part, "editor": "grace", "hyperparameters": {"radius": 1.0}},
                 "seed": 0, "stream": {}, "probes": {"every": 1}, "compute": {}},
        "status": "complete", "failure": None,
        "counts": {"steps": 2, "edits": 2, "keys": 2, "edits_per_key": 1.0},
        "seconds": {"edit": 1.0, "total": 2.0, "per_edit_mean": 0.5, "per_edit_sd": 0.1,
                    "per_edit_median": 0.5},
        "peak_memory_mib": 1.0, "measure": "f1", "data_hash": "d", "model_hash": "m",
        "files": {path.name: files.sha256_of(path) for path in folder.iterdir()},
        "provenance": {"grace_bench": "0", "git_dirty": False, "started": "2026-01-01"},
    }  # fmt: skip
    files.write_json(folder / "run.json", record)
    return folder


def check_run(fence, folder: Path) -> str | None:
    output = fence.inside / "out" / "summary.parquet"
    said = sentence_of(lambda: summarise([folder], output))
    names = sorted(path.name for path in fence.inside.iterdir())
    assert names == (["out", "work"] if said is None else ["work"])
    if said is None:
        for row in files.read_parquet(output).to_pylist():
            assert row["value"] is None or not math.isnan(row["value"])
    fence.check()
    return said


def rehash(folder: Path) -> None:
    record = json.loads((folder / "run.json").read_text())
    record["files"] = {p.name: files.sha256_of(p) for p in folder.glob("*.parquet")}
    (folder / "run.json").write_text(json.dumps(record))


RUN_FILES = st.sampled_from(["steps.parquet", "predictions.parquet", "probes.parquet"])


def test_the_run_that_is_changed_here_is_good(fence, run):
    assert check_run(fence, fresh(fence, run)) is None


@cases(80, file=RUN_FILES, damage=damages())
def test_a_run_with_any_bytes_anywhere(fence, run, file, damage):
    path = fresh(fence, run) / file
    before = path.read_bytes()
    path.write_bytes(damaged(before, damage))
    assert (check_run(fence, path.parent) is None) == (path.read_bytes() == before)


@cases(150, file=RUN_FILES, changes=table_changes())
def test_a_run_with_any_columns_and_their_right_hash(fence, run, file, changes):
    folder = fresh(fence, run)
    write_table(folder / file, remade(pq.read_table(folder / file), changes))
    rehash(folder)
    check_run(fence, folder)


@cases(150, changes=tree_changes())
def test_a_run_that_says_anything_of_itself(fence, run, changes):
    folder = fresh(fence, run)
    path = folder / "run.json"
    path.write_text(json.dumps(changed(json.loads(path.read_text()), changes)))
    check_run(fence, folder)


@cases(80, changes=tree_changes())
def test_a_plan_with_any_value_anywhere(fence, run, changes):
    folder = fresh(fence, run)
    labels = {"model": "M", "dataset": "D", "editor": "E"}
    entry = {"id": "x", "folder": str(folder), "content_hash": "c", "in_sweep": True}
    entry |= {"base_model": "m-d/seed-0"}
    plan = changed({"suite": "s", "runs": [{**entry, "labels": labels}]}, changes)
    path = folder / "plan.json"
    path.write_text(json.dumps(plan))
    sentence_of(lambda: summarise(path, fence.inside / "out" / "summary.parquet"))
    fence.check()
