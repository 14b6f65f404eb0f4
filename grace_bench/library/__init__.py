"""Editing one model from Python, outside any suite."""

from grace_bench.library.edited_model import EditedModel
from grace_bench.library.records import Explanation, Receipt

__all__ = ["EditedModel", "Explanation", "Receipt"]
