"""`table`: any table of texts and labels, old rows taught and later rows the stream.

    TableOptions(path="oyez_scdb_cases.jsonl", text_column="facts", id_column="caseId",
                 label_column="issueAreaName", term_column="term", train_before=1990)

Every row is a fact of its own. Cells are texts as they are written: `01` and `NA` are labels.

- train, upstream: the rows before `train_before`; `upstream` is a random sample of them that is
  kept out of `train`. Every label of theirs has at least one row in `train`.
- edits: the rows of `train_before` and later, in the order of their terms, then of the table.
  Without a term column, a random sample of `stream_size` rows, and the others are the old ones.
- holdout, accurate: empty; a table has no rephrasings and says nothing of what a model knows.

Rows that repeat a text (in whatever case and white space), lack a text, a label or a term, have
undecodable characters, a rare label, or a label that occurs in the stream only, are dropped and
counted.
"""

from __future__ import annotations

import difflib
import math
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from grace_bench.datasets.base import BuiltDataset, DatasetBuilder
from grace_bench.datasets.options import DatasetOptions, Source
from grace_bench.datasets.reading.fields import same_text, text_of, unfit
from grace_bench.datasets.reading.files import Records, is_hub_id, read_records
from grace_bench.datasets.reading.markup import without_markup
from grace_bench.errors import DataError


class TableOptions(DatasetOptions):
    """Options of `table`."""

    path: str = Field(description="A jsonl, json, csv or parquet file, or a hub data set's id.")
    revision: str | None = Field(default=None, description="Revision of a hub data set.")
    split: str = Field(default="train", description="Split of a hub data set.")
    sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-fA-F]{64}$",
        description="Expected hash of a local file.",
    )
    licence: str = Field(
        default="not stated", description="Licence of the table, for the manifest."
    )
    text_column: str = Field(default="text", description="Column of the text.")
    label_column: str = Field(default="label", description="Column of the label.")
    id_column: str | None = Field(
        default=None, description="Column of the row's own id; without it rows are numbered."
    )
    term_column: str | None = Field(
        default=None, description="Column that orders the rows in time; later rows are edits."
    )
    train_before: int | str | None = Field(
        default=None, description="First term of the stream; all before it are older rows."
    )
    stream_size: int | None = Field(
        default=None,
        ge=1,
        description="Rows in the stream: the first so many of the later terms, or, without a "
        "term column, so many chosen at random.",
    )
    upstream_size: int = Field(
        default=500, ge=1, description="Older rows kept out of `train`, to be retained."
    )
    strip_markup: bool = Field(
        default=False, description="Whether HTML tags and entities are taken out of the texts."
    )
    min_words: int = Field(default=1, ge=1, description="Shorter texts are dropped.")
    min_label_count: int = Field(
        default=1, ge=1, description="Labels rarer than this among older rows are dropped."
    )

    @model_validator(mode="after")
    def _stream_is_defined(self) -> TableOptions:
        if (self.term_column is None) != (self.train_before is None):
            raise ValueError("term_column and train_before belong together; give both or neither")
        if self.term_column is None and self.stream_size is None:
            raise ValueError("say what the stream is: term_column and train_before, or stream_size")
        return self


@dataclass(frozen=True)
class Record:
    """One usable row of the table."""

    row_id: str
    text: str
    label: str
    term: Any


class Table(DatasetBuilder[TableOptions]):
    """Classification of a table's rows, the later ones as a stream of edits."""

    name = "table"
    options_class = TableOptions
    tasks = ("classification",)

    def build(self) -> BuiltDataset:
        """Read the table and make all rows."""
        options = self.options
        dropped: Counter[str] = Counter()
        read = self._read()
        records = self._records(read.rows, dropped)
        old, stream = self._by_term(records)
        counts = Counter(record.label for record in old)
        rare = {label for label, n in counts.items() if n < options.min_label_count}
        known = set(counts) - rare
        dropped["label rarer than min_label_count"] += sum(r.label in rare for r in old)
        kept = [record for record in stream if record.label in known]
        dropped["label of the stream that is never taught"] += len(stream) - len(kept)
        if options.stream_size is not None and options.term_column is not None:
            dropped["later row not asked for"] += max(0, len(kept) - options.stream_size)
            kept = kept[: options.stream_size]
        train, upstream = self._hold_out([r for r in old if r.label in known])
        return BuiltDataset(
            roles={
                "train": [self._row("train", record) for record in train],
                "upstream": [self._row("upstream", record) for record in upstream],
                "edits": [self._row("edits", record) for record in kept],
            },
            sources=[read.entry],
            dropped=dict(+dropped),
            labels=sorted(known),
        )

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.name}/{purpose}/{self.options.seed}")

    def _read(self) -> Records:
        """Read the table; it must have the columns that the options name."""
        options = self.options
        source = Source(
            path=options.path,
            revision=options.revision or ("main" if is_hub_id(options.path) else None),
            split=options.split,
            sha256=options.sha256,
            licence=options.licence,
        )
        columns = self._columns()
        records = read_records(source, f"the table (with the columns {', '.join(columns)})")
        found = list(dict.fromkeys(name for row in records.rows for name in row))
        for column in columns:
            if column not in found:
                if len(found) == 1 and (other := next((c for c in ";\t|" if c in found[0]), "")):
                    raise DataError(
                        f"{options.path}: its columns are separated by {other!r}; write it with "
                        "commas."
                    )
                near = difflib.get_close_matches(column, found, n=1, cutoff=0.4)
                hint = f"; did you mean '{near[0]}'?" if near else "."
                raise DataError(
                    f"{options.path}: no column '{column}'{hint} It has: {', '.join(found)}"
                )
        return records

    def _columns(self) -> list[str]:
        options = self.options
        named = (
            options.text_column,
            options.label_column,
            options.term_column,
            options.id_column,
        )
        return list(dict.fromkeys(name for name in named if name is not None))

    def _records(self, rows: list[dict[str, Any]], dropped: Counter[str]) -> list[Record]:
        options = self.options
        records: list[Record] = []
        labels: dict[str, str] = {}
        ids: set[str] = set()
        for number, row in enumerate(rows, start=1):
            text = text_of(row.get(options.text_column))
            if options.strip_markup and (plain := text_of(without_markup(text))) != text:
                dropped["markup of a text"] += 1
                text = plain
            label = text_of(row.get(options.label_column))
            term = row.get(options.term_column) if options.term_column else None
            row_id = text_of(row.get(options.id_column)) if options.id_column else f"row-{number}"
            key = same_text(text)
            reason = unfit(text, "text") or unfit(label, "label")
            if reason is not None:
                pass
            elif options.term_column and (term is None or not str(term).strip()):
                reason = "empty term"
            elif len(text.split()) < options.min_words:
                reason = "text shorter than min_words"
            elif key in labels:
                reason = "text repeated"
                if labels[key] != label:
                    reason += " with another label"
            if reason is not None:
                dropped[reason] += 1
                continue
            if not row_id or row_id in ids:
                raise DataError(
                    f"{options.path}: row {number} has {'no id' if not row_id else 'the id'} "
                    f"'{row_id}' in column '{options.id_column}'"
                    f"{' of an earlier row' if row_id else ''}; choose a column of unique ids."
                )
            labels[key] = label
            ids.add(row_id)
            records.append(Record(row_id, text, label, term))
        return records

    def _by_term(self, records: list[Record]) -> tuple[list[Record], list[Record]]:
        """Return older rows and the stream, each in its order."""
        options = self.options
        if options.term_column is None:
            order = self.rng("stream").sample(records, len(records))
            size = options.stream_size or 0
            return order[size:], order[:size]
        terms = [_number(record.term) for record in records]
        boundary = _number(options.train_before)
        if boundary is None and records and None not in terms:
            raise DataError(
                f"{options.path}: train_before='{options.train_before}' is not a number, as the "
                f"terms in column '{options.term_column}' are; mend one of them."
            )
        if None in terms or boundary is None:
            if isinstance(options.train_before, int) and records:
                odd = records[terms.index(None)]
                raise DataError(
                    f"{options.path}: row '{odd.row_id}' has the term '{odd.term}', which is not a "
                    f"number as train_before={options.train_before} is; mend one of them."
                )
            keys: list[Any] = [str(record.term) for record in records]
            limit: Any = str(options.train_before)
        else:
            keys, limit = terms, boundary
        keyed = sorted(zip(keys, records, strict=True), key=lambda pair: pair[0])
        old = [record for term, record in keyed if term < limit]
        return old, [record for term, record in keyed if not term < limit]

    def _hold_out(self, old: list[Record]) -> tuple[list[Record], list[Record]]:
        """Sample `upstream` from the older rows, leaving one row of each label to `train`."""
        order = self.rng("upstream").sample(old, len(old))
        spared: dict[str, Record] = {}
        for record in order:
            spared.setdefault(record.label, record)
        kept_back = {record.row_id for record in spared.values()}
        free = [record for record in order if record.row_id not in kept_back]
        size = self.options.upstream_size
        if len(free) <= size:
            remedy = "move train_before" if self.options.term_column else "lower stream_size"
            raise DataError(
                f"{self.options.path}: upstream_size={size} leaves no rows to train on, of "
                f"{len(old)} older ones; lower it, or {remedy}."
            )
        upstream = free[:size]
        taken = {record.row_id for record in upstream}
        return [record for record in old if record.row_id not in taken], upstream

    def _row(self, role: str, record: Record) -> dict[str, Any]:
        return {
            "example_id": f"{role}/{record.row_id}",
            "fact_id": record.row_id,
            "text": record.text,
            "label": record.label,
            "subject": None,
            "relation": None if record.term is None else str(record.term),
        }


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


BUILDER = Table
