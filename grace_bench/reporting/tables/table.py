"""One table as data, and its forms: LaTeX (booktabs), Markdown and CSV.

Cells hold text already rounded; each form only decides how to write it.
"""

from __future__ import annotations

import csv
import io
import math
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from grace_bench.metrics import MEASURES

if TYPE_CHECKING:
    from grace_bench.reporting.summary.read import Estimate

NONE = "--"
HUGE = 9999.5  # numbers from here on are written as powers of ten
WIDE = 12  # tables with more columns get a page turned on its side


@dataclass(frozen=True)
class Cell:
    """One entry: its text, its interval in small print, and whether it is the best."""

    text: str
    interval: str = ""
    bold: bool = False
    number: float | None = None  # unrounded
    low: float | None = None
    high: float | None = None
    mark: str = ""  # letter of a footnote


@dataclass(frozen=True)
class Column:
    """A column's name, and whether higher (1) or lower (-1) is better, or neither (0)."""

    name: str
    better: int = 0


@dataclass(frozen=True)
class Row:
    """One row; `rule` draws a thin line above it, `heading` makes it the title of rows below."""

    cells: tuple[Cell, ...]
    rule: bool = False
    heading: bool = False


@dataclass(frozen=True)
class Table:
    """A table as data.

    Args:
        name: of its LaTeX label, tab:<name>.
        caption: plain text.
        columns: its columns.
        rows: its rows.
        groups: titles above the columns, each with its number of columns; "" for no title.
        left: number of columns of names, set flush left.
        footnotes: marks and their sentences, below the table.
        file: the file that it is written to; empty: the one named after its module in `kinds/`.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    groups: tuple[tuple[str, int], ...] = ()
    left: int = 1
    footnotes: tuple[tuple[str, str], ...] = ()
    file: str = ""


def number(value: float | None, kind: str) -> str:
    """Return a value as the paper prints it.

    Args:
        value: the number; None and NaN are "--".
        kind: a measure, or count, mean_count, ratio, seconds.

    >>> number(0.824, "f1"), number(1449.3, "perplexity"), number(None, "f1")
    ('.82', '1449', '--')
    """
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "inf"
    if kind == "count":
        return str(round(value)) if abs(value - round(value)) < 1e-9 else f"{value:.1f}"
    if abs(value) >= HUGE:
        return f"{value:.1e}"
    digits = MEASURES[kind].digits if kind in MEASURES else 3
    # All digits before the point count, a 0 there included: .12, 1.23, 12.3, 123.
    rounded = (f"{value:.{decimals}f}" for decimals in range(digits - 1, 0, -1))
    fits = (text for text in rounded if sum(map(str.isdigit, text)) <= digits)
    text = next(fits, f"{value:.0f}")
    return text.removeprefix("0") if text.startswith("0.") else text


def cell(estimate: Estimate, kind: str, with_interval: bool = True) -> Cell:
    """Return the cell of an estimate."""
    interval = ""
    if with_interval and estimate.low is not None and estimate.high is not None:
        interval = f"[{number(estimate.low, kind)}, {number(estimate.high, kind)}]"
    return Cell(
        number(estimate.value, kind),
        interval,
        estimate.is_best,
        number=estimate.value,
        low=estimate.low,
        high=estimate.high,
    )


_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",  # \textquotedbl needs the T1 encoding
    **{char: "\\" + char for char in "&%$#_{}"},
    # Braced: after a rule or the end of a row, LaTeX would read these as an option.
    **{char: f"{{{char}}}" for char in "[]*"},
    "\u2013": "--",
    "\u2014": "---",
    "\u2018": "`",
    "\u2019": "'",
    "\u201c": "``",
    "\u201d": "''",
    "\u2026": r"\ldots{}",
}
_GREEK = {
    "\u03b1": "alpha",
    "\u03b2": "beta",
    "\u03b3": "gamma",
    "\u03b4": "delta",
    "\u03b5": "epsilon",
    "\u03bb": "lambda",
    "\u03bc": "mu",
    "\u03c3": "sigma",
}


_MARKDOWN = re.compile(r"([\\|*_`<>\[\]~])")
"""Characters that may be mark-up."""


def escape_latex(text: str) -> str:
    """Return text that LaTeX prints literally; '?' replaces characters without a glyph."""
    escaped = []
    for char in text:
        if char in _SPECIAL:
            escaped.append(_SPECIAL[char])
        elif char in _GREEK:
            escaped.append(f"$\\{_GREEK[char]}$")
        elif ord(char) < 0x17F and char.isprintable():
            escaped.append(char)
        elif char.isspace():
            escaped.append(" ")
        else:
            plain = unicodedata.normalize("NFKD", char).encode("ascii", "ignore").decode()
            escaped.append(plain or "?")
    return "".join(escaped)


def to_latex(table: Table) -> str:
    """Return a `table*` float, which needs booktabs; a wide one also needs lscape."""
    is_wide = len(table.columns) > WIDE
    lines = [
        *([r"\begin{landscape}"] if is_wide else []),
        r"\begin{table*}[tp]",
        r"\centering",
        rf"\caption{{{escape_latex(table.caption)}}}",
        rf"\label{{tab:{table.name}}}",
        r"\vspace{5pt}",
        r"\small",
        r"\setlength{\tabcolsep}{3pt}",
        rf"\begin{{tabular}}{{@{{}}{_column_format(table)}@{{}}}}",
        r"\toprule",
    ]
    if any(title for title, _ in table.groups):
        lines += _group_header(table)
    lines += [" & ".join(_header(column) for column in table.columns) + r" \\", r"\midrule"]
    for index, row in enumerate(table.rows):
        if row.rule:
            lines.append(r"\midrule")
        elif index and any(item.interval for item in table.rows[index - 1].cells):
            lines.append(r"\addlinespace[2pt]")
        lines += _latex_row(row, table)
    lines += [r"\bottomrule", r"\end{tabular}", *_latex_footnotes(table), r"\end{table*}"]
    lines += [r"\end{landscape}"] if is_wide else []
    return "\n".join(lines) + "\n"


def _latex_footnotes(table: Table) -> list[str]:
    if not table.footnotes:
        return []
    lines = [r"\par\medskip", r"\begin{minipage}{\textwidth}\footnotesize\raggedright\sloppy"]
    for mark, sentence in table.footnotes:
        # Sentences may hold paths, which would not break otherwise.
        text = escape_latex(sentence).replace("/", r"/\allowbreak{}")
        text = text.replace(r"\_", r"\_\allowbreak{}")
        lines.append(rf"\textsuperscript{{{mark}}}\,{text}\par")
    return [*lines, r"\end{minipage}"]


def _column_format(table: Table) -> str:
    text, done = "l" * table.left, table.left
    for title, span in table.groups[1:] or (("", len(table.columns) - table.left),):
        # A little air between column groups; none before the first.
        text += ("@{\\hspace{1.6em}}" if title and done > table.left else "") + "c" * span
        done += span
    return text


def _group_header(table: Table) -> list[str]:
    titles, rules, column = [], [], 1
    for title, span in table.groups:
        if title:
            titles.append(rf"\multicolumn{{{span}}}{{c}}{{{escape_latex(title)}}}")
            rules.append(rf"\cmidrule(lr){{{column}-{column + span - 1}}}")
        else:
            titles += [""] * span
        column += span
    return [" & ".join(titles) + r" \\", "".join(rules)]


def _header(column: Column) -> str:
    arrow = {1: r"\,$\uparrow$", -1: r"\,$\downarrow$", 0: ""}[column.better]
    return escape_latex(column.name) + arrow


def _latex_row(row: Row, table: Table) -> list[str]:
    if row.heading:
        text = escape_latex(row.cells[0].text)
        return [rf"\multicolumn{{{len(table.columns)}}}{{@{{}}l@{{}}}}{{\emph{{{text}}}}} \\"]
    values, intervals = [], []
    for item in row.cells:
        text = _latex_number(item)
        if item.mark:
            text += rf"\textsuperscript{{{item.mark}}}"
        values.append(text)
        ends = ", ".join(map(_power_of_ten, item.interval.strip("[]").split(", ")))
        intervals.append(rf"{{\scriptsize [{ends}]}}" if item.interval else "")
    lines = [" & ".join(values) + r" \\"]
    if any(intervals):
        lines[0] = " & ".join(values) + r" \\[-3pt]"
        lines.append(" & ".join(intervals) + r" \\")
    return lines


def _latex_number(item: Cell) -> str:
    text = _power_of_ten(item.text) if item.number is not None else escape_latex(item.text)
    if not item.bold:
        return text
    return rf"\textbf{{\boldmath {text}}}" if "$" in text else rf"\textbf{{{text}}}"


def _power_of_ten(text: str) -> str:
    if text == "inf":
        return r"$\infty$"
    mantissa, e, exponent = text.partition("e+")
    return rf"${mantissa}\cdot10^{{{int(exponent)}}}$" if e else text


def to_markdown(table: Table) -> str:
    """Return a pipe table below its caption; group titles become part of column names."""
    names = [_markdown_text(name) for name in _full_names(table, plain_header)]
    lines = [
        _markdown_text(table.caption),
        "",
        "| " + " | ".join(names) + " |",
        "|" + "|".join([":--"] * table.left + ["--:"] * (len(names) - table.left)) + "|",
    ]
    for row in table.rows:
        texts = []
        for item in row.cells:
            text = _markdown_text(item.text)
            text = f"**{text}**" if item.bold or row.heading else text
            text += _markdown_mark(item.mark)
            texts.append(f"{text} {item.interval}".strip())
        texts += [""] * (len(names) - len(texts))
        lines.append("| " + " | ".join(texts) + " |")
    for mark, sentence in table.footnotes:
        lines += ["", f"{_markdown_mark(mark)} {_markdown_text(sentence)}"]
    return "\n".join(lines) + "\n"


def _markdown_mark(mark: str) -> str:
    return f"<sup>{mark}</sup>" if mark else ""


def _markdown_text(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", text).replace("\n", " ")


def _full_names(table: Table, header: Callable[[Column], str]) -> list[str]:
    titles: list[str] = []
    for title, span in table.groups:
        titles += [title] * span
    titles += [""] * (len(table.columns) - len(titles))
    names = (
        f"{title}: {header(column)}" if title else header(column)
        for title, column in zip(titles, table.columns, strict=True)
    )
    return list(names)


def measure_column(measure: str) -> Column:
    """Return the column of a measure, with its direction."""
    found = MEASURES[measure]
    return Column(found.title, 1 if found.higher_is_better else -1)


def plain_header(column: Column) -> str:
    """Return a column's name with an arrow to better values."""
    return column.name + {1: " \u2191", -1: " \u2193", 0: ""}[column.better]


def to_csv(tables: Iterable[Table]) -> str:
    """Return all numbers, one per line: unrounded, as printed, and with their footnotes."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    header = ("table", "row", "column", "value", "low", "high", "printed", "best", "footnote")
    writer.writerow(header)
    for table in tables:
        footnotes = dict(table.footnotes)
        names = _full_names(table, lambda column: column.name)
        heading = ""
        for row in table.rows:
            if row.heading:
                heading = f"{row.cells[0].text}: "
                continue
            label = " ".join(item.text for item in row.cells[: table.left] if item.text)
            for column, item in enumerate(row.cells):
                if column >= table.left and (item.number is not None or item.mark):
                    numbers = [item.number, item.low, item.high]
                    writer.writerow(
                        [
                            table.name,
                            label,
                            heading + names[column],
                            *("" if value is None else repr(float(value)) for value in numbers),
                            item.text,
                            "true" if item.bold else "false",
                            footnotes.get(item.mark, ""),
                        ]
                    )
    return stream.getvalue()
