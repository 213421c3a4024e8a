"""What the past of one channel says about that channel: its last value, and kernel means, slopes and spreads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tsde.models.parts import clip_values, clipped
from tsde.series import SeriesBatch
from tsde.windows import Query

_SHORT = 1 / 32  # of a horizon


def last_observed(query: Query) -> tuple[Tensor, Tensor]:
    """Last value of each channel up to each origin (0 if none) and its age (inf if none), both `(B, K, C)`."""
    index, _ = query.latest
    value, time = seen_at(query.context, index)
    age = (query.origins[..., None] - time).clamp(min=0)
    return value, torch.where(index >= 0, age, torch.inf)


def last_and_slope(query: Query) -> tuple[Tensor, Tensor]:
    """Last value of each channel up to each origin and the slope that led there, per horizon, both `(B, K, C)`.

    Both are clipped as network inputs are, and zero where nothing is known. Two values hardly apart in time say little
    of a slope, so a small part of a horizon is added to their distance.
    """
    index, before = query.latest
    (last, end), (first, start) = (seen_at(query.context, at) for at in (index, before))
    slope = (clip_values(last) - clip_values(first)) / (end - start + _SHORT)
    return clip_values(last), clip_values(torch.where(before >= 0, slope, 0.0))


def seen_at(context: SeriesBatch, index: Tensor) -> tuple[Tensor, Tensor]:
    """Values in rows `index (B, K, C)`, zero for none, and the rows' times."""
    row = index.clamp(min=0)
    time = context.times[..., None].expand_as(context.mask).gather(1, row)
    return torch.where(index >= 0, context.values.gather(1, row), 0.0), time


class RecentValues(nn.Module):
    """The direct route: what the past of one channel says about that channel, at every origin at once.

    At rates a_j, with weights w_l = exp(-a_j age_l) over the rows up to the origin, the weighted count,
    mean, slope (ridge-stabilised weighted least squares on age) and spread of each channel, beside the last
    value and its age. All are sums over rows, so one batched matrix product serves all origins and channels.
    """

    RATES = (0.5, 2.0, 8.0, 32.0)  # per horizon: from a few horizons to a small part of one
    size = 5 * len(RATES) + 4
    routes = len(RATES) + 2

    def forward(self, query: Query) -> tuple[Tensor, Tensor]:
        """Features `(B, K, C, size)` and candidate forecasts `(B, K, C, routes)`: last, kernel means, training mean."""
        context, origins = query.context, query.origins
        values, mask = clipped(context), context.mask.float()
        age = (origins[..., None] - context.times[:, None]).clamp(min=0)  # (B, K, L)
        past = (context.times[:, None] <= origins[..., None]).float()
        turned = age[:, :, None] * age.new_tensor(self.RATES)[:, None]  # a_j age_l, (B, K, J, L)
        weight = torch.exp(-turned) * past[:, :, None]
        batch, origin_count, rates, length = weight.shape
        moments = torch.cat([weight, weight * turned, weight * turned.square()], 2)
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
