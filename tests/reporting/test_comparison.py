"""Two editors over the same facts and seeds: numbers against scipy, calibration, words, files."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from grace_bench.cli import main
from grace_bench.reporting.comparison.differences import Difference
from grace_bench.reporting.comparison.paired import holm, paired_difference, sign_flip_p
from grace_bench.reporting.comparison.ranks import critical_difference, rank_editors, too_few
from grace_bench.reporting.comparison.runs import Contestant, compare, corrected
from grace_bench.reporting.figures.kinds import ranks as rank_figures
from grace_bench.reporting.figures.style import draw
from grace_bench.reporting.report import write_report
from grace_bench.reporting.summary.read import Summary
from grace_bench.reporting.summary.run_folder import read_run_folder
from grace_bench.reporting.summary.write import SUMMARY, summarise
from grace_bench.reporting.tables.kinds.comparison import comparison_table
from grace_bench.reporting.tables.table import to_latex
from grace_bench.reporting.tables.write import tables_of, write_tables
from grace_bench.store import files, schemas

pytestmark = pytest.mark.slow  # its suites of several seeds take ten seconds to write


def by_seed(*values) -> list[tuple[np.ndarray, np.ndarray]]:
    """Seeds that meet the same facts, one example each."""
    names = np.array([f"fact-{n}" for n in range(len(values[0]))], dtype=object)
    return [(names, np.asarray(one, dtype=float)) for one in values]


def test_the_sign_flip_test_is_scipys():
    values = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 60, p=[0.1, 0.6, 0.3])
    wanted = scipy.stats.permutation_test(
        (values,), np.sum, permutation_type="samples", n_resamples=20_000, rng=1
    )
    assert sign_flip_p(values, "") == pytest.approx(wanted.pvalue, abs=0.004)
    # Of eight facts there are 2^8 assignments, of which two are as far.
    assert sign_flip_p(np.ones(8), "") == pytest.approx(2 / 2**8, abs=0.002)


def test_seeds_that_say_the_same_are_not_more_facts():
    values = np.random.default_rng(1).normal(0.2, 1, 80)
    found = paired_difference(by_seed(values, values), "")
    assert found.value == pytest.approx(values.mean())
    test = scipy.stats.ttest_1samp(values, 0)
    assert found.p_seeds == pytest.approx(max(test.pvalue, found.p_facts), rel=1e-6)
    low, high = test.confidence_interval()
    assert found.low <= low + 1e-9
    assert found.high >= high - 1e-9


def test_if_only_seeds_differ_there_are_as_many_observations_as_seeds():
    means = [0.1, 0.3, 0.2]
    found = paired_difference(by_seed(*(np.full(500, mean) for mean in means)), "")
    test = scipy.stats.ttest_1samp(means, 0)
    assert found.p_facts < 0.001
    assert found.p_seeds == pytest.approx(test.pvalue, rel=1e-3)
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval()), rel=1e-3)


def test_the_order_of_editors_only_turns_the_sign():
    values = np.random.default_rng(2).normal(0.1, 1, (3, 50))
    one, other = (paired_difference(by_seed(*found), "k") for found in (values, -values))
    assert (other.value, other.low, other.high) == (-one.value, -one.high, -one.low)
    assert (other.p_facts, other.p_seeds) == (one.p_facts, one.p_seeds)


def test_one_seed_says_nothing_of_others_and_one_fact_has_no_interval():
    found = paired_difference(by_seed(np.random.default_rng(3).normal(1, 1, 50)), "")
    assert found.p_seeds is None
    assert found.p_facts < 0.001
    single = paired_difference(by_seed([0.5], [0.7]), "")
    assert (single.value, single.low, single.high) == (pytest.approx(0.6), None, None)
    assert single.p_facts == single.p_seeds == 1


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]


@pytest.fixture(scope="module")
def calibration(repository):
    path = repository / "workflow/scripts/calibrate_comparison.py"
    spec = importlib.util.spec_from_file_location("calibrate_comparison", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("seeds", "spread"), [(2, 0.0), (2, 0.4), (3, 0.4), (5, 0.4)])
def test_intervals_cover_and_tests_reject_at_their_level(calibration, seeds, spread):
    found = calibration.measure(100, seeds, spread, streams=150)
    assert found["interval"] >= 0.9  # 2.8 standard errors below .95
    assert found["seeds"] <= 0.1
    assert found["facts, same seeds"] <= 0.1
    if spread:  # what neither the bootstrap nor a test by fact alone can be used for
        assert found["facts, other seeds"] > 0.25
        assert found["bootstrap"] < found["interval"]


def test_the_interval_is_not_wide_for_nothing(calibration):
    generator = np.random.default_rng(4)
    values = calibration.simulate(generator, 300, 5, 0.05, same_seeds=False)
    found = paired_difference(by_seed(*(values + 0.15)), "")
    assert found.p_seeds < 0.01
    assert found.high - found.low < 0.2


def rows_of(*pairs) -> list[dict]:
    return [{"p_facts": p, "p_seeds": q, "low": low, "high": 0.9} for p, q, low in pairs]


def test_a_difference_is_shown_for_other_seeds_for_other_facts_or_not_at_all():
    rows = rows_of((0.001, 0.001, 0.1), (0.001, 0.4, -0.1), (0.3, 0.4, -0.1), (0.001, None, 0.1))
    assert [row["shown"] for row in corrected(rows)] == ["seeds", "facts", None, "facts"]
    assert [row["p_seeds_holm"] for row in corrected(rows)] == [0.003, 0.8, 0.8, None]
    # An interval with 0 in it contradicts them.
    rows = rows_of((0.001, 0.001, -0.1), (0.001, None, -0.1), (0.001, None, None))
    assert [row["shown"] for row in corrected(rows)] == ["facts", None, None]


FOUND = Difference(
    *("t5", "T5", "qa", "Facts QA", "grace", "GRACE", "default", "ft", "FT", "default"),
    *("err", "f1", 0.96, 0.84, 0.12, 0.08, 0.15, 0.0001, 0.001, 0.001, 0.01, "seeds", 300, 100, 3),
)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {},
            "GRACE keeps 12 points more of its past edits than FT (95% interval 8 to 15 points).",
        ),
        (
            {"metric": "trr", "difference": -0.125, "low": -0.3, "high": 0.05, "shown": "facts"},
            "GRACE keeps 12.5 points less of the upstream answers than FT under these 3 seeds; "
            "others may differ (95% interval -5 to 30 points).",
        ),
        (
            {"measure": "loss", "difference": -0.75, "low": -0.918, "high": -0.582},
            "GRACE's ERR (NLL) is 0.75 lower than FT's (95% interval 0.582 to 0.918).",
        ),
        (
            {"shown": None, "low": -0.03, "p_facts": 0.2, "p_seeds": 0.3},
            "No difference between GRACE and FT is shown in ERR (F1) (95% interval -3 to 15 "
            "points).",
        ),
        (
            {"shown": None},
            "No difference between GRACE and FT is shown in ERR (F1) after Holm's correction (95% "
            "interval 8 to 15 points).",
        ),
        (
            {"shown": None, "n_facts": 1, "low": None, "high": None},
            "1 fact is too few to tell GRACE and FT apart in ERR (F1).",
        ),
    ],
)
def test_an_effect_in_plain_words(changes, words):
    assert replace(FOUND, **changes).words == words


def test_the_table_marks_what_is_shown():
    tex = to_latex(
        comparison_table(
            [FOUND, replace(FOUND, metric="trr", shown="facts", difference=-0.05)], "n", family=2
        )
    )
    assert r"GRACE -- FT & +.12\textsuperscript{**} & -.05\textsuperscript{*} \\" in tex
    assert "Holm's correction over 2 differences" in tex


def scores(folder, role) -> dict[str, float]:
    rows = files.read_parquet(folder / "predictions.parquet").to_pylist()
    last = max(row["step"] for row in rows)
    kept = [r for r in rows if r["role"] == role and (role == "edit" or r["step"] == last)]
    return {row["example_id"]: row["f1"] for row in kept}


def contestant(*folders) -> Contestant:
    return Contestant([read_run_folder(folder) for folder in folders])


def test_examples_are_paired_under_the_same_seed(make_run, replace_rows, tmp_path):
    grace = [make_run(tmp_path, editor="grace", seed=seed) for seed in (0, 1, 2)]
    ft = [make_run(tmp_path, editor="ft", seed=seed) for seed in (1, 2)]
    # An edit that the other editor never had to make.
    rows = files.read_parquet(ft[0] / "predictions.parquet").to_pylist()
    rows = [row for row in rows if row["example_id"] != "edits-e3#1"]
    replace_rows(ft[0], "predictions.parquet", rows, schemas.predictions_schema())
    found = {row["metric"]: row for row in compare(contestant(*grace), contestant(*ft))}
    for metric, role in (("es", "edit"), ("err", "edits"), ("trr", "upstream")):
        means = []
        for one, other in zip(grace[1:], ft, strict=True):
            first, second = scores(one, role), scores(other, role)
            means.append(np.mean([first[name] - second[name] for name in second]))
        assert found[metric]["difference"] == pytest.approx(np.mean(means)), metric
        assert found[metric]["n_seeds"] == 2
    assert found["err"]["n"] == 2 * 24 - 1
    assert found["err"]["n_facts"] == 12
    difference = found["err"]["first_value"] - found["err"]["second_value"]
    assert difference == pytest.approx(found["err"]["difference"])


def test_losses_are_compared_in_place_of_perplexities(make_run, tmp_path):
    folders = [make_run(tmp_path, "language_modelling", editor=e) for e in ("grace", "ft")]
    assert {row["measure"] for row in compare(*map(contestant, folders))} == {"loss"}


def test_all_editors_stand_against_grace(reported):
    found = Summary(reported / "summary.parquet").comparisons
    assert {(one.first, one.first_variant) for one in found} == {("grace", "radius=1.0")}
    order = [one.second for one in found if one.metric == "err" and one.dataset == "facts-qa"]
    assert order == ["unedited", "ft", "defer"]
    [table] = tables_of(Summary(reported / "summary.parquet"))["comparison"]
    assert len([row for row in table.rows if not row.heading]) == 6
    drawn = {path.stem for path in (reported / "figures").glob("comparison-*.png")}
    assert drawn == {"comparison-facts-t5-facts-qa", "comparison-terms-bert-terms_cls"}
    write_report(reported / "summary.parquet", reported / "figures", reported / "c.html")
    text = (reported / "c.html").read_text()
    assert all(one.words.replace("'", "&#39;") in text for one in found)
    assert "Ranks over data sets need at least 6" in text


def test_without_grace_the_first_editor_is_the_reference(make_run, tmp_path):
    runs = [make_run(tmp_path, editor=editor) for editor in ("unedited", "memory", "ft")]
    runs.append(make_run(tmp_path, editor="grace", failed_at=3))
    summarise(runs, tmp_path / "summary.parquet")
    found = Summary(tmp_path / "summary.parquet").comparisons
    assert {(one.first, one.second) for one in found} == {("ft", "unedited"), ("ft", "memory")}


def test_a_summary_of_an_earlier_version_has_no_comparison(reported, tmp_path):
    (tmp_path / "summary.parquet").write_bytes((reported / "summary.parquet").read_bytes())
    assert "comparison.md" not in {
        p.name for p in write_tables(tmp_path / "summary.parquet", tmp_path)
    }


@pytest.fixture
def suite(make_run, tmp_path, monkeypatch):
    """A function that writes runs and their plan as results/synthetic of the working folder."""
    monkeypatch.chdir(tmp_path)

    def write(*runs: dict):
        entries = []
        for run in runs:
            folder = make_run(tmp_path / "results", **run)
            record = json.loads((folder / "run.json").read_text())
            spec = record["spec"]
            labels = {part: spec[part]["label"] for part in ("model", "dataset", "editor")}
            entry = {key: record[key] for key in ("id", "content_hash", "in_sweep")}
            base = f"{spec['model']['name']}/seed-{spec['seed']}"
            entries.append({**entry, "folder": str(folder), "base_model": base, "labels": labels})
        plan = {"suite": "synthetic", "runs": entries}
        files.write_json(tmp_path / "results/synthetic/plan.json", plan)

    return write


SWEPT = {"editor": "grace", "hyperparameters": {"radius": 3.0}, "in_sweep": True}


def test_the_command_shows_and_writes_all_metrics_of_all_data_sets(suite, tmp_path, capsys):
    tasks = ("question_answering", "classification")
    suite(
        *(
            {"task": t, "editor": e, "seed": s}
            for t in tasks
            for e in ("ft", "grace")
            for s in (0, 1)
        ),
        {"task": "language_modelling", "editor": "grace"},
    )
    assert main(["compare", "grace", "FT", "--suite", "synthetic"]) == 0
    shown = capsys.readouterr().out
    for label in ("ES (F1)", "ERR (F1)", "TRR (F1)", "Holdout (F1)", "ERR (Acc.)"):
        assert label in shown
    assert "over 8 differences" in shown
    assert "facts-gpt2" not in shown
    assert "bios-gpt2/bios-lm: left out, as FT was not run on it." in shown
    folder = tmp_path / "results/synthetic/comparisons"
    names = [f"grace-vs-FT.{kind}" for kind in ("csv", "md", "pdf", "png", "tex")]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert r"\label{tab:comparison-grace-vs-FT}" in (folder / "grace-vs-FT.tex").read_text()
    assert "- Facts QA, T5 (tiny): " in (folder / "grace-vs-FT.md").read_text()
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["compare", "grace", "FT", "--suite", "synthetic", "--output", "again"]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == first


def test_a_swept_setting_is_named_with_its_variant(suite, capsys):
    suite({"editor": "grace"}, SWEPT, {"editor": "ft"})
    assert main(["compare", "grace/radius=3.0", "GRACE", "--suite", "synthetic"]) == 0
    shown = capsys.readouterr().out
    assert "GRACE (radius=3.0)" in shown
    assert "GRACE (default)" in shown


@pytest.mark.parametrize(
    ("runs", "names", "message"),
    [
        ([{}, {"editor": "ft"}], "grce ft", "unknown editor 'grce'; did you mean 'grace'?"),
        ([{}, {"editor": "ft"}], "grace GRACE", "'grace' and 'GRACE' are the same editor"),
        ([{}, {"editor": "ft", "seed": 1}], "grace ft", "no seed that both completed has"),
        ([{}, {"editor": "ft", "failed_at": 3}], "grace ft", "no seed that both completed has"),
        ([{}, {"editor": "ft", "task": "classification"}], "grace ft", "ft was not run on it"),
        (
            [{}, SWEPT | {"in_sweep": False}, {"editor": "ft"}],
            "grace ft",
            "is 2 settings on facts-t5/facts-qa; give one of them: grace/default, grace/radius=3.0",
        ),
    ],
)
def test_what_cannot_be_paired_is_refused_in_one_sentence(
    suite, tmp_path, capsys, runs, names, message
):
    suite(*runs)
    assert main(["compare", *names.split(), "--suite", "synthetic"]) == 2
    found = capsys.readouterr()
    assert message in found.err
    assert len(found.err.splitlines()) == 1
    assert found.out == ""
    assert not (tmp_path / "results/synthetic/comparisons").exists()


def test_runs_on_other_facts_cannot_be_paired(suite, tmp_path, replace_rows, capsys):
    suite({"editor": "grace"}, {"editor": "ft"})
    [folder] = tmp_path.glob("results/synthetic/runs/*/*/ft/*/seed-0")
    rows = files.read_parquet(folder / "predictions.parquet").to_pylist()
    rows = [{**row, "example_id": f"other-{row['example_id']}"} for row in rows]
    replace_rows(folder, "predictions.parquet", rows, schemas.predictions_schema())
    assert main(["compare", "grace", "ft", "--suite", "synthetic"]) == 2
    assert "grace and ft cannot be paired" in capsys.readouterr().err


def test_the_suite_must_be_a_name_and_have_a_plan(suite, capsys):
    assert main(["compare", "a", "b", "--suite", "../x"]) == 2
    assert "'../x' is not a valid suite name" in capsys.readouterr().err
    assert main(["compare", "a", "b", "--suite", "none"]) == 2
    assert "results/none/plan.json: no such file" in capsys.readouterr().err


def summary_of(path, values: dict[str, list[float]], measure: str = "f1") -> Summary:
    """A summary in which editors have these ERRs, one for each data set."""
    rows = [
        {
            **{"suite": "s", "model": "m", "model_label": "M", "task": "question_answering"},
            **{"dataset": f"d{number}", "dataset_label": f"D{number}", "variant": "default"},
            **{"editor": editor, "editor_label": editor.upper(), "editor_class": editor},
            **{"hyperparameters": "{}", "in_sweep": False, "metric": "err", "measure": measure},
            **{"is_main": True, "value": value, "n_seeds": 1, "n_failed": 0},
        }
        for editor, found in values.items()
        for number, value in enumerate(found)
    ]
    files.write_parquet(path, rows, SUMMARY, {"grace_bench.suite": "s"})
    return Summary(path)


CLEAR = {
    "unedited": [0.99] * 7,
    "grace": [0.9, 0.9, 0.9, 0.9, 0.9, 0.7, 0.9],
    "ft": [0.5, 0.5, 0.5, 0.5, 0.8, 0.8, 0.5],
    "memory": [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.5],
    "mend": [0.7, 0.7],  # not run on all
}


def test_mean_ranks_over_enough_data_sets(tmp_path):
    data = summary_of(tmp_path / "summary.parquet", CLEAR)
    [found] = rank_editors(data)
    assert list(found.editors) == ["GRACE", "FT", "MEMORY"]
    assert found.means == pytest.approx([8 / 7, (5 * 2 + 1 + 2.5) / 7, (6 * 3 + 2.5) / 7])
    wanted = scipy.stats.friedmanchisquare(*(CLEAR[e] for e in ("grace", "ft", "memory")))
    assert found.p == pytest.approx(wanted.pvalue)
    assert found.alike == [(0, 1), (1, 2)]
    assert replace(found, p=0.2).alike == [(0, 2)]
    assert too_few(data) == ""
    assert "7 data sets" in tables_of(data)["ranks"][0].caption
    [drawing] = rank_figures.make(data, None)
    assert [path.name for path in draw(drawing, tmp_path, {})] == ["ranks.pdf", "ranks.png"]


def test_lower_perplexities_rank_first(tmp_path):
    data = summary_of(tmp_path / "summary.parquet", CLEAR, "perplexity")
    assert list(rank_editors(data)[0].editors) == ["MEMORY", "FT", "GRACE"]


def test_too_few_data_sets_get_a_sentence_instead(tmp_path):
    few = {editor: values[:5] for editor, values in CLEAR.items()}
    data = summary_of(tmp_path / "summary.parquet", few)
    assert rank_editors(data) == []
    assert rank_figures.make(data, None) == []
    assert "ranks" not in tables_of(data)
    assert "need at least 6 of them; this suite has 5" in too_few(data)


def test_nemenyis_critical_difference_is_demsars():
    # Demsar 2006: four classifiers on fourteen data sets.
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
