"""Continuous-discrete filter: exact linear flow between observations, a gated innovation update at them."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.distributions import Distribution

from tsde.heads import HeadName
from tsde.model import Forecaster, Loss
from tsde.models.components import Components
from tsde.models.horizon import Horizon
from tsde.models.parts import FASTEST, Modes, at_origins, mean_loss, over_rows
from tsde.models.readout import Readout
from tsde.scans.innovation import innovation_scan
from tsde.scans.pairs import to_real
from tsde.series import SeriesBatch
from tsde.windows import Query, Window


class FilterConfig(BaseModel):
    """Continuous-discrete filter with a latent ODE over the horizon."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["filter"] = "filter"
    modes: int = Field(64, ge=1, description="complex modes of the filter's state")
    width: int = Field(64, ge=4, multiple_of=4, description="hidden units of update, horizon and readout")
    horizon_modes: int = Field(
        32, ge=1, description="complex modes of the latent ODE over the horizon, beside the channels' own"
    )
    rank: int | None = Field(
        None,
        ge=1,
        description="principal components that stand for the channels in the state; for many that move as one",
    )
    harmonics: int | None = Field(
        None, ge=1, le=32, description="of a cycle that series share at paces and phases of their own, as in gait"
    )
    steps: int = Field(12, ge=1, description="solver steps per horizon")
    tolerance: float | None = Field(None, gt=0, description="of adaptive steps over the horizon; else they are fixed")
    dropout: float = Field(0.1, ge=0, lt=1)
    head: HeadName = "quantile"


class Filter(Forecaster):
    """z is a bank of complex modes; between observations and at observation l, with innovation e_l,

        z(t_l-) = exp(lambda gap_l) z(t_{l-1}+),    e_l = m_l * (x_l - C z(t_l-)),
        z(t_l+) = z(t_l-) + G (sigmoid(u_l) * tanh(v_l)),    (u_l, v_l) = W [z(t_l-), e_l, m_l]

    the gain of a Kalman filter replaced by a learned gate (kin of CRU, Schirmer et al. 2022, LinODENet, Scholz et
    al. 2023, and NCDSSM, Ansari et al. 2023). The state at an origin starts a latent ODE over the horizon. With a
    `rank` all this happens to principal components of x, and what comes of them is spread to the channels at the end.
    """

    def __init__(self, config: FilterConfig, channels: int):
        super().__init__()
        size, gates = 2 * config.modes, 2 * config.width
        self.components = Components(channels, config.rank) if config.rank and config.rank < channels else None
        seen = channels if self.components is None else self.components.directions.shape[1]
        self.adaptive = config.tolerance is not None
        self.modes = Modes(config.modes, FASTEST)
        self.read = nn.Linear(size, seen + gates)  # C, and W's columns for the state
        self.from_innovation = nn.Linear(seen, gates, bias=False)
        self.from_mask = nn.Linear(seen, gates, bias=False)
        self.gain = nn.Linear(config.width, size, bias=False)
        self.encoded = nn.LayerNorm(size)
        horizon = config.horizon_modes, config.width, config.steps, config.tolerance, config.dropout
        self.horizon = Horizon(size, seen, *horizon)
        latent = self.horizon.size if self.components is None else self.components.spread_size(self.horizon.size)
        self.readout = Readout(
            latent, channels, config.head, config.width, config.dropout, anchored=True, harmonics=config.harmonics
        )

    def encode(self, context: SeriesBatch) -> Tensor:
        """The state after each row, `(B, n, 2M)`."""
        start = context.values.new_zeros(len(context.values), len(self.modes.frequency), dtype=torch.complex64)
        return to_real(over_rows(self._scan, start, context))

    def _scan(self, start: Tensor, gaps: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        seen, mask = mask.any(-1, keepdim=True).float(), mask.float()
        rows = self.modes().over(gaps), values, mask, self.from_mask(mask), seen
        weights = self.read.weight, self.read.bias, self.from_innovation.weight, self.gain.weight
        return innovation_scan(start, *rows, *weights)

    def _states(self, query: Query) -> Tensor:
        """Latent states at the query times, `(B, K, H, D)`."""
        seen = query if self.components is None else self.components.of(query)
        encoded = self.encoded(at_origins(self.encode(seen.context), seen))
        states = self.horizon(encoded, seen)
        return states if self.components is None else self.components.spread(states)

    def forward(self, query: Query) -> Distribution:
        return self.readout(query, self._states(query))

    def loss(self, window: Window) -> Loss:
        return mean_loss(self.readout(window.query, self._states(window.query), window.mask), window)
