"""Fill the generated parts of the pages: `make readme` after a run of the reference suite.

The rooms of ARCHITECTURE.md come from the imports, the order of the rules from Snakemake, and the
tables and pictures of README.md and the docs from results/reference/.
"""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

from import_graph import picture
from pages import DOCS, REPOSITORY, replace_block, table

README = REPOSITORY / "README.md"
ARCHITECTURE = REPOSITORY / "ARCHITECTURE.md"
COMMANDS = DOCS / "reference" / "commands.md"
DEFAULT_SUITE = DOCS / "results" / "default-suite.md"
RESULTS = REPOSITORY / "results" / "reference"
PICTURES = ("overview", "sweep-grace")
SMALL_TABLE = ("ERR", "TRR")


def rule_order() -> str:
    """Return each rule of the workflow with the rules it waits for, as a Markdown table."""
    command = [sys.executable, "-m", "snakemake", "--rulegraph", "mermaid-js"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    names = dict(re.findall(r"^\s*(id\d+)\[(\w+)\]", done.stdout, re.MULTILINE))
    arrows = re.findall(r"^\s*(id\d+) --> (id\d+)", done.stdout, re.MULTILINE)
    waits: dict[str, list[str]] = {name: [] for name in sorted(names.values())}
    for tail, head in arrows:
        waits[names[head]].append(f"`{names[tail]}`")
    rows = [[f"`{rule}`", ", ".join(sorted(earlier))] for rule, earlier in waits.items()]
    return table(["rule", "waits for"], rows)


def small_table(path: Path) -> str:
    """Return the metrics of `SMALL_TABLE` from a suite's main.csv, an editor a row."""
    rows: dict[str, dict[str, str]] = {}
    for cell in csv.DictReader(path.open(newline="", encoding="utf-8")):
        experiment, _, metric = cell["column"].rpartition(": ")  # "Topics, BERT: Acc., higher ..."
        if metric in SMALL_TABLE:
            title, _, measure = experiment.rpartition(": ")
            arrow = "↑" if "higher" in measure else "↓"
            column = f"{title.split(',')[0]}, {measure.split(',')[0]} {arrow}: {metric}"
            bold = "**" if cell["best"] == "true" else ""
            rows.setdefault(cell["row"], {})[column] = bold + cell["printed"] + bold
    columns = list(next(iter(rows.values())))
    cells = [[editor, *(row[column] for column in columns)] for editor, row in rows.items()]
    return table(["Editor", *columns], cells, "--:")


def main() -> None:
    """Update the pages and the pictures in place."""
    replace_block(ARCHITECTURE, "rooms", picture())
    replace_block(COMMANDS, "rule order", rule_order())
    tables = RESULTS / "tables"
    if (tables / "main.md").is_file():
        replace_block(README, "small table", small_table(tables / "main.csv"))
        whole = (tables / "main.md").read_text().rstrip() + "\n"
        replace_block(DEFAULT_SUITE, "main table", whole)
        for name in PICTURES:
            shutil.copy(RESULTS / "figures" / f"{name}.png", DOCS / "images")


if __name__ == "__main__":
    main()
