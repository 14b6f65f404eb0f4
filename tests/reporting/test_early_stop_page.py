"""The page on early stops: which rule it marks."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from grace_bench.reporting.summary.write import summarise

NEVER = {
    "early_stop": "none",
    "early_stop_loss": 0.05,
    "early_stop_margin": 0.0,
    "early_stop_steps": 1,
}
RULES = {
    "never": ({}, 100, 0.0),
    "loss ≤ 0.05": ({"early_stop": "loss"}, 60, 0.3),
    "margin ≥ 1": ({"early_stop": "argmax", "early_stop_margin": 1.0}, 30, 0.3),
    "margin ≥ 0": ({"early_stop": "argmax"}, 10, -0.3),  # the quickest makes answers worse
}


@pytest.fixture
def page(tmp_path, make_run, repository) -> list[list[str]]:
    folders = [
        make_run(tmp_path, hyperparameters={**NEVER, **more}, shift=shift, gradient_steps=steps)
        for more, steps, shift in RULES.values()
    ]
    suite = tmp_path / "synthetic"
    summarise(folders, suite / "summary.parquet")
    script = repository / "workflow" / "scripts" / "compare_early_stop.py"
    output = Path(shutil.copy(repository / "docs/results/early-stop.md", tmp_path))
    done = subprocess.run(
        [sys.executable, str(script), str(suite), str(output)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in output.read_text().splitlines() if line.startswith("| facts-qa")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_rules_are_listed_with_their_steps_and_scores(page):
    assert [(row[1], float(row[2])) for row in page] == [
        (name, steps) for name, (_, steps, _) in RULES.items()
    ]
    assert all(0 <= float(row[4]) <= 1 for row in page)


def test_the_quickest_rule_that_makes_nothing_worse_is_marked(page):
    assert [row[1] for row in page if row[-1] == "*"] == ["margin ≥ 1"]
