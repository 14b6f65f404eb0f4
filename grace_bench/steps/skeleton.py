"""Starter packages: a working editor, data set or task, with its test.

    write_skeleton("editor", "my_editor", Path("my_editor"))

The templates lie in `skeletons/<kind>/`; `NAME` in their names and texts becomes the name, `TITLE`
the prefix of its classes.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from grace_bench.errors import ConfigError
from grace_bench.registry import DATASETS, EDITORS, TASKS
from grace_bench.store.files import atomic_path

REGISTRIES = {"editor": EDITORS, "dataset": DATASETS, "task": TASKS}


def write_skeleton(kind: str, name: str, folder: Path) -> list[Path]:
    """Write the package into a new folder; return its files.

    Args:
        kind: one of REGISTRIES.
        name: of the editor, data set or task, and of the package.
        folder: to create.

    Raises:
        ConfigError: the name is taken or cannot name a package, or the folder exists.
    """
    check_name(kind, name)
    if folder.exists():
        raise ConfigError(f"{folder}: already exists; choose another name or folder.")
    title = "".join(part.capitalize() for part in name.split("_"))
    written = []
    for path, text in _files(resources.files("grace_bench.steps").joinpath("skeletons", kind)):
        for mark, value in (("NAME", name), ("TITLE", title)):
            path, text = path.replace(mark, value), text.replace(mark, value)
        with atomic_path(folder / path.removesuffix(".txt")) as temporary:
            temporary.write_text(text, encoding="utf-8")
        written.append(folder / path.removesuffix(".txt"))
    return written


def check_name(kind: str, name: str) -> None:
    """Raise ConfigError if a package, or a new editor, data set or task, cannot have this name."""
    if keyword.iskeyword(name):
        raise ConfigError(f"'{name}' is a Python keyword; choose another name.")
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,40}", name):
        raise ConfigError(
            f"'{name}' cannot be the name of a package; use lower-case letters, digits and '_', "
            "as in my_editor."
        )
    if name in REGISTRIES[kind].names():
        raise ConfigError(f"{REGISTRIES[kind].kind} '{name}' already exists; choose another name.")
    if importlib.util.find_spec(name) is not None:
        raise ConfigError(f"a Python module named '{name}' already exists; choose another name.")


def _files(folder: Traversable, inside: str = "") -> Iterator[tuple[str, str]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _files(entry, f"{inside}{entry.name}/")
        else:
            yield inside + entry.name, entry.read_text(encoding="utf-8")
