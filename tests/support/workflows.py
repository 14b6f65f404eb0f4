"""Snakemake as a user starts it: in a folder, on the repository's Snakefile."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def snakemake(
    repository: Path, folder: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Run the repository's workflow in a folder, with more environment variables."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(repository / "Snakefile")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.run(
        [*command, "--directory", str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=1400,
        env=environment,
        check=False,
    )


def planned_jobs(repository: Path, folder: Path, *arguments: str) -> dict[str, int]:
    """Return how many jobs of each rule a dry run plans."""
    done = snakemake(repository, folder, "--dry-run", *arguments)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    if "Nothing to be done" in output:
        return {}
    table = output.split("Job stats:")[1].split("total")[0]
    return {name: int(n) for name, n in re.findall(r"^(\w+)\s+(\d+)\s*$", table, re.MULTILINE)}
