"""What a training leaves in MLflow, and that the registered model answers as the command line does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import pipelines.tracking
from pipelines import data, forecast, mlflow_model, train
from pipelines.dashboard import artifacts_beside
from tsde.errors import CannotWriteError, MissingInputError, UsageError
from tsde.predictor import Predictor
from tsde.synthetic import ornstein_uhlenbeck

SMALL = ["train.steps=20", "train.validate_every=10", "train.members=2", "train.workers=1", "model.modes=4"]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking database with its tables, which take MLflow two seconds to make."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow = pipelines.tracking.connect(f"sqlite:///{path}")
    mlflow.search_experiments()
    return path


@dataclass(frozen=True)
class Recorded:
    """A trained model and its run."""

    trained: train.Trained
    table: Path
    store: str
    run: Any
    client: Any


@pytest.fixture(scope="module")
def recorded(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    folder = tmp_path_factory.mktemp("tracked")
    shutil.copy(prepared, folder / "mlflow.db")
    table, out = folder / "table.csv", folder / "model"
    ornstein_uhlenbeck(50, 12, seed=5).to_csv(table, index=False)
    found = data.load(table, horizon="1", overrides=SMALL)
    trained = train.run(found, out, train.start(found, out), quiet=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        run_id = pipelines.tracking.record(trained)
        client = pipelines.tracking.connect(os.environ["MLFLOW_TRACKING_URI"]).MlflowClient()
        yield Recorded(trained, table, os.environ["MLFLOW_TRACKING_URI"], client.get_run(run_id), client)


def test_the_run_holds_the_configuration_and_where_it_comes_from(recorded: Recorded) -> None:
    run, card = recorded.run.data, recorded.trained.card
    assert run.params["train.steps"] == "20" and run.params["model.family"] == "filter"
    assert run.tags["dataset.sha256"] == card.data.sha256
    assert {"seed", "version.tsde", "version.torch", "version.python"} <= set(run.tags)
    assert recorded.run.info.status == "FINISHED"


def test_the_run_holds_every_validation_and_the_scores_beside_the_baselines(recorded: Recorded) -> None:
    run, board = recorded.run, recorded.trained.card.scores
    assert board is not None
    assert run.data.metrics["test/crps"] == pytest.approx(board.model.after.overall.crps)
    assert {"test/coverage_80", "test-last/crps", "test-mean/mse", "test-ridge/skill"} <= set(run.data.metrics)
    skill = board.skills["ridge"]
    assert run.data.metrics["test/skill_crps_vs_ridge"] == pytest.approx(skill.overall.crps.value)
    assert run.data.metrics["test/skill_mse_vs_last_se"] == pytest.approx(board.skills["last"].overall.mse.error)
    for name, expected in {
        "skill_crps_vs_ridge": [part.crps.value for part in skill.by_lead],
        "coverage_95": [part.scores.coverage[95][0] for part in board.model.after.by_lead],
    }.items():
        by_lead = recorded.client.get_metric_history(run.info.run_id, f"test/by_lead/{name}")
        assert [point.value for point in by_lead] == pytest.approx(expected)
        assert [point.step for point in by_lead] == [0, 1, 2, 3]
    for member in (1, 2):
        history = recorded.client.get_metric_history(run.info.run_id, f"member-{member}/validation_crps")
        assert [point.step for point in history] == [10, 20]


def test_the_run_holds_figures_configuration_and_model(recorded: Recorded) -> None:
    found = {
        item.path
        for folder in (None, "figures", "predictor")
        for item in recorded.client.list_artifacts(recorded.run.info.run_id, folder)
    }
    figures = {f"figures/{name}.png" for name in ("coverage", "forecasts", "reliability", "training", "skill")}
    assert (
        figures | {"experiment.yaml", "scores.csv", "predictor/weights.safetensors", "predictor/manifest.json"} <= found
    )


def test_artifacts_lie_beside_the_database_and_nothing_is_pickled(recorded: Recorded) -> None:
    place = artifacts_beside(recorded.store)
    assert place is not None and recorded.run.info.artifact_uri.startswith(place.as_uri())
    files = [path for path in place.rglob("*") if path.is_file()]
    assert files and not [path for path in files if path.suffix in {".pkl", ".pickle", ".pt", ".pth"}]


def test_a_model_is_found_by_directory_run_and_registered_name(recorded: Recorded) -> None:
    weights = (recorded.trained.out / "weights.safetensors").read_bytes()
    for text in (f"runs:/{recorded.run.info.run_id}", "models:/tsde@latest", "models:/tsde/1"):
        folder = pipelines.tracking.resolve_model(text)
        assert (folder / "weights.safetensors").read_bytes() == weights
        Predictor.load(folder)
    assert pipelines.tracking.resolve_model("some/where") == Path("some/where")
    for text in ("runs:/0123", "models:/nobody@latest", "models:/tsde/99"):
        with pytest.raises(MissingInputError, match=text):
            pipelines.tracking.resolve_model(text)


def test_a_missing_store_is_not_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(MissingInputError, match="tracking store"):
        pipelines.tracking.resolve_model("models:/tsde@latest")
    assert not list(tmp_path.iterdir())


SERVE = """
import mlflow, pandas, sys
model = mlflow.pyfunc.load_model("models:/tsde@latest")
table = pandas.read_csv(sys.argv[1], dtype=str)
found = model.predict(table, params={"horizon": "1", "step": "0.25", "level": [50.0, 80.0], "seed": 4})
found.to_csv(sys.argv[2], index=False, float_format="%.9g")
"""


def test_a_store_that_cannot_be_written_is_not_tried(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(CannotWriteError, match="MLFLOW_TRACKING_URI"):
        pipelines.tracking.record(recorded.trained)
    assert list(tmp_path.iterdir()) == []


def test_the_registered_model_answers_as_the_command_line(recorded: Recorded, tmp_path: Path) -> None:
    out, served = tmp_path / "f.csv", tmp_path / "served.csv"
    question = forecast.Question(horizon="1", step="0.25", levels=[50.0, 80.0], seed=4)
    forecast.run(recorded.trained.out, recorded.table, question, forecast.Outputs(out))
    environment = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_TRACKING_URI": recorded.store}
    command = [sys.executable, "-c", SERVE, str(recorded.table), str(served)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert served.read_bytes() == out.read_bytes()


def test_our_front_door_rejects_unknown_parameters(recorded: Recorded) -> None:
    with pytest.raises(UsageError, match=r"horizn.*horizon"):
        mlflow_model.serve(recorded.trained.predictor, pd.read_csv(recorded.table), {"horizn": "1"})


def test_a_store_that_fails_costs_a_warning_not_the_model(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from pipelines.cli import app

    (tmp_path / "file").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/mlflow.db")
    arguments = [
        "train",
        "--data",
        recorded.table,
        "--horizon",
        1,
        "--family",
        "last",
        "--out",
        tmp_path / "m",
        "--quiet",
    ]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0
    assert result.stderr.startswith(f"warning: the model in {tmp_path / 'm'} is complete, but its run was not recorded")
    assert "Traceback" not in result.stderr
    Predictor.load(tmp_path / "m")
