"""Names to implementations, without importing any of them before it is asked for.

A target is either an object or a string "package.module:attribute"; strings are imported on
first use, so that a broken optional dependency breaks only what needs it, and reading a suite
never imports torch. Other packages add entries through an entry point group:

    [project.entry-points."grace_bench.editors"]
    my_editor = "my_package.editor:SPEC"
"""

from __future__ import annotations

import hashlib
import importlib.util
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
    """Import "package.module:attribute" and return the attribute."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


class Registry(Generic[T]):
    """A mapping from names to lazily imported targets.

    Args:
        kind: what the entries are, for messages: "editor".
        group: entry point group that other packages may add to, or None.
    """

    def __init__(self, kind: str, group: str | None = None) -> None:
        self.kind = kind
        self._group = group
        self._targets: dict[str, T | str] = {}

    def register(self, name: str, target: T | str) -> None:
        """Add a target under `name`; a name can be taken once only."""
        if name in self._targets:
            raise ConfigError(f"{self.kind} '{name}' is registered twice; rename one of them.")
        self._targets[name] = target

    def names(self) -> list[str]:
        """Return all names, those of installed plug-ins included, sorted."""
        return sorted({*self._targets, *self._plugins()})

    def get(self, name: str, where: str = "") -> T:
        """Return the target called `name`; `where` goes into the error message."""
        target = self._targets.get(name)
        if target is None:
            plugin = self._plugins().get(name)
            if plugin is None:
                raise ConfigError(unknown_name(self.kind, name, self.names(), where))
            return self._load(plugin)
        return import_target(target) if isinstance(target, str) else target

    def origin(self, name: str) -> str | None:
        """Return package, version and code of the plug-in that brings `name`: "mine 1.2 0b1c".

        None: it is none of a plug-in.
        """
        if name in self._targets or (plugin := self._plugins().get(name)) is None:
            return None
        package = f"{plugin.dist.name} {plugin.dist.version}" if plugin.dist else "no package"
        return f"{package} {(hash_of_code(plugin.module) or 'no source')[:16]}"

    def _load(self, plugin: Any) -> T:
        try:
            return plugin.load()
        except Exception as error:  # whatever the plug-in's own code raises
            raise ConfigError(
                f"{self.kind} '{plugin.name}' cannot be imported from the installed plug-in "
                f"'{plugin.value}' ({error}); mend or uninstall it."
            ) from error

    def _plugins(self) -> dict[str, Any]:
        if self._group is None:
            return {}
        return {point.name: point for point in entry_points(group=self._group)}
