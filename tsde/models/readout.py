"""From latent states and each channel's own recent past to a distribution: how all neural families answer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import silu

from tsde import heads
from tsde.models.linear import LinearRoute
from tsde.models.parts import mlp
from tsde.models.recent import RecentValues
from tsde.windows import Query, Window


class Readout(nn.Module):
    """Latent states at query times, and each channel's own recent past, to a distribution per channel.

        h = silu(W_y,c y(t) + phi(recent_c, e_c) + W_t lead);   mean = sum_r softmax(w)_r route_r + delta

    with (w, delta, shape) from a second layer on h, and e_c an embedding of the channel. The gate over routes (last
    value, kernel means, training mean) is what a recurrent state does not learn by itself.
    """

    def __init__(self, latent: int, channels: int, head: heads.HeadName, width: int, dropout: float):
        super().__init__()
        self.head = head
        self.recent = RecentValues()
        self.linear = LinearRoute(channels, RecentValues.size)
        self.embedding = nn.Parameter(0.3 * torch.randn(channels, 8))
        self.local = mlp(RecentValues.size + 8, width, width)
        per_channel = max(8, min(width, 256 // channels))
        self.latent = nn.Linear(latent, channels * per_channel)
        self.mix = nn.Linear(per_channel, width, bias=False)
        self.lead = nn.Linear(LEAD_FEATURES, width)
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, RecentValues.routes + 2 + heads.head_size(head))
        with torch.no_grad():
            self.out.weight.mul_(0.1)

    def prepare(self, windows: Sequence[Window]) -> None:
        """Fit the linear route."""
        self.linear.fit([self.recent(window.query)[0] for window in windows], windows)

    def forward(self, query: Query, states: Tensor, cells: Tensor | None = None) -> Distribution:
        """`states (..., B, K, H, D)` at the query times -> batch shape `(..., B, K, H, C)`.

        With `cells (B, K, H, C)` only those M cells are computed, batch shape `(..., M)`: most are unobserved in
        training, and this layer costs more than all others.
        """
        features, routes = self.recent(query)
        channels = features.shape[2]
        embedded = self.embedding.expand(*features.shape[:2], -1, -1)
        local = self.local(torch.cat([features, embedded], -1))[:, :, None]  # (B, K, 1, C, W)
        latent = self.latent(states).unflatten(-1, (channels, -1))  # (..., B, K, H, C, R)
        lead = self.lead(lead_features(query.lead))[..., None, :]  # (B, K, H, 1, W)
        straight = self.linear(features, query)  # (B, K, H, C)
        if cells is not None:
            b, k, h, c = cells.nonzero(as_tuple=True)
            local, latent, lead, routes = (
                local[b, k, 0, c],
                latent[..., b, k, h, c, :],
                lead[b, k, h, 0],
                routes[b, k, c],
            )
            straight = straight[b, k, h, c]
        else:
            routes = routes[:, :, None].expand(*straight.shape, -1)
        routes = torch.cat([routes, straight[..., None]], -1)
        hidden = self.dropout(silu(self.mix(latent) + local + lead))
        raw = self.out(hidden + silu(self.hidden(hidden)))
        gate, delta, shape = raw.split([routes.shape[-1], 1, raw.shape[-1] - routes.shape[-1] - 1], -1)
        base = (gate.softmax(-1) * routes).sum(-1)
        return heads.distribution(self.head, base + delta[..., 0], shape)


LEAD_FEATURES = 8


def lead_features(lead: Tensor) -> Tensor:
    """A lead time in horizons as bounded features: near ones resolved finely, `(...)` -> `(..., 8)`."""
    rates = lead.new_tensor([1.0, 4.0, 16.0])
    decays = torch.exp(-rates * lead[..., None])
    angle = math.pi * lead[..., None].clamp(max=2) * lead.new_tensor([0.5, 1.0])
    return torch.cat([lead[..., None].clamp(max=4), decays, angle.sin(), angle.cos()], -1)
