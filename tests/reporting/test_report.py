"""The HTML report stands alone and says what the tables say."""

from __future__ import annotations

import base64
import re
from html import escape

from grace_bench.reporting import report
from grace_bench.reporting.report import write_report
from grace_bench.reporting.summary.read import Summary
from grace_bench.reporting.tables.table import Cell, Column, Row, Table
from grace_bench.reporting.tables.write import tables_of


def test_report_stands_alone_and_has_everything(reported, tmp_path):
    output = tmp_path / "report.html"
    write_report(reported / "summary.parquet", reported / "figures", output)
    text = output.read_text()
    assert not re.search(r'(src|href)="(?!data:image/png;base64,|#)', text)
    assert "<script" not in text
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert len(pictures) == len(list((reported / "figures").glob("*.png")))
    assert base64.b64decode(pictures[0]) == (reported / "figures" / "overview.png").read_bytes()
    assert "Terms &amp; Topics" in text
    assert "0123456789abcdef" in text
    for table in tables_of(Summary(reported / "summary.parquet"))["main"]:
        for row in table.rows:
            for cell in row.cells:
                assert f">{escape(cell.text)}<" in text
    first = output.read_bytes()
    write_report(reported / "summary.parquet", reported / "figures", output)
    assert output.read_bytes() == first


def test_texts_cannot_break_out_of_the_page(reported, tmp_path, monkeypatch):
    row = Row((Cell("<script>x</script>"), Cell("1", bold=True)))
    table = Table("t", "<script>c</script>", (Column("<script>"), Column("b")), (row,))
    monkeypatch.setattr(report, "tables_of", lambda data: {"main": [table]})
    write_report(reported / "summary.parquet", tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;c" in page
