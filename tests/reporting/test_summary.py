"""Summaries against means by hand, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from grace_bench.errors import DataError
from grace_bench.reporting.summary.read import Summary, read_curves
from grace_bench.reporting.summary.write import CURVES, SUMMARY, summarise
from grace_bench.store import files, schemas


def _rows(path: Path, **wanted: object) -> list[dict]:
    rows = files.read_parquet(path).to_pylist()
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def _predictions(folder: Path, role: str) -> list[dict]:
    rows = files.read_parquet(folder / "predictions.parquet").to_pylist()
    last = max(row["step"] for row in rows)
    return [row for row in rows if (row["role"] == role and role in ("edit",)) or
            (row["role"] == role and row["step"] == last)]  # fmt: skip


@pytest.fixture(scope="module")
def grace(tmp_path_factory: pytest.TempPathFactory, make_run) -> tuple[list[Path], Path]:
    results = tmp_path_factory.mktemp("summary")
    folders = [make_run(results, seed=seed, edits=24 + 3 * seed) for seed in (0, 1)]
    output = results / "synthetic" / "summary.parquet"
    summarise(folders, output)
    return folders, output


@pytest.mark.parametrize(
    ("metric", "role"),
    [("trr", "upstream"), ("err", "edits"), ("es", "edit"), ("holdout", "holdout")],
)
@pytest.mark.parametrize("measure", ["f1", "exact_match", "f1_released", "token_accuracy"])
def test_values_are_the_means_of_the_last_predictions(grace, metric, role, measure):
    folders, output = grace
    means = [np.mean([row[measure] for row in _predictions(f, role)]) for f in folders]
    rows = _rows(output, metric=metric, measure=measure)
    assert {row["seed"]: row["value"] for row in rows} == {
        0: pytest.approx(means[0]),
        1: pytest.approx(means[1]),
        None: pytest.approx(np.mean(means)),
    }
    for row in rows:
        assert row["low"] <= row["value"] <= row["high"]
        assert row["n_seeds"] == (2 if row["seed"] is None else 1)
        assert row["is_main"] == (measure == "f1")


def test_values_are_those_of_the_probes(grace):
    folders, output = grace
    for seed, folder in enumerate(folders):
        probes = files.read_parquet(folder / "probes.parquet").to_pylist()
        last = max(row["step"] for row in probes)
        found = {(r["metric"], r["measure"]): r["value"] for r in _rows(output, seed=seed)}
        for row in probes:
            if row["step"] == last:
                assert found[row["metric"], row["measure"]] == pytest.approx(row["value"])


def test_average_counts_and_seconds(grace):
    folders, output = grace
    both = {row["metric"]: row for row in _rows(output, seed=None, measure="f1")}
    wanted = (both["trr"]["value"] + both["err"]["value"]) / 2
    assert both["avg"]["value"] == pytest.approx(wanted)
    assert both["avg"]["low"] < wanted < both["avg"]["high"]
    runs = [json.loads((folder / "run.json").read_text()) for folder in folders]
    for metric, measure, section, key in (
        ("n_edits", None, "counts", "edits"),
        ("n_keys", None, "counts", "keys"),
        ("edits_per_key", None, "counts", "edits_per_key"),
        ("seconds_per_edit", "mean", "seconds", "per_edit_mean"),
        ("seconds_per_edit", "sd", "seconds", "per_edit_sd"),
    ):
        (row,) = _rows(output, seed=None, metric=metric, measure=measure)
        assert row["value"] == pytest.approx(np.mean([run[section][key] for run in runs]))
    (memory,) = _rows(output, seed=None, metric="peak_memory_mib")
    assert memory["value"] == 512.5


def test_perplexities_have_median_and_log_mean(tmp_path, make_run):
    folders = [make_run(tmp_path, "language_modelling", seed=seed) for seed in (0, 1)]
    summarise(folders, tmp_path / "summary.parquet")
    losses = [np.array([r["loss"] for r in _predictions(f, "upstream")]) for f in folders]
    for measure, aggregate in (
        ("perplexity", lambda loss: np.exp(loss).mean()),
        ("perplexity_median", lambda loss: np.exp(np.median(loss))),
        ("perplexity_log_mean", lambda loss: np.exp(loss.mean())),
    ):
        (row,) = _rows(tmp_path / "summary.parquet", seed=None, metric="trr", measure=measure)
        assert row["value"] == pytest.approx(np.mean([aggregate(loss) for loss in losses]))
        assert row["low"] < row["value"] < row["high"]
    assert _rows(tmp_path / "summary.parquet", metric="arr")


def test_interval_shrinks_with_the_number_of_examples(tmp_path, make_run):
    widths = []
    for upstream in (30, 600):
        folder = make_run(tmp_path / str(upstream), upstream=upstream)
        output = tmp_path / str(upstream) / "summary.parquet"
        summarise([folder], output)
        (row,) = _rows(output, seed=None, metric="trr", measure="f1")
        assert row["n"] == upstream
        widths.append(row["high"] - row["low"])
    assert widths[1] < 0.4 * widths[0]


def test_curves_join_seeds_that_end_after_different_numbers_of_edits(grace):
    folders, output = grace
    curves = files.read_parquet(output.with_name("curves.parquet"), CURVES).to_pylist()
    points = [r for r in curves if r["metric"] == "trr" and r["measure"] == "f1"]
    assert [point["n_edits"] for point in points] == [0, 8, 16, 26]  # the last: of 24 and 27
    (final,) = _rows(output, seed=None, metric="trr", measure="f1")
    for key in ("value", "low", "high"):
        assert points[-1][key] == final[key]
    keys = [r for r in curves if r["metric"] == "n_keys"]
    assert [r["n_edits"] for r in keys] == list(range(1, 25))
    steps = [files.read_parquet(f / "steps.parquet").to_pylist() for f in folders]
    wanted = np.mean([rows[9]["n_keys"] for rows in steps])
    assert keys[9]["value"] == pytest.approx(wanted)


def test_curves_go_through_averages_taken_between_probes(tmp_path, make_run, replace_rows):
    folders = [make_run(tmp_path, seed=seed) for seed in (0, 1)]
    wanted = {}
    for seed, folder in enumerate(folders):
        rows = files.read_parquet(folder / "probes.parquet").to_pylist()
        between = [{**row, "step": 3, "n_edits": 3} for row in rows if row["n_edits"] == 8]
        wanted[seed] = {(row["metric"], row["measure"]): row["value"] for row in between}
        replace_rows(folder, "probes.parquet", [*rows, *between], schemas.PROBES)
    output = tmp_path / "summary.parquet"
    curves = files.read_parquet(summarise(folders, output), CURVES).to_pylist()
    found = {(r["metric"], r["measure"]): r for r in curves if r["n_edits"] == 3}
    del found["n_keys", None]
    wanted = {s: {k: v for k, v in means.items() if k[0] != "es"} for s, means in wanted.items()}
    success = {key[1]: found.pop(key) for key in [key for key in found if key[0] == "es"]}
    tables = [files.read_parquet(folder / "predictions.parquet") for folder in folders]
    first = [[r for r in t.to_pylist() if r["role"] == "edit"][:3] for t in tables]
    assert success["f1"]["value"] == pytest.approx(
        np.mean([[row["f1"] for row in rows] for rows in first])
    )
    assert found.keys() == wanted[0].keys() == wanted[1].keys()
    for key, row in found.items():
        assert row["value"] == pytest.approx(np.mean([wanted[seed][key] for seed in (0, 1)]))
        assert row["low"] is row["high"] is None
        assert row["step"] == 3
    summary = Summary(output)
    (setting,) = summary.settings
    drawn = read_curves(output.with_name("curves.parquet"), summary).of(setting, "trr")
    assert [point.n_edits for point in drawn] == [0, 3, 8, 16, 24]


def test_same_bytes_twice_and_provenance_without_dates(grace, tmp_path):
    folders, output = grace
    summarise(list(reversed(folders)), tmp_path / "summary.parquet")
    for name in ("summary.parquet", "curves.parquet"):
        assert (tmp_path / name).read_bytes() == output.with_name(name).read_bytes()
    metadata = files.read_parquet(output, SUMMARY).schema.metadata
    assert metadata[b"grace_bench.suite"] == b"synthetic"
    assert metadata[b"grace_bench.git_commit"] == b"0123456789abcdef"
    assert b"facts-qa:" in metadata[b"grace_bench.data_hashes"]
    assert not any(b"2026" in value for key, value in metadata.items() if b"hash" not in key)


def test_sweep_flag_is_kept(suite_folders, reported):
    rows = _rows(reported / "summary.parquet", editor="grace", metric="n_edits", seed=None)
    flags = {(row["dataset"], row["variant"]): row["in_sweep"] for row in rows}
    assert len(flags) == 6
    assert {variant for (_, variant), swept in flags.items() if not swept} == {"radius=1.0"}


def test_a_measure_whose_package_is_gone_is_named(grace, tmp_path):
    table = files.read_parquet(grace[1], SUMMARY)
    rows = [{**row, "measure": "luck"} if row["is_main"] else row for row in table.to_pylist()]
    files.write_parquet(tmp_path / "summary.parquet", rows, SUMMARY)
    with pytest.raises(DataError, match="the measure 'luck' does not exist; install the package"):
        Summary(tmp_path / "summary.parquet")


class TestRefusals:
    def _message(self, folders: list[Path], tmp_path: Path) -> str:
        with pytest.raises(DataError) as error:
            summarise(folders, tmp_path / "out" / "summary.parquet")
        assert not (tmp_path / "out" / "summary.parquet").exists()
        return str(error.value)

    def test_no_runs(self, tmp_path):
        assert "no run folders" in self._message([], tmp_path)

    def test_missing_run_json(self, tmp_path, make_run):
        folder = make_run(tmp_path)
        (folder / "run.json").unlink()
        message = self._message([folder], tmp_path)
        assert str(folder / "run.json") in message
        assert "no such file" in message

    def test_truncated_parquet(self, tmp_path, make_run):
        folder = make_run(tmp_path)
        path = folder / "predictions.parquet"
        path.write_bytes(path.read_bytes()[:-200])
        message = self._message([folder], tmp_path)
        assert str(path) in message
        assert "not an intact Parquet file" in message

    def test_file_of_another_run(self, tmp_path, make_run):
        folder, other = make_run(tmp_path), make_run(tmp_path, seed=1)
        shutil.copy(other / "steps.parquet", folder / "steps.parquet")
        assert "is not the file that run.json lists" in self._message([folder], tmp_path)

    def test_two_suites(self, tmp_path, make_run):
        folders = [make_run(tmp_path, suite=suite) for suite in ("one", "two")]
        assert "the suites one, two" in self._message(folders, tmp_path)

    def test_the_same_run_twice(self, tmp_path, make_run):
        folder = make_run(tmp_path)
        assert "are both the run" in self._message([folder, folder], tmp_path)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"status": "running"}, "'status' must be 'complete' or 'failed' (got 'running')"),
            ({"version": 2}, "written in format 2"),
            ({"format": "x"}, "'format' must be 'grace-bench run' (got 'x')"),
            ({"id": 5}, "'id' must be a text"),
            ({"spec": []}, "'spec' must be an object"),
            ({"spec": {"suite": "s", "seed": 0}}, "lacks 'spec.model'"),
            ({"counts": {"keys": "many"}}, "'counts.keys' must be a number or null (got 'many')"),
            ({"counts": {"place": [], "value": []}}, "'counts.place' must be a number or null"),
            ({"files": {"steps.parquet": 5}}, "'files.steps.parquet' must be a text (got 5)"),
            ({"measure": "luck"}, "the measure 'luck' does not exist"),
            ({"provenance": "here"}, "'provenance' must be an object (got 'here')"),
        ],
    )
    def test_unfit_record(self, tmp_path, change, said, make_run):
        folder = make_run(tmp_path)
        record = json.loads((folder / "run.json").read_text())
        files.write_json(folder / "run.json", record | change)
        assert said in self._message([folder], tmp_path)

    def test_incomplete_record(self, tmp_path, make_run):
        folder = make_run(tmp_path)
        record = json.loads((folder / "run.json").read_text())
        del record["counts"]
        files.write_json(folder / "run.json", record)
        assert "lacks 'counts'" in self._message([folder], tmp_path)
