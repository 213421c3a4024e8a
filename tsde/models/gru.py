"""Peer: a plain gated recurrent unit that reads the gaps between rows, and a network that answers for any lead time."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import pad

from tsde import heads
from tsde.model import Forecaster, Loss
from tsde.models.parts import clip_values, clipped, mean_loss, mlp
from tsde.models.readout import LEAD_FEATURES, lead_features
from tsde.models.recent import last_observed
from tsde.windows import Query, Window


class GRUConfig(BaseModel):
    """Gated recurrent unit with time gaps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["gru"] = "gru"
    hidden: int = Field(128, ge=4, multiple_of=4, description="size of the recurrent state")
    layers: int = Field(1, ge=1, le=4, description="recurrent layers")
    width: int = Field(128, ge=4, multiple_of=4, description="hidden units of the decoder")
    dropout: float = Field(0.1, ge=0, lt=1)
    head: heads.HeadName = "quantile"


class GRU(Forecaster):
    """With x_l the values of row l, m_l which of them were observed, and gap_l the time since the row before,

        h_l = GRU([m_l x_l, m_l, log(1 + 10 gap_l)], h_{l-1}),
        raw(t) = MLP([h, s, lead(t), x_last, m_last, log(1 + 10 age_last)]),    mean_c(t) = x_last,c + raw_c(t)

    where h is the state after the last row up to the origin that observed anything, s the time since that row, and
    x_last the last value of each channel with its age. It is what most people would write first (GRU with mask and
    interval inputs: Che et al. 2018, "GRU-simple"; Cho et al. 2014 for the cell), kept as a peer that other families
    must beat: no dynamics between rows, no decays, no gates over routes. Deviations from GRU-simple: one interval per
    row instead of one per channel, and the lead time as an input, so that any time can be asked.
    """

    def __init__(self, config: GRUConfig, channels: int):
        super().__init__()
        self.head, self.channels = config.head, channels
        self.spare = -(2 * channels + 1) % 4  # products of other inner sizes round by a row's place in the batch
        inputs = 2 * channels + 1 + self.spare
        between = config.dropout if config.layers > 1 else 0.0
        self.encoder = nn.GRU(inputs, config.hidden, config.layers, batch_first=True, dropout=between)
        known = config.hidden + 1 + 3 * channels
        self.state = nn.Linear(known + -known % 4, config.width)
        self.lead = nn.Linear(LEAD_FEATURES, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.out = mlp(config.width, config.width, channels * (1 + heads.head_size(config.head)))

    def forward(self, query: Query) -> Distribution:
        mean, shape = self._decode(query)
        return heads.distribution(self.head, mean, shape)

    def loss(self, window: Window) -> Loss:
        mean, shape = self._decode(window.query)
        return mean_loss(heads.distribution(self.head, mean[window.mask], shape[window.mask]), window)

    def _decode(self, query: Query) -> tuple[Tensor, Tensor]:
        """Means `(B, K, H, C)` and raw shape parameters `(B, K, H, C, S)`."""
        state, since = self._encode(query)
        last, age = last_observed(query)  # (B, K, C)
        last, known = clip_values(last), torch.isfinite(age).float()
        past = torch.cat([state, _log(since)[..., None], last, known, _log(torch.where(known > 0, age, 0.0))], -1)
        steady = self.state(pad(past, (0, self.state.in_features - past.shape[-1])))
        hidden = nn.functional.silu(steady[:, :, None] + self.lead(lead_features(query.lead)))
        raw = self.out(self.dropout(hidden)).unflatten(-1, (self.channels, -1))
        return last[:, :, None] + raw[..., 0], raw[..., 1:]

    def _encode(self, query: Query) -> tuple[Tensor, Tensor]:
        """The state after the last row up to each origin that observed anything `(B, K, D)`, and the time since it.

        Padding observes nothing, so it is never read; where no row observed anything both are zero.
        """
        context = query.context
        rows = torch.cat([clipped(context), context.mask.float(), _log(context.gaps)[..., None]], -1)
        states, _ = self.encoder(pad(rows, (0, self.spare)))  # (B, L, D)
        number = torch.arange(states.shape[1], device=states.device)
        latest = torch.where(context.observed, number, -1).cummax(1).values  # (B, L)
        row = latest.gather(1, context.last_row(query.origins))  # (B, K)
        safe, found = row.clamp(min=0), row >= 0
        state = states.gather(1, safe[..., None].expand(-1, -1, states.shape[-1])) * found[..., None]
        since = (query.origins - context.times.gather(1, safe)).clamp(min=0)
        return state, torch.where(found, since, 0.0)


def _log(time: Tensor) -> Tensor:
    return torch.log1p(10 * time)
