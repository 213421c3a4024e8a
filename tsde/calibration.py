"""Conformal correction of quantiles, and of means, by lead time and channel, fitted on windows of held-out series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from tsde.distribution import Quantiles, central_width

_GROUP_TRUST = 6.0  # a lead-time bin or channel must show that much more to differ from the rest
_ALIKE = 0.5  # how much of their variance the scores of one piece share
_ATOM = 0.02  # share of exact hits above which a quantile is taken to lie on an atom


class CalibrationConfig(BaseModel):
    """How forecasts are corrected after training."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    enabled: bool = True
    lead_bins: int = Field(4, ge=1, description="groups of lead times with a correction of their own")
    shrinkage: float = Field(5.0, ge=0, description="pieces' worth of trust in the raw forecast; six-fold for groups")


@dataclass(frozen=True)
class Residuals:
    """Forecasts with known answers, flattened: what a calibrator is fitted on and what coverage is measured on.

    Attributes:
        forecast: batch shape `(M,)`, scaled, on the grid of levels.
        value, lead: `(M,)`. channel, series: `(M,)` int64.
    """

    forecast: Quantiles
    value: Tensor
    lead: Tensor
    channel: Tensor
    series: Tensor

    @classmethod
    def concatenate(cls, parts: Sequence[Residuals]) -> Residuals:
        forecast = Quantiles(
            torch.cat([part.forecast.mean for part in parts]),
            torch.cat([part.forecast.values for part in parts]),
            parts[0].forecast.levels,
        )
        fields = ("value", "lead", "channel", "series")
        return cls(forecast, *(torch.cat([getattr(part, name) for part in parts]) for name in fields))


class Calibrator:
    """Each quantile moved by a multiple of the forecast's own spread so that it holds at its level, and the mean too.

    With s = q_0.9 - q_0.1 + 0.1 the conformity score of level p is e = (y - q_p) / s, and q_p becomes q_p + d_p s,
    where d_p is the conformal p-quantile of the scores: one-sided conformalised quantile regression (Romano,
    Patterson and Candes 2019) at every level, with multiplicative scores. Deviation: d_p is taken per lead-time bin
    and per channel, each shrunk towards the correction over all data with a weight that grows with n, the number of
    exchangeable *pieces* behind it: series, since the windows of one are not exchangeable with those of another; or,
    where the same series are forecast later on, stretches of them as long as a horizon. The mean moves likewise by
    the average of its own scores, each clipped at one: a few wild values say little of where means should be. It moves
    less far, the less m, that average less what it is shrunk towards, stands out: by (1 - v / (2 n m^2))_+ of the way,
    in the spirit of James and Stein (1961), with v the scores' variance. Were the scores of a piece all alike, v / n
    would be the squared error of m; half of that is assumed.

    Attributes:
        edges: `(bins - 1,)` lead times in horizons between bins.
        shift: `(bins, C, Q + 1)`, of the quantiles and of the mean.
    """

    def __init__(self, edges: Tensor, shift: Tensor):
        self.edges, self.shift = edges, shift

    @classmethod
    def identity(cls, channels: int, levels: int) -> Calibrator:
        """The calibrator that changes nothing."""
        return cls(torch.zeros(0), torch.zeros(1, channels, levels + 1))

    @classmethod
    def fit(
        cls,
        residuals: Residuals,
        channels: int,
        config: CalibrationConfig,
        pieces: Tensor | None = None,
        means: bool = True,
    ) -> Calibrator:
        """Fit on held-out residuals; too few of them leave the forecasts nearly as they are.

        Args:
            pieces: `(N,)`, how many pieces the residuals of each series count for; one where nothing is said.
            means: whether they move too.
        """
        levels = residuals.forecast.levels
        if not config.enabled or len(residuals.value) == 0:
            return cls.identity(channels, len(levels))
        steps = torch.arange(1, config.lead_bins) / config.lead_bins
        edges = torch.quantile(residuals.lead[: 2**24], steps).unique() if len(steps) else torch.zeros(0)
        forecast = torch.cat([residuals.forecast.values, residuals.forecast.mean[:, None]], -1)
        scores = (residuals.value[:, None] - forecast) / _spread(residuals.forecast)[:, None]
        owner, constant = residuals.series, _constant(residuals.value, residuals.channel, channels)
        telling = ~constant[residuals.channel]
        pieces = torch.ones(int(owner.max()) + 1) if pieces is None else pieces
        nothing, trust = torch.zeros(len(levels) + 1), _GROUP_TRUST * config.shrinkage
        overall = _shrunk(scores[telling], owner[telling], pieces, levels, nothing, config.shrinkage)
        bins = torch.bucketize(residuals.lead, edges)
        in_bin = [telling & (bins == b) for b in range(len(edges) + 1)]
        by_bin = torch.stack([_shrunk(scores[m], owner[m], pieces, levels, overall, trust) for m in in_bin])
        rest = scores - by_bin[bins]  # what is left for the channels to explain
        of_channel = [residuals.channel == c for c in range(channels)]
        by_channel = torch.stack([_shrunk(rest[m], owner[m], pieces, levels, nothing, trust) for m in of_channel])
        movable = _movable(scores, residuals.channel, channels) * ~constant[:, None]
        movable[:, -1] *= means
        return cls(edges, (by_bin[:, None] + by_channel) * movable)

    def __call__(self, forecast: Quantiles, lead: Tensor, channel: Tensor) -> Quantiles:
        """Corrected quantiles, never crossing, and the mean; `lead` and `channel` broadcast to the batch shape."""
        shift = self.shift[torch.bucketize(lead.contiguous(), self.edges), channel].mul_(_spread(forecast)[..., None])
        values = forecast.values + shift[..., :-1]
        if (values[..., 1:] < values[..., :-1]).any():
            values = values.cummax(-1).values
        return Quantiles(forecast.mean + shift[..., -1], values, forecast.levels)


def _spread(forecast: Quantiles) -> Tensor:
    """q_0.9 - q_0.1 plus a tenth of a channel's deviation, so that a forecast sure of one value can be moved too."""
    return central_width(forecast) + 0.1


def _constant(value: Tensor, channel: Tensor, channels: int) -> Tensor:
    """Whether each channel takes one value several times, `(C,)`: it says nothing of the others, nor they of it."""
    empty = value.new_zeros(channels)
    least, most = (empty.scatter_reduce(0, channel, value, end, include_self=False) for end in ("amin", "amax"))
    return (least == most) & (torch.bincount(channel, minlength=channels) > 1)


def _movable(scores: Tensor, channel: Tensor, channels: int) -> Tensor:
    """Zero where a channel's quantile (or mean) often equals the value exactly, else one, `(C, Q + 1)`.

    There the channel has an atom (no rain, a score of zero) and the quantile lies on it; a shift borrowed from other
    channels, however small, would put the atom outside the interval.
    """
    hits = scores.new_zeros(channels, scores.shape[1]).index_add(0, channel, (scores == 0).float())
    return (hits <= _ATOM * torch.bincount(channel, minlength=channels)[:, None]).float()


def _shrunk(
    scores: Tensor, series: Tensor, pieces: Tensor, levels: Tensor, towards: Tensor, shrinkage: float
) -> Tensor:
    """Conformal quantile of each column of `scores (M, Q + 1)` at its own level, and the last one's average, shrunk
    towards `towards (Q + 1,)`.

    That of level p is the interpolated quantile of the M scores at 1/2 + (p - 1/2) (M + 1) / M, as far from the middle
    as conformal prediction's order statistics are. Deviation: M counts scores, though only pieces are exchangeable.
    With whole series in that place intervals from 16 to 60 series covered 2 to 4 points too much, since the windows of
    a series are far from equal.
    """
    size = len(scores)
    if size == 0:
        return towards
    count = float(pieces[series.unique()].sum())
    outward = (levels - 0.5) * (size + 1) / size + 0.5
    ordered = scores.sort(0).values
    position = (outward.clamp(0, 1) * len(ordered) - 0.5).clamp(0, len(ordered) - 1)
    left = position.floor().long()
    right = (left + 1).clamp(max=len(ordered) - 1)
    column = torch.arange(len(levels))
    quantiles = torch.lerp(ordered[left, column], ordered[right, column], position - left)
    clipped = ordered[:, -1].clamp(-1, 1)
    move = (torch.cat([quantiles, clipped.mean()[None]]) - towards) * (count / (count + shrinkage))
    doubt = _ALIKE * clipped.var(unbiased=False) / count
    move[-1] *= (1 - doubt / (clipped.mean() - towards[-1]).square().clamp(min=1e-12)).clamp(min=0)
    return towards + move
