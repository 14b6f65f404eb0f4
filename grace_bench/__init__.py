"""grace-bench: a benchmark suite for lifelong model editing."""

__version__ = "0.1.0"

NUMERICS_VERSION = 5
"""Incremented with every change that alters a number in results; part of every run's hash."""
