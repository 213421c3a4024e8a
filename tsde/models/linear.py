"""Ridge regression on summaries of the context: the baseline's forecast, and a route of every neural readout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tsde.calendar import ORIGIN, PHASES, PLAIN
from tsde.models.cycle import Cycle
from tsde.models.parts import line_sums, nonnegative_line
from tsde.windows import FOLDS, Query, Window

_PENALTIES = (1e3, 1e2, 1e1, 1.0, 1e-1, 1e-2, 1e-3)  # the strongest first: it is taken where folds tell nothing
_STRONGER = (1e5, 1e4)  # near the last value only: near zero a context would be read no more
_FARTHEST = 2.0  # horizons: beyond, a line in the lead time is not followed any further
_LINES = 7  # functions of the lead alone
_CALENDAR = PHASES + ORIGIN
_OFFSETS = (3.0, 12.0)  # per horizon: how fast the distance from a cycle is forgotten


class LinearRoute(nn.Module):
    """x_c(t) = w_c . phi_c + e, Var e = a_c + b_c lead: one ridge regression per channel, fitted in closed form.

    phi holds the channel's own recent past, every channel's last value and presence, the channel's last value, mean
    and one times functions of the lead, where in the calendar's cycles the time and the origin lie, and, with
    `harmonics`, where a cycle of the series' own (`Cycle`) takes the channel and the distance from it at the origin,
    fading. Penalised is |w_c - s u_c|^2, where u_c . phi_c is the channel's last value and s zero or one: small weights
    lead back to the mean of training, where prices and populations never go.

    Groups of origins (`tsde.windows.Origins`) form five folds. The errors of each fold under weights from the other
    four choose, for each channel, s, the penalty in observations, and whether phi holds more of the calendar than each
    cycle by itself; and they give a, b >= 0 by least squares. In training mode a row is answered by the weights, and
    the cycle, that have not seen its fold: what is learnt on top must not trust the regression more than on new series
    (stacking, Wolpert 1992).
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
        size = summary + 2 * channels + _LINES + _CALENDAR + (1 + len(_OFFSETS) if harmonics else 0)
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
        fine = _fine(size, returning[0].shape[-1])
        dated = any(window.query.calendar is not None for window in windows)
        told = [~fine, torch.ones_like(fine)] if dated else [~fine]
        without = [_ridges(every - part, told) for part in moments]  # of each fold, (choices, C, P)
        excess = [_excess(weights, part) for weights, part in zip(without, moments, strict=True)]  # (choices, C)
        best = torch.stack(excess).sum(0).argmin(0)
        self.others[:] = torch.stack([weights[best, channel] for weights in without]).float()
        self.weight[:] = _ridges(every, told)[best, channel].float()
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
    steady, factors = _parts(summary)
    sizes = [steady.shape[-1], _LINES, _CALENDAR, returning.shape[-1]]
    of_steady, of_lines, of_calendar, of_returning = weight.split(sizes, -1)
    level = (steady * of_steady).sum(-1)
    scaled = (factors * of_lines)[:, :, None]  # (B, K, 1, C, 7)
    # a batched matrix product may round by a row's place in the batch; a sum does not
    line = level[:, :, None] + (_of_lead(query)[..., None, :] * scaled).sum(-1)
    if query.calendar is not None:
        line = line + (_of_calendar(query)[..., None, :] * of_calendar[..., None, :, :]).sum(-1)
    return line + (returning * of_returning[..., None, :, :]).sum(-1)


def _parts(summary: Tensor) -> tuple[Tensor, Tensor]:
    """The part of phi that stays over the lead, `(B, K, C, F + 2C)`, and what `_of_lead` scales, `(B, K, C, 7)`."""
    channels = summary.shape[2]
    everyone = summary[..., :2].flatten(-2)[:, :, None].expand(-1, -1, channels, -1)
    last, mean, one = summary[..., 0], summary[..., 8], torch.ones_like(summary[..., 0])
    factors = torch.stack([one, one, one, last, last, mean, mean], -1)
    return torch.cat([summary, everyone], -1), factors


def _fade(query: Query) -> Tensor:
    return torch.exp(-3 * query.lead.clamp(max=_FARTHEST))


def _of_lead(query: Query) -> Tensor:
    """Functions of the lead, `(B, K, H, 7)`."""
    lead, fade = query.lead.clamp(max=_FARTHEST), _fade(query)
    return torch.stack([torch.ones_like(lead), lead, fade, lead, fade, lead, fade], -1)


def _of_calendar(query: Query) -> Tensor:
    """The calendar's phases, and those of the origin's hour once more, fading, `(B, K, H, 56)`."""
    return torch.cat([query.phases, _fade(query)[..., None] * query.phases[..., -ORIGIN:]], -1)


def _features(summary: Tensor, query: Query) -> Tensor:
    """The part of phi that no cycle gives, `(B, K, H, C, P)`."""
    steady, factors = _parts(summary)
    lines = factors[:, :, None] * _of_lead(query)[..., None, :]
    everyone = lines.shape[:-1]
    calendar = _of_calendar(query)[..., None, :].expand(*everyone, -1)
    return torch.cat([steady[:, :, None].expand(*everyone, -1), lines, calendar], -1)


def _fine(size: int, returning: int) -> Tensor:
    """Which of phi are the calendar's products and what it says of origins, `(P,)` bool."""
    end = size - returning
    place = torch.arange(size)
    return (place >= end - _CALENDAR + PLAIN) & (place < end)


def _ridges(moments: Tensor, told: Sequence[Tensor]) -> Tensor:
    """Weights `(choices, C, P)` from joint second moments `(C, P + 1, P + 1)` and parts of phi, each `(P,)` bool: of
    each of these alone, near zero and near the last value, with each penalty, which counts observations."""
    eye = torch.eye(moments.shape[-1] - 1, dtype=moments.dtype)
    last = eye[:, :1]  # phi begins with it
    found = []
    for part in told:
        seen = torch.cat([part, part.new_ones(1)]).to(moments.dtype)
        used = moments * seen[:, None] * seen
        gram, cross = used[:, :-1, :-1], used[:, :-1, -1:]
        for p in _PENALTIES + _STRONGER:
            both = torch.linalg.solve(gram + (p + 1e-6) * eye, torch.cat([cross, cross + p * last], -1)).unbind(-1)
            found += both if p in _PENALTIES else both[1:]
    return torch.stack(found)


def _excess(weight: Tensor, moments: Tensor) -> Tensor:
    """Squared errors of `weight (..., C, P)` less those of zero weights, `(..., C)`, from joint second moments."""
    gram, cross = moments[:, :-1, :-1], moments[:, :-1, -1]
    return (weight * (gram @ weight[..., None])[..., 0] - 2 * weight * cross).sum(-1)
