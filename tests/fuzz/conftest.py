"""What all fuzz tests share: a fence around the files, a memory limit, a count of cases."""

from __future__ import annotations

import resource

import pytest
from fuzzing import Fence

MEMORY = 2**30  # bytes a test may take beyond what the process already uses

_executed: dict[str, int] = {}


@pytest.fixture(scope="module")
def fence(tmp_path_factory) -> Fence:
    """A working folder, and files beside it that must not change."""
    return Fence(tmp_path_factory.mktemp("fence"))


@pytest.fixture(autouse=True)
def _within_memory(uncounted):
    """Limit memory: a small file that claims a huge size must not be given it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as stream:
        taken = int(stream.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(autouse=True)
def _all_cases_are_executed(request):
    """Check that each test executed the number of cases it states."""
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
