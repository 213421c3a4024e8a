"""Where runs are tracked, and MLflow's dashboard on it, as a process of its own: nothing heavy is imported here."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from pipelines.messages import note
from tsde.errors import CannotWriteError, MissingInputError, UsageError

_DEFAULT = "sqlite:///mlflow.db"
_SQLITE = "sqlite:///"
_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "file", "databricks")
# One worker and no job queue: three processes and half a gigabyte instead of eleven and nearly two.
_LIGHT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONWARNINGS": "ignore"}


def store() -> str:
    """The URI of the tracking store: MLFLOW_TRACKING_URI, or a SQLite file in the current directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _DEFAULT


def require(uri: str) -> None:
    """Look before MLflow does, which would make an empty store.

    Raises:
        UsageError: no store is of that kind. MissingInputError: there is no such SQLite file.
    """
    scheme, separator, _ = uri.partition("://")
    if separator and scheme.partition("+")[0] not in _SCHEMES:
        raise UsageError(f"{uri} is no tracking store: expected one that begins with {', '.join(_SCHEMES)}")
    if uri.startswith(_SQLITE) and not Path(uri.removeprefix(_SQLITE)).is_file():
        raise MissingInputError(f"there is no tracking store {uri}: `tsde train` makes one where it runs")


def require_writable(uri: str) -> None:
    """Look before MLflow does, which would try again for minutes.

    Raises:
        CannotWriteError: a SQLite store that cannot be written.
    """
    if uri.startswith(_SQLITE):
        file = Path(uri.removeprefix(_SQLITE)).absolute()
        for path in (file.parent, file):
            if path.exists() and not os.access(path, os.W_OK):
                raise CannotWriteError(f"{path} cannot be written; name another store with MLFLOW_TRACKING_URI")


def artifacts_beside(uri: str) -> Path | None:
    """Where a SQLite store keeps its artifacts, None for a store that knows for itself."""
    return Path(uri.removeprefix(_SQLITE)).absolute().parent / "mlartifacts" if uri.startswith(_SQLITE) else None


def run(host: str, port: int, uri: str | None = None) -> int:
    """Serve the dashboard until it is stopped; returns the exit status of its server.

    Raises:
        MissingInputError: the store does not exist. UsageError: the store is a server already, or the port is taken.
    """
    uri = uri or store()
    if uri.startswith(("http://", "https://")):
        raise UsageError(f"the tracking store {uri} is a server already: open it in a browser")
    require(uri)
    _check_free(host, port)
    note(f"the dashboard on {uri}: http://{host}:{port} (stop it with Ctrl-C)")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--workers", "1"]
    command += ["--host", host, "--port", str(port)]
    if folder := artifacts_beside(uri):
        command += ["--artifacts-destination", str(folder)]
    return subprocess.run(command, env=os.environ | _LIGHT, check=False).returncode


def _check_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does after a restart
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(f"cannot listen on {host}:{port} ({error.strerror}); choose another --port") from error
