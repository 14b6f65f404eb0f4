"""Corrects the absolute paths of artifacts in the MLflow database of a folder that was moved."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from grace_bench.errors import ResultError

SQLITE = "sqlite:///"
ARTIFACTS = "mlflow-artifacts"
COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)


def follow(uri: str) -> None:
    """Point a SQLite database's experiments and runs to the artifacts beside it.

    Correct paths are left unchanged.

    Raises:
        ResultError: the database cannot be written.
    """
    database = Path(uri.removeprefix(SQLITE))
    if not uri.startswith(SQLITE) or not database.is_file():
        return
    here = (database.resolve().parent / ARTIFACTS).as_uri()
    try:
        with closing(sqlite3.connect(database)) as connection, connection:
            known = {
                name for (name,) in connection.execute("SELECT name FROM sqlite_master").fetchall()
            }
            for table, column in COLUMNS:
                if table not in known:
                    continue
                # "<where it was>/mlflow-artifacts/<rest>": the rest is kept.
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, "
                    f"instr({column}, ?) + length(?)) "
                    f"WHERE {column} LIKE 'file:%' AND instr({column}, ?) > 0 "
                    f"AND substr({column}, 1, length(?)) != ?",
                    (here, *[f"/{ARTIFACTS}"] * 3, here, here),
                )
    except sqlite3.Error as error:
        raise ResultError(
            f"{database}: cannot be written ({error}); check the file and its permissions."
        ) from error
