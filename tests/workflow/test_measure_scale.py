"""The script that measures the workflow at scale, at a very small one."""

from __future__ import annotations

import subprocess
import sys

from grace_bench.store.files import read_json


def test_measures_are_written_beside_their_targets(repository, tmp_path):
    output = tmp_path / "speed" / "scale.json"
    script = repository / "workflow" / "scripts" / "measure_scale.py"
    command = [sys.executable, str(script), "--output", str(output)]
    command += ["--runs", "20", "--step-rows", "20000"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = read_json(output)
    assert 15 <= written["runs"] <= 30
    assert written["step_rows"] == 20000
    assert written["machine"]["cpus"] > 0
    found = {row["name"]: row for row in written["results"]}
    assert {name: (row["target"], row["unit"]) for name, row in found.items()} == {
        "dry run": (90, "s"),
        "dry run, CPU": (None, "s"),
        "dry run, peak memory": (4096, "MiB"),
        "reports": (60, "s"),
        "reports, CPU": (None, "s"),
        "reports: summarise": (None, "s"),
        "reports: tables": (None, "s"),
        "reports: figures": (None, "s"),
        "reports, peak memory": (4096, "MiB"),
    }
    assert all(row["measured"] > 0 for row in found.values())
    assert list(tmp_path.iterdir()) == [output.parent]
