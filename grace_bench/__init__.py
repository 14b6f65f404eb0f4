"""grace-bench: a benchmark suite for lifelong model editing."""

__version__ = "0.1.0"

NUMERICS_VERSION = 5
"""Raised whenever a change of ours moves a number in a result; part of every run's hash."""
