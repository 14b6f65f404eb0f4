"""MLflow's web interface on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from grace_bench.errors import DataError
from grace_bench.reporting.mlflow.moved import follow
from grace_bench.reporting.mlflow.records import MlflowExport
from grace_bench.reporting.mlflow.store import QUIET


def ui(tracking_uri: str, host: str = "127.0.0.1", port: int = 5000) -> int:
    """Run MLflow's web interface until it is interrupted, and return its exit code.

    Raises:
        DataError: the URI is a server's, which has its own interface, or a SQLite file's that does
            not exist; or the port is taken.
    """
    command = ui_command(tracking_uri, host, port)
    _check_port(host, port)
    server: subprocess.Popen[bytes] | None = None
    requests: list[object] = []

    def stop(*request: object) -> None:
        requests.extend(request)
        with suppress(ProcessLookupError):
            if server is not None:
                os.killpg(server.pid, signal.SIGTERM)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        # In its own session: MLflow starts further processes, which must all end with this one.
        server = subprocess.Popen(command, env=ui_environment(), start_new_session=True)
        if requests:  # a signal arrived while the server was being started
            stop()
        return max(0, server.wait())
    finally:
        stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_port(host: str, port: int) -> None:
    if not 0 < port < 2**16:
        raise DataError(f"--port {port}: must be between 1 and 65535.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise DataError(
                f"{host}:{port}: cannot be used ({error.strerror}); choose another port with "
                "--port."
            ) from error


def ui_command(tracking_uri: str, host: str = "127.0.0.1", port: int = 5000) -> list[str]:
    """Return the command that serves a tracking database to one user, with one worker."""
    if tracking_uri.startswith(("http://", "https://")):
        raise DataError(f"{tracking_uri}: is a server already; open it in a browser.")
    if tracking_uri.startswith("sqlite:///"):
        path = Path(tracking_uri.removeprefix("sqlite:///"))
        if not path.is_file():
            raise DataError(f"{path}: no such file; run the suite first, or `grace-bench track`.")
        follow(tracking_uri)
    options = ["--backend-store-uri", tracking_uri, "--host", host, "--port", str(port)]
    return [sys.executable, "-m", "mlflow", "ui", *options, "--workers", "1"]


def addresses(export: MlflowExport, host: str, port: int) -> dict[str, str]:
    """Return the addresses of an experiment's saved views, and of all its runs, by title."""
    runs = f"http://{host}:{port}/#/experiments/{export.experiment_id}/runs"
    views = {title: f"{runs}?viewStateShareKey={key}" for title, key in export.views.items()}
    return {**views, "everything": runs}


def ui_environment() -> dict[str, str]:
    """Return the environment of the web interface: no telemetry, no further processes."""
    return {**os.environ, **QUIET}
