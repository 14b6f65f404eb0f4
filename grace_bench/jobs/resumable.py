"""One loop for all long work: checkpoints on schedule, a stop on request, resuming afterwards.

    loop = ResumableLoop(training, checkpoints, CheckpointPolicy(minutes=5), steps, "training")
    loop.restore()                    # from the newest checkpoint, if there is one
    with loop.guard() as after_step:
        while not training.finished:
            training.make_step()
            after_step()              # writes a checkpoint when one is due; raises Interrupted

Work that was stopped or killed resumes from its newest checkpoint and ends with the same bits.
Torch-free.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from grace_bench.errors import Interrupted, ResultError

if TYPE_CHECKING:
    from grace_bench.jobs.checkpoints import Checkpoint, Checkpoints

logger = logging.getLogger(__name__)

CHECKPOINT_MINUTES = 2.0
"""Default time between two checkpoints."""

LARGEST_SHARE = 0.02
"""Largest share of the work's time spent on checkpoints."""


class Resumable(Protocol):
    """Work made of steps.

    Attributes:
        done: steps made so far, those before an interruption included.
        finished: whether there is nothing left to do.
    """

    done: int
    finished: bool

    def checkpoint(self) -> Checkpoint:
        """Return everything that the steps to come depend on."""

    def restore(self, found: Checkpoint, *inputs: Any) -> None:
        """Return to the state in which a checkpoint was taken."""


@dataclass(frozen=True)
class CheckpointPolicy:
    """When to write checkpoints.

    Args:
        minutes: between two checkpoints; longer where writing one would take more than
            `LARGEST_SHARE` of the time. 0: only on a request to stop.
        steps: write one at least every `steps` steps, whatever the cost; None: no such limit.
    """

    minutes: float = CHECKPOINT_MINUTES
    steps: int | None = None


class ResumableLoop:
    """Runs work under a checkpoint policy.

    Args:
        work: what to run.
        checkpoints: where its state goes; None: the work cannot be resumed.
        policy: when to write checkpoints.
        steps: total number of steps, for messages.
        name: of the work, for messages: "the run".
        started: when this process began the work, by `time.perf_counter`; None: now.

    Attributes:
        restarts: steps of the checkpoints from which the work was resumed.
        checkpoint_seconds: time spent on writing checkpoints.
        seconds_before: time spent in earlier processes.
    """

    def __init__(
        self,
        work: Resumable,
        checkpoints: Checkpoints | None,
        policy: CheckpointPolicy,
        steps: int,
        name: str,
        started: float | None = None,
    ) -> None:
        self.work = work
        self.checkpoints = checkpoints
        self.policy = policy
        self.steps = steps
        self.name = name
        self.restarts: list[int] = []
        self.checkpoint_seconds = self.seconds_before = 0.0
        self._written = time.perf_counter()
        self._started = self._written if started is None else started
        self._written_at = 0
        self._last_cost = 0.0

    @property
    def seconds(self) -> float:
        """Time spent on the work, interruptions excluded."""
        return self.seconds_before + time.perf_counter() - self._started

    def restore(self, *inputs: Any) -> None:
        """Resume from the newest checkpoint, if there is one; `inputs` go to `work.restore`."""
        if self.checkpoints is None or (found := self.checkpoints.latest()) is None:
            return
        with self.checkpoints.restoring(found):
            self.work.restore(replace(found, state=found.state["work"]), *inputs)
            own = found.state["loop"]
            self.restarts = [*own["restarts"], self.work.done]
            self.checkpoint_seconds = own["checkpoint_seconds"]
            self.seconds_before = own["seconds"]
        self._written_at = self.work.done
        logger.info("resuming from the checkpoint of step %d", self.work.done)

    @contextmanager
    def guard(self) -> Iterator[Callable[[], None]]:
        """Yield the function to call after each step."""
        if (checkpoints := self.checkpoints) is None:
            yield lambda: None
            return
        self._written = time.perf_counter()
        with stop_requests() as stop_requested:
            yield lambda: self._after_step(checkpoints, stop_requested())

    def write(self, checkpoints: Checkpoints) -> None:
        """Write a checkpoint of the last step.

        Raises:
            ResultError: it cannot be written.
        """
        before = time.perf_counter()
        made = self.work.checkpoint()
        loop = {
            "restarts": self.restarts,
            "checkpoint_seconds": self.checkpoint_seconds,
            "seconds": self.seconds,
        }
        state = {"work": made.state, "loop": loop}
        checkpoints.write(replace(made, state=state))
        self._last_cost = time.perf_counter() - before
        self.checkpoint_seconds += self._last_cost

    def _after_step(self, checkpoints: Checkpoints, stopping: bool) -> None:
        if stopping:
            self.write(checkpoints)
            raise Interrupted(
                f"{self.name} was asked to stop and stopped after step {self.work.done} of "
                f"{self.steps}; run the same command again to resume."
            )
        if self.work.finished or not self._is_due():
            return
        try:
            self.write(checkpoints)
        except ResultError as error:
            logger.warning("no checkpoint at step %d, continuing: %s", self.work.done, error)
        self._written, self._written_at = time.perf_counter(), self.work.done

    def _is_due(self) -> bool:
        policy = self.policy
        if policy.steps is not None and self.work.done - self._written_at >= policy.steps:
            return True
        pause = max(60 * policy.minutes, self._last_cost / LARGEST_SHARE)
        return policy.minutes > 0 and time.perf_counter() - self._written >= pause


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Defer SIGTERM and Ctrl-C; yield the function that says whether one has arrived.

    Schedulers send SIGTERM some seconds before they kill a job: time for a checkpoint. A request
    that the block does not answer with an exception takes its usual effect afterwards; a second
    Ctrl-C takes effect at once. Only the main thread of a process can do this; in other threads
    nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _: object) -> None:
        came.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, before[signal.SIGINT])

    # A shell's background job ignores Ctrl-C, and keeps ignoring it.
    caught = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in caught:
        signal.signal(number, note)
    try:
        yield lambda: bool(came)
    finally:
        for number in caught:
            signal.signal(number, before[number])
    if came:
        signal.raise_signal(came[0])
