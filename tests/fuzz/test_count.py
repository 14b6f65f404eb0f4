"""How many cases the fuzz tests have; that each is executed is checked beside every test."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from fuzzing import cases
from hypothesis import strategies as st

WANTED = 2000


def cases_in(path: Path) -> list[int]:
    """The numbers in `@cases(n, ...)` of one file."""
    calls = [
        decorator
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "cases"
    ]
    return [call.args[0].value for call in calls]


def test_there_are_enough_cases():
    counts = {path.name: cases_in(path) for path in Path(__file__).parent.glob("test_*.py")}
    assert sum(map(sum, counts.values())) >= WANTED, counts


@pytest.mark.parametrize("n", [7, 30])
def test_every_case_that_is_asked_for_is_executed(n):
    seen = []

    @cases(n, number=st.integers())
    def drawn(number):
        seen.append(number)

    drawn()
    assert drawn.executed == len(seen) == drawn.wanted == n
