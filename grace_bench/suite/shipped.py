"""Where the workflow and the configuration that come with grace-bench are.

`grace_bench/shipped/` holds links to the clone's `config/`, `workflow/` and `environment.yml`,
which the rules name; a wheel holds the files themselves. No other module knows where they are, and
a clone and an installation work alike:

    from grace_bench.suite.shipped import SNAKEFILE
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parents[1] / "shipped"

CONFIG = (_FOLDER / "config").resolve()
"""Models, data sets, editors and suites, searched after the user's own `config/`."""

SNAKEFILE = (_FOLDER / "workflow" / "Snakefile").resolve()
"""The workflow, for a Snakemake `module`."""

PROFILES = SNAKEFILE.parent / "profiles"
"""Snakemake's profiles for one machine, for GPUs and for Slurm."""
