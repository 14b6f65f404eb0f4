"""Editing one model from Python, outside any suite, and the edited models of a suite's runs."""

from grace_bench.library.edited_model import EditedModel
from grace_bench.library.records import Explanation, Receipt
from grace_bench.library.runs import load_run

__all__ = ["EditedModel", "Explanation", "Receipt", "load_run"]
