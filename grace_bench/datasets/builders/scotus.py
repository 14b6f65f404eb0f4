"""`scotus`: Supreme Court opinions with their topics, older ones kept, later ones the stream.

    ScotusOptions(upstream={"path": "tomh/grace-scotus", "revision": "main", "split": "train"},
                  edits={"path": "tomh/grace-scotus", "revision": "main", "split": "test"})

Both splits may come from the hub, from a local copy of it, or from two files. Every row is a fact
of its own. For a table with a column of terms there is the builder `table`.

- upstream: the older cases, or a sample of them. train: cases to fit a base model on, those of
  `upstream` where no others are named; a model that was fitted elsewhere needs none of them.
- edits: the later cases in the order of their file. holdout, accurate: empty.

Later cases whose label is not a class, and cases that repeat a text, lack a text or a label, are
dropped and counted. A text that is both older and later stays in the stream only.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from pydantic import Field

from grace_bench.datasets.base import BuiltDataset, DatasetBuilder
from grace_bench.datasets.options import SOURCE_KEYS, DatasetOptions, Source
from grace_bench.datasets.reading.fields import complete, form_of, row_of, same_text, text_of, unfit
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
        description="Cases a base model is fitted on; null: those of `upstream`, all of them.",
    )
    text_column: str = Field(default="text", description="Column of the text.")
    label_column: str = Field(default="label", description="Column of the label.")
    upstream_size: int | None = Field(
        default=None, ge=1, description="Cases in `upstream`, at random; null for all."
    )
    classes: list[int | str] | None = Field(
        default=None,
        min_length=2,
        description="Classes in the order of the model's outputs; null: those of `train`, in the "
        "order of numbers or of letters. A pretrained head needs its own.",
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
        older = self._apart(older, streamed, dropped)
        train = older
        if options.train is not None:
            train, entry = self._read(options.train, "train", dropped)
            train = self._apart(train, streamed, dropped)
            sources.append(entry)
        classes = self._classes(train, options.upstream.path)
        train, older, edits = (
            self._known(role, cases, set(classes), dropped)
            for role, cases in (("train", train), ("upstream", older), ("edits", edits))
        )
        chosen = self._sample(older, dropped)
        return BuiltDataset(
            roles={
                role: [row_of(role, c.number, c.number, c.text, c.label) for c in cases]
                for role, cases in (("train", train), ("upstream", chosen), ("edits", edits))
            },
            sources=sources,
            dropped=+dropped,
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
            key = same_text(text)
            reason = unfit(text, "text") or unfit(label, "label")
            if reason is None and key in seen:
                reason = f"{part} text repeated"
                if seen[key] != label:
                    reason += " with another label"
            if reason is not None:
                dropped[reason] += 1
                continue
            seen[key] = label
            cases.append(Case(f"{part}-{number}", text, label))
        return cases, records.entry

    def _apart(self, cases: list[Case], streamed: set[str], dropped: Counter[str]) -> list[Case]:
        kept = [case for case in cases if same_text(case.text) not in streamed]
        dropped["older text that is also in the stream"] += len(cases) - len(kept)
        return kept

    def _classes(self, train: list[Case], path: str) -> list[str]:
        """Return the classes in the order of the model's outputs."""
        if self.options.classes is not None:
            classes = [str(label) for label in self.options.classes]
            if len(set(classes)) < len(classes):
                raise DataError(f"{self.name}: the option 'classes' names a class twice; mend it.")
            return classes
        classes = sorted({case.label for case in train})
        if len(classes) < 2:
            raise DataError(f"{path}: has {len(classes)} labels, two are needed; get another file.")
        numeric = all(label.isdecimal() for label in classes)
        return sorted(classes, key=int) if numeric else classes

    def _known(
        self, role: str, cases: list[Case], known: set[str], dropped: Counter[str]
    ) -> list[Case]:
        kept = [case for case in cases if case.label in known]
        dropped[f"{role} row whose label is not a class"] += len(cases) - len(kept)
        return kept

    def _sample(self, older: list[Case], dropped: Counter[str]) -> list[Case]:
        size = self.options.upstream_size
        if size is None or size >= len(older):
            return older
        dropped["older case not asked for upstream"] += len(older) - size
        return random.Random(f"{self.name}/upstream/{self.options.seed}").sample(older, size)


BUILDER = Scotus
