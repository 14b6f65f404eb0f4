"""Compare two results folders of one suite: equal rows, codebooks, weights and averages.

    python workflow/scripts/compare_results.py OLD/results/smoke results/smoke

Times are left out. Runs are matched by id; `--renamed OLD NEW` renames a part of an id, such as a
hyperparameter. Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from grace_bench.store.files import read_parquet, sha256_of

TABLES = ("steps.parquet", "predictions.parquet", "probes.parquet", "codebook.parquet")
TENSORS = ("codebook.safetensors", "editor.safetensors")
TIMES = {"edit_seconds", "seconds", "seconds_unedited"}


def rows(path: Path) -> list[dict]:
    """Return the rows of a Parquet file without times."""
    table = read_parquet(path)
    return table.drop_columns([name for name in table.column_names if name in TIMES]).to_pylist()


def runs(results: Path) -> dict[str, Path]:
    """Return the folders of finished runs, by id."""
    folder = results / "runs"
    records = (p for p in folder.rglob("run.json") if p.parent.name != "kept")
    return {record.parent.relative_to(folder).as_posix(): record.parent for record in records}


def differences(old: Path, new: Path, renamed: dict[str, str]) -> Iterator[str]:
    """Yield a line for everything that differs."""
    before, after = runs(old), runs(new)
    for one, other in renamed.items():
        before = {key.replace(one, other): path for key, path in before.items()}
    for name in sorted(before.keys() ^ after.keys()):
        yield f"{name}: only in {old if name in before else new}"
    for name in sorted(before.keys() & after.keys()):
        for file in (*TABLES, *TENSORS):
            a, b = before[name] / file, after[name] / file
            if a.exists() != b.exists():
                yield f"{name}/{file}: only in one of them"
            elif a.exists() and not same(a, b):
                yield f"{name}/{file}: differs"


def same(a: Path, b: Path) -> bool:
    """Return whether two files hold the same rows or, of tensors, the same bytes."""
    return rows(a) == rows(b) if a.suffix == ".parquet" else sha256_of(a) == sha256_of(b)


def main() -> int:
    """Compare, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--renamed", nargs=2, action="append", default=[], metavar=("OLD", "NEW"))
    options = parser.parse_args()
    found = list(differences(options.old, options.new, dict(options.renamed)))
    print(*found, f"{len(runs(options.new))} runs, {len(found)} differences", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
