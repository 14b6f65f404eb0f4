"""Fill the generated parts of the pages: `make readme` after a run of the reference suite.

The rule graph comes from Snakemake, the rooms of ARCHITECTURE.md from the imports, the main table
and the pictures from results/reference/.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from import_graph import picture

REPOSITORY = Path(__file__).resolve().parents[2]
README = REPOSITORY / "README.md"
ARCHITECTURE = REPOSITORY / "ARCHITECTURE.md"
RESULTS = REPOSITORY / "results" / "reference"
PICTURES = ("overview", "sweep-grace")


def replace_block(text: str, name: str, content: str) -> str:
    """Return `text` with the lines between the markers of `name` replaced."""
    pattern = rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)"
    replaced, count = re.subn(pattern, lambda m: m[1] + content + m[2], text, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"the page lacks the markers of '{name}'; put them back.")
    return replaced


def rule_graph() -> str:
    """Return Snakemake's rule graph as a mermaid block: without colours, and in a fixed order."""
    command = [sys.executable, "-m", "snakemake", "--rulegraph", "mermaid-js"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    names = dict(re.findall(r"^\s*(id\d+)\[(\w+)\]", done.stdout, re.MULTILINE))
    arrows = re.findall(r"^\s*(id\d+) --> (id\d+)", done.stdout, re.MULTILINE)
    edges = sorted(f"    {names[tail]} --> {names[head]}" for tail, head in arrows)
    return "\n".join(["```mermaid", "flowchart TB", *edges, "```", ""])


def main() -> None:
    """Update the pages and the pictures in place."""
    ARCHITECTURE.write_text(replace_block(ARCHITECTURE.read_text(), "rooms", picture()))
    text = replace_block(README.read_text(), "rule graph", rule_graph())
    if (RESULTS / "tables" / "main.md").is_file():
        table = (RESULTS / "tables" / "main.md").read_text()
        text = replace_block(text, "main table", table.rstrip() + "\n")
        for name in PICTURES:
            shutil.copy(RESULTS / "figures" / f"{name}.png", REPOSITORY / "docs" / "images")
    README.write_text(text)


if __name__ == "__main__":
    main()
