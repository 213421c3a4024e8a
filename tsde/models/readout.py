"""From latent states and each channel's own recent past to a distribution: how all neural families answer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import silu

from tsde import heads
from tsde.models.parts import clip_values, clipped, mlp
from tsde.windows import Query


def last_observed(query: Query) -> tuple[Tensor, Tensor]:
    """Last value of each channel up to each origin (0 if none) and its age (inf if none), both `(B, K, C)`."""
    context = query.context
    row = torch.arange(context.mask.shape[1], device=context.mask.device)[None, :, None]
    latest = torch.where(context.mask, row, -1).cummax(1).values  # (B, L, C)
    at = context.last_row(query.origins)
    index = latest.gather(1, at[..., None].expand(-1, -1, latest.shape[-1]))  # (B, K, C)
    value = context.values.gather(1, index.clamp(min=0))
    time = context.times[..., None].expand_as(context.mask).gather(1, index.clamp(min=0))
    age = (query.origins[..., None] - time).clamp(min=0)
    return torch.where(index >= 0, value, 0.0), torch.where(index >= 0, age, torch.inf)


class RecentValues(nn.Module):
    """The direct route: what the past of one channel says about that channel, at every origin at once.

    For learned rates a_j, with weights w_l = exp(-a_j age_l) over the rows up to the origin, the weighted count,
    mean, slope (ridge-stabilised weighted least squares on age) and spread of each channel, beside the last
    value and its age. All are sums over rows, so one batched matrix product serves all origins and channels.
    """

    RATES = (0.5, 2.0, 8.0, 32.0)  # per horizon: from a few horizons to a small part of one
    size = 5 * len(RATES) + 4
    routes = len(RATES) + 2

    def __init__(self) -> None:
        super().__init__()
        self.log_rate = nn.Parameter(torch.tensor(self.RATES).log())

    def forward(self, query: Query) -> tuple[Tensor, Tensor]:
        """Features `(B, K, C, size)` and candidate forecasts `(B, K, C, routes)`: last, kernel means, training mean."""
        context, origins = query.context, query.origins
        values, mask = clipped(context), context.mask.float()
        age = (origins[..., None] - context.times[:, None]).clamp(min=0)  # (B, K, L)
        past = (context.times[:, None] <= origins[..., None]).float()
        weight = torch.exp(-self.log_rate.exp()[:, None] * age[:, :, None]) * past[:, :, None]  # (B, K, J, L)
        scaled = weight * age[:, :, None] * self.log_rate.exp()[:, None]
        batch, origin_count, rates, length = weight.shape
        moments = torch.cat([weight, scaled, scaled * age[:, :, None] * self.log_rate.exp()[:, None]], 2)
        sums = moments.flatten(1, 2) @ torch.cat([mask, values, values.square()], -1)  # (B, K*3J, 3C)
        sums = sums.reshape(batch, origin_count, 3, rates, 3, -1)
        count, value, square = sums[:, :, 0, :, 0], sums[:, :, 0, :, 1], sums[:, :, 0, :, 2]  # (B, K, J, C)
        ridge = count + 0.1
        mean = value / ridge
        age_mean = sums[:, :, 1, :, 0] / ridge
        slope = (age_mean * mean - sums[:, :, 1, :, 1] / ridge) / (
            (sums[:, :, 2, :, 0] / ridge - age_mean.square()).clamp(min=0) + 0.1
        )
        spread = ((square / ridge - mean.square()).clamp(min=0) + 1e-4).sqrt()
        last, last_age = last_observed(query)
        last = clip_values(last)
        known = torch.isfinite(last_age).float()
        last_age = torch.where(known.bool(), last_age, 0.0)
        recent = torch.stack([last, known, known * torch.log1p(last_age), known * torch.exp(-last_age)], -1)
        kernels = torch.cat([torch.log1p(count), mean, slope, spread, mean - last[:, :, None]], 2)  # (B, K, 5J, C)
        features = torch.cat([recent, kernels.transpose(2, 3)], -1)
        routes = torch.cat([last[..., None], mean.transpose(2, 3), torch.zeros_like(last)[..., None]], -1)
        return features, routes


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
        self.embedding = nn.Parameter(0.3 * torch.randn(channels, 8))
        self.local = mlp(RecentValues.size + 8, width, width)
        per_channel = max(8, min(width, 256 // channels))
        self.latent = nn.Linear(latent, channels * per_channel)
        self.mix = nn.Linear(per_channel, width, bias=False)
        self.lead = nn.Linear(_LEAD_FEATURES, width)
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, RecentValues.routes + 1 + heads.head_size(head))
        with torch.no_grad():
            self.out.weight.mul_(0.1)

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
        routes = routes[:, :, None]  # (B, K, 1, C, routes)
        if cells is not None:
            b, k, h, c = cells.nonzero(as_tuple=True)
            local, latent, lead, routes = (
                local[b, k, 0, c],
                latent[..., b, k, h, c, :],
                lead[b, k, h, 0],
                routes[b, k, 0, c],
            )
        hidden = self.dropout(silu(self.mix(latent) + local + lead))
        raw = self.out(hidden + silu(self.hidden(hidden)))
        gate, delta, shape = raw.split([routes.shape[-1], 1, raw.shape[-1] - routes.shape[-1] - 1], -1)
        base = (gate.softmax(-1) * routes).sum(-1)
        return heads.distribution(self.head, base + delta[..., 0], shape)


_LEAD_FEATURES = 8


def lead_features(lead: Tensor) -> Tensor:
    """A lead time in horizons as bounded features: near ones resolved finely, `(...)` -> `(..., 8)`."""
    rates = lead.new_tensor([1.0, 4.0, 16.0])
    decays = torch.exp(-rates * lead[..., None])
    angle = math.pi * lead[..., None].clamp(max=2) * lead.new_tensor([0.5, 1.0])
    return torch.cat([lead[..., None].clamp(max=4), decays, angle.sin(), angle.cos()], -1)
