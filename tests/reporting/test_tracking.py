"""Tracking: everything arrives, a second call adds nothing, changed files replace."""

from __future__ import annotations

import json
import math
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from grace_bench.errors import DataError, ResultError
from grace_bench.jobs import locks
from grace_bench.reporting.mlflow.export import EXPORT, track
from grace_bench.reporting.mlflow.store import tracking_uri_for
from grace_bench.reporting.mlflow.ui import addresses, ui, ui_command
from grace_bench.reporting.summary.write import SUMMARY, summarise
from grace_bench.store import files, schemas

pytestmark = pytest.mark.slow

EDITORS = ("unedited", "ft", "grace")


@pytest.fixture(autouse=True)
def no_tracking_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised, empty database; making its schema takes seconds."""
    folder = tmp_path_factory.mktemp("empty")
    _client(folder).search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def suite(tmp_path: Path, database: Path, make_run) -> Path:
    """A suite's folder with three runs and a fresh copy of the database."""
    for editor in EDITORS:
        make_run(tmp_path, editor=editor)
    folder = tmp_path / "synthetic"
    shutil.copy(database, folder / "mlflow.db")
    (folder / "tables").mkdir()
    (folder / "tables" / "main.tex").write_text("a table")
    (folder / "paper-figures").mkdir()
    (folder / "paper-figures" / "figures.json").write_text("[]")
    return folder


def _export(suite: Path, folders: list[Path] | None = None):
    """Summarise and export runs, as the workflow does."""
    folders = folders or _folders(suite)
    summarise(folders, suite / "summary.parquet")
    return track(folders, suite)


def _client(suite: Path):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{suite}/mlflow.db")


def _runs(suite: Path) -> dict:
    client = _client(suite)
    runs = client.search_runs([client.get_experiment_by_name("synthetic").experiment_id])
    names = Counter(run.data.tags["grace_bench.run_id"] for run in runs)
    assert set(names.values()) <= {1}, names
    return {run.data.tags["grace_bench.run_id"]: run for run in runs}


def _folders(suite: Path) -> list[Path]:
    return sorted(path.parent for path in suite.glob("runs/*/*/*/*/*/run.json"))


def _state(suite: Path) -> dict:
    client = _client(suite)
    return {
        name: (
            run.info.run_id,
            sorted(run.data.params.items()),
            sorted(run.data.tags.items()),
            {key: len(client.get_metric_history(run.info.run_id, key)) for key in run.data.metrics},
            len(run.inputs.dataset_inputs),
        )
        for name, run in _runs(suite).items()
    }


def test_everything_arrives(suite):
    export = _export(suite)
    runs = _runs(suite)
    settings = {f"facts-t5/facts-qa/{editor}/default" for editor in EDITORS}
    names = {f"{name}/seed-0" for name in settings}
    assert set(runs) == settings | names | {"suite synthetic"}
    assert set(export.runs) == set(runs)
    assert json.loads((suite / EXPORT).read_text()) == export.model_dump()

    grace = runs["facts-t5/facts-qa/grace/default/seed-0"]
    params = grace.data.params
    assert params["editor.rules"] == "corrected"
    assert params["editor.name"] == "grace"
    assert params["model.name"] == "facts-t5"
    assert params["dataset.task"] == "question_answering"
    assert params["seed"] == "0"
    assert params["stream.facts"] == "12"
    tags = grace.data.tags
    record = json.loads(
        (suite / "runs/facts-t5/facts-qa/grace/default/seed-0/run.json").read_text()
    )
    assert tags["grace_bench.content_hash"] == record["content_hash"]
    assert tags["grace_bench.data_hash"] == record["data_hash"]
    assert tags["mlflow.source.git.commit"] == "0123456789abcdef"
    assert (tags["model"], tags["dataset"], tags["editor"]) == ("facts-t5", "facts-qa", "grace")
    assert tags["device"] == "cpu"
    assert grace.info.run_name == "GRACE, Facts QA, seed 0"
    assert max(runs, key=lambda name: runs[name].info.start_time) == "suite synthetic"
    assert grace.info.status == "FINISHED"
    assert grace.info.start_time == 1767268800000  # 2026-01-01T12:00:00Z

    client = _client(suite)
    history = client.get_metric_history(grace.info.run_id, "probe/trr")
    probes = files.read_parquet(
        suite / "runs/facts-t5/facts-qa/grace/default/seed-0/probes.parquet"
    ).to_pylist()
    wanted = {
        row["n_edits"]: row["value"]
        for row in probes
        if row["metric"] == "trr" and row["measure"] == "f1"
    }
    assert {point.step: point.value for point in history} == wanted
    assert len(history) == len(wanted) == 4
    keys = client.get_metric_history(grace.info.run_id, "edit/n_keys")
    assert [point.step for point in keys] == list(range(1, 25))
    assert "probe/err.exact_match" in grace.data.metrics
    assert grace.data.metrics["final/n_edits"] == 24
    assert grace.data.metrics["final/trr"] == wanted[24]
    assert "edit/es" not in runs["facts-t5/facts-qa/unedited/default/seed-0"].data.metrics

    inputs = {
        (item.dataset.name, item.dataset.digest, item.tags[0].value)
        for item in grace.inputs.dataset_inputs
    }
    digest = record["data_hash"][:36]
    assert inputs == {(f"facts-qa/{r}", digest, r) for r in ("edits", "holdout", "upstream")}
    found = {item.path for item in client.list_artifacts(grace.info.run_id)}
    assert found == {
        "run.json", "steps.parquet", "probes.parquet", "codebook.parquet", "codebook.safetensors",
    }  # fmt: skip
    whole = runs["suite synthetic"]
    assert whole.data.tags["grace_bench.kind"] == "suite"
    for file in ("tables/main.tex", "paper-figures/figures.json"):
        found = client.list_artifacts(whole.info.run_id, file.partition("/")[0])
        assert [item.path for item in found] == [file]


def test_a_second_call_adds_nothing_and_a_change_replaces_one_run(suite, make_run):
    first = _export(suite)
    before = _state(suite)
    client = _client(suite)
    note = before["facts-t5/facts-qa/ft/default/seed-0"][0]
    client.set_tag(note, "my.note", "looks odd")
    assert _export(suite) == first
    after = _state(suite)
    for name, state in after.items():
        assert state[0] == before[name][0]
        assert state[3:] == before[name][3:]

    changed = "facts-t5/facts-qa/grace/default/seed-0"
    make_run(suite.parent, editor="grace", edits=16)
    _export(suite)
    again = _state(suite)
    assert again[changed][0] != before[changed][0]
    assert again[changed][3]["edit/seconds"] == 16
    parent = changed.removesuffix("/seed-0")
    assert again[parent][0] != before[parent][0]
    others = set(before) - {changed, parent, "suite synthetic"}
    assert {name: again[name][0] for name in others} == {name: before[name][0] for name in others}
    assert client.get_run(note).data.tags["my.note"] == "looks odd"

    # Runs that left the suite stay, tagged; they lose the tag when they come back.
    _export(suite, _folders(suite)[:1])
    left = {n: "grace_bench.stale" in r.data.tags for n, r in _runs(suite).items()}
    assert sum(left.values()) == 4  # two runs and their settings
    assert not left["suite synthetic"]
    _export(suite)
    assert not any("grace_bench.stale" in r.data.tags for r in _runs(suite).values())

    # A run that an earlier call did not finish is made anew.
    client.update_run(again[changed][0], status="RUNNING")
    _export(suite)
    assert _runs(suite)[changed].info.run_id != again[changed][0]

    # The suite's own run follows its files.
    whole = _runs(suite)["suite synthetic"].info.run_id
    (suite / "tables" / "main.tex").write_text("another table")
    _export(suite)
    assert _runs(suite)["suite synthetic"].info.run_id != whole


def test_a_setting_is_the_parent_of_its_seeds_and_has_their_means(suite, make_run):
    for seed in (1, 2):
        make_run(suite.parent, seed=seed, failed_at=9 if seed == 2 else None)
    _export(suite)
    runs = _runs(suite)
    name = "facts-t5/facts-qa/grace/default"
    parent = runs[name]
    seeds = [runs[f"{name}/seed-{seed}"] for seed in range(3)]
    assert {run.data.tags["mlflow.parentRunId"] for run in seeds} == {parent.info.run_id}
    assert parent.info.run_name == "GRACE, Facts QA"
    assert [run.info.run_name for run in seeds][1] == "GRACE, Facts QA, seed 1"
    assert "seed" not in parent.data.params
    assert parent.data.params["editor.name"] == "grace"
    assert parent.data.tags["mlflow.note.content"].startswith(
        "Means over 2 seeds. 1 of 3 seeds failed: seed 2 at step 9"
    )
    assert parent.info.status == "FINISHED"
    rows = files.read_parquet(suite / "summary.parquet", SUMMARY).to_pylist()
    (row,) = (
        r for r in rows
        if (r["editor"], r["metric"], r["measure"], r["seed"]) == ("grace", "trr", "f1", None)
    )  # fmt: skip
    metrics = parent.data.metrics
    assert metrics["final/trr"] == row["value"]
    assert metrics["interval/trr.low"] == row["low"] < row["value"] < row["high"]
    whole = [run.data.metrics["final/trr"] for run in seeds[:2]]
    assert metrics["final/trr"] == pytest.approx(sum(whole) / 2)
    # Every final metric but the mean of TRR and ERR is there by the seeds' name for it.
    final = {key for key in metrics if key.startswith("final/")}
    assert final - set(seeds[0].data.metrics) == {"final/avg"}
    curve = _client(suite).get_metric_history(parent.info.run_id, "probe/trr")
    assert sorted({point.step for point in curve}) == [0, 8, 16, 24]

    # Another seed changes the parent alone; its children follow.
    make_run(suite.parent, seed=2)
    _export(suite)
    again = _runs(suite)
    assert again[name].info.run_id != parent.info.run_id
    assert again[f"{name}/seed-0"].info.run_id == seeds[0].info.run_id
    children = [again[f"{name}/seed-{seed}"] for seed in range(3)]
    assert {r.data.tags["mlflow.parentRunId"] for r in children} == {again[name].info.run_id}


def test_a_setting_without_a_whole_seed_has_failed(suite, make_run):
    make_run(suite.parent, editor="ft", failed_at=9)
    _export(suite)
    parent = _runs(suite)["facts-t5/facts-qa/ft/default"]
    assert parent.info.status == "FAILED"
    assert parent.data.tags["mlflow.note.content"].startswith("The only seed failed: seed 0 at")


def test_a_store_of_an_earlier_version_gets_parents_and_keeps_its_runs(suite):
    _export(suite)
    client, before = _client(suite), _runs(suite)
    for name, run in before.items():
        if run.data.tags["grace_bench.kind"] == "setting":
            client.delete_run(run.info.run_id)
        elif "/" in name:
            client.delete_tag(run.info.run_id, "mlflow.parentRunId")
    export = _export(suite)
    after = _runs(suite)
    assert set(after) == set(before)
    for name, run in after.items():
        if name.endswith("seed-0"):
            assert run.info.run_id == before[name].info.run_id
            parent = export.runs[name.removesuffix("/seed-0")]["mlflow_run_id"]
            assert run.data.tags["mlflow.parentRunId"] == parent


def test_every_run_links_to_the_report_and_notes_stay(suite):
    (suite / "report.html").write_text("a report")
    export = _export(suite)
    client, name = _client(suite), "facts-t5/facts-qa/ft/default/seed-0"

    def link(export) -> str:
        whole = export.runs["suite synthetic"]["mlflow_run_id"]
        return f"(#/experiments/{export.experiment_id}/runs/{whole}/artifacts/report.html)"

    for key, run in _runs(suite).items():
        if key != "suite synthetic":
            assert run.data.tags["mlflow.note.content"].endswith(link(export))
    run = _runs(suite)[name]
    note = "Odd. " + run.data.tags["mlflow.note.content"] + " See me."
    client.set_tag(run.info.run_id, "mlflow.note.content", note)
    (suite / "report.html").write_text("another report")
    again = _export(suite)
    assert link(again) != link(export)
    now = _runs(suite)[name].data.tags["mlflow.note.content"]
    assert now == f"Odd. [Report of the suite]{link(again)} See me."


def test_a_view_for_each_model_and_data_set(suite, make_run):
    make_run(suite.parent, task="classification")
    export = _export(suite)
    assert list(export.views) == ["Facts QA, T5 (tiny)", "Terms & Topics, BERT"]
    tags = _client(suite).get_experiment(export.experiment_id).tags
    found = json.loads(tags["mlflow.sharedViewState." + next(iter(export.views.values()))])
    columns = json.loads(found["state"])["selectedColumns"]
    assert columns[:3] == ["metrics.`final/es`", "metrics.`final/err`", "metrics.`final/trr`"]
    printed = addresses(export, "127.0.0.1", 5000)
    assert printed["Terms & Topics, BERT"].endswith(
        f"viewStateShareKey={list(export.views.values())[1]}"
    )
    # The view of a data set that left the suite goes.
    left = _export(suite, [folder for folder in _folders(suite) if "facts-qa" in folder.parts])
    assert len(left.views) == 1
    tags = _client(suite).get_experiment(export.experiment_id).tags
    assert sum(key.startswith("mlflow.sharedViewState.") for key in tags) == 1


def test_a_summary_of_other_runs_is_one_sentence_and_exports_nothing(suite):
    with pytest.raises(DataError, match=r"summary\.parquet: no such file"):
        track(_folders(suite), suite)
    summarise(_folders(suite)[:2], suite / "summary.parquet")
    with pytest.raises(DataError, match=r"summary\.parquet: is of other runs; run the summarise"):
        track(_folders(suite), suite)
    assert _client(suite).get_experiment_by_name("synthetic") is None
    assert not (suite / EXPORT).exists()


def test_values_that_are_not_finite_are_left_out_and_named(suite, replace_rows):
    folder = _folders(suite)[0]
    rows = files.read_parquet(folder / "probes.parquet").to_pylist()
    for row in rows:
        if row["metric"] == "trr" and row["measure"] == "f1":
            row["value"] = math.inf
    replace_rows(folder, "probes.parquet", rows, schemas.PROBES)
    _export(suite, [folder])
    run = _runs(suite)[folder.relative_to(suite / "runs").as_posix()]
    assert "probe/trr" not in run.data.metrics
    assert run.data.tags["grace_bench.not_finite"] == "final/trr, probe/trr"


def test_a_failed_run_is_there_as_failed_and_only_once(suite, make_run):
    make_run(suite.parent, editor="ft", failed_at=17)
    name = "facts-t5/facts-qa/ft/default/seed-0"
    first = _export(suite)
    run = _runs(suite)[name]
    assert run.info.status == "FAILED"
    tags = run.data.tags
    assert tags["grace_bench.failure.kind"] == "diverged"
    assert tags["grace_bench.failure.step"] == "17"
    assert tags["grace_bench.failure.message"] == "the loss is not a number (nan)."
    assert tags["mlflow.note.content"].startswith("Failed at step 17: diverged: the loss is")
    assert "probe/trr" in run.data.metrics
    assert "final/trr" not in run.data.metrics
    whole = _runs(suite)["suite synthetic"]
    assert (whole.info.status, whole.data.tags["grace_bench.n_failed"]) == ("FINISHED", "1")
    assert _export(suite) == first
    make_run(suite.parent, editor="ft")  # as after another try
    _export(suite)
    assert _runs(suite)[name].info.status == "FINISHED"


def test_a_second_export_of_a_folder_waits_and_then_gives_up_in_a_sentence(suite, monkeypatch):
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.3)
    summarise(_folders(suite), suite / "summary.parquet")
    with (
        locks.exclusive(suite / ".track.lock", "holding on"),
        pytest.raises(ResultError, match="another process is exporting this folder") as error,
    ):
        track(_folders(suite), suite)
    assert error.value.exit_code == 75
    assert not (suite / EXPORT).exists()
    track(_folders(suite), suite)


def test_artifact_that_is_gone(suite):
    folder = next(f for f in _folders(suite) if "grace" in f.parts)
    (folder / "codebook.safetensors").unlink()
    with pytest.raises(DataError, match=r"codebook\.safetensors: no such file"):
        _export(suite, [folder])


def test_unreachable_server_is_one_sentence(suite):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
    summarise(_folders(suite), suite / "summary.parquet")
    with pytest.raises(ResultError, match="cannot write to MLflow") as error:
        track(_folders(suite), suite, uri)
    assert "\n" not in str(error.value)


def test_unwritable_database_is_one_sentence(suite):
    summarise(_folders(suite), suite / "summary.parquet")
    with pytest.raises(ResultError, match="cannot write to MLflow") as error:
        track(_folders(suite), suite, "sqlite:////proc/nowhere/mlflow.db")
    assert "\n" not in str(error.value)


def test_where_runs_go(tmp_path, monkeypatch):
    assert tracking_uri_for(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
    assert tracking_uri_for(tmp_path) == "http://elsewhere:5000"
    assert tracking_uri_for(tmp_path, "sqlite:///x.db") == "sqlite:///x.db"


def test_ui_needs_a_database_of_ours(tmp_path):
    with pytest.raises(DataError, match="is a server already"):
        ui_command("http://127.0.0.1:5000")
    with pytest.raises(DataError, match="run the suite first"):
        ui_command(f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "mlflow.db").touch()
    command = ui_command(f"sqlite:///{tmp_path}/mlflow.db", port=5001)
    assert command[1:4] == ["-m", "mlflow", "ui"]
    assert command[-2:] == ["--workers", "1"]


SERVING = """
import subprocess, sys, time
from grace_bench.reporting.mlflow import ui
started = "sleep 300 & echo $$ $!; wait"
ui.ui_command = lambda *_: ["sh", "-c", started]
class Slow(subprocess.Popen):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        time.sleep(float(sys.argv[2]))
subprocess.Popen = Slow
sys.exit(ui.ui("sqlite:///none", port=int(sys.argv[1])))
"""


@pytest.mark.parametrize("starting_seconds", [0, 1])  # 1: the signal arrives before it is through
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_interface_ends_with_all_its_processes(number, starting_seconds):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVING, str(port), str(starting_seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as interface:
        children = [int(text) for text in interface.stdout.readline().split()]
        interface.send_signal(number)
        interface.wait(60)
    deadline = time.monotonic() + 10
    while any(_runs_still(child) for child in children):
        assert time.monotonic() < deadline, "a process of the interface is left"
        time.sleep(0.05)


def _runs_still(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_port_that_cannot_be_had_is_one_sentence(tmp_path):
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DataError, match=f"127.0.0.1:{port}: cannot be used .* --port"):
            ui(f"sqlite:///{tmp_path}/mlflow.db", port=port)
    with pytest.raises(DataError, match="--port 99999: must be between 1 and 65535"):
        ui(f"sqlite:///{tmp_path}/mlflow.db", port=99999)


def test_a_folder_that_was_moved_finds_its_artifacts_and_writes_nothing_where_it_was(
    suite, make_run
):
    _export(suite)
    moved = suite.parent / "elsewhere" / "synthetic"
    moved.parent.mkdir()
    suite.rename(moved)
    ui_command(f"sqlite:///{moved}/mlflow.db")
    before = _runs(moved)
    assert all(str(moved) in run.info.artifact_uri for run in before.values())
    (name,) = (name for name in before if name.startswith("suite "))
    found = {item.path for item in _client(moved).list_artifacts(before[name].info.run_id)}
    assert "tables" in found
    (moved / "tables/main.tex").write_text("another table")
    track(_folders(moved), moved)
    assert not suite.exists()
    after = _runs(moved)
    assert len(after) == len(before)
    assert after[name].info.run_id != before[name].info.run_id
