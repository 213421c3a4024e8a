"""From a checked table and an experiment to a predictor and its scores: the whole recipe, in order."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tsde.calibration import Calibrator
from tsde.choosing import choose_family
from tsde.config import Experiment
from tsde.distribution import GRID, Quantiles
from tsde.errors import DataError
from tsde.members import train_members, training_windows
from tsde.model import Forecaster
from tsde.models import BASELINES, MODELS
from tsde.models.mean import Mean, MeanConfig
from tsde.predictor import Predictor
from tsde.scaling import Scaler
from tsde.series import SeriesSet
from tsde.table import Table
from tsde.threads import single_thread
from tsde.training import Progress
from tsde.windows import Region, Split, Window, eligible_origins, fixed_windows, split_windows


@dataclass(frozen=True)
class Fitted:
    """A trained predictor, what it was trained on, and the windows that were kept for its scores."""

    predictor: Predictor
    history: list[dict[str, float]]
    test: list[Window]
    split: Split
    trials: dict[str, float]
    """Validation CRPS of each family that was tried, where the family was chosen."""


@dataclass(frozen=True)
class Parts:
    """A table scaled and split, and the held-out windows that no member learns from or is stopped on.

    `pieces (N,)` is what each series counts for in calibration (`tsde.calibration.Calibrator`).
    """

    scaler: Scaler
    series: SeriesSet
    split: Split
    calibration: list[Window]
    test: list[Window]
    pieces: Tensor


def prepare(table: Table, experiment: Experiment, scaler: Scaler | None = None) -> Parts:
    """Split, scale (on training rows, unless a fitted scaler is given) and cut the held-out windows.

    A horizon longer than any that the training targets tell of is taken to be that: `parts.scaler.horizon`.

    Raises:
        DataError: if training or validation is left without a target within the horizon of an origin.
    """
    horizon = table.clock.parse_duration(experiment.horizon) if scaler is None else scaler.horizon
    unscaled, split = _split(table, horizon, experiment)
    if scaler is None:
        if (reach := _reach(unscaled, split.train)) < 1:
            horizon = min(horizon, table.clock.round_up(horizon * reach))
            unscaled, split = _split(table, horizon, experiment)
        scaler = Scaler.fit(table, horizon, _learnt_rows(unscaled, split), experiment.windows.calendar)
    series = scaler.apply(table, experiment.seed).telling()
    by_time = bool(torch.isfinite(split.train.upper).any())
    for fold in split.folds:
        for part, region in zip(("training", "validation"), fold, strict=True):
            _require(series, region, part, table, horizon, by_time)
    held_out = (eligible_origins(series, region) for region in (split.calibration, split.test))
    calibration, test = (fixed_windows(origins, experiment.windows) for origins in held_out)
    return Parts(scaler, series, split, calibration, test, _pieces(series, split.calibration))


def _split(table: Table, horizon: float, experiment: Experiment) -> tuple[SeriesSet, Split]:
    series = Scaler.unit(table.channels, horizon).apply(table, experiment.seed)
    return series, split_windows(series, experiment.split, experiment.seed, experiment.train.members)


def _reach(series: SeriesSet, train: Region) -> float:
    """The longest time from an origin to a training target, in horizons; infinite where there is none."""
    origins = eligible_origins(series, train, math.inf)
    return float((series.times[origins.last] - series.times[origins.row]).max()) if len(origins) else math.inf


def fit_predictor(
    table: Table,
    experiment: Experiment,
    report: Callable[[Progress], None] = lambda progress: None,
    checkpoints: Path | None = None,
    parts: Parts | None = None,
) -> Fitted:
    """Train the configured family and the baselines on one split, and calibrate each on the same held-out windows.

    Args:
        report: called after each validation of each member.
        checkpoints: directory for the state of the training, and from which an interrupted one goes on.
        parts: of this table and experiment, if they were prepared before.

    Raises:
        DataError: too little data for the split. DivergedError: a member's training diverged.
    """
    with single_thread():
        return _fit_predictor(table, experiment, report, checkpoints, parts or prepare(table, experiment))


def _fit_predictor(
    table: Table, experiment: Experiment, report: Callable[[Progress], None], checkpoints: Path | None, parts: Parts
) -> Fitted:
    horizon = parts.scaler.horizon
    if horizon < table.clock.parse_duration(experiment.horizon):
        experiment = experiment.model_copy(update={"horizon": table.clock.format_duration(horizon)})
    baselines = {name: _assemble(parts, _as_baseline(experiment, name), table) for name in BASELINES}
    experiment, trials = choose_family(parts.series, parts.split.folds, experiment, report, checkpoints)
    members, history = train_members(
        parts.series, parts.split.folds, experiment, report, checkpoints, parts.calibration
    )
    predictor = _assemble(parts, experiment, table, members, baselines)
    return Fitted(predictor, history, parts.test, parts.split, trials)


def _as_baseline(experiment: Experiment, name: str) -> Experiment:
    train = experiment.train.model_copy(update={"members": 1})
    return experiment.model_copy(update={"model": MODELS[name].config(), "train": train})


def _assemble(
    parts: Parts,
    experiment: Experiment,
    table: Table,
    members: list[Forecaster] | None = None,
    baselines: dict[str, Predictor] | None = None,
) -> Predictor:
    """A calibrated predictor from trained members, or from the one member that a closed form gives."""
    if members is None:
        members, _ = train_members(parts.series, parts.split.folds[:1], experiment)
    channels = len(table.channels)
    marginal = Mean(MeanConfig(), channels)
    marginal.prepare(training_windows(eligible_origins(parts.series, parts.split.train), experiment.windows))
    law = Quantiles(marginal.average, marginal.values, torch.tensor(GRID))
    identity = Calibrator.identity(channels, len(GRID))
    predictor = Predictor(experiment, table.clock, parts.scaler, members, identity, law, baselines)
    if parts.calibration:
        residuals = predictor.residuals(parts.calibration, calibrated=False)
        means = not members[0].literal
        predictor.calibrator = Calibrator.fit(residuals, channels, experiment.calibration, parts.pieces, means)
    return predictor


def _pieces(series: SeriesSet, part: Region) -> Tensor:
    """What each series counts for, `(N,)`: `Region.pieces`, and the first of a group for all stretches of its time."""
    pieces = part.pieces()
    if torch.isfinite(part.upper).any():
        return torch.zeros_like(pieces).index_add(0, series.representative, pieces)
    return pieces


def _learnt_rows(series: SeriesSet, split: Split) -> np.ndarray:
    """Rows that any member learns from or is validated on, `(R,)` bool."""
    upper = torch.stack([region.upper for fold in split.folds for region in fold]).amax(0)
    return (series.times <= upper[series.series_of_row]).numpy()


def _require(series: SeriesSet, region: Region, part: str, table: Table, horizon: float, by_time: bool) -> None:
    if len(eligible_origins(series, region)) == 0:
        longer = len(eligible_origins(series, region, math.inf)) > 0
        remedy = "give a longer horizon or more data" if longer else "give more data"
        many = len(series.group.unique()) > 3  # enough for the parts of a split
        if by_time and many:
            remedy += ", or split by whole series (--set split.by=series)"
        elif not by_time and not many:
            remedy += ", or split by time (--set split.by=time): whole series, or groups of them, are too few"
        raise DataError(
            f"no series has an observation within the horizon {table.clock.format_duration(horizon)} after another one "
            f"in the {part} part ({table.n_series} series, {table.n_rows} rows): {remedy}"
        )
