"""MLflow's own interface, in a real browser: our runs are listed, compared and charted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from grace_bench.reporting.mlflow.export import track
from grace_bench.reporting.mlflow.ui import ui_command, ui_environment

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
START_SECONDS, PAGE_SECONDS = 180, 90
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    # Nothing but the loopback interface resolves: the page must work without the network.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--window-size=1500,1200",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="chromium or chromedriver is not installed"
    ),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory, make_run: Callable[..., Path]) -> Any:
    results = tmp_path_factory.mktemp("ui")
    folders = [make_run(results, editor=editor) for editor in ("unedited", "ft", "grace")]
    suite = results / "synthetic"
    return track(folders, suite, f"sqlite:///{suite}/mlflow.db")


@pytest.fixture(scope="module")
def address(export: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    with open(log, "wb") as stream:
        server = subprocess.Popen(
            ui_command(export.tracking_uri, port=port),
            env=ui_environment(),
            cwd=log.parent,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_SECONDS
        while not _is_up(url):
            assert server.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.5)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SE_OFFLINE", "true")  # selenium must not look for drivers elsewhere
        driver = webdriver.Chrome(options=options, service=Service(executable_path=DRIVER))
    yield driver
    driver.quit()


def _wait(browser: Any, script: str) -> Any:
    """Return what `script` returns as soon as that is true."""
    deadline = time.monotonic() + PAGE_SECONDS
    while time.monotonic() < deadline:
        if found := browser.execute_script(script):
            return found
        time.sleep(0.5)
    pytest.fail(f"{script} stayed false; the page says: {browser.execute_script(BODY)[:1500]}")


BODY = "return document.body.innerText"


def _shows(*texts: str) -> str:
    return f"return {json.dumps(texts)}.every(t => document.body.innerText.includes(t))"


def test_the_experiment_lists_its_runs(address, browser, export):
    browser.get(f"{address}/#/experiments/{export.experiment_id}/runs")
    names = [f"{editor}, Facts QA" for editor in ("Unedited", "FT", "GRACE")]
    _wait(browser, _shows("7 matching runs", "suite synthetic", *names))
    assert "seed 0" not in browser.execute_script(BODY)  # folded: to select all compares editors


def test_two_runs_compare(address, browser, export):
    chosen = [f"facts-t5/facts-qa/{editor}/default" for editor in ("ft", "grace")]
    ids = json.dumps([export.runs[name]["mlflow_run_id"] for name in chosen])
    experiments = json.dumps([export.experiment_id])
    query = f"runs={ids}&experiments={experiments}".replace('"', "%22").replace(" ", "")
    browser.get(f"{address}/#/compare-runs?{query}")
    _wait(browser, _shows("Comparing 2 Runs", "FT, Facts QA", "GRACE, Facts QA"))
    _wait(browser, _shows("editor.name", "GRACE", "final/err"))


def test_a_metric_is_charted_edit_by_edit(address, browser, export):
    run = export.runs["facts-t5/facts-qa/grace/default/seed-0"]["mlflow_run_id"]
    browser.get(f"{address}/#/experiments/{export.experiment_id}/runs/{run}/model-metrics")
    # The data behind the drawn charts: plotly keeps it at its element.
    points = _wait(
        browser,
        """
        const plots = [...document.querySelectorAll(".js-plotly-plot")];
        const lines = plots.flatMap(p => p.data || []).filter(t => t.x && t.x.length === 24);
        const drawn = document.querySelectorAll(".scatterlayer .trace path.js-line").length;
        return drawn && lines.length ? lines.map(t => Array.from(t.x)) : null;
        """,
    )
    assert [round(x) for x in points[0]] == list(range(1, 25))
    _wait(browser, _shows("loss_last", "n_keys"))
