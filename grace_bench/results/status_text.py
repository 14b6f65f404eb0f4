"""The status of a suite as text, once or repeatedly. Torch-free."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from grace_bench.errors import ConfigError
from grace_bench.results.status import STATES, InputStatus, RunStatus, StatusReader, SuiteStatus

MOST_LISTED = 50  # runs of one state, one by one
LONGEST_MESSAGE = 300  # characters of why one failed
CLEAR = "\x1b[H\x1b[2J\x1b[3J"


def render(status: SuiteStatus) -> str:
    """Return a status as text: totals, a table, and the runs that may need attention."""
    totals = ", ".join(f"{n} {state}" for state, n in status.counts.items() if n)
    lines = [f"suite {status.suite}: {len(status.runs)} runs" + (f": {totals}" if totals else "")]
    lines += ["", *_render_groups(status), "", *_render_inputs(status.inputs)]
    for state in ("running", "dead", "waiting", "failed"):
        runs = [run for run in status.runs if run.state == state]
        if runs:
            lines += ["", f"{state} ({STATES[state]}):"]
            lines += [f"  {run.id}  {_details(run)}" for run in runs[:MOST_LISTED]]
        if len(runs) > MOST_LISTED:
            lines.append(f"  and {len(runs) - MOST_LISTED} more; --json lists all")
    if noted := sum(run.state == "left" and run.note is not None for run in status.runs):
        lines += ["", f"{noted} of those left were run with other settings, data, code or weights"]
    return "\n".join(lines) + "\n"


def _render_groups(status: SuiteStatus) -> Iterator[str]:
    shown = [state for state, n in status.counts.items() if n] or list(STATES)
    rows = [("model", "data set", "editor", "runs", *shown)]
    for name, counts in status.groups().items():
        numbers = [sum(counts.values()), *(counts[state] for state in shown)]
        padded = (*name, "", "", "")[:3]
        rows.append((*padded, *(str(n) if n else "." for n in numbers)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            text.ljust(width) if index < 3 else text.rjust(width)
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _render_inputs(inputs: Sequence[InputStatus]) -> Iterator[str]:
    for kind in dict.fromkeys(item.kind for item in inputs):
        of_kind = [item for item in inputs if item.kind == kind]
        present = sum(item.state == "present" for item in of_kind)
        line = f"{kind if kind == 'assets' else f'{kind}s'}: {present} of {len(of_kind)}"
        for state in ("being made", "outdated", "missing"):
            names = [item.name for item in of_kind if item.state == state]
            if names:
                more = f" and {len(names) - 10} more" if len(names) > 10 else ""
                line += f"; {state}: {', '.join(names[:10])}{more}"
        yield line


def _details(run: RunStatus) -> str:
    """Return the details of a run that is neither finished nor left."""
    parts = []
    if run.state == "failed":
        parts.append(f"at step {run.step}" if run.step else "before the first step")
        message = run.message or ""
        if len(message) > LONGEST_MESSAGE:
            message = message[:LONGEST_MESSAGE] + "..."
        parts += [message] if message else []
        return ": ".join(parts)
    if run.step is not None:
        parts.append(f"step {run.step}" + ("" if run.steps is None else f" of {run.steps}"))
    elif run.state == "running":
        parts.append("preparing")
    if run.edits is not None:
        parts.append(f"{run.edits} edits")
    if run.state == "running":
        parts += [] if run.seconds_left is None else [f"{duration(run.seconds_left)} left"]
        parts += [f"{run.holder}", f"last seen {duration(run.heartbeat_seconds or 0)} ago"]
    elif run.state == "dead":
        parts.append(f"{run.holder}, last seen {duration(run.heartbeat_seconds or 0)} ago")
    if run.state in ("dead", "waiting"):
        start = "from the start" if run.checkpoint is None else f"after step {run.checkpoint}"
        parts.append(f"rerun to resume {start}")
    return ", ".join(parts + ([run.note] if run.note else []))


def duration(seconds: float) -> str:
    """Return seconds in words: "45 s", "3 min", "2 h 5 min", "3 d 4 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def show(
    reader: StatusReader,
    out: TextIO,
    as_json: bool = False,
    every: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Write the status once or, with `every`, repeatedly until nothing is left to do.

    A terminal is cleared in between. JSON that is repeated has one status per line.

    Args:
        reader: reads the status.
        out: where to write.
        as_json: write JSON instead of text.
        every: seconds between two statuses.
        sleep: waits for that long.

    Raises:
        ConfigError: `every` is not between 0.1 and 86400.
    """
    if every is not None and not 0.1 <= every <= 86400:
        raise ConfigError(f"--watch {every:g}: must be between 0.1 and 86400 seconds.")
    while True:
        status = reader.read_status()
        if as_json:
            indent = 2 if every is None else None
            out.write(json.dumps(status.as_json(), indent=indent, ensure_ascii=True) + "\n")
        else:
            clear = CLEAR if every is not None and out.isatty() else ""
            when = "" if every is None else f"{status.time}\n"
            out.write(f"{clear}{when}{render(status)}" + ("\n" if every and not clear else ""))
        out.flush()
        if every is None or status.is_done:
            return
        sleep(every)
