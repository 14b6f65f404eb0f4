"""Fill docs/results/speed.md and draw its picture from what `make speed` measured.

python workflow/scripts/render_speed.py results/speed docs
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from pages import replace_block, table

from grace_bench.store.files import atomic_path, read_json

EDIT_TARGETS = {"T5-small": 4.0, "BERT-base": 5.5, "GPT-2 small": 3.5}
EARLY_STOP_TARGET = 10.0
SCALE = """
The dry run plans {runs:,} runs. Reports are the summary, tables and figures of
{step_rows:,} step rows.
"""


def of(records: Iterable[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    """Return the records of one kind."""
    return [record for record in records if record["what"] == what]


def quickest(record: dict[str, Any]) -> float:
    """Return the default engine's seconds per edit, in a batch if it makes batches."""
    return record.get("batch", record["lean"])


def edit_rows(records: list[dict[str, Any]]) -> Iterator[list[str]]:
    """Yield the rows of the table of edits."""
    for record in of(records, "edit"):
        straight = record["straightforward"]
        yield [
            record["model"],
            f"{record['keys']:,}",
            str(record["steps"]),
            *(
                f"{record[name]:.2f}" if name in record else ""
                for name in ("straightforward", "replay", "lean", "batch")
            ),
            f"{straight / quickest(record):.1f}",
        ]


def target_rows(records: list[dict[str, Any]], scale: dict[str, Any] | None) -> Iterator[list[str]]:
    """Yield the targets and what was measured."""
    edits = {(r["model"], r["keys"]): r for r in of(records, "edit")}
    for model, target in EDIT_TARGETS.items():
        if (model, 0) in edits:
            record = edits[model, 0]
            ratio = record["straightforward"] / quickest(record)
            yield [f"edit, {model}, {record['steps']} steps", f"≥ {target}", f"{ratio:.1f}"]
    for record in of(records, "early stop"):
        ratio = edits[record["model"], 0]["straightforward"] / record["seconds"]
        name = f"the same with early stop ({record['steps']} steps), {record['model']}"
        yield [name, f"≥ {EARLY_STOP_TARGET:.0f}", f"{ratio:.1f}"]
    for record in of(records, "many keys"):
        name = f"an edit at {record['keys']:,} keys over one at 0, {record['model']}"
        yield [name, "≤ 1.15", f"{record['many'] / record['none']:.2f}"]
    for record in of(records, "forward"):
        ratio = record["edited"] / record["unedited"]
        name = f"forward pass of 32 inputs at {record['keys']:,} keys over the unedited model's"
        yield [name, "≤ 1.10", f"{ratio:.2f}"]
    for record in of(records, "memory"):
        ratio = record["held"] / record["tensors"]
        name = f"codebook of {record['keys']:,} keys over its keys, values and radii"
        yield [name, "≤ 1.3", f"{ratio:.2f}"]
    for record in of(records, "evaluation"):
        share = record["incremental"] / record["editing"]
        name = f"exact evaluation of {record['upstream']:,} upstream and all edits after every edit"
        yield [f"{name}, share of editing time", "≤ 10 %", f"{share:.1%}"]
    for record in of(records, "weight evaluation"):
        ratio = record["one by one"] / record["again"]
        yield [f"evaluation of a weight editor, {record['model']}", "≥ 5", f"{ratio:.1f}"]
    for row in scale["results"] if scale else ():
        wanted = f"≤ {row['target']:g} {row['unit']}" if row["target"] else ""
        yield [row["name"], wanted, f"{row['measured']:g} {row['unit']}"]


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Draw the speedup of an edit, by model and number of keys."""
    edits = of(records, "edit")
    models = list(dict.fromkeys(record["model"] for record in edits))
    counts = sorted({record["keys"] for record in edits})
    figure = Figure(figsize=(6.4, 3.0), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    width = 0.8 / len(counts)
    for position, keys in enumerate(counts):
        found = [r["straightforward"] / quickest(r) for r in edits if r["keys"] == keys]
        places = [index + position * width for index in range(len(found))]
        shade = 0.75 - 0.6 * position / max(1, len(counts) - 1)
        bars = axes.bar(places, found, width, color=str(shade), label=f"{keys:,} keys")
        axes.bar_label(bars, fmt="%.0f", fontsize=7)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xticks([i + 0.4 - width / 2 for i in range(len(models))], models)
    axes.set_ylabel("speedup")
    axes.legend(fontsize=7, frameon=False, ncols=len(counts))
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary, mpl.rc_context({"svg.hashsalt": "grace-bench"}):
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def main() -> None:
    """Fill the page and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path, help="folder with speed.json, and scale.json if any")
    parser.add_argument("docs", type=Path, help="folder of the docs")
    args = parser.parse_args()
    speed = read_json(args.measured / "speed.json")
    scale_path = args.measured / "scale.json"
    scale = read_json(scale_path) if scale_path.is_file() else None
    records, machine = speed["records"], speed["machine"]
    page = args.docs / "results" / "speed.md"
    where = f"The machine: {machine['platform']}, {machine['machine']}, "
    where += f"Python {machine['python']}, torch {machine['torch']}, one thread.\n"
    replace_block(page, "machine", where)
    targets = table(["what", "target", "measured"], target_rows(records, scale))
    if scale:
        targets += SCALE.format(**scale)
    replace_block(page, "targets", targets)
    ways = ["straightforward", "replay", "lean", "in batches"]
    header = ["model", "keys", "steps", *ways, "speedup"]
    replace_block(page, "edits", table(header, edit_rows(records)))
    draw(records, args.docs / "images" / "speed.svg")


if __name__ == "__main__":
    main()
