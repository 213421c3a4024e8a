"""Baseline: ridge regression on simple summaries of the context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.distributions import Distribution, Normal

from tsde.model import Forecaster, Loss
from tsde.models.parts import closed_form_loss, nonnegative_line
from tsde.models.readout import RecentValues
from tsde.windows import Query, Window

_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)


class RidgeConfig(BaseModel):
    """Ridge regression per channel."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["ridge"] = "ridge"


class Ridge(Forecaster):
    """x_c(t) ~ N(w_c . phi, a_c + b_c lead), one ridge regression per channel.

    phi holds the channel's own recent past (last value, age, kernel means, slopes, counts at fixed rates), the last
    value and its age times functions of the lead, and every channel's last value and presence. The penalty, per
    observation, is chosen for each channel on every fifth window, all from the normal equations.
    """

    weight: Tensor
    variance: Tensor

    def __init__(self, config: RidgeConfig, channels: int):
        super().__init__()
        self.recent = RecentValues().requires_grad_(False)
        size = RecentValues.size + 2 * channels + 7
        self.register_buffer("weight", torch.zeros(channels, size))
        self.register_buffer("variance", torch.tensor([[1.0], [0.0]]).repeat(1, channels))  # (2, C): a, b

    def _features(self, query: Query) -> Tensor:
        """phi, `(B, K, H, C, P)`."""
        own, _ = self.recent(query)  # (B, K, C, F)
        channels = own.shape[2]
        everyone = own[..., :2].flatten(-2)[:, :, None].expand(-1, -1, channels, -1)  # last and presence of all
        steady = torch.cat([own, everyone], -1)[:, :, None].expand(-1, -1, query.times.shape[-1], -1, -1)
        lead = query.lead[..., None, None].expand(*steady.shape[:-1], 1)
        last, mean = own[:, :, None, :, :1], own[:, :, None, :, 8:9]
        fade = torch.exp(-3 * lead)
        moving = torch.cat([torch.ones_like(lead), lead, fade, lead * last, fade * last, lead * mean, fade * mean], -1)
        return torch.cat([steady, moving], -1)

    def prepare(self, windows: Sequence[Window]) -> None:
        channels, size = self.weight.shape
        moments = torch.zeros(2, channels, size + 1, size + 1, dtype=torch.float64)
        for number, window in enumerate(windows):
            joint = torch.cat([self._features(window.query), window.values.clamp(-10, 10)[..., None]], -1)
            joint = (
                torch.where(window.mask[..., None], joint, 0.0).flatten(0, 2).transpose(0, 1).double()
            )  # (C, N, P + 1)
            moments[int(number % 5 == 4)] += joint.transpose(1, 2) @ joint
        fitted, held = moments if len(windows) > 5 else (moments.sum(0), moments.sum(0))
        best = torch.stack([_excess(_solve(fitted, penalty), held) for penalty in _PENALTIES]).argmin(0)  # (C,)
        total = moments.sum(0)
        choices = torch.stack([_solve(total, penalty) for penalty in _PENALTIES])
        self.weight[:] = choices[best, torch.arange(channels)].float()
        self._fit_variance(windows)

    def _fit_variance(self, windows: Sequence[Window]) -> None:
        sums = torch.zeros(5, self.weight.shape[0], dtype=torch.float64)
        for window in windows:
            square = (window.values - self._mean(window.query)).square().clamp(max=100.0).double()
            one = window.mask.double()
            lead = window.query.lead[..., None].double()
            sums += torch.stack([(p * one).sum((0, 1, 2)) for p in (one, lead, lead * lead, square, lead * square)])
        self.variance[:] = nonnegative_line(sums).float()

    def _mean(self, query: Query) -> Tensor:
        return (self._features(query) * self.weight).sum(-1)

    def forward(self, query: Query) -> Distribution:
        level, slope = self.variance
        variance = level + slope * query.lead[..., None]
        return Normal(self._mean(query), variance.clamp(min=1e-6).sqrt(), validate_args=False)

    def loss(self, window: Window) -> Loss:
        return closed_form_loss(self(window.query), window)


def _solve(moments: Tensor, penalty: float) -> Tensor:
    """Ridge weights `(C, P)` from joint second moments `(C, P + 1, P + 1)`; the penalty counts observations."""
    gram, cross = moments[:, :-1, :-1], moments[:, :-1, -1]
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype)
    return torch.linalg.solve(gram + (penalty + 1e-6) * eye, cross)


def _excess(weight: Tensor, moments: Tensor) -> Tensor:
    """Sum of squared errors of `weight (C, P)` less that of zero weights, `(C,)`, from joint second moments."""
    gram, cross = moments[:, :-1, :-1], moments[:, :-1, -1]
    return (weight * (gram @ weight[..., None])[..., 0] - 2 * weight * cross).sum(-1)
