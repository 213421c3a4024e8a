"""Baseline: the last observed value, with a variance that grows with the gap since it was observed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.distributions import Distribution, Normal

from tsde.model import Forecaster, Loss
from tsde.models.parts import closed_form_loss, line_sums, nonnegative_line
from tsde.models.recent import last_observed
from tsde.windows import Query, Window


class LastConfig(BaseModel):
    """Last value carried forward."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["last"] = "last"


class Last(Forecaster):
    """x(t) ~ N(x(t_last), a_c + b_c (t - t_last)): a random walk with measurement noise, a and b >= 0 per channel.

    They are fitted to squared differences by least squares. A channel that was never observed is N(0, 1) in scaled
    units, the training marginal.
    """

    literal = True
    variance: Tensor

    def __init__(self, config: LastConfig, channels: int):
        super().__init__()
        self.register_buffer("variance", torch.tensor([[1.0], [0.0]]).repeat(1, channels))  # (2, C): a, b

    def prepare(self, windows: Sequence[Window]) -> None:
        sums = torch.zeros(5, self.variance.shape[1], dtype=torch.float64)
        for window in windows:
            mean, gap = self._carry(window.query)
            sums += line_sums(gap, (window.values - mean).square(), window.mask & torch.isfinite(gap))
        self.variance[:] = nonnegative_line(sums).float()

    @staticmethod
    def _carry(query: Query) -> tuple[Tensor, Tensor]:
        """Last value and time since it at each query, `(B, K, H, C)`; the gap is inf where nothing was observed."""
        value, age = last_observed(query)
        gap = age[:, :, None] + query.lead[..., None]
        return value[:, :, None].expand_as(gap), gap

    def forward(self, query: Query) -> Distribution:
        mean, gap = self._carry(query)
        level, slope = self.variance
        known = torch.isfinite(gap)
        variance = torch.where(known, level + slope * torch.where(known, gap, 0.0), 1.0)
        return Normal(mean, variance.clamp(min=1e-6).sqrt(), validate_args=False)

    def loss(self, window: Window) -> Loss:
        return closed_form_loss(self(window.query), window)
