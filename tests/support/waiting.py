"""Waiting for what another process or thread does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def wait_until(
    condition: Callable[[], Found], seconds: float, what: str, every: float = 0.01
) -> Found:
    """Return what `condition` returns once that is true; an assertion fails if it stays false.

    Args:
        condition: is asked again and again.
        seconds: for so long.
        what: for the sentence.
        every: seconds between two questions.
    """
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(every)
    return found
