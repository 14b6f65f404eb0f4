"""Compare rules that stop an edit's training early: fill docs/results/early-stop.md.

    snakemake --cores 2 --configfile config/suites/early-stop.yaml
    python workflow/scripts/compare_early_stop.py

Only the development streams are used, never those of the default suite.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from choose_hyperparameters import Setting, read_settings
from pages import DOCS, REPOSITORY, replace_block, table

from grace_bench.store.files import read_json, read_parquet

PAGE = DOCS / "results" / "early-stop.md"
METRICS = ("trr", "err", "arr", "holdout", "es")
RULE = ("early_stop", "early_stop_loss", "early_stop_margin", "early_stop_steps")

Rule = tuple[Any, ...]


def gradient_steps(suite: Path) -> dict[tuple[str, Rule], float]:
    """Return the mean number of gradient steps per edit, by data set and rule."""
    found: dict[tuple[str, Rule], list[float]] = defaultdict(list)
    for path in sorted(suite.glob("runs/**/steps.parquet")):
        spec = read_json(path.with_name("run.json"))["spec"]
        rows = read_parquet(path, columns=["edited", "gradient_steps"]).to_pylist()
        steps = [row["gradient_steps"] for row in rows if row["edited"]]
        rule = rule_of(spec["editor"]["hyperparameters"])
        found[spec["dataset"]["name"], rule] += steps
    return {key: statistics.fmean(steps) for key, steps in found.items()}


def rule_of(hyperparameters: dict[str, Any]) -> Rule:
    """Return the settings of the early stop."""
    return tuple(hyperparameters[name] for name in RULE)


def describe(rule: Rule) -> str:
    """Return a rule in words."""
    kind, loss, margin, steps = rule
    row = f", {steps} steps in a row" if steps > 1 else ""
    names = {
        "none": "never",
        "loss": f"loss ≤ {loss:g}{row}",
        "argmax": f"margin ≥ {margin:g}{row}",
    }
    return names[kind]


def chosen(by_rule: dict[Rule, Setting], steps: dict[Rule, float]) -> Rule:
    """Return the rule with the fewest steps of those that make nothing worse on a data set."""
    [never] = [rule for rule in by_rule if rule[0] == "none"]
    harmless = [rule for rule in by_rule if not is_worse(by_rule[rule], by_rule[never])]
    return min(harmless, key=lambda rule: (round(steps[rule]), -steps[rule]))


def is_worse(setting: Setting, other: Setting) -> bool:
    """Return whether any metric is worse by more than .01, or a perplexity by more than 1 %."""
    for metric in METRICS:
        one, two = setting.get(metric), other.get(metric)
        if one is None or two is None:
            continue
        if one > 1.01 * two if setting["measure"] == "perplexity" else one < two - 0.01:
            return True
    return False


def rows(suite: Path) -> list[list[str]]:
    """Return the rows of the table: for each data set, rules from most to fewest steps."""
    steps = gradient_steps(suite)
    settings = {
        dataset: {rule_of(setting["hyperparameters"]): setting for setting in found}
        for (dataset, _), found in read_settings(suite / "summary.parquet").items()
    }
    lines = []
    for dataset, by_rule in settings.items():
        best = chosen(by_rule, {rule: steps[dataset, rule] for rule in by_rule})
        for rule in sorted(by_rule, key=lambda rule: -steps[dataset, rule]):
            scores = [by_rule[rule].get(metric) for metric in METRICS]
            cells = ["--" if score is None else f"{score:.3f}" for score in scores]
            mark = "*" if rule == best else ""
            lines.append([dataset, describe(rule), f"{steps[dataset, rule]:.1f}", *cells, mark])
    return lines


def main() -> None:
    """Fill the page's table."""
    suite = Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / "results" / "early-stop"
    page = Path(sys.argv[2]) if len(sys.argv) > 2 else PAGE
    header = ["data set", "stop", "steps per edit", "TRR", "ERR", "ARR", "holdout", "ES", ""]
    replace_block(page, "rules", table(header, rows(suite)))


if __name__ == "__main__":
    main()
