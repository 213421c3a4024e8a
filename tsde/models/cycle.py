"""A cycle that series share, each at a pace and phase of its own: gait, breath, tides, and what else returns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from tsde.models.harmonics import fitted, moments, powers, square
from tsde.models.parts import clipped
from tsde.windows import FOLDS, Query, Window

_PACES, _PHASES = 61, 128  # points of the grid
_WIDEST = 0.3  # logarithm of the fastest pace over the usual one, and of that over the slowest
_NEAR = 0.015  # logarithm: how far a pace may be from one that was seen
_STRANGE, _FAR = 0.2, 0.15  # share of series whose pace is unlike any that was seen, and how far it may be then
_EVIDENCES = (0.1, 0.3, 1.0, 3.0, 10.0)
_EXAMPLES = 192  # windows to learn from
_FREQUENCIES, _CANDIDATES, _ROUNDS = 96, 3, 8
_FEWEST = 0.8  # of a cycle, in the span of an example


class Cycle(nn.Module):
    """x_c(t) = Re sum_{j <= J} A_cj exp(i j phi(t)) + e,    phi(t) = phi + omega (t - origin)

    with one template A for all series. Phase and pace of each are found from its context by Bayes' rule on a grid: any
    phase, a pace as in training or, now and then, unlike any; the forecast is the mean over the posterior. What a
    series leaves of a template lasts, so its rows are no independent witnesses, and together count as `evidence` rows:

        log p(phi, omega | context) = -evidence C / (2 s^2) mean (x - x(phi, omega))^2 + log p(omega) + const

    with s^2 the mean square of e. A, and phases and paces of training windows, are fitted in turns, from the
    frequencies that suit single windows best; frequency and evidence are those that forecast best where A was not
    fitted, in other folds of the groups of origins.
    """

    template: Tensor
    others: Tensor
    omega: Tensor
    prior: Tensor
    noise: Tensor
    evidence: Tensor

    def __init__(self, channels: int, harmonics: int):
        super().__init__()
        self.harmonics = harmonics
        self.register_buffer("template", torch.zeros(channels, harmonics + 1, 2))  # A, real and imaginary parts
        self.register_buffer("others", torch.zeros(FOLDS, channels, harmonics + 1, 2), persistent=False)
        self.register_buffer("omega", torch.ones(()))  # radians per horizon
        self.register_buffer("prior", torch.zeros(_PACES))  # log p(omega) on the grid
        self.register_buffer("noise", torch.ones(()))  # s^2
        self.register_buffer("evidence", torch.ones(()))

    def expected(self, query: Query, apart: bool) -> tuple[Tensor, Tensor]:
        """Posterior means at the query times, `(B, K, H, C)`, and at the origins, `(B, K, C)`.

        Args:
            apart: each row is answered by the template that has not seen its fold.
        """
        template = torch.view_as_complex(self.template).expand(*query.origins.shape, -1, -1)
        if apart:
            template = torch.view_as_complex(self.others)[query.fold]
        context, channels = query.context, template.shape[-2]
        misfit, count = self._misfit(context.times, clipped(context), context.mask, query.origins, template)
        weight = self.evidence * channels / (2 * self.noise * count.clamp(min=1))
        posterior = (self.prior[:, None] - weight[..., None, None] * misfit).flatten(2).softmax(-1)
        turned = powers(self.harmonics + 1, _phases())
        mean = posterior.unflatten(-1, (_PACES, _PHASES)) @ torch.view_as_real(turned).flatten(1)  # (B, K, W, 2J + 2)
        mean = torch.view_as_complex(mean.unflatten(-1, (-1, 2)).contiguous())
        lead = pad(query.lead, (1, 0))
        turn = powers(2, self._omegas() * lead[..., None])[..., 1]  # (B, K, 1 + H, W)
        ahead, power = [], torch.ones_like(turn)
        for j in range(self.harmonics + 1):
            ahead.append((power * mean[:, :, None, :, j]).sum(-1))
            power = power * turn
        path = torch.einsum("bkhj,bkcj->bkhc", torch.stack(ahead, -1), template).real
        return path[:, :, 1:], path[:, :, 0]

    def fit(self, windows: Sequence[Window]) -> None:
        """Template, frequency, paces and evidence from the windows' contexts and targets."""
        if not windows:
            return
        step = -(-sum(len(window.series) for window in windows) // _EXAMPLES)
        windows = [_every(window, step) for window in windows]
        examples = [_example(window) for window in windows]
        best, kept = math.inf, dict(self.named_buffers())
        for omega in self._frequencies(examples):
            self._align(examples, omega)
            for evidence in _EVIDENCES:
                self.evidence.fill_(evidence)
                error = self._error(windows)
                if error < best:
                    best, kept = error, {name: value.clone() for name, value in self.named_buffers()}
        for name, value in self.named_buffers():
            value.copy_(kept[name])

    def _omegas(self) -> Tensor:
        """The grid of paces, `(W,)` radians per horizon."""
        return self.omega * torch.linspace(-_WIDEST, _WIDEST, _PACES).exp()

    def _misfit(
        self, times: Tensor, values: Tensor, mask: Tensor, origins: Tensor, template: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sums over what was observed up to each origin, of (x - x(phi, omega))^2 - x^2, `(B, K, W, P)`, and of one.

        As a function of a row's phase that is a series of 2 J harmonics, whatever the number of channels. Templates are
        `(B, K, C, J + 1)`, values zero where nothing was observed.
        """
        count, seen = 2 * self.harmonics + 1, mask.float()
        cross = torch.view_as_real(pad(-2 * template, (0, self.harmonics))).flatten(-2)
        rows = values[:, None] @ cross + seen[:, None] @ torch.view_as_real(square(template)).flatten(-2)
        past = (times[:, None] <= origins[..., None]).float()  # (B, K, L)
        rows = torch.view_as_complex((rows * past[..., None]).unflatten(-1, (-1, 2)))  # (B, K, L, 2J + 1)
        turn = powers(2, self._omegas() * times[..., None])[..., 1]  # (B, L, W)
        back = powers(2, -self._omegas() * origins[..., None])[..., 1]  # (B, K, W)
        sums, forth, home = [], torch.ones_like(turn), torch.ones_like(back)
        for j in range(count):
            sums.append(home * (rows[..., j] @ forth))
            forth, home = forth * turn, home * back
        turned = powers(count, _phases()).T  # (2J + 1, P)
        total = torch.stack(sums, -1)
        misfit = total.real @ turned.real - total.imag @ turned.imag
        return misfit, (past @ seen.sum(-1, keepdim=True))[..., 0]

    def _frequencies(self, examples: Sequence[_Example]) -> list[float]:
        """A few frequencies that suit single examples best: minima of what their own templates leave."""
        span = max(float((example.times.amax(1) - example.times[:, 0]).median()) for example in examples)
        rows = max(float(example.mask.any(-1).sum(1).float().median()) for example in examples)
        slowest, fastest = 2 * math.pi * _FEWEST / span, math.pi * rows / (span * self.harmonics)
        logs = torch.linspace(math.log(slowest), math.log(max(fastest, 1.1 * slowest)), _FREQUENCIES)
        grid = logs.exp().tolist()
        left = torch.stack([torch.cat([rest for _, rest in self._own(examples, omega)]).sum() for omega in grid])
        inner = (left[1:-1] <= left[:-2]) & (left[1:-1] <= left[2:])
        places = torch.nonzero(inner)[:, 0] + 1 if inner.any() else left.argmin()[None]
        return [grid[int(place)] for place in places[left[places].argsort()[:_CANDIDATES]]]

    def _own(self, examples: Sequence[_Example], omega: float) -> list[tuple[Tensor, Tensor]]:
        """Each example's own templates at one frequency, `(B, C, J + 1)`, and the mean squares they leave, `(B,)`.

        As in generalised cross-validation, what any curve with so many weights would leave does not speak for it.
        """
        found = []
        for example in examples:
            sums = moments(omega * example.times, example.values, example.mask, self.harmonics)
            template, left = fitted(sums)
            count = sums[..., 0, 0]  # of each channel's values
            free = (1 - (2 * self.harmonics + 1) / count.clamp(min=1)).clamp(min=0.05)
            found.append((template, (left / free.square()).sum(1) / count.sum(1).clamp(min=1)))
        return found

    def _align(self, examples: Sequence[_Example], omega: float) -> None:
        """Template, and each example's phase and pace, in turns.

        The first template is that of the example which has the best one of its own at that frequency.
        """
        templates, left = (torch.cat(found) for found in zip(*self._own(examples, omega), strict=True))
        template, size = templates[int(left.argmin())], 2 * self.harmonics + 2
        grid = torch.linspace(-_WIDEST, _WIDEST, _PACES)
        self.omega.fill_(omega)
        for _ in range(_ROUNDS):
            parts, paces = torch.zeros(FOLDS, len(template), size, size, dtype=torch.float64), []
            for example in examples:
                pace, angle = self._placed(example, template)
                paces.append(pace)
                parts.index_add_(0, example.fold, moments(angle, example.values, example.mask, self.harmonics))
            template, rest = fitted(parts.sum(0))
            place = torch.cat(paces)
            middle = int(place.median())
            seen = grid[place] - grid[middle]
            self.omega.mul_(grid[middle].exp())
        near = torch.exp(-0.5 * ((grid - seen[:, None]) / _NEAR).square()).mean(0) / _NEAR
        far = torch.exp(-0.5 * (grid / _FAR).square()) / _FAR
        self.prior.copy_(((1 - _STRANGE) * near + _STRANGE * far).log())
        self.template.copy_(torch.view_as_real(template))
        self.others.copy_(torch.view_as_real(fitted(parts.sum(0) - parts)[0]))
        self.noise.copy_((rest.sum() / parts[:, :, 0, 0].sum()).clamp(min=1e-6))

    def _placed(self, example: _Example, template: Tensor) -> tuple[Tensor, Tensor]:
        """Places of the likeliest paces on the grid, `(B,)`, and the phases at the example's times, `(B, T)`."""
        end = example.times.amax(1, keepdim=True)
        misfit, _ = self._misfit(example.times, example.values, example.mask, end, template.expand(len(end), 1, -1, -1))
        place = misfit.flatten(1).argmin(1)
        pace, phase = place // _PHASES, _phases()[place % _PHASES]
        return pace, phase[:, None] + self._omegas()[pace, None] * (example.times - end)

    def _error(self, windows: Sequence[Window]) -> float:
        """Sum of the squared errors of forecasts by templates that have not seen the windows' folds."""
        total = 0.0
        for window in windows:
            error = (self.expected(window.query, apart=True)[0] - window.values).square().clamp(max=100.0)
            total += float(torch.where(window.mask, error, 0.0).sum())
        return total


class _Example(NamedTuple):
    """A window's context and targets as one stretch of series, `(B, T)`, and the folds of its rows."""

    times: Tensor
    values: Tensor
    mask: Tensor
    fold: Tensor


def _phases() -> Tensor:
    return torch.arange(_PHASES) * (2 * math.pi / _PHASES)


def _every(window: Window, step: int) -> Window:
    """Every step-th row."""
    query, rows = window.query, slice(None, None, step)
    context = replace(
        query.context,
        **{name: getattr(query.context, name)[rows] for name in ("times", "values", "mask", "key", "static")},
    )
    calendar = None if query.calendar is None else query.calendar[rows]
    query = Query(context, query.origins[rows], query.times[rows], calendar, query.groups[rows], query.fold[rows])
    return Window(query, window.values[rows], window.mask[rows], window.series[rows])


def _example(window: Window) -> _Example:
    query, targets = window.query, torch.where(window.mask, window.values, 0.0)[:, 0].clamp(-10, 10)
    return _Example(
        torch.cat([query.context.times, query.times[:, 0]], 1),
        torch.cat([clipped(query.context), targets], 1),
        torch.cat([query.context.mask, window.mask[:, 0]], 1),
        query.fold[:, 0],
    )
