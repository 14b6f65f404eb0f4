"""The report says what a suite's data hold, what was left out and what was cut short."""

from __future__ import annotations

import shutil

from grace_bench.reporting.report import write_report
from grace_bench.store.files import write_json


def test_the_report_counts_rows_and_what_was_left_out_or_cut(reported, tmp_path):
    folder = tmp_path / "suite"
    folder.mkdir()
    shutil.copy(reported / "summary.parquet", folder)
    (folder / "data/zsre").mkdir(parents=True)
    baseline = folder / "baselines/tiny-zsre/pretrained/baseline.json"
    baseline.parent.mkdir(parents=True)
    manifest = {
        "data_hash": "d",
        "roles": {
            role: {"file": f"{role}.parquet", "rows": rows, "facts": rows, "sha256": "s"}
            for role, rows in (("train", 7), ("edits", 3), ("holdout", 0))
        },
        "dropped": {"question repeated": 4, "empty <b>": 1},
        "also_in_train": {"upstream": 2, "edits": 0},
    }
    write_json(folder / "data/zsre/manifest.json", manifest)
    cut = {
        "upstream": {"rows": 5, "texts": 0, "labels": 0},
        "edits": {"rows": 3, "texts": 2, "labels": 1},
    }
    hashes = {"data_hash": "d", "model_hash": "m"}
    write_json(baseline, {**hashes, "truncated": cut, "max_length": 64})
    write_report(folder / "summary.parquet", reported / "figures", folder / "r.html")
    text = (folder / "r.html").read_text()
    assert (
        "<li>zsre: train 7, edits 3; also read in train: upstream 2; left out: empty "
        "&lt;b&gt; 1, question repeated 4.</li>"
    ) in text
    assert (
        "<li>tiny-zsre/pretrained: cut short at max_length 64: edits 2 texts and 1 labels of "
        "3 rows.</li>"
    ) in text
