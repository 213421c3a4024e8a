"""Scores of a predictor on held-out windows: overall, by lead time and by channel, in scaled units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tsde import metrics
from tsde.calibration import Residuals
from tsde.errors import DataError
from tsde.predictor import Predictor
from tsde.windows import Window


@dataclass(frozen=True)
class Scores:
    """Mean scores over observed targets; values are in standard deviations of each channel.

    `coverage` maps a central level in percent to (share covered, standard error with series as clusters).
    """

    count: int
    mse: float
    mae: float
    crps: float
    nll: float
    width_80: float
    coverage: dict[int, tuple[float, float]]


@dataclass(frozen=True)
class Slice:
    """Scores of one lead-time bin (horizons) or one channel."""

    name: str
    lead: tuple[float, float] | None
    scores: Scores


@dataclass(frozen=True)
class Evaluation:
    """A predictor's scores on one set of windows.

    `frequency` is the observed share of y <= q_p for each level p of the forecast's grid, for reliability diagrams.
    """

    overall: Scores
    by_lead: list[Slice]
    by_channel: list[Slice]
    levels: list[float]
    frequency: list[float]


_LEVELS = (50, 80, 95)


def evaluate(
    predictor: Predictor, windows: Sequence[Window], calibrated: bool = True, lead_bins: int = 4
) -> Evaluation:
    """Score a predictor on windows whose answers are known; `calibrated=False` scores the raw forecasts.

    Raises:
        DataError: no target of the windows was observed.
    """
    _require_targets(windows)
    return _evaluate(predictor, predictor.residuals(windows, calibrated), lead_bins)


def evaluate_both(predictor: Predictor, windows: Sequence[Window]) -> tuple[Evaluation, Evaluation]:
    """The same before and after calibration, for the price of one forecast."""
    _require_targets(windows)
    raw = predictor.residuals(windows, calibrated=False)
    corrected = replace(raw, forecast=predictor.calibrator(raw.forecast, raw.lead, raw.channel))
    return _evaluate(predictor, raw), _evaluate(predictor, corrected)


def _require_targets(windows: Sequence[Window]) -> None:
    if not any(window.mask.any() for window in windows):
        raise DataError(
            f"nothing to score: expected windows with observed targets, got {len(windows)} without any; "
            "keep a test part (split.test) or take other data"
        )


def _evaluate(predictor: Predictor, residuals: Residuals, lead_bins: int = 4) -> Evaluation:
    edges = torch.quantile(residuals.lead[: 2**24], torch.arange(1, lead_bins) / lead_bins).unique()
    bins = torch.bucketize(residuals.lead, edges)
    limits = [0.0, *edges.tolist(), float(residuals.lead.max())]
    by_lead = [
        Slice(f"{limits[b]:.2f}-{limits[b + 1]:.2f}", (limits[b], limits[b + 1]), _score(residuals, bins == b))
        for b in range(len(edges) + 1)
        if (bins == b).any()
    ]
    by_channel = [
        Slice(name, None, _score(residuals, residuals.channel == c))
        for c, name in enumerate(predictor.channels)
        if (residuals.channel == c).any()
    ]
    below = (residuals.value[:, None] <= residuals.forecast.values).float().mean(0)
    everything = torch.ones_like(residuals.value, dtype=torch.bool)
    levels = residuals.forecast.levels.tolist()
    return Evaluation(_score(residuals, everything), by_lead, by_channel, levels, below.tolist())


def _score(residuals: Residuals, chosen: Tensor) -> Scores:
    forecast, y = residuals.forecast, residuals.value[chosen]
    law = type(forecast)(forecast.mean[chosen], forecast.values[chosen], forecast.levels)
    series = residuals.series[chosen]
    bounds = {level: law.at(torch.tensor([0.5 - level / 200, 0.5 + level / 200])).unbind(-1) for level in _LEVELS}
    median = law.at(torch.tensor([0.5]))[..., 0]
    everything = torch.ones_like(y, dtype=torch.bool)
    return Scores(
        count=len(y),
        mse=float(metrics.mse(law.mean, y).mean()),
        mae=float(metrics.mae(median, y).mean()),
        crps=float(metrics.crps_quantiles(law.values, law.levels, y).mean()),
        nll=float(-law.log_prob(y).mean()),
        width_80=float(metrics.interval_width(*bounds[80]).mean()),
        coverage={
            level: metrics.clustered_mean(metrics.coverage(low, high, y).float(), everything, series)
            for level, (low, high) in bounds.items()
        },
    )
