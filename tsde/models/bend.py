"""Heavy-tailed channels as a network should see them: bent by an inverse hyperbolic sine, and straight again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from tsde.distribution import Quantiles, summarise
from tsde.metrics import crps_quantiles
from tsde.model import Forecaster, Wrapped
from tsde.models.recent import last_observed
from tsde.windows import Query, Window

_CENTRES = (0.01, 0.5, 0.99)  # quantiles: tails to the right, to both sides, to the left
_WIDTHS = (0.03, 0.1, 0.3, 1.0)  # interquartile ranges
_GAIN, _LESS = 0.6, 0.75  # share of the CRPS that a bend must save, and how much less of it where levels stay
_FEWEST, _MOST = 50, 4000  # pairs of a last value and what came that are looked at
_ROOM = 2.3  # log 10
_LEVELS = (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95)


class Bend(nn.Module):
    """In heavy-tailed channels

        u = (asinh((x - xi) / lambda) - mu) / sigma,    x = xi + lambda sinh(mu + sigma u)

    and u = x in all others: a line near xi, a logarithm far away. Inputs are clipped at six deviations, and what a
    channel does over several orders of magnitude would be lost to that.

    Whether a channel is heavy-tailed is asked of forecasts: targets in training are forecast from the last value before
    their origin by a straight line with normal errors, in x and in u for a few xi and lambda. The bend with the least
    CRPS of x is taken if it saves .6 (1 - .75 R^2) of that, where R^2 is the share of the variance that the line in x
    tells: .15 where series keep levels of their own, large countries and small ones, and more where what is far out
    passes, since squared errors grew there more than the CRPS fell. (By the likelihood of the values instead, channels
    would be bent whose noise is the same everywhere.) What is straightened lies no farther from xi than ten times the
    values in training.

    Source: the S_U system of Johnson (1949); the choice among bends is ours.
    """

    xi: Tensor
    width: Tensor
    mu: Tensor
    sigma: Tensor
    reach: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("xi", torch.zeros(channels))
        self.register_buffer("width", torch.zeros(channels))  # lambda; zero where u = x
        self.register_buffer("mu", torch.zeros(channels))
        self.register_buffer("sigma", torch.ones(channels))
        self.register_buffer("reach", torch.zeros(channels))  # the largest |asinh| that is straightened

    def fit(self, windows: Sequence[Window]) -> None:
        """Which channels are bent, and how, by the windows' targets and what was known before."""
        pairs, channels = zip(*(_pairs(window) for window in windows), strict=True)
        every, owner = torch.cat(pairs, 1), torch.cat(channels)
        for channel in range(len(self.xi)):
            before, after = every[:, owner == channel]
            step = -(-len(after) // _MOST)
            found = _fitted(before[::step].double(), after[::step].double()) if len(after) >= _FEWEST else None
            if found is not None:
                xi, width = found
                turned = torch.asinh((after.double() - xi) / width)
                self.xi[channel], self.width[channel] = xi, width
                self.mu[channel], self.sigma[channel] = turned.mean(), turned.std()
                self.reach[channel] = turned.abs().max() + _ROOM

    @property
    def active(self) -> bool:
        """Whether any channel is bent."""
        return bool(self.width.any())

    def bent(self, x: Tensor) -> Tensor:
        """Scaled values as a network sees them, `(..., C)`."""
        width = torch.where(self.width > 0, self.width, 1.0)
        return torch.where(self.width > 0, (torch.asinh((x - self.xi) / width) - self.mu) / self.sigma, x)

    def straight(self, u: Tensor, channel: Tensor) -> Tensor:
        """Scaled values again, of `channel` int64, which broadcasts to u."""
        reach = self.reach[channel]
        turned = (self.mu[channel] + self.sigma[channel] * u).minimum(reach).maximum(-reach)
        return torch.where(self.width[channel] > 0, self.xi[channel] + self.width[channel] * torch.sinh(turned), u)


class Bent(Wrapped):
    """A family that sees heavy-tailed channels bent, and whose forecasts are straightened: quantiles exactly.

    A mean does not follow from a bent one. What the family calls its mean is trained by the squared error of the
    *straightened* number (`tsde.heads.score`), so that it is a mean where it is read, while quantiles are trained where
    they are bent: there a channel's small values count as much as its large ones.
    """

    def __init__(self, family: Forecaster, channels: int):
        super().__init__(family)
        self.bend = Bend(channels)

    def prepare(self, windows: Sequence[Window]) -> None:
        self.bend.fit(windows)
        super().prepare(windows)

    def forward(self, query: Query) -> Distribution:
        law = self.family(self.seen(query))
        if not self.bend.active:
            return law
        law, channel = summarise(law), torch.arange(len(self.bend.width))
        values = self.bend.straight(law.values, channel[:, None])
        return Quantiles(self.bend.straight(law.mean, channel), values, law.levels)

    def seen(self, query: Query) -> Query:
        """The same question, as the family sees it."""
        if not self.bend.active:
            return query
        return replace(query, context=replace(query.context, values=self.bend.bent(query.context.values)))

    def taught(self, window: Window) -> Window:
        if not self.bend.active:
            return window
        query, values = self.seen(window.query), self.bend.bent(window.values)
        return replace(window, query=query, values=values, straight=self.bend.straight)


def _pairs(window: Window) -> tuple[Tensor, Tensor]:
    """Targets and, before each, its channel's last value at the origin, `(2, N)`; and their channels, `(N,)`."""
    value, age = (x[:, :, None] for x in last_observed(window.query))
    known = window.mask & torch.isfinite(age)
    return torch.stack([value.expand_as(window.values), window.values])[:, known], known.nonzero()[:, -1]


def _fitted(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor] | None:
    """xi and lambda of the best bend for pairs `(N,)`, or None where none is better by enough."""
    low, high = torch.quantile(after, torch.tensor([0.25, 0.75], dtype=torch.float64))
    if high <= low:
        return None
    plain = _line(before, after)
    told = 1 - (plain.mean(1) - after).square().mean() / after.var()
    best, found = (1 - _GAIN * (1 - _LESS * told.clamp(0, 1))) * _crps(plain, after), None
    for xi in torch.quantile(after, torch.tensor(_CENTRES, dtype=torch.float64)):
        for width in (high - low) * torch.tensor(_WIDTHS, dtype=torch.float64):
            turned = _line(*(torch.asinh((x - xi) / width) for x in (before, after)))
            crps = _crps(xi + width * torch.sinh(turned), after)
            if crps < best:
                best, found = crps, (xi, width)
    return found


def _line(x: Tensor, y: Tensor) -> Tensor:
    """Quantiles `(N, Q)` of the straight line from x to y with normal errors, no farther out than y ever is."""
    covariance = torch.cov(torch.stack([x, y]))
    slope = covariance[0, 1] / covariance[0, 0].clamp(min=1e-12)
    mean = y.mean() + slope * (x - x.mean())
    values = mean[:, None] + (y - mean).std() * torch.special.ndtri(x.new_tensor(_LEVELS))
    return values.clamp(y.min(), y.max())


def _crps(values: Tensor, y: Tensor) -> Tensor:
    return crps_quantiles(values, y.new_tensor(_LEVELS), y).mean()
