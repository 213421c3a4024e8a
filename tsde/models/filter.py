"""Continuous-discrete filter: exact linear flow between observations, a gated innovation update at them."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.distributions import Distribution

from tsde.flow import cheap_tanh, to_complex, to_real
from tsde.heads import HeadName
from tsde.model import Forecaster, Loss
from tsde.models.parts import FASTEST, Horizon, Modes, Readout, at_origins, clipped, mean_loss
from tsde.series import SeriesBatch
from tsde.windows import Query, Window


class FilterConfig(BaseModel):
    """Continuous-discrete filter with a latent ODE over the horizon."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["filter"] = "filter"
    modes: int = Field(64, ge=1, description="complex modes of the filter's state")
    width: int = Field(64, ge=1, description="hidden units of update, horizon and readout")
    horizon_modes: int = Field(32, ge=1, description="complex modes of the latent ODE over the horizon")
    steps: int = Field(12, ge=1, description="solver steps per horizon")
    dropout: float = Field(0.1, ge=0, lt=1)
    head: HeadName = "quantile"


class Filter(Forecaster):
    """z is a bank of complex modes; between observations and at observation l, with innovation e_l,

        z(t_l-) = exp(lambda gap_l) z(t_{l-1}+),    e_l = m_l * (x_l - C z(t_l-)),
        z(t_l+) = z(t_l-) + sigmoid(u_l) * tanh(v_l),    (u_l, v_l) = W [z(t_l-), e_l, m_l]

    the gain of a Kalman filter replaced by a learned gate (kin of CRU, Schirmer et al. 2022, LinODENet, Scholz et
    al. 2023, and NCDSSM, Ansari et al. 2023). The state at an origin starts a latent ODE over the horizon.
    """

    def __init__(self, config: FilterConfig, channels: int):
        super().__init__()
        size = 2 * config.modes
        self.modes = Modes(config.modes, FASTEST)
        self.predict = nn.Linear(size, channels)
        self.from_state = nn.Linear(size, 2 * config.width)
        self.from_innovation = nn.Linear(channels, 2 * config.width, bias=False)
        self.from_mask = nn.Linear(channels, 2 * config.width)
        self.gain = nn.Linear(config.width, size, bias=False)
        self.encoded = nn.LayerNorm(size)
        self.horizon = Horizon(size, config.horizon_modes, config.width, config.steps)
        self.readout = Readout(2 * config.horizon_modes, channels, config.head, config.width, config.dropout)

    def encode(self, context: SeriesBatch) -> Tensor:
        """The state after each row, `(B, L, 2M)`."""
        values, mask = clipped(context), context.mask.float()
        turns = self.modes().over(context.gaps).unbind(1)
        masks, xs = mask.unbind(1), values.unbind(1)
        from_mask = self.from_mask(mask).unbind(1)
        seen = context.observed[..., None].float().unbind(1)
        state = torch.zeros_like(turns[0])
        states = []
        for turn, x, m, drive, observed in zip(turns, xs, masks, from_mask, seen, strict=True):
            state = state * turn
            real = to_real(state)
            innovation = x - m * self.predict(real)
            gate, move = (self.from_state(real) + self.from_innovation(innovation) + drive).chunk(2, -1)
            update = self.gain(torch.sigmoid(gate) * cheap_tanh(move)) * observed
            state = state + to_complex(update)
            states.append(state)
        return to_real(torch.stack(states, 1))

    def _states(self, query: Query) -> Tensor:
        """Latent states at the query times, `(B, K, H, D)`."""
        encoded = self.encoded(at_origins(self.encode(query.context), query))
        return self.horizon(encoded, query.lead)

    def forward(self, query: Query) -> Distribution:
        return self.readout(query, self._states(query))

    def loss(self, window: Window) -> Loss:
        return mean_loss(self.readout(window.query, self._states(window.query), window.mask), window)
