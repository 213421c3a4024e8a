"""Baseline: ridge regression on simple summaries of the context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch.distributions import Distribution

from tsde.model import Forecaster, Loss
from tsde.models.linear import LinearRoute
from tsde.models.parts import closed_form_loss
from tsde.models.recent import RecentValues
from tsde.windows import Query, Window


class RidgeConfig(BaseModel):
    """Ridge regression per channel."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["ridge"] = "ridge"
    harmonics: int | None = Field(None, ge=1, le=32, description="of a cycle that series share, as in gait; else none")


class Ridge(Forecaster):
    """x_c(t) = w_c . phi_c + s_c e, by ridge regression of both the mean and the spread: see `LinearRoute`."""

    def __init__(self, config: RidgeConfig, channels: int):
        super().__init__()
        self.recent = RecentValues()
        self.linear = LinearRoute(channels, RecentValues.size, config.harmonics)

    def prepare(self, windows: Sequence[Window]) -> None:
        self.linear.fit([self.recent(window.query)[0] for window in windows], windows)

    def forward(self, query: Query) -> Distribution:
        return self.linear.law(self.recent(query)[0], query)

    def loss(self, window: Window) -> Loss:
        return closed_form_loss(self(window.query), window)
