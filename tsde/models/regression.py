"""Ridge regression on summaries of the context, in closed form: what `tsde.models.linear` forecasts by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tsde.calendar import ORIGIN, PHASES, PLAIN
from tsde.windows import FOLDS, Query, Window

_FARTHEST = 2.0  # horizons: beyond, a line in the lead time is not followed any further
_LINES = 7  # functions of the lead alone
_CALENDAR = PHASES + ORIGIN


class Regressors:
    """phi of every channel at every query time: the channel's own recent past, every channel's last value and
    presence, the channel's last value, mean and one times functions of the lead, where in the calendar's cycles the
    time and the origin lie, and what else is known of both.

    Attributes:
        summary: `(B, K, C, F)` as `RecentValues` gives it; it begins with the last value.
        further: `(B, K, H, C, E)`.
    """

    def __init__(self, summary: Tensor, query: Query, further: Tensor | None = None):
        self.summary, self.query = summary, query
        self.further = summary.new_zeros(*query.times.shape, summary.shape[2], 0) if further is None else further

    def __matmul__(self, weight: Tensor) -> Tensor:
        """w . phi, `(B, K, H, C)`, for weights `(C, P)` or `(B, K, C, P)`."""
        steady, factors = self._parts()
        sizes = [steady.shape[-1], _LINES, _CALENDAR, self.further.shape[-1]]
        of_steady, of_lines, of_calendar, of_further = weight.split(sizes, -1)
        level = (steady * of_steady).sum(-1)
        scaled = (factors * of_lines)[:, :, None]  # (B, K, 1, C, 7)
        # a batched matrix product may round by a row's place in the batch; a sum does not
        line = level[:, :, None] + (_of_lead(self.query)[..., None, :] * scaled).sum(-1)
        if self.query.calendar is not None:
            line = line + (_of_calendar(self.query)[..., None, :] * of_calendar[..., None, :, :]).sum(-1)
        return line + (self.further * of_further[..., None, :, :]).sum(-1)

    def features(self) -> Tensor:
        """phi itself, `(B, K, H, C, P)`."""
        steady, factors = self._parts()
        lines = factors[:, :, None] * _of_lead(self.query)[..., None, :]
        everyone = lines.shape[:-1]
        calendar = _of_calendar(self.query)[..., None, :].expand(*everyone, -1)
        return torch.cat([steady[:, :, None].expand(*everyone, -1), lines, calendar, self.further], -1)

    def _parts(self) -> tuple[Tensor, Tensor]:
        """The part of phi that stays over the lead, `(B, K, C, F + 2C)`, and what `_of_lead` scales, `(B, K, C, 7)`."""
        channels = self.summary.shape[2]
        everyone = self.summary[..., :2].flatten(-2)[:, :, None].expand(-1, -1, channels, -1)
        last, mean, one = self.summary[..., 0], self.summary[..., 8], torch.ones_like(self.summary[..., 0])
        factors = torch.stack([one, one, one, last, last, mean, mean], -1)
        return torch.cat([self.summary, everyone], -1), factors


class Regression(nn.Module):
    """w_c . phi_c for every channel c, with w_c by ridge regression in closed form.

    Groups of origins (`tsde.windows.Origins`) form five folds. The errors of each fold under weights from the other
    four choose, for each channel, the penalty in observations, where weights are small, and whether phi holds more of
    the calendar than each cycle by itself. In training mode a row is answered by weights that have not seen its fold:
    what is learnt on top must not trust the regression more than on new series (stacking, Wolpert 1992).
    """

    weight: Tensor
    others: Tensor

    def __init__(self, channels: int, summary: int, further: int = 0):
        """
        Args:
            summary: numbers per channel in a summary of its recent past.
            further: numbers of what else is known.
        """
        super().__init__()
        size = summary + 2 * channels + _LINES + _CALENDAR + further
        self.further = further
        self.register_buffer("weight", torch.zeros(channels, size))
        self.register_buffer("others", torch.zeros(FOLDS, channels, size), persistent=False)

    def forward(self, phi: Regressors) -> Tensor:
        return self.apart(phi) if self.training else phi @ self.weight

    def apart(self, phi: Regressors) -> Tensor:
        """As in training mode: each row by the weights that have not seen its fold."""
        return phi @ self.others[phi.query.fold]

    def fit(
        self,
        examples: Sequence[tuple[Regressors, Window]],
        targets: Sequence[Tensor],
        near_zero: Sequence[float],
        near_last: Sequence[float] = (),
    ) -> None:
        """Weights from targets `(B, K, H, C)` of each window where it is observed.

        Args:
            near_zero: penalties of |w|^2; the first is taken where folds tell nothing.
            near_last: and of |w - u|^2, where u . phi is the channel's last value.
        """
        channels, size = self.weight.shape
        moments = torch.zeros(FOLDS, channels, size + 1, size + 1, dtype=torch.float64)
        for (phi, window), target in zip(examples, targets, strict=True):
            joint = torch.cat([phi.features(), target[..., None]], -1)
            joint, fold = torch.where(window.mask[..., None], joint, 0.0), window.query.fold
            for number in range(FOLDS):
                part = joint[fold == number].flatten(0, 1).transpose(0, 1).double()  # (C, N, P + 1)
                moments[number] += part.transpose(1, 2) @ part
        every, channel = moments.sum(0), torch.arange(channels)
        told = [~self._fine(), torch.ones(size, dtype=torch.bool)]
        if all(window.query.calendar is None for _, window in examples):
            told = told[:1]
        solved = [_ridges(of, told, near_zero, near_last) for of in (every, *(every - part for part in moments))]
        without = solved[1:]  # of each fold, (choices, C, P)
        excess = [_excess(weights, part) for weights, part in zip(without, moments, strict=True)]  # (choices, C)
        best = torch.stack(excess).sum(0).argmin(0)
        self.others[:] = torch.stack([weights[best, channel] for weights in without]).float()
        self.weight[:] = solved[0][best, channel].float()

    def _fine(self) -> Tensor:
        """Which of phi are the calendar's products and what it says of origins, `(P,)` bool."""
        end = self.weight.shape[-1] - self.further
        place = torch.arange(self.weight.shape[-1])
        return (place >= end - _CALENDAR + PLAIN) & (place < end)


def _fade(query: Query) -> Tensor:
    return torch.exp(-3 * query.lead.clamp(max=_FARTHEST))


def _of_lead(query: Query) -> Tensor:
    """Functions of the lead, `(B, K, H, 7)`."""
    lead, fade = query.lead.clamp(max=_FARTHEST), _fade(query)
    return torch.stack([torch.ones_like(lead), lead, fade, lead, fade, lead, fade], -1)


def _of_calendar(query: Query) -> Tensor:
    """The calendar's phases, and those of the origin's hour once more, fading, `(B, K, H, 56)`."""
    return torch.cat([query.phases, _fade(query)[..., None] * query.phases[..., -ORIGIN:]], -1)


def _ridges(moments: Tensor, told: Sequence[Tensor], near_zero: Sequence[float], near_last: Sequence[float]) -> Tensor:
    """Weights `(choices, C, P)` from joint second moments `(C, P + 1, P + 1)` and parts of phi, each `(P,)` bool: of
    each of these alone, with each penalty, which counts observations."""
    eye = torch.eye(moments.shape[-1] - 1, dtype=moments.dtype)
    last = eye[:, :1]  # phi begins with it
    found = []
    for part in told:
        seen = torch.cat([part, part.new_ones(1)]).to(moments.dtype)
        used = moments * seen[:, None] * seen
        gram, cross = used[:, :-1, :-1], used[:, :-1, -1:]
        for p in dict.fromkeys((*near_zero, *near_last)):
            sides = [cross] * (p in near_zero) + [cross + p * last] * (p in near_last)
            found += torch.linalg.solve(gram + (p + 1e-6) * eye, torch.cat(sides, -1)).unbind(-1)
    return torch.stack(found)


def _excess(weight: Tensor, moments: Tensor) -> Tensor:
    """Squared errors of `weight (..., C, P)` less those of zero weights, `(..., C)`, from joint second moments."""
    gram, cross = moments[:, :-1, :-1], moments[:, :-1, -1]
    return (weight * (gram @ weight[..., None])[..., 0] - 2 * weight * cross).sum(-1)
