"""The tracking store of a suite: where it is, a client of it, and what its errors say.

Only `store`, `export` and `model` import mlflow. They use MlflowClient and explicit run ids, never
the fluent functions, whose active run and experiment are global.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from grace_bench.errors import DataError, ResultError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

DATABASE = "mlflow.db"

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # MLflow's defaults wait for minutes for a server that is not there.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    # Nobody here uses the server's job queue, which would start several more processes.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


def tracking_uri_for(summary_folder: Path, tracking_uri: str | None = None) -> str:
    """Return the given tracking URI, else $MLFLOW_TRACKING_URI, else the suite's SQLite file."""
    given = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    return given or f"sqlite:///{Path(summary_folder).resolve() / DATABASE}"


def connect(uri: str) -> MlflowClient:
    """Return a client of a tracking store; MLflow stays quiet from then on."""
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.tracking", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    from mlflow.tracking import MlflowClient

    # Importing MLflow turns alembic's messages on again.
    logging.getLogger("alembic").setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri)


@contextmanager
def mlflow_errors(uri: str) -> Iterator[None]:
    """Turn errors of the tracking store, and on the way to it, into one sentence."""
    try:
        yield
    except (DataError, ResultError):
        raise
    except Exception as error:
        # The store behind a URI raises its own errors: MLflow's, SQLAlchemy's or an OS error.
        kinds = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
        if not (kinds & {"mlflow", "sqlalchemy", "requests"} or isinstance(error, OSError)):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ResultError(
            f"{uri}: cannot write to MLflow ({reason}); check that the address is right and that "
            "the server runs, or that the folder is writable."
        ) from error
