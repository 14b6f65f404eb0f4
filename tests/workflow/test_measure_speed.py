"""`make speed` in very small: it measures, and fills a page and draws a picture."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys


def run(repository, script: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, str(repository / "workflow" / "scripts" / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_speed_is_measured_and_reported(repository, tmp_path):
    speed, docs = tmp_path / "speed.json", tmp_path / "docs"
    sizes = ["--keys", "0", "50", "--steps", "4", "--steps-with-keys", "2", "--rounds", "1"]
    less = ["--tiny", "--upstream", "16", "--edits", "2"]
    run(repository, "measure_speed.py", "--output", str(speed), *sizes, *less)
    records = json.loads(speed.read_text())["records"]
    edits = [record for record in records if record["what"] == "edit"]
    assert {(r["model"], r["keys"]) for r in edits} == {
        (model, keys) for model in ("T5-small", "BERT-base", "GPT-2 small") for keys in (0, 50)
    }
    assert all(r[way] > 0 for r in edits for way in ("straightforward", "replay", "lean"))
    shutil.copytree(repository / "docs/results", docs / "results")
    run(repository, "render_speed.py", str(tmp_path), str(docs))
    page = (docs / "results/speed.md").read_text()
    for record in edits:
        assert f"| {record['model']} | {record['keys']} | {record['steps']} | " in page
        assert f" {record['straightforward']:.2f} " in page
    assert "<svg" in (docs / "images" / "speed.svg").read_text()
