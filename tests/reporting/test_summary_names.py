"""Names in a summary.parquet: files are called by them, so those of no suite are refused."""

from __future__ import annotations

import pytest

from grace_bench.cli import main
from grace_bench.reporting.summary.read import PROVENANCE, read_provenance
from grace_bench.reporting.summary.write import CURVES, SUMMARY
from grace_bench.store import files

NAMES = ("../../x", "..", ".hidden", "a/b", "a\\b", "", "x" * 300)


@pytest.mark.parametrize("key", ["model", "dataset", "editor"])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_elsewhere_is_refused(reported, tmp_path, capsys, name, key):
    inside = tmp_path / "outer" / "inside"
    inside.mkdir(parents=True)
    for file, schema in (("summary", SUMMARY), ("curves", CURVES)):
        table = files.read_parquet(reported / f"{file}.parquet", schema)
        rows = [{**row, key: name} for row in table.to_pylist()]
        metadata = {PROVENANCE + k: v for k, v in read_provenance(table).items()}
        files.write_parquet(inside / f"{file}.parquet", rows, schema, metadata)
    (inside / "plan.json").write_text('{"suite": "synthetic", "runs": []}')
    for command in ("tables", "figures", "report", "paper-figures"):
        arguments = [command, "--summary", str(inside), "--output", str(inside / "out")]
        if command == "paper-figures":
            arguments += ["--plan", str(inside / "plan.json")]
        assert main(arguments) == 2
        assert "is not a valid name; run the summarise step again" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "outer").iterdir()] == ["inside"]
    found = sorted(path.name for path in inside.iterdir())
    assert found == ["curves.parquet", "plan.json", "summary.parquet"]
