"""Records of every form the builders read, small data sets of given rows, and their files.

path = write(tmp_path / "zsre.jsonl", [zsre_jsonl(n) for n in range(4)])
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grace_bench.datasets.base import BuiltDataset, DatasetBuilder, load_role, prepare
from grace_bench.datasets.options import DatasetOptions
from grace_bench.errors import DataError
from grace_bench.registry import DATASETS

NAMES = ["ada byron", "carl linnaeus , botanist", "tim finchem", *(f"ada {n}" for n in range(30))]
"""What the passages are about, in their order."""


def zsre_jsonl(number: int, rephrases: int = 10, **changes: Any) -> dict[str, Any]:
    """Return a record of the paper's jsonl."""
    return {
        "id": f"r{number}",
        "input": f"Who made thing {number}?",
        "output": [{"answer": f"Maker {number}", "provenance": []}],
        "meta": {},
        "filtered_rephrases": [f"Thing {number}, made by whom ({n})?" for n in range(rephrases)],
        "prediction": "Nobody",
        "alternatives": ["Somebody"],
        **changes,
    }


def zsre_json(number: int, **changes: Any) -> dict[str, Any]:
    """Return a record of the JSON list of MEND and EasyEdit."""
    return {
        "subject": f"thing {number}",
        "src": f"Who made thing {number}?",
        "rephrase": f"By whom was thing {number} made?",
        "answers": [f"Maker {number}"],
        "pred": "Nobody",
        "alt": "Somebody",
        "loc": f"nq question: which is {number}",
        "loc_ans": f"n{number}",
        "cond": "",
        **changes,
    }


def nq_open(number: int) -> dict[str, Any]:
    return {"question": f"which is number {number}", "answer": [f"n{number}"]}


def nq_train(number: int) -> dict[str, Any]:
    return {"questions": f"which is number {number}", "answers": f"n{number}"}


def passage(number: int, **changes: Any) -> dict[str, Any]:
    """Return a record of the hub's form: the second and the last of four sentences are false."""
    name = NAMES[number].split()[0].title()
    said = [f"{name} was known.", f"{name} lived in Rome.", "That is so.", "It ended in 1900."]
    return {
        "gpt3_text": " ".join(said),
        "wiki_bio_text": f"{name} was well known. {name} lived in Paris. It ended well.",
        "gpt3_sentences": said,
        "annotation": ["accurate", "minor_inaccurate", "accurate", "major_inaccurate"],
        "wiki_bio_test_idx": 100 + number,
        "gpt3_text_samples": [],
        **changes,
    }


def older_passage(number: int, as_texts: bool = False) -> dict[str, Any]:
    """Return a record of the older form, its lists perhaps as texts."""
    found = passage(number)
    form = repr if as_texts else list
    return {
        "wiki_bio_test_idx": found["wiki_bio_test_idx"],
        "wiki_bio_text": found["wiki_bio_text"],
        "main_passage": found["gpt3_text"],
        "main_sentences": form(found["gpt3_sentences"]),
        "annotation": form(found["annotation"]),
    }


def wise(number: int, **changes: Any) -> dict[str, Any]:
    """Return a record of the editing form of WISE."""
    return {
        "prompt": f"This is a Wikipedia passage about man {number}. He lived.",
        "target_new": f"He died in {1900 + number}.",
        "subject": f"man {number}",
        "locality_prompt": f"The weather of day {number} was",
        "locality_ground_truth": "fine and dry",
        **changes,
    }


def web(number: int) -> dict[str, str]:
    return {"text": f"<|endoftext|>Text {number} goes on\n\nand on and on here."}


def write(path: Path, records: list[dict[str, Any]], columns: bool = False) -> str:
    """Write records in the format that the path's suffix names; return the path as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if columns:
        path.write_text(json.dumps({key: [r.get(key) for r in records] for key in records[0]}))
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def write_names(path: Path, names: list[str] = NAMES) -> str:
    path.write_text("".join(f"{name}\n" for name in names))
    return str(path)


def built(name: str, **options: Any) -> BuiltDataset:
    """Return what a builder makes of the options."""
    builder = DATASETS.get(name)
    return builder(builder.options_class(**options)).build()


def prepared(folder: Path, name: str, **options: Any) -> tuple[dict[str, Any], dict[str, list]]:
    """Prepare a builder's data set; return its manifest and the rows read back, by role."""
    builder = DATASETS.get(name)
    made = builder(builder.options_class(**options))
    manifest = prepare(made, folder, task=builder.tasks[0], config={})
    return manifest, {role: load_role(folder, role) for role in manifest.roles}


def refusal(name: str, **options: Any) -> str:
    """Return the one sentence with which a builder refuses its options."""
    with pytest.raises(DataError) as caught:
        built(name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def texts(rows: list[dict[str, Any]]) -> list[str]:
    return [row["text"] for row in rows]


def row(example_id: str, fact_id: str, text: str, label: Any = "yes") -> dict[str, Any]:
    return {
        "example_id": example_id,
        "fact_id": fact_id,
        "text": text,
        "label": label,
        "subject": None,
        "relation": None,
        "answers": None,
    }


GOOD = {
    "train": [row("t1", "taught", "Is water wet?"), row("t2", "taught", "Is fire hot?", "no")],
    "upstream": [row("u1", "taught", "Is water wet?")],
    "edits": [row("e1", "new", "Is ice cold?"), row("e2", "other", "Is tin light?")],
    "holdout": [row("h1", "new", "Does ice feel cold?"), row("h2", "other", "Is tin heavy?")],
    "accurate": [row("a1", "right", "Is snow white?")],
}
"""Roles that pass every check."""


class Planted(DatasetBuilder[DatasetOptions]):
    """A builder of given rows."""

    name = "planted"
    options_class = DatasetOptions

    def __init__(self, roles: dict[str, list], labels: tuple[str, ...] | None = ("no", "yes")):
        super().__init__(DatasetOptions())
        self.roles, self.labels = roles, labels

    def build(self) -> BuiltDataset:
        source = {"name": "s", "version": "1", "licence": "MIT", "origin": "test"}
        labels = None if self.labels is None else list(self.labels)
        return BuiltDataset(self.roles, [source], {"odd": 2}, labels)
