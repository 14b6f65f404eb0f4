"""Registries: from names to implementations, each imported on first use.

A registry offers what lies in a package: a folder `editors/methods/grace` or a file
`datasets/builders/zsre.py` is found by its name. A broken optional dependency therefore breaks only
what needs it, and reading a suite never imports torch. Other packages add entries through entry
points:

    [project.entry-points."grace_bench.editors"]
    my_editor = "my_package:SPEC"
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pkgutil
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from grace_bench.errors import ConfigError, unknown_name

T = TypeVar("T")


@cache
def hash_of_code(module: str) -> str | None:
    """Return the hash of all Python files of a module's top-level package, without running it."""
    spec = importlib.util.find_spec(module.partition(".")[0])
    if spec is None:
        return None
    if spec.submodule_search_locations:
        folder = Path(next(iter(spec.submodule_search_locations)))
        files = sorted(folder.rglob("*.py"))
    elif spec.origin:
        folder, files = Path(spec.origin).parent, [Path(spec.origin)]
    found = hashlib.sha256()
    for file in files:
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        found.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
    return found.hexdigest()


def import_target(target: str) -> Any:
    """Import "package.module:attribute" and return the attribute; without one, the module."""
    name, _, attribute = target.partition(":")
    module = importlib.import_module(name)
    return getattr(module, attribute) if attribute else module


class Registry(Generic[T]):
    """A mapping from names to lazily imported targets.

    Args:
        kind: what the entries are, for messages: "editor".
        package: its modules are the entries, by their names: "grace_bench.tasks". "": all entries
            come from other packages.
        attribute: of each module, the target; "": the module itself.
        group: entry point group for other packages.
    """

    def __init__(self, kind: str, package: str, attribute: str, group: str) -> None:
        self.kind = kind
        self._package = package
        self._attribute = attribute
        self._group = group

    def names(self) -> list[str]:
        """Return all names, sorted: this package's own, then those that only plug-ins have."""
        own = self._own()
        return [*sorted(own), *sorted(self._plugins().keys() - own)]

    def check(self, name: str, where: str = "") -> None:
        """Raise ConfigError, starting with `where`, if there is no entry `name`."""
        if name not in self._own() and name not in self._plugins():
            raise ConfigError(unknown_name(self.kind, name, self.names(), where))

    def get(self, name: str, where: str = "") -> T:
        """Return the entry `name`; an error message starts with `where`."""
        self.check(name, where)
        if name in self._own():
            return import_target(f"{self._package}.{name}:{self._attribute}")
        return self._load(self._plugins()[name])

    def origin(self, name: str) -> str | None:
        """Return package, version and code hash of the plug-in with `name`: "mine 1.2 0b1c".

        None: it is not a plug-in's.
        """
        if name in self._own() or (plugin := self._plugins().get(name)) is None:
            return None
        package = f"{plugin.dist.name} {plugin.dist.version}" if plugin.dist else "no package"
        return f"{package} {(hash_of_code(plugin.module) or 'no source')[:16]}"

    def origins(self) -> dict[str, str]:
        """Return the origin of every entry that a plug-in brings, by name."""
        found = {name: self.origin(name) for name in sorted(self._plugins())}
        return {name: origin for name, origin in found.items() if origin}

    def _load(self, plugin: Any) -> T:
        try:
            return plugin.load()
        except Exception as error:  # whatever the plug-in's own code raises
            raise ConfigError(
                f"{self.kind} '{plugin.name}' cannot be imported from the installed plug-in "
                f"'{plugin.value}' ({error}); fix or uninstall it."
            ) from error

    def _own(self) -> frozenset[str]:
        return modules_in(self._package) if self._package else frozenset()

    def _plugins(self) -> dict[str, Any]:
        return {point.name: point for point in entry_points(group=self._group)}


@cache
def modules_in(package: str) -> frozenset[str]:
    """Return the names of a package's modules without importing them."""
    found = importlib.util.find_spec(package)
    folders = None if found is None else found.submodule_search_locations
    return frozenset(module.name for module in pkgutil.iter_modules(folders))


@dataclass(frozen=True)
class EditorSpec:
    """Facts about an editor that are available without importing it.

    Attributes:
        hyperparameters: hyperparameter class, "module:Class".
        editor: editor class.
        assets: function that makes what the editor needs before any run; "": it needs nothing.
        order: place in tables and figures, as in the paper's Table 2; the others follow.
        colour: of its curves; "": one that no other editor uses.
        marker: of its points, one of Matplotlib's.
    """

    hyperparameters: str
    editor: str
    assets: str = ""
    order: int = 100
    colour: str = ""
    marker: str = "*"

    def hyperparameters_class(self) -> type[Any]:
        """Import and return the hyperparameter class, an EditorHyperparameters (torch-free)."""
        return import_target(self.hyperparameters)

    def editor_class(self) -> type[Any]:
        """Import and return the editor class, an Editor."""
        return import_target(self.editor)

    def make_assets(self) -> Any:
        """Import and return the function that makes the editor's assets from an AssetRequest."""
        return import_target(self.assets)


EDITORS: Registry[EditorSpec] = Registry(
    "editor", "grace_bench.editors.methods", "SPEC", "grace_bench.editors"
)


def editor_spec(name: str) -> EditorSpec:
    """Return the spec of an editor; defaults for one that is no longer installed."""
    return EDITORS.get(name) if name in EDITORS.names() else EditorSpec("", "")


DATASETS: Registry[type[Any]] = Registry(
    "data set builder", "grace_bench.datasets.builders", "BUILDER", "grace_bench.datasets"
)
TASKS: Registry[type[Any]] = Registry(
    "task", "grace_bench.tasks.kinds", "TASK", "grace_bench.tasks"
)
TABLES: Registry[Any] = Registry(
    "table", "grace_bench.reporting.tables.kinds", "", "grace_bench.tables"
)
"""Modules with `make(summary)`, which returns a list of `Table`."""
FIGURES: Registry[Any] = Registry(
    "figure", "grace_bench.reporting.figures.kinds", "", "grace_bench.figures"
)
"""Modules with `make(summary, curves)`, which returns a list of `Drawing`, and `CAPTION`."""
