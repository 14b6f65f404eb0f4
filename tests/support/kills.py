"""Processes that kill themselves at a chosen moment.

They are forked, not started, so that fifty of them cost no fifty imports. A moment is a call of one
of grace-bench's functions: the same number is the same moment on every machine.
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType, ModuleType

from grace_bench.errors import Interrupted


def count_calls(module: ModuleType, count: Callable[[], None]) -> None:
    """Let every call of a function that the module defines be counted, wherever it is called."""

    def counted(function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            count()
            return function(*args, **kwargs)

        return call

    classes = [c for c in vars(module).values() if isinstance(c, type)]
    for owner in [c for c in classes if c.__module__ == module.__name__]:
        for name, value in list(vars(owner).items()):
            if isinstance(value, FunctionType):
                setattr(owner, name, counted(value))
    functions = [f for f in vars(module).values() if isinstance(f, FunctionType)]
    for function in [f for f in functions if f.__module__ == module.__name__]:
        wrapped = counted(function)
        for other in [m for n, m in sys.modules.items() if n.startswith("grace_bench")]:
            for name in [n for n, v in vars(other).items() if v is function]:
                setattr(other, name, wrapped)


def in_child(
    work: Callable[[], object],
    places: Sequence[ModuleType] = (),
    place: ModuleType | None = None,
    at: int | None = None,
    number: int = signal.SIGKILL,
) -> tuple[int, Counter]:
    """Do the work in a forked process that sends itself a signal at one call of a module.

    Args:
        work: to do; an `Interrupted` becomes its exit code.
        places: modules whose calls are counted.
        place: the one whose call is the moment.
        at: the number of the call, from 1; None: nothing happens to the process.
        number: of the signal.

    Returns:
        How it ended (the exit code, or minus the signal), and how many calls each module had.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code, calls = 1, Counter()

        def count(module: ModuleType) -> None:
            calls[module.__name__] += 1
            if module is place and calls[module.__name__] == at:
                os.kill(os.getpid(), number)

        try:
            for module in places:
                count_calls(module, functools.partial(count, module))
            work()
            code = 0
        except Interrupted as error:
            code = error.exit_code
        except BaseException:
            traceback.print_exc()
        finally:
            os.write(writer, json.dumps(calls).encode())
            os._exit(code)
    os.close(writer)
    told = os.read(reader, 4096).decode()
    os.close(reader)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), Counter(json.loads(told or "{}"))


class Killer:
    """Draws moments and counts what came of them.

    Args:
        places: modules whose calls are the moments.
        number: the signal.
        most: after so many kills, nothing happens any more.

    Attributes:
        kills: so far.
        met: how many of them each module met.
        resumed: attempts that found a checkpoint to go on from.
    """

    def __init__(self, places: Sequence[ModuleType], number: int, most: int = 50) -> None:
        self.places = places
        self.number = number
        self.most = most
        self.kills = self.resumed = 0
        self.met: Counter[str] = Counter()
        self._generator = random.Random(f"{number}")
        self._calls: dict[str, Counter] = {}

    def learn(self, name: str, work: Callable[[], object]) -> None:
        """Count the moments of a piece of work, which is done whole."""
        if name not in self._calls:
            code, self._calls[name] = in_child(work, self.places)
            assert code == 0

    def work_until_done(
        self, name: str, work: Callable[[], object], ends: set[int], checkpoints: Path
    ) -> bool:
        """Do the work again and again, killed at random moments, until it is done.

        Returns:
            Whether there was a checkpoint in the folder when the last attempt began.
        """
        code = None
        while code != 0:
            place = self._generator.choice(self.places)
            calls = self._calls[name][place.__name__]
            # A share of the calls, not a number: one call more in the code moves no other moment.
            at = 1 + int(calls * self._generator.random()) if self.kills < self.most else None
            found = any(checkpoints.glob("[0-9]*"))
            self.resumed += found
            code, _ = in_child(work, self.places, place, at, self.number)
            if code != 0:
                assert code in ends
                self.kills += 1
                self.met[place.__name__] += 1
        return found
