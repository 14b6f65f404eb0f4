"""`scotus`: Supreme Court opinions with their topics: older ones retained, later ones the stream.

    ScotusOptions(upstream={"path": "tomh/grace-scotus", "revision": "main", "split": "train"},
                  edits={"path": "tomh/grace-scotus", "revision": "main", "split": "test"})

Both splits may come from the hub, from a local copy, or from two files. Every row is its own fact.
For a single table with a column of terms, use the builder `table`.

- upstream: the older cases, or a sample of them.
- train: cases to train a base model on: those of the option `train`, by default all older cases.
- edits: the later cases in the order of their file. holdout, accurate: empty.

Later cases whose label is not a class, and cases that repeat a text or lack a text or a label, are
dropped and counted. A text that is both older and later stays in the stream only.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pydantic import Field

from grace_bench.datasets.base import BuiltDataset, DatasetBuilder
from grace_bench.datasets.options import SOURCE_KEYS, DatasetOptions, Source
from grace_bench.datasets.reading.fields import (
    complete,
    form_of,
    repeated,
    row_of,
    same_text,
    text_of,
    unfit,
)
from grace_bench.datasets.reading.files import read_records
from grace_bench.errors import DataError


class ScotusOptions(DatasetOptions):
    """Options of `scotus`."""

    upstream: Source = Field(description=f"Older cases: text, label {SOURCE_KEYS}.")
    edits: Source = Field(
        description=f"Later cases, the stream in their order: text, label {SOURCE_KEYS}."
    )
    train: Source | None = Field(
        default=None,
        description="Cases a base model is trained on; null = all cases of `upstream`.",
    )
    text_column: str = Field(default="text", description="Column of the text.")
    label_column: str = Field(default="label", description="Column of the label.")
    upstream_size: int | None = Field(
        default=None, ge=1, description="Size of a random sample for `upstream`; null = all cases."
    )
    classes: list[int | str] | None = Field(
        default=None,
        min_length=2,
        description="Classes in the order of the model's outputs; null = those of `train`, sorted "
        "as numbers or as text. A pretrained head needs its own.",
    )


@dataclass(frozen=True)
class Case:
    """One case: its place in the source, its text, its label as a string."""

    number: str
    text: str
    label: str


class Scotus(DatasetBuilder[ScotusOptions]):
    """Classification of opinions, the later ones as a stream of edits."""

    name = "scotus"
    options_class = ScotusOptions
    tasks = ("classification",)

    def build(self) -> BuiltDataset:
        """Read all splits and make all rows."""
        options = self.options
        dropped: Counter[str] = Counter()
        edits, edits_entry = self._read(options.edits, "stream", dropped)
        older, older_entry = self._read(options.upstream, "older", dropped)
        sources = [older_entry, edits_entry]
        streamed = {same_text(case.text) for case in edits}
        train = older = _apart(older, streamed, dropped)
        if options.train is not None:
            train, entry = self._read(options.train, "train", dropped)
            train = _apart(train, streamed, dropped)
            sources.append(entry)
        classes = self._classes(train)
        roles = {"train": train, "upstream": older, "edits": edits}
        for role, cases in roles.items():
            roles[role] = [case for case in cases if case.label in classes]
            dropped[f"{role} row whose label is not a class"] += len(cases) - len(roles[role])
        older, size = roles["upstream"], options.upstream_size
        if size is not None and size < len(older):
            dropped["older case not requested for upstream"] += len(older) - size
            roles["upstream"] = self.rng("upstream").sample(older, size)
        return BuiltDataset(
            roles={
                role: [row_of(role, c.number, c.number, c.text, c.label) for c in cases]
                for role, cases in roles.items()
            },
            sources=sources,
            dropped=dropped,
            labels=classes,
        )

    def _read(
        self, source: Source, part: str, dropped: Counter[str]
    ) -> tuple[list[Case], dict[str, str]]:
        columns = (self.options.text_column, self.options.label_column)
        what = f"the {part} cases (a table of {' and '.join(columns)}, such as tomh/grace-scotus)"
        records = read_records(source, what)
        form_of(records, {"table": columns})
        cases: list[Case] = []
        seen: dict[str, str] = {}
        for number, row in complete(records.rows, columns, dropped):
            text, label = (text_of(row[column]) for column in columns)
            reason = (
                unfit(text, "text")
                or unfit(label, "label")
                or repeated(seen, same_text(text), label, f"{part} text")
            )
            if reason is None:
                cases.append(Case(f"{part}-{number}", text, label))
            else:
                dropped[reason] += 1
        return cases, records.entry

    def _classes(self, train: list[Case]) -> list[str]:
        """Return the classes in the order of the model's outputs."""
        if self.options.classes is not None:
            classes = [str(label) for label in self.options.classes]
            if len(set(classes)) < len(classes):
                raise DataError(
                    f"{self.name}: the option 'classes' names a class twice; remove one."
                )
            return classes
        classes = sorted({case.label for case in train})
        if len(classes) < 2:
            source = self.options.train or self.options.upstream
            raise DataError(
                f"{source.path}: has {len(classes)} labels, but at least two are needed; use "
                "another file."
            )
        numeric = all(label.isdecimal() for label in classes)
        return sorted(classes, key=int) if numeric else classes


def _apart(cases: list[Case], streamed: set[str], dropped: Counter[str]) -> list[Case]:
    kept = [case for case in cases if same_text(case.text) not in streamed]
    dropped["older text that is also in the stream"] += len(cases) - len(kept)
    return kept


BUILDER = Scotus
