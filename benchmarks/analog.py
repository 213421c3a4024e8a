"""Analog forecasts: what came after the most similar moments of the training series, for series on a regular grid.

The reference to show beside every model of a near-periodic motion: it learns nothing but which moments are alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from tasks import Task
from tsde.errors import DataError
from tsde.model import Forecaster, Loss
from tsde.models.parts import closed_form_loss, nonnegative_line
from tsde.windows import Query, Window


class Settings(NamedTuple):
    """Times in frames. `match` known frames are compared; `neighbours` training series are averaged; the offset at the
    origin fades as exp(-lead / fade), and a fade of 0 leaves it out."""

    match: int
    speeds: tuple[float, ...]
    neighbours: int
    fade: float


SPEEDS = ((1.0,), tuple(1 + 0.05 * i for i in range(-2, 3)), tuple(1 + 0.02 * i for i in range(-10, 11)))
"""Sets of speeds for series whose pace differs, as people's does."""
_MATCHES = (3, 10, 30, 60, 100)
_NEIGHBOURS = (1, 2, 4, 8, 16)
_FADES = (0.0, 5.0, 20.0, 80.0)


class Analog(Forecaster):
    """With q the known frames up to the origin, X_n the training series, s a speed and e a frame, the distance

        d(n, s, e) = mean_i |X_n(e - i) - q(-i / s)|^2,    0 <= i <= s (match - 1),

    in the board's units, and the forecast from the best match of each training series that lasts until then,

        x(lead) = mean over the nearest n of [ X_n(e + s lead) + exp(-lead / fade) (q(0) - X_n(e)) ],

    values between frames interpolated. The law is normal with variance a_c + b_c lead.

    Args:
        library: `(N, L, C)` training series, scaled. step: between frames, in horizons. scale: `(C,)` to board units.
    """

    variance: Tensor

    def __init__(self, library: Tensor, step: float, scale: Tensor, settings: Settings):
        super().__init__()
        self.library, self.step, self.scale, self.settings = library, step, scale, settings
        self.register_buffer("variance", torch.tensor([[1.0], [0.0]]).repeat(1, library.shape[-1]))  # (2, C): a, b

    def forward(self, query: Query) -> Distribution:
        mean = self.mean(query, [self.settings])[0]
        level, slope = self.variance
        return Normal(mean, (level + slope * query.lead[..., None]).clamp(min=1e-6).sqrt(), validate_args=False)

    def loss(self, window: Window) -> Loss:
        return closed_form_loss(self(window.query), window)

    def mean(self, query: Query, choices: Sequence[Settings]) -> Tensor:
        """Forecasts by several settings at once, `(settings, B, 1, H, C)`; alike (match, speeds) should be neighbours.

        Raises:
            DataError: a context that is not complete on the training series' grid.
        """
        rows = [self._forecasts(*one, choices) for one in self._questions(query)]
        return torch.stack(rows, 1)[:, :, None]

    def _questions(self, query: Query) -> Iterator[tuple[Tensor, Tensor]]:
        """For each series its known frames, newest first `(T, C)`, and the leads in frames `(H,)`."""
        context = query.context
        for times, values, mask, lead in zip(
            context.times, context.values, context.mask, query.lead[:, 0], strict=True
        ):
            seen = mask.any(-1)
            age = -times[seen].flip(0) / self.step
            if not mask[seen].all() or not torch.allclose(age, torch.arange(len(age)).float(), atol=1e-2):
                raise DataError("analog forecasts need contexts without gaps on one regular grid: take another board")
            yield values[seen].flip(0), lead / self.step

    def _forecasts(self, known: Tensor, lead: Tensor, choices: Sequence[Settings]) -> Tensor:
        """`known (T, C)`, newest first, and `lead (H,)` -> `(settings, H, C)`."""
        found = []
        for (match, speeds), alike in itertools.groupby(choices, lambda choice: choice[:2]):
            matches = self._matches(known[:match], lead, speeds)
            found += [self._average(known[0], lead, matches, choice) for choice in alike]
        return torch.stack(found)

    def _matches(self, known: Tensor, lead: Tensor, speeds: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
        """Each training series' best match that lasts until each lead, `(N, H)`: its distance, frame and speed."""
        length = self.library.shape[1]
        best = []
        for speed in speeds:
            distance, frame = self._distances(known, speed).cummin(1)  # over all frames up to each, (N, L)
            latest = torch.floor(length - 1 - speed * lead + 1e-3).long()  # frame from which the lead is inside
            index = latest.clamp(min=0).expand(len(distance), -1)
            reached = torch.where(latest >= 0, distance.gather(1, index), torch.inf)
            best.append(torch.stack([reached, frame.gather(1, index).float(), torch.full_like(reached, speed)]))
        every = torch.stack(best)  # (speeds, 3, N, H)
        fastest = every[:, 0].argmin(0)[None, None].expand(1, *every.shape[1:])
        distance, frame, speed = every.gather(0, fastest)[0]
        return distance, frame, speed

    def _distances(self, known: Tensor, speed: float) -> Tensor:
        """d(n, s, e) for all n and e, `(N, L)`; infinite where the series begins too late."""
        count = int(speed * (len(known) - 1) + 1e-6) + 1
        past = _between(known, torch.arange(count) / speed) * self.scale  # (count, C)
        library = self.library * self.scale
        apart = library.square().sum(-1)[..., None] + past.square().sum(-1) - 2 * library @ past.T  # (N, L, count)
        total = torch.zeros(library.shape[:2])
        for i in range(count):
            total[:, i:] += apart[:, : library.shape[1] - i, i]
        total[:, : count - 1] = torch.inf
        return total / count

    def _average(
        self, latest: Tensor, lead: Tensor, matches: tuple[Tensor, Tensor, Tensor], settings: Settings
    ) -> Tensor:
        """The nearest series' continuations, `(H, C)`; where none lasts long enough, the mean of the library."""
        distance, frame, speed = matches
        near, series = distance.topk(min(settings.neighbours, len(distance)), dim=0, largest=False)  # (k, H)
        frame, speed = frame.gather(0, series).long(), speed.gather(0, series)
        place = frame + speed * lead
        left = place.floor().long().clamp(0, self.library.shape[1] - 2)
        ahead = torch.lerp(
            self.library[series, left], self.library[series, left + 1], (place - left).clamp(0, 1)[..., None]
        )
        if settings.fade:
            fading = torch.exp(-lead / settings.fade)[:, None]
            ahead = ahead + fading * (latest - self.library[series, frame])
        counts = torch.isfinite(near)[..., None]
        mean = torch.where(counts, ahead, 0.0).sum(0) / counts.sum(0).clamp(min=1)
        return torch.where(counts.any(0), mean, self.library.mean((0, 1)))


def _between(frames: Tensor, place: Tensor) -> Tensor:
    """`frames (T, C)` at places `(M,)` between 0 and T - 1, linear -> `(M, C)`."""
    left = place.floor().long().clamp(max=max(len(frames) - 2, 0))
    right = (left + 1).clamp(max=len(frames) - 1)
    return torch.lerp(frames[left], frames[right], (place - left)[:, None].clamp(0, 1))


def fitted(task: Task, step: float, speeds: Sequence[tuple[float, ...]]) -> Analog:
    """Training series as the library; settings with the lowest MSE on the calibration windows, and there the variance.

    Args:
        step: between frames, in the table's time.
        speeds: sets of speeds to choose from.
    """
    parts = task.parts
    series, scaler = parts.series, parts.scaler
    rows = torch.isposinf(parts.split.train.upper)[series.series_of_row]
    count = int(torch.isposinf(parts.split.train.upper).sum())
    library = series.values[rows].reshape(count, -1, len(scaler.channels))
    model = Analog(library, step / scaler.horizon, torch.tensor(scaler.scale), Settings(1, (1.0,), 1, 0.0))
    longest = max(window.query.context.times.shape[1] for window in parts.calibration)
    matches = sorted({min(match, longest) for match in _MATCHES})
    choices = [Settings(*choice) for choice in itertools.product(matches, speeds, _NEIGHBOURS, _FADES)]
    errors = torch.zeros(len(choices))
    for window in parts.calibration:
        square = ((model.mean(window.query, choices) - window.values) * model.scale).square()
        errors += torch.where(window.mask, square, 0.0).sum((1, 2, 3, 4))
    model.settings = choices[int(errors.argmin())]
    model.variance[:] = _variance(model, parts.calibration)
    return model


def _variance(model: Analog, windows: Sequence[Window]) -> Tensor:
    """a and b of each channel, `(2, C)`, by least squares on squared errors."""
    sums = torch.zeros(5, model.library.shape[-1], dtype=torch.float64)
    for window in windows:
        square = (window.values - model.mean(window.query, [model.settings])[0]).square().double()
        one, lead = window.mask.double(), window.query.lead[..., None].double()
        sums += torch.stack([(p * one).sum((0, 1, 2)) for p in (one, lead, lead * lead, square, lead * square)])
    return nonnegative_line(sums).float()
