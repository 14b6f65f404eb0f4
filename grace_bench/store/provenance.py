"""Where a result comes from: versions, code state, machine. Torch-free."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from grace_bench import NUMERICS_VERSION, __version__

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "safetensors",
    "numpy",
    "pyarrow",
)


@cache
def git_state() -> dict[str, Any]:
    """Return the commit of the running code and whether it has changes; None without git.

    An installed package is in no commit, even if its environment lies in somebody's repository.
    Only changes to the package count, untracked files included. A suite's settings are in each
    run's record, and the code of plug-ins in its origins.
    """
    folder = Path(__file__).parents[1]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    known = git("ls-files", "--error-unmatch", "--", __file__) is not None
    commit = git("rev-parse", "HEAD") if known else None
    changes = git("status", "--porcelain", "--untracked-files=all", "--", ".") if commit else None
    return {
        "git_commit": commit,
        "git_dirty": None if changes is None else bool(changes),
    }


def package_versions(names: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Return the versions of the installed packages among `names`."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def describe() -> dict[str, Any]:
    """Return the provenance block of result files."""
    return {
        "grace_bench": __version__,
        "numerics_version": NUMERICS_VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
        **package_versions(),
        **git_state(),
    }


def peak_memory_mib() -> float:
    """Return the peak resident size of this process, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)
