"""The commands: `grace-bench <command>`, or `python -m grace_bench <command>`. No logic here.

Exit codes: 0 done; 2 the user can fix the problem (the message says how); 75 the machine is in
trouble (retry); 143 asked to stop (the same command resumes); 1 anything else. A run whose editor
failed counts as done: the failure is its result.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from grace_bench import __version__
from grace_bench.cli import inspect  # noqa: F401  (registers its commands)
from grace_bench.cli.commands import COMMANDS
from grace_bench.errors import GraceBenchError, Interrupted, ResultError
from grace_bench.store.files import describe_os_error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    for name in ("httpx", "fontTools"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the network is for those who ask for it
    try:
        options.run(options)
        sys.stdout.flush()
    except GraceBenchError as error:
        if options.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # whoever reads the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if options.debug:
            raise
        place = error.filename or "a file"
        print(f"error: {describe_os_error(place, error)}", file=sys.stderr)
        return ResultError.exit_code
    except KeyboardInterrupt:
        print("error: interrupted; rerun the same command to resume.", file=sys.stderr)
        return Interrupted.exit_code
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="grace-bench", description="A benchmark suite for lifelong model editing."
    )
    parser.add_argument("--version", action="version", version=f"grace-bench {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for function, options in COMMANDS:
        name = function.__name__.rstrip("_").replace("_", "-")
        text = (function.__doc__ or "").partition("\n")[0]
        one = commands.add_parser(name, help=text, description=text)
        one.set_defaults(run=function)
        one.add_argument("--debug", action="store_true", help="show the traceback of an error")
        for names, settings in options:
            one.add_argument(*names, **settings)
    return parser
