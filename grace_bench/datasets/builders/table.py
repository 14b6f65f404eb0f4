"""`table`: any table of texts and labels: older rows taught, later rows the stream.

    TableOptions(path="oyez_scdb_cases.jsonl", text_column="facts", id_column="caseId",
                 label_column="issueAreaName", term_column="term", train_before=1990)

Every row is its own fact. Cells are read as text: `01` and `NA` are labels.

- train, upstream: the rows before `train_before`; `upstream` is a random sample of them that is
  kept out of `train`. Each of their labels has at least one row in `train`.
- edits: the rows of `train_before` and later, by term, then in the table's order. Without a term
  column, a random sample of `stream_size` rows; the others are the older rows.
- holdout, accurate: empty; a table has no rephrasings and does not say what a model knows.

Rows that repeat a text (ignoring case and white space), lack a text, a label or a term, have
undecodable characters, a rare label, or a label that occurs only in the stream, are dropped and
counted.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import Field, model_validator

from grace_bench.datasets.base import BuiltDataset, DatasetBuilder
from grace_bench.datasets.options import DatasetOptions, Source
from grace_bench.datasets.reading.fields import (
    Row,
    repeated,
    row_of,
    same_text,
    text_of,
    unfit,
)
from grace_bench.datasets.reading.files import Records, is_hub_id, read_records
from grace_bench.datasets.reading.markup import without_markup
from grace_bench.errors import DataError


class TableOptions(Source, DatasetOptions):
    """Options of `table`."""

    text_column: str = Field(default="text", description="Column of the text.")
    label_column: str = Field(default="label", description="Column of the label.")
    id_column: str | None = Field(
        default=None, description="Column of the row's own id; null = rows are numbered."
    )
    term_column: str | None = Field(
        default=None, description="Column that orders the rows in time; later rows are edits."
    )
    train_before: int | str | None = Field(
        default=None, description="First term of the stream; rows before it are older rows."
    )
    stream_size: int | None = Field(
        default=None,
        ge=1,
        description="Use only the first N later rows; without a term column, N random rows.",
    )
    upstream_size: int = Field(
        default=500, ge=1, description="Older rows kept out of `train`, to be retained."
    )
    strip_markup: bool = Field(
        default=False, description="Whether to remove HTML tags and resolve entities."
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
            raise ValueError("define the stream: give term_column and train_before, or stream_size")
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
        table = self._read()
        old, stream = self._by_term(self._records(table.rows, dropped))
        counts = Counter(record.label for record in old)
        known = {label for label, n in counts.items() if n >= options.min_label_count}
        taught = [record for record in old if record.label in known]
        dropped["label rarer than min_label_count"] += len(old) - len(taught)
        kept = [record for record in stream if record.label in known]
        dropped["label of the stream that is never taught"] += len(stream) - len(kept)
        if options.stream_size is not None and options.term_column is not None:
            dropped["later row not requested"] += max(0, len(kept) - options.stream_size)
            kept = kept[: options.stream_size]
        train, upstream = self._hold_out(taught)
        return BuiltDataset(
            roles={
                role: [_row(role, record) for record in records]
                for role, records in (("train", train), ("upstream", upstream), ("edits", kept))
            },
            sources=[table.entry],
            dropped=dropped,
            labels=sorted(known),
        )

    def _read(self) -> Records:
        """Read the table; it must have the columns that the options name."""
        options = self.options
        source = Source(**{name: getattr(options, name) for name in Source.model_fields})
        if source.revision is None and is_hub_id(source.path):
            source = source.model_copy(update={"revision": "main"})
        named = (
            *(options.text_column, options.label_column),
            *(options.term_column, options.id_column),
        )
        columns = list(dict.fromkeys(name for name in named if name is not None))
        records = read_records(source, f"the table (with the columns {', '.join(columns)})")
        found = list(dict.fromkeys(name for row in records.rows for name in row))
        for column in columns:
            if column in found:
                continue
            if len(found) == 1 and (other := next((c for c in ";\t|" if c in found[0]), "")):
                raise DataError(
                    f"{source.path}: its columns are separated by {other!r}; separate them with "
                    "commas."
                )
            near = get_close_matches(column, found, n=1, cutoff=0.4)
            hint = f"; did you mean '{near[0]}'?" if near else "."
            raise DataError(f"{source.path}: no column '{column}'{hint} It has: {', '.join(found)}")
        return records

    def _records(self, rows: list[Row], dropped: Counter[str]) -> list[Record]:
        options = self.options
        kept: dict[str, Record] = {}
        seen: dict[str, str] = {}
        for number, row in enumerate(rows, start=1):
            text = text_of(row.get(options.text_column))
            if options.strip_markup and (plain := text_of(without_markup(text))) != text:
                dropped["markup removed from a text"] += 1
                text = plain
            label = text_of(row.get(options.label_column))
            term = row.get(options.term_column) if options.term_column else None
            reason = unfit(text, "text") or unfit(label, "label")
            if reason is None and options.term_column and (term is None or not str(term).strip()):
                reason = "empty term"
            if reason is None and len(text.split()) < options.min_words:
                reason = "text shorter than min_words"
            reason = reason or repeated(seen, same_text(text), label, "text")
            if reason is not None:
                dropped[reason] += 1
                continue
            row_id = text_of(row.get(options.id_column)) if options.id_column else f"row-{number}"
            if not row_id or row_id in kept:
                found = f"has the id '{row_id}' of an earlier row" if row_id else "has no id"
                raise DataError(
                    f"{options.path}: row {number} {found} in column '{options.id_column}'; choose "
                    "a column of unique ids."
                )
            kept[row_id] = Record(row_id, text, label, term)
        return list(kept.values())

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
                f"{options.path}: train_before='{options.train_before}' is not a number, but the "
                f"terms in column '{options.term_column}' are; correct one of them."
            )
        if None in terms or boundary is None:
            if isinstance(options.train_before, int) and records:
                odd = records[terms.index(None)]
                raise DataError(
                    f"{options.path}: row '{odd.row_id}' has the term '{odd.term}', which is not a "
                    f"number, but train_before={options.train_before} is; correct one of them."
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
        first_of_label: dict[str, Record] = {}
        for record in order:
            first_of_label.setdefault(record.label, record)
        reserved = {record.row_id for record in first_of_label.values()}
        free = [record for record in order if record.row_id not in reserved]
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


def _row(role: str, record: Record) -> Row:
    relation = None if record.term is None else str(record.term)
    return row_of(role, record.row_id, record.row_id, record.text, record.label, relation=relation)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


BUILDER = Table
