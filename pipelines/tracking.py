"""Runs, figures and models in MLflow: what `tsde train` records, and where a MODEL may come from.

MLflow takes more than a second to import, so it is imported on first use.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import tsde
from pipelines.card import Card
from pipelines.dashboard import artifacts_beside, require, require_writable, store
from pipelines.rows import as_csv
from pipelines.score_tables import frame
from pipelines.scores import LEVEL, MEASURES, Entry, Scoreboard
from pipelines.train import Trained
from tsde.errors import MissingInputError
from tsde.evaluation import Scores, Skills

NAME = "tsde"
"""Of the experiment and of the registered model; the newest version is `models:/tsde@latest`."""
_ARTIFACT = "predictor"


def record(trained: Trained) -> str:
    """Log a finished run and register its model; returns the run's id.

    Raises:
        Exception: whatever the store raises; the model is saved by then, so the caller only warns.
    """
    require_writable(store())
    mlflow = connect(store())
    client = mlflow.MlflowClient()
    began = int(1000 * (time.time() - trained.card.seconds))
    run = client.create_run(_experiment(client), began, _tags(trained.card), trained.out.name)
    with mlflow.start_run(run_id=run.info.run_id):
        mlflow.log_params(dict(_flat(trained.predictor.experiment.model_dump(mode="json"))))
        mlflow.log_text(trained.predictor.experiment.to_yaml(), "experiment.yaml")
        _log_metrics(client, run.info.run_id, trained, began)
        _log_figures(mlflow, trained)
        if trained.card.scores is not None:
            mlflow.log_text(as_csv(frame(trained.card.scores)), "scores.csv")
        mlflow.log_artifacts(str(trained.out), _ARTIFACT)
        _register(mlflow, client, run.info.run_id, trained)
    return run.info.run_id


def resolve_model(text: str) -> Path:
    """The directory of a MODEL: itself, or that of `runs:/ID`, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        MissingInputError: the store has no such run or model.
    """
    if not text.startswith(("runs:/", "models:/")):
        return Path(text)
    require(store())
    mlflow = connect(store())
    bare_run = text.startswith("runs:/") and "/" not in text.removeprefix("runs:/").strip("/")
    try:
        folder = Path(mlflow.artifacts.download_artifacts(f"{text.rstrip('/')}/{_ARTIFACT}" if bare_run else text))
    except (mlflow.MlflowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise MissingInputError(f"{text} is not in the tracking store {store()}: {reason}") from error
    inside = (folder / "artifacts").glob("*/manifest.json")  # of a registered model
    return next((manifest.parent for manifest in inside), folder)


def connect(uri: str) -> Any:
    """The module `mlflow`, quiet, quick to give up, and pointed at a store."""
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # by default it insists for minutes,
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")  # and waits two for each answer
    mlflow = import_module("mlflow")
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    mlflow.set_tracking_uri(uri)
    return mlflow


def _experiment(client: Any) -> str:
    """The id of our experiment; a SQLite file gets its artifacts beside it."""
    if found := client.get_experiment_by_name(NAME):
        return found.experiment_id
    beside = artifacts_beside(store())
    return client.create_experiment(NAME, artifact_location=beside.as_uri() if beside else None)


def _tags(card: Card) -> dict[str, str]:
    about = {"dataset": card.data.source, "dataset.sha256": card.data.sha256, "seed": str(card.seed)}
    versions = {f"version.{name}": number for name, number in card.versions.items()}
    return about | versions | ({"git.commit": card.git_commit} if card.git_commit else {})


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _log_metrics(client: Any, run_id: str, trained: Trained, began: int) -> None:
    """The history, step by step, and the final scores, in as few requests as the store allows."""
    metric = import_module("mlflow.entities").Metric
    points = []
    for row in trained.history:
        moment, prefix = began + int(1000 * row["elapsed"]), f"member-{row['member'] + 1:.0f}"
        for name in ("train_score", "kl", "validation_crps"):
            points.append(metric(f"{prefix}/{name}", row[name], moment, int(row["step"])))
    now = int(1000 * time.time())
    points += [metric(f"trial/{name}", crps, now, 0) for name, crps in trained.card.trials.items()]
    if trained.card.scores is not None:
        points += [metric(name, value, now, step) for name, value, step in _final(trained.card.scores)]
    for start in range(0, len(points), 1000):
        client.log_batch(run_id, metrics=points[start : start + 1000])


def _final(board: Scoreboard) -> Iterator[tuple[str, float, int]]:
    """Name, value and step of every final score; lead-time bins count as steps. What is undefined is left out."""
    for prefix, entry in {"test": board.model, **{f"test-{name}": e for name, e in board.baselines.items()}}.items():
        yield from ((f"{prefix}/{name}", value, 0) for name, value in _summary(board, entry))
    uncertain = [(name, pair, 0) for name, pair in _uncertain(board.model.after.overall, board.overall_skills())]
    leads = zip(board.model.after.by_lead, board.by_lead(), strict=True)
    for step, (part, (_, skills)) in enumerate(leads):
        uncertain += [(f"by_lead/{name}", pair, step) for name, pair in _uncertain(part.scores, skills)]
    for name, pair, step in uncertain:
        named = zip((f"test/{name}", f"test/{name}_se"), pair, strict=True)
        yield from ((text, value, step) for text, value in named if math.isfinite(value))


def _uncertain(scores: Scores, skills: Mapping[str, Skills]) -> Iterator[tuple[str, tuple[float, float]]]:
    """Coverage and skill with their standard errors."""
    yield from ((f"coverage_{level}", pair) for level, pair in scores.coverage.items())
    for name, found in skills.items():
        for measure in MEASURES:
            skill = getattr(found, measure)
            yield f"skill_{measure}_vs_{name}", (skill.value, skill.error)


def _summary(board: Scoreboard, entry: Entry) -> Iterator[tuple[str, float]]:
    scores = entry.after.overall
    yield from {"crps": scores.crps, "mse": scores.mse, "mae": scores.mae, "nll": scores.nll}.items()
    if entry is not board.model:
        yield f"coverage_{LEVEL}", scores.coverage[LEVEL][0]
    yield f"coverage_{LEVEL}_uncalibrated", entry.before.overall.coverage[LEVEL][0]
    yield "skill", board.skill(entry)


def _log_figures(mlflow: Any, trained: Trained) -> None:
    from pipelines import pictures

    figures = pictures.of_scores(trained.card.scores) if trained.card.scores else {}
    if trained.card.curves:
        figures["training.png"] = pictures.of_training(trained.card.curves)
    fan = pictures.of_held_out(trained.predictor, trained.held_out)
    if fan is not None:
        figures["forecasts.png"] = fan
    for name, figure in figures.items():
        mlflow.log_figure(figure, f"figures/{name}")


def _register(mlflow: Any, client: Any, run_id: str, trained: Trained) -> None:
    """A new version of the registered model: from code, not pickle, and with the library's own source in it."""
    from pipelines import mlflow_model

    schema = trained.predictor.experiment.data
    values = [schema.channel_col, schema.value_col] if schema.channel_col else list(trained.predictor.channels)
    with warnings.catch_warnings(action="ignore"):  # MLflow would like an example of the input
        model = mlflow.pyfunc.log_model(
            name=NAME,
            python_model=mlflow_model.__file__,
            artifacts={mlflow_model.ARTIFACT: str(trained.out)},
            code_paths=[str(Path(tsde.__file__).parent)],
            signature=mlflow_model.signature([schema.id_col, schema.time_col, *values]),
            pip_requirements=_requirements(),
        )
    if not client.search_registered_models(f"name = '{NAME}'"):
        client.create_registered_model(NAME)
    client.create_model_version(NAME, model.model_uri, run_id, model_id=model.model_id)


def _requirements() -> list[str]:
    """What this program depends on, as installed."""
    names = [re.match(r"[\w.-]+", text) for text in requires("tsde") or [] if "extra ==" not in text]
    return [f"{name[0]}=={version(name[0]).split('+')[0]}" for name in names if name]
