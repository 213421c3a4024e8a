"""From a checked table and an experiment to a predictor and its scores: the whole recipe, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tsde.calibration import Calibrator
from tsde.config import Experiment
from tsde.distribution import GRID, Quantiles
from tsde.errors import DataError
from tsde.models import BASELINES, MODELS, Family, build
from tsde.models.mean import Mean, MeanConfig
from tsde.predictor import Predictor
from tsde.scaling import Scaler
from tsde.series import SeriesSet
from tsde.table import Table
from tsde.training import Progress, fit
from tsde.windows import Origins, Region, Split, Window, eligible_origins, fixed_windows, split_windows


@dataclass(frozen=True)
class Fitted:
    """A trained predictor, what it was trained on, and the windows that were kept for its scores."""

    predictor: Predictor
    history: list[dict[str, float]]
    test: list[Window]
    split: Split
    series: SeriesSet


@dataclass(frozen=True)
class Parts:
    """A table scaled and split: training origins and the windows of the held-out parts."""

    scaler: Scaler
    series: SeriesSet
    split: Split
    train: Origins
    validation: list[Window]
    calibration: list[Window]
    test: list[Window]


def prepare(table: Table, experiment: Experiment, scaler: Scaler | None = None) -> Parts:
    """Split, scale (on training rows, unless a fitted scaler is given) and cut the held-out windows.

    Raises:
        DataError: if no training origin has a target within the horizon, or validation is left empty.
    """
    horizon = table.clock.parse_duration(experiment.horizon) if scaler is None else scaler.horizon
    unscaled = Scaler.unit(table.channels, horizon).apply(table, experiment.seed)
    split = split_windows(unscaled, experiment.split, experiment.seed)
    if scaler is None:
        scaler = Scaler.fit(table, horizon, _rows(unscaled, split.train))
    series = scaler.apply(table, experiment.seed)
    train = eligible_origins(series, split.train)
    _require(train, "training", table, horizon)
    held = [eligible_origins(series, region) for region in (split.validation, split.calibration, split.test)]
    _require(held[0], "validation", table, horizon)
    validation, calibration, test = (
        fixed_windows(origins, experiment.windows) if len(origins) else [] for origins in held
    )
    return Parts(scaler, series, split, train, validation, calibration, test)


def fit_predictor(
    table: Table,
    experiment: Experiment,
    report: Callable[[Progress], None] = lambda progress: None,
    checkpoints: Path | None = None,
) -> Fitted:
    """Train the configured family and the baselines on one split, and calibrate each on the same held-out windows."""
    parts = prepare(table, experiment)
    baselines = {name: _fit(parts, _as_baseline(experiment, name), table) for name in BASELINES}
    history: list[dict[str, float]] = []

    def keep(progress: Progress) -> None:
        history.append({key: float(value) for key, value in vars(progress).items()})
        report(progress)

    predictor = _fit(parts, experiment, table, keep, checkpoints, baselines)
    return Fitted(predictor, history, parts.test, parts.split, parts.series)


def _as_baseline(experiment: Experiment, name: str) -> Experiment:
    family: Family = MODELS[name]
    return experiment.model_copy(
        update={"model": family.config(), "train": experiment.train.model_copy(update={"members": 1})}
    )


def _fit(
    parts: Parts,
    experiment: Experiment,
    table: Table,
    report: Callable[[Progress], None] = lambda progress: None,
    checkpoints: Path | None = None,
    baselines: dict[str, Predictor] | None = None,
) -> Predictor:
    channels = len(table.channels)
    closed_form = fixed_windows(parts.train, experiment.windows.model_copy(update={"held_out": 2000}))
    members = []
    for member in range(experiment.train.members):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(experiment.seed + 1000 * member)
            model = build(experiment.model, channels)
        model.prepare(closed_form)
        if any(parameter.requires_grad for parameter in model.parameters()):
            budget = experiment.train.max_time and experiment.train.max_time / experiment.train.members
            folder = checkpoints / f"member-{member}" if checkpoints else None
            fit(
                model, parts.train, parts.validation, experiment.windows, experiment.train,
                experiment.seed + 1000 * member, member, budget, folder, report,
            )  # fmt: skip
        members.append(model)
    marginal = Mean(MeanConfig(), channels)
    marginal.prepare(closed_form)
    law = Quantiles(marginal.average, marginal.values, torch.tensor(GRID))
    identity = Calibrator.identity(channels, len(GRID))
    predictor = Predictor(experiment, table.clock, parts.scaler, members, identity, law, baselines)
    if parts.calibration:
        residuals = predictor.residuals(parts.calibration, calibrated=False)
        predictor.calibrator = Calibrator.fit(residuals, channels, experiment.calibration)
    return predictor


def _rows(series: SeriesSet, region: Region) -> np.ndarray:
    """Rows that a region may be scaled on: those up to its end, `(R,)` bool."""
    return (series.times <= region.upper[series.series_of_row]).numpy()


def _require(origins: Origins, part: str, table: Table, horizon: float) -> None:
    if len(origins) == 0:
        raise DataError(
            f"no series has an observation within the horizon {table.clock.format_duration(horizon)} after another one "
            f"in the {part} part ({table.n_series} series, {table.n_rows} rows): give a longer horizon or more data"
        )
