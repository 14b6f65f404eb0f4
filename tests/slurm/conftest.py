"""The cluster that all tests in this folder share."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from loopback import PROGRAMS, Cluster


@pytest.fixture(scope="session")
def cluster(shared) -> Cluster:
    """A Slurm cluster of two nodes; skips where its programs or scripts are not there."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs Slurm: no {', '.join(missing)} on PATH (.ci/run installs it)")
    if not (shared / "slurm" / "start.sh").is_file():
        pytest.skip("the scripts that start Slurm are not in the folder of real records")
    cluster = Cluster(shared / "slurm")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
