"""Baseline: the training mean, whatever was observed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.distributions import Distribution

from tsde.distribution import GRID, Quantiles
from tsde.model import Forecaster, Loss
from tsde.models.parts import closed_form_loss
from tsde.windows import Query, Window


class MeanConfig(BaseModel):
    """Training mean and quantiles of each channel."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["mean"] = "mean"


class Mean(Forecaster):
    """The marginal law of each channel's training targets: its mean and its quantiles. No parameters to learn."""

    literal = True
    average: Tensor
    values: Tensor

    def __init__(self, config: MeanConfig, channels: int):
        super().__init__()
        self.register_buffer("average", torch.zeros(channels))
        self.register_buffer("values", torch.special.ndtri(torch.tensor(GRID)).expand(channels, -1).clone())

    def prepare(self, windows: Sequence[Window]) -> None:
        channels = len(self.average)
        targets = torch.cat([window.values.reshape(-1, channels) for window in windows])
        masks = torch.cat([window.mask.reshape(-1, channels) for window in windows])
        for channel, (column, mask) in enumerate(zip(targets.T, masks.T, strict=True)):
            if mask.any():
                seen = column[mask][: 2**24]  # torch.quantile's limit
                self.average[channel] = seen.mean()
                self.values[channel] = torch.quantile(seen, torch.tensor(GRID))

    def forward(self, query: Query) -> Distribution:
        shape = (*query.times.shape, len(self.average))
        levels = torch.tensor(GRID, device=self.values.device)
        return Quantiles(self.average.expand(shape), self.values.expand(*shape, -1), levels)

    def loss(self, window: Window) -> Loss:
        return closed_form_loss(self(window.query), window)
