"""Tables: numbers as printed, bold where it belongs, and a PDF by a real pdflatex."""

from __future__ import annotations

import csv
import math
import re
import shutil
import subprocess

import numpy as np
import pytest

from grace_bench.errors import DataError
from grace_bench.reporting.summary.comparison import as_good_as_the_best
from grace_bench.reporting.summary.read import Summary
from grace_bench.reporting.summary.write import summarise
from grace_bench.reporting.tables.rows import editor_rows
from grace_bench.reporting.tables.table import (
    Cell,
    Column,
    Row,
    Table,
    escape_latex,
    number,
    to_latex,
    to_markdown,
)
from grace_bench.reporting.tables.write import write_tables

needs_pdflatex = pytest.mark.skipif(
    not (shutil.which("pdflatex") and shutil.which("pdftotext")),
    reason="pdflatex or pdftotext is not installed (texlive-latex-recommended, poppler-utils)",
)


@pytest.mark.parametrize(
    ("value", "kind", "printed"),
    [
        (0.824, "f1", ".82"),
        (1.0, "accuracy", "1.00"),
        (0.0, "f1", ".00"),
        (0.999, "f1", "1.00"),
        (15.984, "perplexity", "16.0"),
        (9.99, "perplexity", "9.99"),
        (9.996, "perplexity", "10.0"),
        (99.96, "perplexity", "100"),
        (0.52, "loss", ".52"),
        (9999.0, "perplexity", "9999"),
        (123456.0, "perplexity", "1.2e+05"),
        (math.inf, "perplexity", "inf"),
        (None, "f1", "--"),
        (math.nan, "f1", "--"),
        (1000.0, "count", "1000"),
        (59.33, "count", "59.3"),
        (1.0434, "ratio", "1.04"),
        (0.131, "seconds", ".13"),
        (23.44, "seconds", "23.4"),
    ],
)
def test_numbers_as_the_paper_prints_them(value, kind, printed):
    assert number(value, kind) == printed


class Scored:
    """A setting's scores of twenty facts under three seeds."""

    experiment = "m/d"

    def __init__(self, *by_seed):
        self.by_seed = by_seed

    def final_scores(self, metric, measure):
        facts = np.array([f"fact-{n}" for n in range(20)], dtype=object)
        return [(facts, v) for v in self.by_seed] if (metric, measure) == ("trr", "f1") else []


FACTS = np.linspace(0, 0.9, 20)
SHAKEN = 0.1 * np.resize([1, -1], 20)


@pytest.mark.parametrize(
    ("other", "bold"),
    [
        # All the same: none is best.
        ([FACTS, FACTS, FACTS], set()),
        # Far within one another's intervals, and worse on each single fact.
        ([FACTS - 0.02] * 3, {0}),
        ([FACTS + 0.02] * 3, {1}),
        # Better here, worse there.
        ([FACTS + SHAKEN - 0.001, FACTS - SHAKEN, FACTS + SHAKEN], {0, 1}),
        # As good with two of three base models, far off with the third.
        ([FACTS, FACTS, FACTS - 0.5], {0}),
    ],
)
def test_bold_goes_to_what_a_paired_comparison_does_not_tell_from_the_best(other, bold):
    found = as_good_as_the_best([Scored(FACTS, FACTS, FACTS), Scored(*other)])
    assert found == {(index, "trr", "f1") for index in bold}


def test_of_perplexities_the_smaller_is_the_better():
    class Perplexities(Scored):
        def final_scores(self, metric, measure):
            return super().final_scores(metric, "f1" if measure == "perplexity" else measure)

    found = as_good_as_the_best([Perplexities(FACTS + 1, FACTS + 1), Perplexities(FACTS, FACTS)])
    assert found >= {(1, "trr", "perplexity")}
    assert (0, "trr", "perplexity") not in found


def test_names_are_escaped():
    assert escape_latex("a_b & 50% #1 {x} ~^\\") == (
        r"a\_b \& 50\% \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{}"
    )
    assert escape_latex("\u03b5=1") == r"$\epsilon$=1"
    assert escape_latex("caf\u00e9 \u4e2d") == "caf\u00e9 ?"
    assert (
        escape_latex("GRACE \u2013 ours, \u2018x\u2019 \u201cy\u201d") == "GRACE -- ours, `x' ``y''"
    )


def test_a_name_in_brackets_is_no_option_of_the_rule_above_it():
    rows = (Row((Cell("[ours] FT"), Cell("1"))), Row((Cell("*FT"), Cell("2"))))
    tex = to_latex(Table("t", "c", (Column("a"), Column("b")), rows))
    assert re.search(r"\\midrule\n\{\[\}ours\{\]\} FT", tex)
    assert not re.search(r"\n[\[*]", tex)


def test_names_keep_their_signs_in_markdown():
    rows = (Row((Cell("GRACE <eps=3> a_b `c`"), Cell("1"))),)
    text = to_markdown(Table("t", "c", (Column("a"), Column("b")), rows))
    assert r"GRACE \<eps=3\> a\_b \`c\`" in text


def test_main_table_has_the_configured_settings_only(reported):
    text = (reported / "tables" / "main.md").read_text()
    names = [line.split(" | ")[0].strip("| ") for line in text.splitlines() if line[:2] == "| "]
    each = ["Unedited", "FT", "Defer", "GRACE"]
    assert [name for name in names if name[:2] != "**"] == ["Editor", *each, *each]
    assert sum(name[:2] == "**" for name in names) == 2
    summary = Summary(reported / "summary.parquet")
    chosen = {s.variant for row in editor_rows(summary) for s in row.settings.values()}
    assert chosen == {"default", "radius=1.0"}


def test_csv_holds_unrounded_values(reported):
    with open(reported / "tables" / "main.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    summary = Summary(reported / "summary.parquet")
    (setting,) = [
        s for s in summary.settings if s.editor == "ft" and s.experiment.dataset == "facts-qa"
    ]
    estimate = summary.get(setting, "trr", "f1")
    (row,) = [
        r
        for r in rows
        if r["row"] == "FT" and r["column"] == "Facts QA, T5 (tiny): F1, higher is better: TRR"
    ]
    assert float(row["value"]) == estimate.value
    assert (float(row["low"]), float(row["high"])) == (estimate.low, estimate.high)
    assert row["printed"] == number(estimate.value, "f1")


def test_bold_is_what_the_summary_says(reported):
    with open(reported / "tables" / "main.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for column in {row["column"] for row in rows if row["column"].endswith(("TRR", "ERR"))}:
        edited = [r for r in rows if r["column"] == column and r["row"] != "Unedited"]
        best = max(float(row["value"]) for row in edited)
        assert best in [float(row["value"]) for row in edited if row["best"] == "true"]
    assert not any(row["best"] == "true" for row in rows if row["row"] == "Unedited")
    latex = (reported / "tables" / "main.tex").read_text()
    assert latex.count(r"\textbf{") == sum(row["best"] == "true" for row in rows)


def test_caption_and_comments_say_where_numbers_come_from(reported):
    text = (reported / "tables" / "main.tex").read_text()
    head = [line for line in text.splitlines() if line.startswith("%")]
    assert any("grace-bench 0.1.0" in line for line in head)
    assert "% suite: synthetic" in head
    assert "% git commit of the runs: 0123456789abcdef" in head
    assert any(line.startswith("% data: facts-qa:") for line in head)
    assert not re.search(r"20\d\d-\d\d-\d\d", text)
    caption = next(line for line in text.splitlines() if line.startswith(r"\caption"))
    for said in ("40 for TRR", "2 seeds", "base model", r"95\% percentile", "paired bootstrap"):
        assert said in caption


def test_all_measures_stand_beside_each_other(reported):
    text = (reported / "tables" / "measures.md").read_text()
    assert (
        "| Metric | Editor | F1 \u2191 | EM \u2191 | F1 (released) \u2191 | Token acc. \u2191 |"
        in text
    )
    assert "| ERR | Unedited |" in text


def test_sweep_shows_what_varies_and_marks_the_configured_setting(reported):
    text = (reported / "tables" / "sweep-grace.md").read_text()
    assert "| radius | TRR" in text
    first = [line.split(" | ")[0] for line in text.splitlines() if re.match(r"\| [\d.]+ ", line)]
    assert first == ["| 0.5", "| 1 \\*", "| 3"] * 2
    assert "#keys | edits/key | s/edit" in text


def test_same_bytes_twice_and_old_sweeps_go(reported, tmp_path):
    for name in ("sweep-gone.tex", "main-short.tex"):
        (tmp_path / name).write_text("old")
    paths = write_tables(reported / "summary.parquet", tmp_path)
    assert not (tmp_path / "sweep-gone.tex").exists()
    assert (tmp_path / "main-short.tex").exists()  # somebody's own
    for path in paths:
        assert path.read_bytes() == (reported / "tables" / path.name).read_bytes()


def test_missing_summary(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        write_tables(tmp_path / "summary.parquet", tmp_path)


def _text_of(folder) -> str:
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "document.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    subprocess.run(["pdftotext", "-layout", "document.pdf"], cwd=folder, check=True)
    return (folder / "document.txt").read_text()


@needs_pdflatex
def test_tables_compile_and_show_their_numbers(reported, tmp_path):
    write_tables(reported / "summary.parquet", tmp_path)
    text = _text_of(tmp_path)
    with open(tmp_path / "main.csv", newline="") as stream:
        for row in csv.DictReader(stream):
            lines = [line for line in text.splitlines() if line.strip().startswith(row["row"])]
            assert any(row["printed"] in line for line in lines)
    assert "Terms & Topics" in text
    assert "edits/key" in text
    latex = "".join(path.read_text() for path in tmp_path.glob("*.tex"))
    assert not re.search(r"\\tiny|resizebox", latex)


@needs_pdflatex
def test_awkward_labels_wide_suites_and_huge_perplexities_compile(tmp_path, make_run):
    folders = [
        make_run(tmp_path, task, editor, label=label, shift=shift)
        for task in ("question_answering", "classification", "language_modelling")
        for editor, label, shift in (
            ("unedited", None, 0.0),
            ("ft", "ft_100%&#", -0.9),
            ("grace", "\u03b5~^{x}\\|<$>", 0.0),
        )
    ]
    folders += [make_run(tmp_path, "language_modelling", "memory", shift=-2.0)]
    summary = tmp_path / "summary.parquet"
    summarise(folders, summary)
    write_tables(summary, tmp_path / "tables")
    text = _text_of(tmp_path / "tables")
    assert "100%&#" in text  # the underscore before it is a rule, not a letter
    assert "\u00b7 10" in text or "\u00b710" in text  # a power of ten
    assert "One seed." in text
