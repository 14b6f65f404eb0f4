"""Fixtures for all tests. Real records and reference traces lie where GRACE_BENCH_SHARED points."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections import Counter
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

SHARED = os.environ.get("GRACE_BENCH_SHARED", "")
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real records and reference traces; skips where there is none."""
    if not SHARED or not Path(SHARED).is_dir():
        pytest.skip("GRACE_BENCH_SHARED does not point to the folder of real records")
    return Path(SHARED)


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def uncounted():
    """Count no lines meanwhile, which makes thousands of cases take three times as long.

    The plugin's own `no_cover` does nothing in a process of several (`-n`).
    """
    trace = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(trace)


@pytest.fixture(scope="module")
def short_answers():
    """Let no answer have more than one token: an untrained model never stops by itself."""
    from grace_bench.tasks.kinds.question_answering import QuestionAnswering

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QuestionAnswering, "max_new_tokens", 1)
        patch.setattr(QuestionAnswering, "most_new_tokens", 1)
        yield


@pytest.fixture(scope="module")
def small_inputs(short_answers, tmp_path_factory) -> tuple[Path, Path, Path]:
    """Folders of the data, the model and the baseline of very small runs (`small_runs.spec`)."""
    from small_runs import prepare_inputs

    return prepare_inputs(tmp_path_factory.mktemp("small"))


_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Tests that reach for the network fail at once, and say what they wanted."""
    connect = socket.socket.connect

    def guarded(self, address):
        if isinstance(address, tuple) and address[0] not in _LOOPBACK:
            raise AssertionError(f"a test wants the network: {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


FOLDER_MARKERS = ("slurm", "workflow", "fuzz")
"""Folders whose tests have a marker of the folder's name."""


def pytest_collection_modifyitems(items):
    """Mark tests by folder, and start the longest first: clusters, then whole workflows."""
    for item in items:
        folder = item.path.parent.name
        if folder in FOLDER_MARKERS:
            item.add_marker(folder)
    order = {"slurm": 0, "workflow": 1}
    items.sort(key=lambda item: order.get(item.path.parent.name, 2))


def pytest_terminal_summary(terminalreporter):
    """Say which tests were skipped, why, and how to have them; in CI a skip is a failure."""
    reasons = Counter(report.longrepr[2] for report in terminalreporter.stats.get("skipped", []))
    if not reasons:
        return
    terminalreporter.section("skipped tests")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count:5} {reason.removeprefix('Skipped: ')}")
    terminalreporter.write_line("CONTRIBUTING.md says what they need and how to install it.")


def pytest_sessionfinish(session):
    """In CI a skipped test is a failure: everything that tests need is there."""
    if os.environ.get("GRACE_BENCH_NO_SKIPS") != "1":
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if skipped and session.exitstatus == 0:
        session.exitstatus = 1
        reporter.write_line(f"error: {len(skipped)} tests were skipped, none may be here", red=True)


@pytest.fixture
def ctrl_c():
    """Ctrl-C does what it does at a terminal: a job in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
