"""The generated parts of Markdown pages: lines between `<!-- name: begin -->` and `end`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from grace_bench.store.files import atomic_path

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"


def replace_block(page: Path, name: str, content: str) -> None:
    """Replace the lines between the markers of `name` on a page."""
    pattern = rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)"
    text, count = re.subn(
        pattern, lambda m: m[1] + content + m[2], page.read_text("utf-8"), flags=re.DOTALL
    )
    if count != 1:
        raise SystemExit(f"{page}: the markers of '{name}' are missing; put them back.")
    with atomic_path(page) as temporary:
        temporary.write_text(text, "utf-8")


def table(header: list[str], rows: Iterable[list[str]], align: str = ":--") -> str:
    """Return a Markdown table; `align` is for all columns but the first."""
    lines = [header, [":--", *[align] * (len(header) - 1)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
