"""The errors a user can meet. Each carries one sentence: what, where, and what to do.

The command line prints the sentence without a traceback and exits with `exit_code`:
2 if the user can fix the problem, 75 if the machine is in trouble and the same command may succeed
later (a full disk, a lost lease), 143 if it was asked to stop. A failing editor is a result rather
than an error: the run says so in its `run.json`, and its command exits with 0.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GraceBenchError(Exception):
    """Base class of all errors that grace-bench raises on purpose."""

    exit_code = 2


class ConfigError(GraceBenchError):
    """A suite, an option or a name is wrong."""


class DataError(GraceBenchError):
    """A data set or a record file is missing, damaged or unsuitable."""


class ModelError(GraceBenchError):
    """A model cannot be loaded, or lacks a layer."""


class EditorError(GraceBenchError):
    """An editor cannot work with what it was given."""


class Diverged(EditorError):
    """A model produced non-finite numbers; after an edit this is a result of the run."""


class ResultError(GraceBenchError):
    """The machine is in trouble: results cannot be written, or another process has them."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


class Interrupted(GraceBenchError):
    """Work was asked to stop (SIGTERM, Ctrl-C); its progress is kept."""

    exit_code = 143  # what a shell reports for a process that SIGTERM ended


def unknown_name(kind: str, name: str, available: Iterable[str], where: str = "") -> str:
    """Return the message for an unknown name, with the nearest known one.

    >>> unknown_name("editor", "grce", ["grace", "defer"])
    "unknown editor 'grce'; did you mean 'grace'? Available: defer, grace"
    """
    names = sorted(available)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    listing = ", ".join(names) if len(names) <= 30 else ", ".join(names[:30]) + ", ..."
    place = f"{where}: " if where else ""
    return f"{place}unknown {kind} '{name}'{hint} Available: {listing or 'none'}"
