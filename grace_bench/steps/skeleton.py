"""Starter packages: a working editor, data set or task, with its test. And starter studies.

    write_skeleton("editor", "my_editor", Path("my_editor"))
    write_study(Path("my-study"))

The templates lie in `skeletons/<kind>/`; `NAME` in their names and texts becomes the name, `TITLE`
the prefix of its classes.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
import shutil
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from grace_bench.errors import ConfigError
from grace_bench.registry import DATASETS, EDITORS, TASKS
from grace_bench.store.files import atomic_path
from grace_bench.suite.section import is_name
from grace_bench.suite.shipped import PROFILES

STUDY_PROFILES = ("gpu", "slurm")
"""Snakemake would use one named default unasked, over the one that is asked for."""

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
    return _write(kind, folder, NAME=name, TITLE="".join(map(str.capitalize, name.split("_"))))


def write_study(folder: Path) -> list[Path]:
    """Write a study that `snakemake` runs: a suite, a Snakefile, profiles; return its files.

    Args:
        folder: to create, or an empty one; its name becomes the suite's.

    Raises:
        ConfigError: a suite cannot have the name, or something is there.
    """
    name = folder.resolve().name
    if not is_name(name):
        raise ConfigError(
            f"'{name}' cannot be the name of a suite; use at most 48 letters, digits, '-', '_' and "
            "'.', the first a letter or digit, as in my-study."
        )
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; choose another folder.")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: is not empty; choose another folder.")
    written = _write("study", folder, NAME=name)
    for profile in STUDY_PROFILES:
        path = folder / "profiles" / profile / "profile.yaml"
        with atomic_path(path) as temporary:
            shutil.copyfile(PROFILES / profile / "profile.yaml", temporary)
        written.append(path)
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


def _write(kind: str, folder: Path, **marks: str) -> list[Path]:
    written = []
    for path, text in _files(resources.files("grace_bench.steps").joinpath("skeletons", kind)):
        for mark, value in marks.items():
            path, text = path.replace(mark, value), text.replace(mark, value)
        with atomic_path(folder / path.removesuffix(".txt")) as temporary:
            temporary.write_text(text, encoding="utf-8")
        written.append(folder / path.removesuffix(".txt"))
    return written


def _files(folder: Traversable, inside: str = "") -> Iterator[tuple[str, str]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _files(entry, f"{inside}{entry.name}/")
        else:
            yield inside + entry.name, entry.read_text(encoding="utf-8")
