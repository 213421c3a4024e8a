"""Baseline: ridge regression on simple summaries of the context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.distributions import Distribution, Normal

from tsde.model import Forecaster, Loss
from tsde.models.linear import LinearRoute
from tsde.models.parts import closed_form_loss, nonnegative_line
from tsde.models.recent import RecentValues
from tsde.windows import Query, Window


class RidgeConfig(BaseModel):
    """Ridge regression per channel."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["ridge"] = "ridge"


class Ridge(Forecaster):
    """x_c(t) ~ N(w_c . phi, a_c + b_c lead), one ridge regression per channel: see `LinearRoute` for phi."""

    variance: Tensor

    def __init__(self, config: RidgeConfig, channels: int):
        super().__init__()
        self.recent = RecentValues()
        self.linear = LinearRoute(channels, RecentValues.size)
        self.register_buffer("variance", torch.tensor([[1.0], [0.0]]).repeat(1, channels))  # (2, C): a, b

    def prepare(self, windows: Sequence[Window]) -> None:
        self.linear.fit([self.recent(window.query)[0] for window in windows], windows)
        self._fit_variance(windows)

    def _fit_variance(self, windows: Sequence[Window]) -> None:
        sums = torch.zeros(5, self.variance.shape[1], dtype=torch.float64)
        for window in windows:
            square = (window.values - self._mean(window.query)).square().clamp(max=100.0).double()
            one = window.mask.double()
            lead = window.query.lead[..., None].double()
            sums += torch.stack([(p * one).sum((0, 1, 2)) for p in (one, lead, lead * lead, square, lead * square)])
        self.variance[:] = nonnegative_line(sums).float()

    def _mean(self, query: Query) -> Tensor:
        return self.linear(self.recent(query)[0], query)

    def forward(self, query: Query) -> Distribution:
        level, slope = self.variance
        variance = level + slope * query.lead[..., None]
        return Normal(self._mean(query), variance.clamp(min=1e-6).sqrt(), validate_args=False)

    def loss(self, window: Window) -> Loss:
        return closed_form_loss(self(window.query), window)
