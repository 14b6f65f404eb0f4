"""What all fuzz tests share: a fence around the files, a limit of memory, and a count of cases."""

from __future__ import annotations

import resource

import pytest
from fuzzing import Fence

MEMORY = 2**30  # bytes that a test may take beside what the process has

_executed: dict[str, int] = {}


@pytest.fixture(scope="module")
def fence(tmp_path_factory) -> Fence:
    """A folder to work in, with files beside it that must stay as they are."""
    return Fence(tmp_path_factory.mktemp("fence"))


@pytest.fixture(autouse=True)
def _within_memory(uncounted):
    """Refuse more memory than any of these small files is worth: a lying size cannot be taken."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as stream:
        taken = int(stream.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(autouse=True)
def _all_cases_are_executed(request):
    """Check that as many cases were executed as the test says."""
    test = request.function
    if not hasattr(test, "wanted"):
        yield
        return
    test.executed = 0
    yield
    _executed[request.node.nodeid] = test.executed
    assert test.executed >= test.wanted


def pytest_terminal_summary(terminalreporter):
    if _executed:
        total = sum(_executed.values())
        terminalreporter.write_line(f"fuzz: {total} cases in {len(_executed)} tests")
