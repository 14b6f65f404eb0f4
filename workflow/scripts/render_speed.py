"""Write docs/speed.md and its picture from what `make speed` measured.

python workflow/scripts/render_speed.py results/speed docs
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from grace_bench.store.files import atomic_path, read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

EDIT_TARGETS = {"T5-small": 4.0, "BERT-base": 5.5, "GPT-2 small": 3.5}
EARLY_STOP_TARGET = 10.0


def of(records: Iterable[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    """Return the records of one kind."""
    return [record for record in records if record["what"] == what]


def quickest(record: dict[str, Any]) -> float:
    """Return the default engine's seconds an edit, in a batch where batches are made."""
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
    """Yield what was wanted and what was found."""
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


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Draw how many times sooner an edit is made, by model and number of keys."""
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
    axes.set_ylabel("times sooner")
    axes.legend(fontsize=7, frameon=False, ncols=len(counts))
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary, mpl.rc_context({"svg.hashsalt": "grace-bench"}):
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def main() -> None:
    """Write the page and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path, help="folder with speed.json, and scale.json if any")
    parser.add_argument("docs", type=Path, help="folder to write into")
    args = parser.parse_args()
    speed = read_json(args.measured / "speed.json")
    scale_path = args.measured / "scale.json"
    scale = read_json(scale_path) if scale_path.is_file() else None
    records, machine = speed["records"], speed["machine"]
    ways = ["straightforward", "replay", "lean", "in batches"]
    header = ["model", "keys", "steps", *ways, "times sooner"]
    counts = SCALE.format(**scale) if scale else ""
    page = PAGE.format(
        scale=counts,
        targets=table(["what", "wanted", "measured"], target_rows(records, scale)),
        edits=table(header, edit_rows(records)),
        machine=f"{machine['platform']}, {machine['machine']}, Python {machine['python']}, "
        f"torch {machine['torch']}, one thread",
    )
    draw(records, args.docs / "images" / "speed.svg")
    with atomic_path(args.docs / "speed.md") as temporary:
        temporary.write_text(page, encoding="utf-8")


SCALE = """The dry run plans {runs:,} runs. Reports are summary, tables and figures over
{step_rows:,} step rows.
"""

PAGE = """# Speed

Written by `make speed`; do not edit. Every ratio compares two things measured in one run on one
machine, and is worth more than the seconds beside it. The machine: {machine}.

*Straightforward* is what the released code does: at every gradient step the whole model, a lookup
among all keys, and Adam over all values; one edit at a time; every evaluation from scratch, one
example at a time. Models have real sizes and random weights: T5-small v1.1 (12 tokens in, 5 out),
BERT-base (512 tokens), GPT-2 small (100 + 32 tokens), edited at the paper's layers.

## What was wanted and what was found

{targets}
{scale}
## Seconds an edit

![times sooner](images/speed.svg)

{edits}
*replay* computes what lies before the edited layer once an edit, with equal results bit for bit;
*lean* also leaves out logits, and for GRACE token positions, that no label reads; *in batches*
trains the values of the coming edits together before they are made one by one (32 at most, and 512
tokens). `compute.engine` and `compute.edits_at_once` choose. *With early stop* takes as many steps
as the trained models of the development streams did with the rule of `config/editors/grace.yaml`
([early-stop.md](early-stop.md)), beside a straightforward edit of 100.

## Where the limit is

A gradient step of GPT-2 small is one forward and one backward through what lies behind the layer.
Straightforward that is 47 GFLOP: twelve blocks (1.9 GFLOP each for 132 tokens) and the head for
132 tokens (10.2) forward, two and a third blocks and the head backward. Left are 11.6 GFLOP: the
rest of block 9, block 10, the part of block 11 that 32 labelled tokens read, and the head for these
32, forward and backward. So no more than 4.1 times can be had, and 3.4 are: the head's product for
32 tokens (half of all time, by torch's profiler over four steps) runs at 35 GFLOP/s forward and 51
backward where a block's run at 63 to 74, and an edit's first passes, up to the layer and once
through the whole model, cost as much as seven steps. Batches help where inputs are short; three
passages of 132 tokens fill one.

Its early stop saves nothing: the sentences that replace false ones are never all argmax under one
trained vector, nor is their loss small, in any of 100 steps (early-stop.md). A smaller number of
steps would: it would make the edits worse.

What `make bench` can save is bounded, too. Of the 32 minutes of its jobs (two run at a time; commit
9e2b3e7) base models take 8.8, baselines and reports 2.0, starting Python and loading models for 46
runs 6.7: none of them gains. The runs' edits take 7.5 and their evaluations 6.4.

## What it rests on

- Nothing before the edited layer depends on an edit, so the first gradient step keeps the outputs
  of all modules that no trained parameter reaches, and the others hand them out (`replay/`).
  Each model's first replayed step is compared with a full one; where they differ, the model is
  run in full and the log says why.
- A classifier's last block is read at one token, a language model's where logits are asked for:
  its linear layers, norms and activations compute only those. Which they are is found by the
  gradient, and then tried out with NaN everywhere else (`replay/unused_positions.py`).
- Which key answers, and which radius it has, depends on queries and labels, never on values; a new
  key's value depends on its own edit alone. So values can be trained ahead, whatever comes
  between. An edit that turns out otherwise is trained as if nothing had been prepared.
- With a codebook, an input's answer can change only when another value answers it. Evaluations
  keep each input's nearest key and run again only those inputs (`run/evaluation.py`).
- Nearest keys are found by a matrix product with a bound on its rounding errors; only candidates
  are measured exactly (`codebook/search.py`).
"""


if __name__ == "__main__":
    main()
