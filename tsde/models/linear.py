"""Ridge regression on summaries of the context: the baseline's forecast, and a route of every neural readout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tsde.calendar import PHASES
from tsde.models.parts import line_sums, nonnegative_line
from tsde.windows import Query, Window

_PENALTIES = (1e3, 1e2, 1e1, 1.0, 1e-1, 1e-2, 1e-3)  # the strongest first: it is taken where folds tell nothing
_FOLDS = 5
_FARTHEST = 2.0  # horizons: beyond, a line in the lead time is not followed any further
_MOVING = 7 + PHASES


class LinearRoute(nn.Module):
    """x_c(t) = w_c . phi_c + e, Var e = a_c + b_c lead: one ridge regression per channel, fitted in closed form.

    phi holds the channel's own recent past, every channel's last value and presence, the channel's last value, mean
    and one times functions of the lead, and where in the calendar's cycles the time lies. Groups of origins
    (`tsde.windows.Origins`) form five folds. The errors of each fold under weights from the other four choose the
    penalty of each channel, in observations, and give a, b >= 0 by least squares. In training mode a row is answered
    by the weights that have not seen its fold: what is learnt on top must not trust the regression more than on new
    series (stacking, Wolpert 1992).
    """

    weight: Tensor
    others: Tensor
    variance: Tensor

    def __init__(self, channels: int, summary: int):
        """
        Args:
            summary: numbers per channel in a summary of its recent past.
        """
        super().__init__()
        size = summary + 2 * channels + _MOVING
        self.register_buffer("weight", torch.zeros(channels, size))
        self.register_buffer("others", torch.zeros(_FOLDS, channels, size), persistent=False)
        self.register_buffer("variance", torch.tensor([[1.0], [0.0]]).repeat(1, channels))  # (2, C): a, b

    def forward(self, summary: Tensor, query: Query) -> Tensor:
        """`summary (B, K, C, F)` as `RecentValues` gives it -> means `(B, K, H, C)`."""
        return _line(summary, query, self.others[_fold(query)] if self.training else self.weight)

    def deviation(self, lead: Tensor) -> Tensor:
        """Standard deviation of e at `lead (...)`: `(..., C)`."""
        level, slope = self.variance
        return (level + slope * lead[..., None]).clamp(min=1e-6).sqrt()

    def fit(self, summaries: Sequence[Tensor], windows: Sequence[Window]) -> None:
        """Weights and variance from the windows' observed targets, clipped at ten standard deviations."""
        channels, size = self.weight.shape
        moments = torch.zeros(_FOLDS, channels, size + 1, size + 1, dtype=torch.float64)
        for summary, window in zip(summaries, windows, strict=True):
            joint = torch.cat([_features(summary, window.query), window.values.clamp(-10, 10)[..., None]], -1)
            joint, fold = torch.where(window.mask[..., None], joint, 0.0), _fold(window.query)
            for number in range(_FOLDS):
                part = joint[fold == number].flatten(0, 1).transpose(0, 1).double()  # (C, N, P + 1)
                moments[number] += part.transpose(1, 2) @ part
        every, channel = moments.sum(0), torch.arange(channels)
        without = [_ridges(every - part) for part in moments]  # of each fold, (penalties, C, P)
        excess = [_excess(weights, part) for weights, part in zip(without, moments, strict=True)]  # (penalties, C)
        best = torch.stack(excess).sum(0).argmin(0)
        self.others[:] = torch.stack([weights[best, channel] for weights in without]).float()
        self.weight[:] = _ridges(every)[best, channel].float()
        sums = torch.zeros(5, channels, dtype=torch.float64)
        for summary, window in zip(summaries, windows, strict=True):
            square = (window.values - _line(summary, window.query, self.others[_fold(window.query)])).square()
            sums += line_sums(window.query.lead[..., None].expand_as(square), square, window.mask)
        self.variance[:] = nonnegative_line(sums).float()


def _fold(query: Query) -> Tensor:
    """The fold of each origin's group, `(B, K)`."""
    return query.groups % _FOLDS


def _line(summary: Tensor, query: Query, weight: Tensor) -> Tensor:
    """w . phi, `(B, K, H, C)`, for weights `(C, P)` or `(B, K, C, P)`."""
    steady, moving = _parts(summary)
    level = (steady * weight[..., :-_MOVING]).sum(-1)
    scaled = (moving * weight[..., -_MOVING:])[:, :, None]  # (B, K, 1, C, 19)
    # a batched matrix product may round by a row's place in the batch; a sum does not
    return level[:, :, None] + (_functions(query)[..., None, :] * scaled).sum(-1)


def _parts(summary: Tensor) -> tuple[Tensor, Tensor]:
    """The part of phi that stays over the lead, `(B, K, C, F + 2C)`, and what `_functions` scale, `(B, K, C, 19)`."""
    channels = summary.shape[2]
    everyone = summary[..., :2].flatten(-2)[:, :, None].expand(-1, -1, channels, -1)
    last, mean, one = summary[..., 0], summary[..., 8], torch.ones_like(summary[..., 0])
    factors = torch.stack([one, one, one, last, last, mean, mean, *[one] * PHASES], -1)
    return torch.cat([summary, everyone], -1), factors


def _functions(query: Query) -> Tensor:
    """Functions of the query times, `(B, K, H, 19)`: of the lead, and of the calendar."""
    lead = query.lead.clamp(max=_FARTHEST)
    fade = torch.exp(-3 * lead)
    return torch.cat([torch.stack([torch.ones_like(lead), lead, fade, lead, fade, lead, fade], -1), query.phases], -1)


def _features(summary: Tensor, query: Query) -> Tensor:
    """phi, `(B, K, H, C, P)`."""
    steady, moving = _parts(summary)
    varying = moving[:, :, None] * _functions(query)[..., None, :]
    return torch.cat([steady[:, :, None].expand(*varying.shape[:-1], -1), varying], -1)


def _ridges(moments: Tensor) -> Tensor:
    """Weights `(penalties, C, P)` from joint second moments `(C, P + 1, P + 1)`; a penalty counts observations."""
    gram, cross = moments[:, :-1, :-1], moments[:, :-1, -1]
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype)
    return torch.stack([torch.linalg.solve(gram + (penalty + 1e-6) * eye, cross) for penalty in _PENALTIES])


def _excess(weight: Tensor, moments: Tensor) -> Tensor:
    """Squared errors of `weight (..., C, P)` less those of zero weights, `(..., C)`, from joint second moments."""
    gram, cross = moments[:, :-1, :-1], moments[:, :-1, -1]
    return (weight * (gram @ weight[..., None])[..., 0] - 2 * weight * cross).sum(-1)
