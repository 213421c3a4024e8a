"""Peer: a mixer network for irregular series; each channel becomes a vector, and vectors are mixed across channels."""

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
from tsde.series import SeriesBatch
from tsde.windows import Query, Window


class MixerConfig(BaseModel):
    """Mixer over channels and features."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["mixer"] = "mixer"
    hidden: int = Field(32, ge=4, multiple_of=4, description="weighted averages per channel")
    width: int = Field(64, ge=4, multiple_of=4, description="size of a channel's vector, hidden units of the mixing")
    blocks: int = Field(2, ge=1, description="mixing blocks")
    dropout: float = Field(0.1, ge=0, lt=1)
    head: heads.HeadName = "quantile"


class Mixer(Forecaster):
    """Of the observed pairs (t_i, x_i) of channel c up to the origin o, dimension d of the channel's vector is

        v_cd = sum_i w_i g_d(o - t_i) u_d(x_i, c) / (sum_i w_i + 0.1),    w_i = a_d(x_i, c) b_d(o - t_i)

    with positive weights a and b, u linear in x for each channel and dimension, and z_c = W [v_c, log(1 + sum w), last
    value, its age] + e_c. Blocks mix across channels and across features, each with a residual and a norm; x_c(t) is
    decoded from z_c * f(lead(t)), added to the last value.

    After IMTS-Mixer (Kloetergens et al. 2025, arXiv:2502.11816): convex sums per channel and dimension, mixer blocks,
    and a decoder that multiplies a channel's vector by an encoded time. Deviations: times count from the origin;
    weights and values are products of a function of the age and one of the value, so that two batched matrix products
    serve every origin of a series, where a joint network would have to see all pairs again for each; the
    last value of each channel is given, as to the other peers.
    """

    def __init__(self, config: MixerConfig, channels: int):
        super().__init__()
        width = config.width
        self.head = config.head
        self.aggregate = _Aggregate(channels, config.hidden)
        self.channel = nn.Linear(2 * config.hidden + 4, width)
        self.embedding = nn.Parameter(0.3 * torch.randn(channels, width))
        self.blocks = nn.Sequential(*(_Block(channels, width, config.dropout) for _ in range(config.blocks)))
        self.norm = nn.LayerNorm(width)
        self.lead = mlp(LEAD_FEATURES, width, width)
        self.out = mlp(width, width, 1 + heads.head_size(config.head))

    def forward(self, query: Query) -> Distribution:
        z, last = self._encode(query)
        time = 1 + self.lead(lead_features(query.lead))
        return self._decode(z[:, :, None] * time[..., None, :], last[:, :, None])

    def loss(self, window: Window) -> Loss:
        z, last = self._encode(window.query)
        time = 1 + self.lead(lead_features(window.query.lead))
        b, k, h, c = window.mask.nonzero(as_tuple=True)  # most cells are unobserved, and decoding costs most
        return mean_loss(self._decode(z[b, k, c] * time[b, k, h], last[b, k, c]), window)

    def _encode(self, query: Query) -> tuple[Tensor, Tensor]:
        """A vector per origin and channel `(B, K, C, W)`, and each channel's last value `(B, K, C)`."""
        last, age = last_observed(query)
        last, known = clip_values(last), torch.isfinite(age).float()
        age = torch.log1p(10 * torch.where(known > 0, age, 0.0))
        recent = torch.stack([last, known, age, torch.zeros_like(age)], -1)
        z = self.channel(torch.cat([*self.aggregate(query), recent], -1)) + self.embedding
        return self.norm(self.blocks(z)), last

    def _decode(self, cells: Tensor, last: Tensor) -> Distribution:
        raw = self.out(cells)
        return heads.distribution(self.head, last + raw[..., 0], raw[..., 1:])


class _Aggregate(nn.Module):
    """The weighted averages of each channel's observed pairs, from every origin at once."""

    SLOWEST, FASTEST = 0.25, 32.0  # per horizon: decay rates of the weights at the start of training

    def __init__(self, channels: int, size: int):
        super().__init__()
        spread = torch.linspace(0, 1, size)
        self.log_rate = nn.Parameter(torch.tensor(self.SLOWEST).log().lerp(torch.tensor(self.FASTEST).log(), spread))
        self.slope = nn.Parameter(torch.randn(2 * size, 1, channels))
        self.level = nn.Parameter(0.3 * torch.randn(2 * size, 1, channels))
        self.from_age = mlp(LEAD_FEATURES, 32, 2 * size)

    def forward(self, query: Query) -> tuple[Tensor, Tensor]:
        """Averages and log weights, both `(B, K, C, D)`."""
        weight, content = self._of_values(query.context)  # (B, D, L, C)
        age = query.origins[..., None] - query.context.times[:, None]  # (B, K, L)
        past, age = (age >= 0).float()[..., None], age.clamp(min=0)
        raw, factor = self.ages(age).chunk(2, -1)  # (B, K, L, D)
        decay = past * torch.exp(3 * torch.tanh(raw) - self.log_rate.exp() * age[..., None])
        total = _over_rows(decay, weight)
        average = _over_rows(decay * (1 + factor), weight * content) / (total + 0.1)
        return average, torch.log1p(total)

    def ages(self, age: Tensor) -> Tensor:
        """What an age does to weights, and to values, `(...)` -> `(..., 2 D)`."""
        return self.from_age(lead_features(age))

    def _of_values(self, context: SeriesBatch) -> tuple[Tensor, Tensor]:
        raw, content = (clipped(context)[:, None] * self.slope + self.level).chunk(2, 1)  # (B, D, L, C)
        return context.mask[:, None] * torch.exp(torch.tanh(raw)), content


def _over_rows(decay: Tensor, content: Tensor) -> Tensor:
    """Sums over rows: `(B, K, L, D)` and `(B, D, L, C)` -> `(B, K, C, D)`."""
    return (decay.permute(0, 3, 1, 2) @ content).permute(0, 2, 3, 1)


class _Block(nn.Module):
    """z <- z + mix over channels(norm z), then z <- z + mix over features(norm z)."""

    def __init__(self, channels: int, width: int, dropout: float):
        super().__init__()
        self.spare = -channels % 4  # products of other inner sizes round by a row's place in the batch
        self.channel_norm, self.feature_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across_channels = mlp(channels + self.spare, max(16, channels + self.spare), channels)
        self.across_features = mlp(width, 2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, z: Tensor) -> Tensor:
        """`(B, K, C, W)`."""
        mixed = self.across_channels(pad(self.channel_norm(z).mT, (0, self.spare))).mT
        z = z + self.dropout(mixed)
        return z + self.dropout(self.across_features(self.feature_norm(z)))
