"""What imports what in grace_bench: the rooms' picture in ARCHITECTURE.md, and what a test refuses.

    python workflow/scripts/import_graph.py            # prints the picture

All imports count: those in functions, and those for types alone.
"""

from __future__ import annotations

import ast
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = "grace_bench"

FLOORS = (
    {"", "errors"},
    {"registry"},
    {"metrics"},
    {"store"},
    {"jobs", "suite"},
    {"codebook", "models"},
    {"datasets", "replay", "tasks"},
    {"editors"},
    {"run"},
    {"steps", "reporting", "results"},
    {"library"},
    {"cli"},
    {"__main__"},
)
"""The rooms, from the ground up: what a room imports lies below it. "": the package itself."""

SIDE_BY_SIDE = FLOORS[9]
"""Rooms that may import one another: one reads what another wrote."""


def import_graph(folder: Path = REPOSITORY / PACKAGE) -> dict[str, set[str]]:
    """Return what each module imports of the package."""
    modules = {module_name(folder, path): path for path in sorted(folder.rglob("*.py"))}
    return {name: imports(path, set(modules)) - {name} for name, path in modules.items()}


def module_name(folder: Path, path: Path) -> str:
    """Return the dotted name of a file."""
    parts = path.relative_to(folder.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, modules: set[str]) -> set[str]:
    """Return which of these modules a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in names}
    return found & modules


def room(module: str) -> str:
    """Return the room of a module: "grace_bench.run.stream" is in "run"."""
    return [*module.split("."), ""][1]


def climbs(graph: dict[str, set[str]]) -> list[str]:
    """Return the imports that do not go down, as "module -> module"."""
    floor = {name: height for height, rooms in enumerate(FLOORS) for name in rooms}
    return [
        f"{module} -> {other}"
        for module, others in graph.items()
        for other in sorted(others)
        if room(module) != room(other)
        and floor[room(other)] >= floor[room(module)]
        and not {room(module), room(other)} <= SIDE_BY_SIDE
    ]


def in_circles(graph: dict[str, set[str]]) -> set[str]:
    """Return the modules that lie on a circle of imports, or above one."""
    while leaves := {module for module, others in graph.items() if not others}:
        graph = {m: others - leaves for m, others in graph.items() if m not in leaves}
    return set(graph)


def picture() -> str:
    """Return the rooms and what they import as a mermaid block, without what all may import."""
    graph = import_graph()
    arrows: dict[str, set[str]] = {}
    for module, others in graph.items():
        arrows.setdefault(room(module), set()).update(map(room, others))
    shown = [name for rooms in FLOORS[3:-1] for name in rooms]
    lines = [
        f"    {name} --> {other}"
        for name in sorted(shown)
        for other in sorted(_nearest(arrows, name) & set(shown))
    ]
    return "\n".join(["```mermaid", "flowchart TB", *lines, "```", ""])


def _nearest(arrows: dict[str, set[str]], name: str) -> set[str]:
    """Return what a room imports but for what those rooms import already."""
    own = arrows[name] - {name}
    through = set().union(*(_below(arrows, other, {name}) for other in own)) if own else set()
    return own - through


def _below(arrows: dict[str, set[str]], name: str, seen: set[str]) -> set[str]:
    below: set[str] = set()
    for other in arrows.get(name, set()) - {name} - seen:
        below |= {other} | _below(arrows, other, seen | {name})
    return below


if __name__ == "__main__":
    print(picture(), end="")
