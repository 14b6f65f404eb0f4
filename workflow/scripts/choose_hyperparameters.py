"""Choose hyperparameters from the development suite: fill docs/results/hyperparameters.md.

    snakemake --cores 2 --configfile config/suites/development.yaml
    python workflow/scripts/choose_hyperparameters.py

The page states the rule. The streams of the default suite are never used.
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from pages import DOCS, REPOSITORY, replace_block, table

from grace_bench.store.files import read_parquet
from grace_bench.store.json_records import read_record
from grace_bench.store.records import AssetsRecord

DEFAULT_SUMMARY = REPOSITORY / "results" / "development" / "summary.parquet"
PAGE = DOCS / "results" / "hyperparameters.md"
METRICS = ("trr", "err", "arr", "holdout", "es", "edits_per_key")

Setting = dict[str, Any]


def read_settings(summary: Path) -> dict[tuple[str, str], list[Setting]]:
    """Return, for each data set and editor, its settings with their main metrics."""
    found: dict[tuple[str, str, str], Setting] = {}
    for row in read_parquet(summary).to_pylist():
        counted = row["is_main"] or row["metric"] == "edits_per_key"
        if row["seed"] is not None or not counted or row["metric"] not in METRICS:
            continue
        key = (row["dataset"], row["editor"], row["hyperparameters"])
        setting = found.setdefault(key, {"hyperparameters": json.loads(row["hyperparameters"])})
        setting[row["metric"]] = row["value"]
        if row["is_main"]:
            setting["measure"] = row["measure"]
    grouped: dict[tuple[str, str], list[Setting]] = defaultdict(list)
    for (dataset, editor, _), setting in sorted(found.items()):
        grouped[dataset, editor].append(setting)
    return grouped


def does_both(setting: Setting, unedited: Setting) -> bool:
    """Whether a setting keeps the model, and its edits take."""
    if setting["measure"] == "perplexity":
        keeps = setting["trr"] <= 1.02 * unedited["trr"]
        return keeps and setting["es"] <= unedited["es"] / 2
    return setting["trr"] >= unedited["trr"] - 0.02 and setting["es"] >= 0.9


def rank(setting: Setting, unedited: Setting) -> tuple[bool, float]:
    """Return what the rule makes as large as possible."""
    both = does_both(setting, unedited)
    metrics = [*([] if both else ["trr"]), "err", "holdout"]
    sign = 1
    if setting["measure"] == "perplexity":
        metrics, sign = [*metrics, "arr"], -1
    values = [setting[metric] for metric in metrics]
    if not all(map(math.isfinite, values)):
        return both, -math.inf
    mean = math.prod(values) ** (1 / len(values))
    return both, sign * round(mean, 6)


def varying(settings: list[Setting]) -> list[str]:
    """Return the hyperparameters that differ between settings."""
    keys = sorted(settings[0]["hyperparameters"])
    return [
        key
        for key in keys
        if len({json.dumps(s["hyperparameters"].get(key)) for s in settings}) > 1
    ]


def mend_lines(results: Path) -> list[list[str]]:
    """Return the rows of what MEND's training gave on edits that it held out."""
    lines = []
    for path in sorted(results.glob("assets/*/*/mend-*/assets.json")):
        record = read_record(path, AssetsRecord)
        summary = record.summary
        kinds = ("unedited", "untrained", "trained")
        cells = [f"{summary[kind]['edit']:.3f}" for kind in kinds]
        cells += [f"{summary[kind]['local']:.4f}" for kind in kinds[1:]]
        cells.append(f"{summary['best_step']} of {summary['steps']}")
        model, seed = path.parts[-4], path.parts[-3]
        names = [f"{model}, {seed}", f"{record.settings['c_edit']:g}"]
        lines.append([*names, *cells])
    return lines


def setting_lines(grouped: dict[tuple[str, str], list[Setting]]) -> list[list[str]]:
    """Return the rows of the table: every setting tried, the chosen ones marked."""
    lines = []
    for (dataset, editor), settings in grouped.items():
        [unedited] = grouped[dataset, "unedited"]
        keys = varying(settings)
        best = max(settings, key=lambda setting: rank(setting, unedited))
        for setting in settings:
            values = setting["hyperparameters"]
            name = ", ".join(f"{key} {values[key]}" for key in keys) or "default"
            scores = [_score(setting.get(metric)) for metric in METRICS]
            mark = "*" if setting is best and len(settings) > 1 else ""
            lines.append([dataset, editor, name, *scores, mark])
    return lines


def _score(value: float | None) -> str:
    if value is None:
        return "--"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.3g}"


def main() -> None:
    """Fill the page's tables."""
    summary = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_SUMMARY
    scores = ["TRR", "ERR", "ARR", "Holdout", "ES", "edits/key", ""]
    rows = setting_lines(read_settings(summary))
    replace_block(PAGE, "settings", table(["data set", "editor", "setting", *scores], rows))
    losses = ["loss unedited", "untrained", "trained", "KL untrained", "trained", "best step"]
    if rows := mend_lines(summary.parent):
        replace_block(PAGE, "mend", table(["model and data set", "c_edit", *losses], rows))


if __name__ == "__main__":
    main()
