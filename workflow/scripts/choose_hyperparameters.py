"""Choose hyperparameters from the development suite and write docs/hyperparameters.md.

    snakemake --cores 2 --configfile config/suites/development.yaml
    python workflow/scripts/choose_hyperparameters.py

The rule, the same for every editor: of the settings that keep the model and whose edits take, the
one with the best geometric mean of ERR and holdout (and ARR); where no setting of an editor does
both, TRR is one of the averaged. Nothing of the default suite's streams is looked at.
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from grace_bench.store.files import atomic_path, read_json, read_parquet

REPOSITORY = Path(__file__).resolve().parents[2]
DEFAULT_SUMMARY = REPOSITORY / "results" / "development" / "summary.parquet"
PAGE = REPOSITORY / "docs" / "hyperparameters.md"
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


def mend_lines(results: Path) -> list[str]:
    """Return the table of what MEND's training gave on edits that it held out."""
    lines = []
    for path in sorted(results.glob("assets/*/*/mend-*/assets.json")):
        record = read_json(path)
        told, settings = record["told"], record["settings"]
        kinds = ("unedited", "untrained", "trained")
        cells = [f"{told[kind]['edit']:.3f}" for kind in kinds]
        cells += [f"{told[kind]['local']:.4f}" for kind in kinds[1:]]
        cells.append(f"{told['best_step']} of {told['steps']}")
        model, seed = path.parts[-4], path.parts[-3]
        names = [f"{model}, {seed}", f"{settings['c_edit']:g}"]
        lines.append("| " + " | ".join([*names, *cells]) + " |")
    if not lines:
        return []
    return [
        "",
        "## MEND's transform, trained and untrained",
        "",
        "Edits of training facts that its training held out, each made alone on the unedited",
        "model: the loss of the wanted answer, for another phrasing where there is one, and the",
        "divergence (KL, nats a token) of answers to other facts.",
        "",
        "| model and data set | c_edit | loss unedited | untrained | trained | KL untrained "
        "| trained | best step |",
        "|---|---|---|---|---|---|---|---|",
        *lines,
    ]


INTRODUCTION = """# How hyperparameters were chosen

By the development suite, on streams of facts and on upstream examples that the default suite never
uses (`partition: development`), with two seeds, each with base models of its own; four settings
for each editor on each data set. One rule for all editors: of the settings that keep the model and
whose edits take, the best.

- A setting **keeps the model** if its TRR is at most .02 below the unedited model's (a perplexity:
  at most 2 % above it), and **its edits take** if ES is at least .9 (a perplexity: at most half
  the unedited model's).
- **Best** is the geometric mean of ERR and Holdout, with ARR where it is known: the largest, or, of
  perplexities, the smallest. Where no setting of an editor keeps the model and takes, TRR is one of
  the averaged.

An arithmetic mean of TRR, ERR and Holdout, tried first, prefers a Defer whose gate never opens: an
editor that does nothing has a third of the points. So the means are geometric.

The chosen setting, marked *, is what `config/editors/*.yaml` holds; what is not listed is the same
for all settings. Layers and base models were chosen before ([how](default-suite.md)); all editors
edit the same layer. GRACE's early stop was chosen separately ([early-stop.md](early-stop.md)).

Generated by `python workflow/scripts/choose_hyperparameters.py` after
`snakemake --cores 2 --configfile config/suites/development.yaml`.

| data set | editor | setting | TRR | ERR | ARR | Holdout | ES | edits/key | |
|---|---|---|---|---|---|---|---|---|---|"""


def page(grouped: dict[tuple[str, str], list[Setting]], results: Path) -> str:
    """Return the page: every setting tried, the chosen ones marked."""
    lines = INTRODUCTION.splitlines()
    for (dataset, editor), settings in grouped.items():
        [unedited] = grouped[dataset, "unedited"]
        keys = varying(settings)
        best = max(settings, key=lambda setting: rank(setting, unedited))
        for setting in settings:
            values = setting["hyperparameters"]
            name = ", ".join(f"{key} {values[key]}" for key in keys) or "default"
            scores = [_score(setting.get(metric)) for metric in METRICS]
            mark = "*" if setting is best and len(settings) > 1 else ""
            lines.append("| " + " | ".join([dataset, editor, name, *scores, mark]) + " |")
    return "\n".join([*lines, *mend_lines(results), ""])


def _score(value: float | None) -> str:
    if value is None:
        return "--"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.3g}"


def main() -> None:
    """Write the page."""
    summary = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_SUMMARY
    with atomic_path(PAGE) as temporary:
        temporary.write_text(page(read_settings(summary), summary.parent))


if __name__ == "__main__":
    main()
