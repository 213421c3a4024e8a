"""Tracking in PostgreSQL, on a real server that the test starts; skipped where there is no server or no driver."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import pipelines.tracking
from pipelines import data, train
from tsde.errors import MissingInputError
from tsde.predictor import Predictor
from tsde.synthetic import ornstein_uhlenbeck


def program(name: str) -> Path | None:
    """A program of PostgreSQL; Debian keeps them off the path, a folder per version."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return found[-1] if found else (path := shutil.which(name)) and Path(path)


INITDB, POSTGRES, CREATEDB = (program(name) for name in ("initdb", "postgres", "createdb"))
pytestmark = [
    pytest.mark.skipif(None in (INITDB, POSTGRES, CREATEDB), reason="PostgreSQL is not installed"),
    pytest.mark.skipif(find_spec("psycopg2") is None, reason="the driver psycopg2 is not installed"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URI of an empty database on a server that listens on a socket file alone; it refuses to run as root."""
    other: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="pg") as folder:  # short: the path of a socket has 107 characters at most
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            other = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        options: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **other}
        make = [str(INITDB), "-D", f"{folder}/data", "-A", "trust", "-U", "tsde", "-E", "UTF8", "--no-sync"]
        subprocess.run(make, check=True, **options)
        command = [str(POSTGRES), "-D", f"{folder}/data", "-k", folder, "-F", "-c", "listen_addresses="]
        running = subprocess.Popen(command, **options)
        try:
            create = [str(CREATEDB), "-h", folder, "-U", "tsde", "runs"]
            while subprocess.run(create, **options).returncode != 0:
                assert running.poll() is None, "the server ended"
            yield f"postgresql+psycopg2://tsde@/runs?host={folder}"
        finally:
            running.send_signal(signal.SIGINT)  # on SIGTERM it would wait for the connections that MLflow keeps
            running.wait(60)


def test_a_run_is_recorded_and_found_again(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    ornstein_uhlenbeck(50, 12, seed=5).to_csv("table.csv", index=False)
    found = data.load(Path("table.csv"), horizon="1", family="last")
    trained = train.run(found, Path("model"), train.start(found, Path("model")), quiet=True)
    first, second = (pipelines.tracking.record(trained) for _ in range(2))
    run = pipelines.tracking.connect(server).MlflowClient().get_run(second)
    assert run.info.status == "FINISHED" and run.data.metrics["test/crps"] > 0
    assert run.data.tags["dataset.sha256"] == trained.card.data.sha256
    for text in (f"runs:/{first}", "models:/tsde@latest", "models:/tsde/2"):
        folder = pipelines.tracking.resolve_model(text)
        assert (folder / "weights.safetensors").read_bytes() == Path("model/weights.safetensors").read_bytes()
        Predictor.load(folder)
    with pytest.raises(MissingInputError, match="models:/tsde/3"):
        pipelines.tracking.resolve_model("models:/tsde/3")
    assert not Path("mlflow.db").exists()
