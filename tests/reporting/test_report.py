"""The HTML report stands alone and says what the tables say."""

from __future__ import annotations

import base64
import re
from html import escape

import pytest

from grace_bench.errors import DataError
from grace_bench.reporting.report import read_markdown_tables, write_report


def test_report_stands_alone_and_has_everything(reported, tmp_path):
    output = tmp_path / "report.html"
    write_report(reported / "summary.parquet", reported / "tables", reported / "figures", output)
    text = output.read_text()
    assert not re.search(r'(src|href)="(?!data:image/png;base64,|#)', text)
    assert "<script" not in text
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert len(pictures) == len(list((reported / "figures").glob("*.png")))
    assert base64.b64decode(pictures[0]) == (reported / "figures" / "overview.png").read_bytes()
    assert "Terms &amp; Topics" in text
    assert "0123456789abcdef" in text
    for table in read_markdown_tables((reported / "tables" / "main.md").read_text()):
        for row in table.rows:
            for cell in row:
                assert f">{escape(cell.text)}<" in text
    first = output.read_bytes()
    write_report(reported / "summary.parquet", reported / "tables", reported / "figures", output)
    assert output.read_bytes() == first


def test_markdown_tables_are_read_back():
    (table,) = read_markdown_tables(
        "A caption.\n\n| E | G: a | G: b |\n|:--|--:|--:|\n| x\\|y | **.5** [.4, .6] | 1 \\* |\n"
        "| **Task: F1** |  |  |\n"
    )
    assert table.caption == "A caption."
    assert table.groups == [("", 1), ("G", 2)]
    assert [cell.text for cell in table.header] == ["E", "a", "b"]
    name, best, marked = table.rows[0]
    assert name.text == "x|y"
    assert (best.text, best.interval, best.bold) == (".5", "[.4, .6]", True)
    assert marked.text == "1 *"
    assert [(cell.text, cell.span) for cell in table.rows[1]] == [("Task: F1", 3)]


def test_names_cannot_break_out_of_the_page(reported, tmp_path):
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "main.md").write_text("c\n\n| E | a |\n|:--|--:|\n| <script>x</script> | 1 |\n")
    write_report(reported / "summary.parquet", tables, tmp_path, tmp_path / "report.html")
    assert "<script>" not in (tmp_path / "report.html").read_text()


def test_missing_tables(reported, tmp_path):
    with pytest.raises(DataError, match="holds no tables"):
        write_report(reported / "summary.parquet", tmp_path, tmp_path, tmp_path / "report.html")
