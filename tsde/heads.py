"""Heads: from a model's raw numbers to a distribution, and the proper score it is trained by.

The mean is trained by squared error and the shape around it by a proper score with the mean held fixed. A plain
Gaussian likelihood lets the variance explain away what the mean could still learn, and underfits the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, StudentT
from torch.nn.functional import huber_loss, softplus

from tsde.distribution import Quantiles
from tsde.metrics import pinball

HeadName = Literal["quantile", "gaussian", "student_t"]

LEVELS = (0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975)
_SPACING = tuple(
    abs(NormalDist().inv_cdf(level) - NormalDist().inv_cdf(inner))
    for level, inner in zip(LEVELS, (*LEVELS[1:7], 0.5, *LEVELS[6:-1]), strict=True)
)
"""From each level's standard normal quantile to that of its neighbour nearer the median; zero at the median."""

HUBER = 3.0  # squared error up to three standard deviations of the channel, then linear: outliers do not steer
_MIN_SCALE = 1e-3


def head_size(head: HeadName) -> int:
    """How many raw numbers a head needs beside the mean."""
    return {"quantile": len(LEVELS), "gaussian": 1, "student_t": 2}[head]


def distribution(head: HeadName, mean: Tensor, raw: Tensor, unit: Tensor | None = None) -> Distribution:
    """A distribution from its mean `(...)` and raw shape parameters `(..., head_size)`.

    Its spread is in units of `unit (...)`, or of one. gaussian: sigma = softplus(raw). student_t: also
    nu = 3 + softplus(raw), so the variance is finite. quantile: the median is mean + raw, and the others step away from
    it by softplus, so they never cross; raw = 0 is the normal around the mean with that deviation.
    """
    unit = torch.ones_like(mean) if unit is None else unit
    if head == "gaussian":
        return Normal(mean, unit * softplus(raw[..., 0]) + _MIN_SCALE, validate_args=False)
    if head == "student_t":
        scale = unit * softplus(raw[..., 0]) + _MIN_SCALE
        return StudentT(3 + softplus(raw[..., 1]), mean, scale, validate_args=False)
    middle = len(LEVELS) // 2
    # on numbers that lie apart in memory softplus is fourteen times slower
    step = softplus(raw.contiguous()) * (raw.new_tensor(_SPACING) / math.log(2))
    down = -step[..., :middle].flip(-1).cumsum(-1).flip(-1)
    up = step[..., middle + 1 :].cumsum(-1)
    offsets = torch.cat([down, torch.zeros_like(down[..., :1]), up], -1)
    values = torch.addcmul(mean.detach()[..., None], unit[..., None], offsets + raw[..., middle, None])
    return Quantiles(mean, values, raw.new_tensor(LEVELS))


def score(forecast: Distribution, target: Tensor, scaled: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """Elementwise training score in the forecast's batch shape, to which `target` broadcasts.

    The Huber loss of the mean plus a proper score of the shape. Quantiles: the mean pinball loss, doubled, which
    approximates the CRPS; their mean is held against the target as `scaled` values (`tsde.windows.Window.scaled`).
    Others: the negative log-likelihood with the mean detached.

    Raises:
        TypeError: for a distribution that no head makes.
    """
    target = target.expand(forecast.batch_shape)
    if isinstance(forecast, Quantiles):
        error = huber_loss(scaled(forecast.mean), scaled(target), reduction="none", delta=HUBER)
        return error + 2 * pinball(forecast.values, forecast.levels, target).mean(-1)
    error = huber_loss(forecast.mean, target, reduction="none", delta=HUBER)
    if isinstance(forecast, Normal):
        shape: Distribution = Normal(forecast.mean.detach(), forecast.stddev, validate_args=False)
    elif isinstance(forecast, StudentT):
        shape = StudentT(forecast.df, forecast.loc.detach(), forecast.scale, validate_args=False)
    else:
        raise TypeError(f"expected a head's distribution, got {type(forecast).__name__}")
    return error - shape.log_prob(target)
