"""Ridge regression on summaries of the context: the baseline's forecast, and a route of every neural readout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tsde.calendar import PHASES
from tsde.models.cycle import Cycle
from tsde.models.parts import line_sums, nonnegative_line
from tsde.windows import FOLDS, Query, Window

_PENALTIES = (1e5, 1e4, 1e3, 1e2, 1e1, 1.0, 1e-1, 1e-2, 1e-3)  # strongest first: so it is where folds tell nothing
_FARTHEST = 2.0  # horizons: beyond, a line in the lead time is not followed any further
_MOVING = 7 + PHASES
_OFFSETS = (3.0, 12.0)  # per horizon: how fast the distance from a cycle is forgotten


class LinearRoute(nn.Module):
    """x_c(t) = w_c . phi_c + e, Var e = a_c + b_c lead: one ridge regression per channel, fitted in closed form.

    phi holds the channel's own recent past, every channel's last value and presence, the channel's last value, mean
    and one times functions of the lead, where in the calendar's cycles the time lies, and, with `harmonics`, where a
    cycle of the series' own (`Cycle`) takes the channel and the distance from it at the origin, fading. Penalised is
    |w_c - s u_c|^2, where u_c . phi_c is the channel's last value and s zero or one: small weights lead back to the
    mean of training, where prices and populations never go.

    Groups of origins (`tsde.windows.Origins`) form five folds. The errors of each fold under weights from the other
    four choose s and the penalty of each channel, in observations, and give a, b >= 0 by least squares. In training
    mode a row is answered by the weights, and the cycle, that have not seen its fold: what is learnt on top must not
    trust the regression more than on new series (stacking, Wolpert 1992).
    """

    weight: Tensor
    others: Tensor
    variance: Tensor

    def __init__(self, channels: int, summary: int, harmonics: int | None = None):
        """
        Args:
            summary: numbers per channel in a summary of its recent past.
            harmonics: of a cycle that series share; None for none.
        """
        super().__init__()
        self.cycle = Cycle(channels, harmonics) if harmonics else None
        size = summary + 2 * channels + _MOVING + (1 + len(_OFFSETS) if harmonics else 0)
        self.register_buffer("weight", torch.zeros(channels, size))
        self.register_buffer("others", torch.zeros(FOLDS, channels, size), persistent=False)
        self.register_buffer("variance", torch.tensor([[1.0], [0.0]]).repeat(1, channels))  # (2, C): a, b

    def forward(self, summary: Tensor, query: Query) -> Tensor:
        """`summary (B, K, C, F)` as `RecentValues` gives it -> means `(B, K, H, C)`."""
        weight = self.others[query.fold] if self.training else self.weight
        return _line(summary, query, self._returning(summary, query, self.training), weight)

    def deviation(self, lead: Tensor) -> Tensor:
        """Standard deviation of e at `lead (...)`: `(..., C)`."""
        level, slope = self.variance
        return (level + slope * lead[..., None]).clamp(min=1e-6).sqrt()

    def fit(self, summaries: Sequence[Tensor], windows: Sequence[Window]) -> None:
        """Weights and variance from the windows' observed targets, clipped at ten standard deviations."""
        if self.cycle is not None:
            self.cycle.fit(windows)
        pairs = list(zip(summaries, windows, strict=True))
        returning = [self._returning(summary, window.query, apart=True) for summary, window in pairs]
        channels, size = self.weight.shape
        moments = torch.zeros(FOLDS, channels, size + 1, size + 1, dtype=torch.float64)
        for (summary, window), own in zip(pairs, returning, strict=True):
            targets = window.values.clamp(-10, 10)[..., None]
            joint = torch.cat([_features(summary, window.query), own, targets], -1)
            joint, fold = torch.where(window.mask[..., None], joint, 0.0), window.query.fold
            for number in range(FOLDS):
                part = joint[fold == number].flatten(0, 1).transpose(0, 1).double()  # (C, N, P + 1)
                moments[number] += part.transpose(1, 2) @ part
        every, channel = moments.sum(0), torch.arange(channels)
        without = [_ridges(every - part) for part in moments]  # of each fold, (choices, C, P)
        excess = [_excess(weights, part) for weights, part in zip(without, moments, strict=True)]  # (choices, C)
        best = torch.stack(excess).sum(0).argmin(0)
        self.others[:] = torch.stack([weights[best, channel] for weights in without]).float()
        self.weight[:] = _ridges(every)[best, channel].float()
        sums = torch.zeros(5, channels, dtype=torch.float64)
        for (summary, window), own in zip(pairs, returning, strict=True):
            square = (window.values - _line(summary, window.query, own, self.others[window.query.fold])).square()
            sums += line_sums(window.query.lead[..., None].expand_as(square), square, window.mask)
        self.variance[:] = nonnegative_line(sums).float()

    def _returning(self, summary: Tensor, query: Query, apart: bool) -> Tensor:
        """The part of phi that a cycle gives, `(B, K, H, C, 3)`, or nothing of it; `apart` as in `Cycle`."""
        if self.cycle is None:
            return summary.new_zeros(*query.times.shape, summary.shape[2], 0)
        ahead, now = self.cycle.expected(query, apart)
        last, known = summary[..., 0], summary[..., 1]
        offset = (known * (last - now))[:, :, None, :, None]
        fades = torch.exp(-query.lead[..., None] * query.lead.new_tensor(_OFFSETS))[..., None, :]
        return torch.cat([ahead[..., None], offset * fades], -1)


def _line(summary: Tensor, query: Query, returning: Tensor, weight: Tensor) -> Tensor:
    """w . phi, `(B, K, H, C)`, for weights `(C, P)` or `(B, K, C, P)`."""
    steady, moving = _parts(summary)
    of_steady, of_moving, of_returning = weight.split([steady.shape[-1], _MOVING, returning.shape[-1]], -1)
    level = (steady * of_steady).sum(-1)
    scaled = (moving * of_moving)[:, :, None]  # (B, K, 1, C, 19)
    # a batched matrix product may round by a row's place in the batch; a sum does not
    line = level[:, :, None] + (_functions(query)[..., None, :] * scaled).sum(-1)
    return line + (returning * of_returning[..., None, :, :]).sum(-1)


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
    """The part of phi that no cycle gives, `(B, K, H, C, P)`."""
    steady, moving = _parts(summary)
    varying = moving[:, :, None] * _functions(query)[..., None, :]
    return torch.cat([steady[:, :, None].expand(*varying.shape[:-1], -1), varying], -1)


def _ridges(moments: Tensor) -> Tensor:
    """Weights `(2 penalties, C, P)` from joint second moments `(C, P + 1, P + 1)`, those near zero first; a penalty
    counts observations."""
    gram, cross = moments[:, :-1, :-1], moments[:, :-1, -1:]
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype)
    last = eye[:, :1].expand_as(cross)  # phi begins with it
    both = [torch.linalg.solve(gram + (p + 1e-6) * eye, torch.cat([cross, cross + p * last], -1)) for p in _PENALTIES]
    return torch.stack(both).movedim(-1, 0).flatten(0, 1)


def _excess(weight: Tensor, moments: Tensor) -> Tensor:
    """Squared errors of `weight (..., C, P)` less those of zero weights, `(..., C)`, from joint second moments."""
    gram, cross = moments[:, :-1, :-1], moments[:, :-1, -1]
    return (weight * (gram @ weight[..., None])[..., 0] - 2 * weight * cross).sum(-1)
