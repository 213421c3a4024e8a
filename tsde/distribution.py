"""Distributions as the currency between models, calibration and tables.

`torch.distributions` as far as it goes, and two members of our own: `Quantiles`, a mean beside a monotone quantile
function on a grid of levels, and `Empirical`, equally likely samples. `quantiles` answers for any of them, and
`summarise` turns any of them into `Quantiles`, the form in which members are averaged, corrected and un-scaled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import singledispatch

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, StudentT

GRID = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
GRID = GRID + tuple(round(1 - level, 3) for level in reversed(GRID[:-1]))
"""Levels at which a forecast is carried through averaging and calibration."""


_ROOM = 1 / 8  # of the central 80 % interval, a third of a normal law's deviation


class Quantiles(Distribution):
    """A mean and a quantile function known at some levels, linear in between, with exponential tails.

    q(p) interpolates `(levels, values)`; below the first level p_1 it is q_1 - b log(p_1 / p), where b makes the
    slope continuous with the first segment, and likewise above the last: finite at every p in (0, 1).

    Args:
        mean: batch shape `(...)`.
        values: `(..., Q)`, non-decreasing along Q.
        levels: `(Q,)`, increasing, inside (0, 1), Q >= 2.
    """

    arg_constraints: dict = {}

    def __init__(self, mean: Tensor, values: Tensor, levels: Tensor):
        self._mean, self.values, self.levels = mean, values, levels
        super().__init__(mean.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self._mean

    def at(self, levels: Tensor) -> Tensor:
        """q(p) at `levels`, `(P,)` or its own `(..., P)` for each entry of the batch -> `(..., P)`."""
        known, values = self.levels.to(levels.dtype), self.values
        right = torch.searchsorted(known, levels.contiguous()).clamp(1, len(known) - 1)
        left = right - 1
        weight = ((levels - known[left]) / (known[right] - known[left])).clamp(0, 1).to(values.dtype)
        lower, upper = (self._values_at(place) for place in (left, right))
        low, high = self._tail_scales()
        below = (known[0] / levels).log().clamp(min=0).to(values.dtype)
        above = ((1 - known[-1]) / (1 - levels)).log().clamp(min=0).to(values.dtype)
        inside = torch.lerp(lower, upper, weight)
        return inside.addcmul_(low[..., None], below, value=-1).addcmul_(high[..., None], above)

    def _values_at(self, place: Tensor) -> Tensor:
        """Values at places `(P,)` or `(..., P)` among the levels, `(..., P)`."""
        if place.ndim > 1:
            return self.values.gather(-1, place.expand(*self.batch_shape, -1))
        rows = self.values.reshape(-1, len(self.levels))  # of a matrix this takes a quarter of the time
        return rows.index_select(1, place).reshape(*self.batch_shape, len(place))

    def _tail_scales(self) -> tuple[Tensor, Tensor]:
        known, values = self.levels, self.values
        low = (values[..., 1] - values[..., 0]) * known[0] / (known[1] - known[0])
        high = (values[..., -1] - values[..., -2]) * (1 - known[-1]) / (known[-1] - known[-2])
        return low, high

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density: constant on each segment of the quantile function, exponential in the tails.

        No segment counts as narrower than 0.01, else a forecast that is sure of a discrete value has any density.
        """
        known, values = self.levels, self.values
        tiny = 0.01
        step = torch.diff(values).clamp(min=tiny)
        index = torch.searchsorted(values.contiguous(), value[..., None].contiguous())
        segment = (index - 1).clamp(0, len(known) - 2)
        width = step.gather(-1, segment)[..., 0]
        density = (torch.diff(known)[segment[..., 0]] / width).log()
        low, high = (scale.clamp(min=tiny) for scale in self._tail_scales())
        below = (known[0] / low).log() - (values[..., 0] - value) / low
        above = ((1 - known[-1]) / high).log() - (value - values[..., -1]) / high
        return torch.where(value < values[..., 0], below, torch.where(value > values[..., -1], above, density))


class Empirical(Distribution):
    """S equally likely samples, `(S, ...)`; the mean may be given where it is known more exactly than by averaging."""

    arg_constraints: dict = {}

    def __init__(self, samples: Tensor, mean: Tensor | None = None):
        self.samples, self._mean = samples, samples.mean(0) if mean is None else mean
        super().__init__(samples.shape[1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self._mean


@singledispatch
def quantiles(distribution: Distribution, levels: Tensor) -> Tensor:
    """The quantile function at `levels (P,)`: batch shape `(...)` -> `(..., P)`, non-decreasing along P.

    Raises:
        TypeError: for a distribution this program does not carry.
    """
    raise TypeError(f"expected Normal, StudentT, Quantiles or Empirical, got {type(distribution).__name__}")


@quantiles.register
def _(distribution: Quantiles, levels: Tensor) -> Tensor:
    return distribution.at(levels)


@quantiles.register
def _(distribution: Normal, levels: Tensor) -> Tensor:
    return distribution.mean[..., None] + distribution.stddev[..., None] * torch.special.ndtri(levels)


@quantiles.register
def _(distribution: StudentT, levels: Tensor) -> Tensor:
    from scipy import special  # a fifth of a second, for those who need it

    degrees = distribution.df[..., None].detach().cpu().double().numpy()  # torch has no inverse for Student's t
    standard = torch.as_tensor(special.stdtrit(degrees, levels.cpu().double().numpy()))
    return distribution.loc[..., None] + distribution.scale[..., None] * standard.to(distribution.scale)


@quantiles.register
def _(distribution: Empirical, levels: Tensor) -> Tensor:
    samples = distribution.samples.movedim(0, -1).contiguous()  # (..., S)
    if samples.requires_grad:
        ordered = samples.sort().values
    else:  # eight times as fast
        ordered = torch.from_numpy(np.sort(samples.cpu().numpy())).to(samples.device)
    count = ordered.shape[-1]
    position = (levels * count - 0.5).clamp(0, count - 1)
    left = position.floor().long()
    right = (left + 1).clamp(max=count - 1)
    return torch.lerp(ordered[..., left], ordered[..., right], position - left)


def summarise(distribution: Distribution, levels: Sequence[float] = GRID) -> Quantiles:
    """Any distribution as its mean and its quantiles on a grid of levels."""
    grid = torch.tensor(levels, device=distribution.mean.device)
    return Quantiles(distribution.mean, quantiles(distribution, grid), grid)


def average(members: Sequence[Quantiles]) -> Quantiles:
    """Several forecasts of the same thing as one: means and quantile functions averaged (Vincent 1912).

    Averaging quantile functions keeps the members' typical width and shape; pooling densities would widen them.
    """
    mean = torch.stack([member.mean for member in members]).mean(0)
    values = torch.stack([member.values for member in members]).mean(0)
    return Quantiles(mean, values, members[0].levels)


def blend(forecast: Distribution, simple: Distribution, trust: Tensor) -> Quantiles:
    """A weighted `average` of two, on the levels of the first if it has some: `trust (2,)` is the weight of its mean
    and that of its quantile function, the rest is the other's."""
    law = forecast if isinstance(forecast, Quantiles) else summarise(forecast)
    values = torch.lerp(quantiles(simple, law.levels), law.values, trust[1])
    return Quantiles(torch.lerp(simple.mean, law.mean, trust[0]), values, law.levels)


def level_weights(levels: Tensor) -> Tensor:
    """Share of [0, 1] that each increasing level stands for, `(Q,)` -> `(Q,)`, summing to one.

    The borders lie halfway between neighbours; the first cell reaches down to 0 and the last up to 1, so the loss of
    the outermost quantile stands for its whole tail.
    """
    border = (levels[1:] + levels[:-1]) / 2
    return torch.cat([levels.new_zeros(1), border, levels.new_ones(1)]).diff()


def central_width(forecast: Quantiles) -> Tensor:
    """q_0.9 - q_0.1 of a forecast that knows both levels, in the batch shape."""
    low, high = (int(torch.searchsorted(forecast.levels, level)) for level in (0.1, 0.9))
    return forecast.values[..., high] - forecast.values[..., low]


def coherent(forecast: Quantiles) -> Quantiles:
    """The same law, its mean moved to within an eighth of the central 80 % interval from the mean of its quantiles.

    A mean that is learnt beside the quantiles, or is a regression's, may lie where they see nothing: below zero in a
    channel that never is. The mean of the quantiles is sum_p w_p q_p with `level_weights`.
    """
    levels, values = forecast.levels, forecast.values
    middle = (values * level_weights(levels)).sum(-1)
    room = _ROOM * central_width(forecast)
    return Quantiles(forecast.mean.clamp(middle - room, middle + room), forecast.values, forecast.levels)


def affine(distribution: Quantiles, location: Tensor, scale: Tensor) -> Quantiles:
    """The law of `location + scale * X` for a positive scale, both broadcast over the batch shape."""
    values = (scale[..., None] * distribution.values).add_(location[..., None])
    return Quantiles(location + scale * distribution.mean, values, distribution.levels)


def pool(components: Distribution, count: int | None = None) -> Empirical:
    """An equal mixture over the first batch dimension: `(S, ...)` components -> `Empirical` on `(...)`.

    Each component gives its quantiles at the midpoints of `count` equal slices, a stratified sample without
    randomness, and its exact mean. By default 16, and fewer where there are many components.
    """
    return pool_pieces([components], components.mean.shape[0], count)


def pool_pieces(pieces: Iterable[Distribution], size: int, count: int | None = None) -> Empirical:
    """`pool` of `size` components that come in pieces `(s, ...)`."""
    if count is None:
        count = min(16, max(2, 256 // size))
    means, samples = [], []
    for piece in pieces:
        levels = (torch.arange(count, device=piece.mean.device) + 0.5) / count
        means.append(piece.mean)
        samples.append(quantiles(piece, levels).movedim(-1, 1).flatten(0, 1))  # (s * count, ...)
    return Empirical(torch.cat(samples), torch.cat(means).mean(0))
