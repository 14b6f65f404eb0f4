"""Packages of others, as if they were installed, without pip."""

from __future__ import annotations

from pathlib import Path


def install(folder: Path, name: str, group: str, points: dict[str, str], version: str) -> None:
    """Write what pip writes of a package in `folder`, which must be on the path.

    A further call for the same package adds a group.

    Args:
        folder: holds the package's modules.
        name: of the package.
        group: of its entry points, without "grace_bench.".
        points: entry point to target.
        version: of the package.
    """
    about = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"{point} = {target}\n" for point, target in points.items()]
    with (about / "entry_points.txt").open("a") as stream:
        stream.write(f"[grace_bench.{group}]\n{''.join(lines)}")
