"""Data sets by name. A new one is one module with a `DatasetBuilder` and one line here.

Importing this package imports none of the builders, and importing a builder imports neither
pandas nor torch nor `datasets`:

    builder_class = DATASETS.get("facts_qa")
    builder = builder_class(builder_class.options_class(seed=1))
    manifest = prepare(builder, folder, task="question_answering", config={})
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from grace_bench.registry import Registry

if TYPE_CHECKING:
    from typing import Any

    from grace_bench.datasets.base import DatasetBuilder

DATASETS: Registry[type[DatasetBuilder[Any]]] = Registry(
    "data set builder", group="grace_bench.datasets"
)

for _name, _target in (
    ("facts_passages", "facts_passages:FactsPassages"),
    ("facts_qa", "facts_qa:FactsQa"),
    ("facts_topics", "facts_topics:FactsTopics"),
    ("hallucination", "hallucination:Hallucination"),
    ("scotus", "scotus:Scotus"),
    ("table", "table:Table"),
    ("zsre", "zsre:Zsre"),
):
    DATASETS.register(_name, f"grace_bench.datasets.{_target}")
