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
from grace_bench.reporting.summary.write import summarise

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
    editors = ("unedited", "ft", "grace")
    folders = [make_run(results, editor=editor, seed=seed) for editor in editors for seed in (0, 1)]
    suite = results / "synthetic"
    (suite / "report.html").write_text("<h1>The report of all</h1>")
    summarise(folders, suite / "summary.parquet")
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


SETTINGS = [f"{editor}, Facts QA" for editor in ("Unedited", "FT", "GRACE")]


def test_the_experiment_lists_parents_with_their_seeds_folded(address, browser, export):
    browser.get(f"{address}/#/experiments/{export.experiment_id}/runs")
    _wait(browser, _shows("10 matching runs", "suite synthetic", *SETTINGS))
    assert "seed 0" not in browser.execute_script(BODY)


COLUMNS = """
const place = head => head.getBoundingClientRect().left;
const heads = [...document.querySelectorAll(".ag-header-cell")];
const shown = heads.sort((a, b) => place(a) - place(b)).map(head => head.innerText.trim());
return shown.filter(text => text.startsWith("final/"));
"""
"""Columns of final metrics, from left to right: ag-grid moves them without moving the elements."""

SELECT_ALL_AND_COMPARE = """
const all = document.querySelector(".ag-header-cell input[type=checkbox]");
const compare = [...document.querySelectorAll("button")].find(b => b.innerText.trim() == "Compare");
if (compare) compare.click();
// A click is lost while the table is still being laid out.
else if (all && !document.querySelector(".ag-row-selected")) all.click();
return Boolean(compare);
"""


def test_a_view_compares_editors_by_select_all_and_compare(address, browser, export):
    (key,) = export.views.values()
    browser.get(f"{address}/#/experiments/{export.experiment_id}/runs?viewStateShareKey={key}")
    # Scores are columns in the order of our tables; the suite's own run is not in the view.
    _wait(browser, _shows("9 matching runs", *SETTINGS, "final/es", "final/err", "final/trr"))
    assert "suite synthetic" not in browser.execute_script(BODY)
    order = _wait(browser, COLUMNS)
    assert order[:3] == ["final/es", "final/err", "final/trr"]
    grace = export.runs["facts-t5/facts-qa/grace/default"]["mlflow_run_id"]
    cell = f".ag-row[row-id='{grace}'] [col-id='metrics.`final/trr`']"
    text = _wait(browser, f"return document.querySelector({json.dumps(cell)})?.innerText")
    assert 0 < float(text) <= 1

    _wait(browser, SELECT_ALL_AND_COMPARE)
    _wait(browser, _shows("Comparing 3 Runs", *SETTINGS))
    _wait(
        browser, _shows("editor.name", "GRACE", "final/avg", "final/err")
    )  # the table draws its top


def test_a_run_leads_to_the_report(address, browser, export):
    run = export.runs["facts-t5/facts-qa/ft/default"]["mlflow_run_id"]
    browser.get(f"{address}/#/experiments/{export.experiment_id}/runs/{run}")
    _wait(browser, _shows("Means over 2 seeds."))
    link = "[...document.querySelectorAll('a')].find(a => a.innerText == 'Report of the suite')"
    browser.get(_wait(browser, f"return {link}?.href"))
    browser.switch_to.frame(_wait(browser, "return document.querySelector('iframe')"))
    _wait(browser, _shows("The report of all"))
    browser.switch_to.default_content()


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
