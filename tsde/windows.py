"""Forecast origins: where a context ends and its target begins, without leakage between the parts of a split."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from tsde.calendar import PHASES, phases
from tsde.series import SeriesBatch, SeriesSet

FOLDS = 5
"""Parts of the groups of origins; what is fitted in closed form is tried on each after a fit to the others."""

_MANY = 20  # groups of series, from which on time is not cut
_FEWEST, _MOST, _LONG = 5, 10, 2.0  # stretches of time where series are few, and horizons in one
_PERIOD = 20.0  # pieces
_NOISE = 0.2  # deviations
_TOLERANCE = 1e-6  # of a horizon: a target exactly one horizon ahead is inside it whatever the rounding


@dataclass(frozen=True)
class Query:
    """What is asked: the context of B series, K forecast origins each, H query times per origin.

    Attributes:
        context: rows up to the last origin; a forecast from an earlier origin must not use the rows after it.
        origins: `(B, K)`, times of rows of the context.
        times: `(B, K, H)`, on the same clock.
        calendar: `(B, K, H, 52)`, where in the calendar's cycles the query times and origins lie, as
            `tsde.calendar.phases` gives it; None where there are none.
        group: `(B, K)` int64, equal for origins whose answers tell of each other's: see `Origins`.
        folds: `(B, K)` int64, likewise; by the groups where nothing is said.
    """

    context: SeriesBatch
    origins: Tensor
    times: Tensor
    calendar: Tensor | None = None
    group: Tensor | None = None
    folds: Tensor | None = None

    @property
    def lead(self) -> Tensor:
        """`(B, K, H)` time from origin to query."""
        return self.times - self.origins[..., None]

    @property
    def phases(self) -> Tensor:
        """`(B, K, H, 52)`: the calendar, zeros where there is none."""
        return self.times.new_zeros(*self.times.shape, PHASES) if self.calendar is None else self.calendar

    @property
    def groups(self) -> Tensor:
        """`(B, K)`: the groups, or the series where nothing is said of them."""
        return self.context.key[:, None].expand(self.origins.shape) if self.group is None else self.group

    @property
    def fold(self) -> Tensor:
        """`(B, K)`: which of the `FOLDS` parts an origin belongs to."""
        return self.groups % FOLDS if self.folds is None else self.folds

    @cached_property
    def latest(self) -> tuple[Tensor, Tensor]:
        """Rows of each channel's latest value up to each origin and of the one before it, `(B, K, C)`; -1 if none."""
        mask = self.context.mask
        row = torch.arange(mask.shape[1], device=mask.device)[None, :, None]
        upto = torch.where(mask, row, -1).cummax(1).values  # (B, L, C)
        at = self.context.last_row(self.origins)
        last = upto.gather(1, at[..., None].expand(-1, -1, upto.shape[-1]))
        return last, torch.where(last > 0, upto.gather(1, (last - 1).clamp(min=0)), -1)

    def per_origin(self) -> Query:
        """The same questions with one origin per row, `(B * K, 1)`, each context cut off at its own origin."""
        repeats = self.origins.shape[1]
        context = self.context
        origins = self.origins.reshape(-1, 1)

        def repeat(x: Tensor) -> Tensor:
            return x.repeat_interleave(repeats, 0)

        times = repeat(context.times)
        mask = repeat(context.mask) & (times <= origins)[..., None]
        cut = SeriesBatch(
            times.minimum(origins), repeat(context.values), mask, repeat(context.key), repeat(context.static)
        )
        times = self.times.flatten(0, 1)[:, None]
        calendar = None if self.calendar is None else self.calendar.flatten(0, 1)[:, None]
        return Query(cut, origins, times, calendar, self.groups.reshape(-1, 1), self.fold.reshape(-1, 1))


@dataclass(frozen=True)
class Window:
    """A query and its known answer: values `(B, K, H, C)` scaled, and the mask of those that were observed.

    `series (B,)` names the rows' series in the set that the window was cut from, or the first of its group, for scores
    per series. `straight` makes scaled values of those of a window that a family sees bent (`tsde.models.bend`), given
    their channels.
    """

    query: Query
    values: Tensor
    mask: Tensor
    series: Tensor
    straight: Callable[[Tensor, Tensor], Tensor] | None = None

    def scaled(self, observed: Tensor) -> Tensor:
        """What is said of the observed targets, `(..., M)`, as scaled values, however the family sees them."""
        return observed if self.straight is None else self.straight(observed, self.mask.nonzero()[:, -1])

    def per_origin(self) -> Window:
        """One origin per row; see `Query.per_origin`."""
        repeats = self.query.origins.shape[1]
        series = self.series.repeat_interleave(repeats, 0)
        values, mask = (x.flatten(0, 1)[:, None] for x in (self.values, self.mask))
        return Window(self.query.per_origin(), values, mask, series, self.straight)


class WindowConfig(BaseModel):
    """How training windows are drawn. Times are in horizons."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    origins: int = Field(6, ge=1, description="forecast origins per series and pass")
    targets: int = Field(12, ge=1, description="query times per origin in training")
    thinning: float = Field(0.6, ge=0, lt=1, description="up to this share of a context's values is hidden in training")
    noise: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="up to so many deviations of noise are added to a context's values in training; "
        f"{_NOISE:g} by default where a table is split by time, 0 where by series",
    )
    pace: float = Field(
        0.0,
        ge=0,
        le=1,
        description="training series are played up to exp(pace) times slower or faster, as gaits and hearts differ",
    )
    calendar: bool = Field(
        True, description="forecasts may depend on the time of day, week and year, where the table shows whole cycles"
    )
    context: int = Field(256, ge=1, description="a context keeps at most this many of its latest rows")
    held_out: int = Field(600, ge=1, description="windows wanted in each of validation, calibration and test")

    def settled(self, train: Region) -> WindowConfig:
        """With a noise for these training targets. Few series have one past, which can be learnt by heart."""
        by_time = bool(torch.isfinite(train.upper).any())
        return self if self.noise is not None else self.model_copy(update={"noise": _NOISE * by_time})


class SplitConfig(BaseModel):
    """Shares of the data by part; the rest is for training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: Literal["auto", "series", "time"] = Field(
        "auto", description="auto: by series from 40 (groups of) series on, else by time"
    )
    validation: float = Field(0.1, gt=0, lt=0.5)
    calibration: float = Field(0.1, gt=0, lt=0.5)
    test: float = Field(0.1, ge=0, lt=0.5)


class Region(NamedTuple):
    """Where targets may lie: `lower < time <= upper` for each series, all `(N,)`; empty where `upper <= lower`.

    Contexts may reach back before `lower`; that is history, known to whoever forecasts.
    """

    lower: Tensor
    upper: Tensor

    def pieces(self) -> Tensor:
        """How many horizons long each series' part is, at least one, `(N,)`; one where it is a series as a whole.

        Parts of time count for twenty together at most: all are of one period, and however many horizons it holds, how
        periods differ is not to be seen in it.
        """
        part = torch.isfinite(self.lower) & torch.isfinite(self.upper)
        pieces = torch.where(part, (self.upper - self.lower).clamp(min=1), 1.0)
        return torch.where(part, pieces * (_PERIOD / pieces[part].sum()).clamp(max=1), pieces)


class Fold(NamedTuple):
    """What one member is trained and validated on."""

    train: Region
    validation: Region


@dataclass(frozen=True)
class Split:
    """The parts of the data. No target belongs to two of a fold's parts, calibration and test.

    Members of an ensemble may be validated on different series, so that together they learn from all but the
    calibration and test series, and none is stopped on a series it was trained on.
    """

    folds: tuple[Fold, ...]
    calibration: Region
    test: Region

    @property
    def train(self) -> Region:
        """Training targets of the first member."""
        return self.folds[0].train

    @property
    def validation(self) -> Region:
        """Validation targets of the first member."""
        return self.folds[0].validation


def split_windows(series: SeriesSet, config: SplitConfig, seed: int, members: int = 1) -> Split:
    """Split by series (whole groups of them held out, one fold per member) or by time (the end of each series)."""
    by_series = config.by == "series" or (config.by == "auto" and len(series.group.unique()) >= 40)
    return _split_by_series(series, config, seed, members) if by_series else _split_by_time(series, config)


def _split_by_series(series: SeriesSet, config: SplitConfig, seed: int, members: int) -> Split:
    """Whole groups to one part each. The order is a function of the keys, so row order and machine do not matter."""
    group = series.group
    count = len(group.unique())
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))

    def size(share: float) -> int:
        return max(1, round(share * count)) if share > 0 else 0

    def region(chosen: Tensor) -> Region:
        lower = torch.full((len(series),), -math.inf, dtype=torch.float64)
        upper = torch.where(torch.isin(group, chosen), math.inf, lower)
        return Region(lower, upper)

    kept = max(0, count - size(config.calibration) - size(config.test))
    rest = order[:kept]
    held = size(config.validation)
    folds = []
    for member in range(max(1, min(members, kept // held))):
        rolled = rest.roll(member * held)
        folds.append(Fold(region(rolled[:-held]), region(rolled[-held:])))
    calibration, test = order[kept : kept + size(config.calibration)], order[kept + size(config.calibration) :]
    return Split(tuple(folds), region(calibration), region(test))


def _split_by_time(series: SeriesSet, config: SplitConfig) -> Split:
    """Each series' rows in order of time: training first, then validation, calibration and test."""
    counts = series.offsets.diff()
    after = torch.tensor([config.validation, config.calibration, config.test], dtype=torch.float64)
    ends = 1 - after.flip(0).cumsum(0).flip(0)  # shares of the rows up to the end of train, validation, calibration
    cut_row = (series.offsets[:-1] + (counts * ends[:, None]).ceil().long() - 1).maximum(series.offsets[:-1])
    cuts = series.times[cut_row]  # (3, N)
    infinity = torch.full((len(series),), math.inf, dtype=torch.float64)
    bounds = [-infinity, *cuts, infinity if config.test > 0 else cuts[-1]]
    train, validation, calibration, test = (Region(lower, upper) for lower, upper in itertools.pairwise(bounds))
    return Split((Fold(train, validation),), calibration, test)


@dataclass(frozen=True)
class Origins:
    """Rows that can serve as forecast origins in a region, and the target rows of each.

    `row (E,)` ascending; its targets are rows `first` to `last` inclusive, within one horizon and the region.
    `group (E,)` numbers the series, or groups of them, where they are many, and stretches of time where they are few.
    Targets just after a stretch belong to an origin of the next one too. `fold (E,)` parts the groups into `FOLDS`, so
    that what is learnt in some is tried on the others. Series that belong together may be in several: five regressions
    that differ by whole groups, and from the one in use, cost more than answers that are known a little (B2, squared
    error 5 %).
    """

    series: SeriesSet
    row: Tensor
    first: Tensor
    last: Tensor
    group: Tensor
    fold: Tensor

    def __len__(self) -> int:
        return len(self.row)


def rounding(times: Tensor) -> Tensor:
    """How far scaled times of a clock, `(...)` float64, may lie beside the horizon that they mean."""
    return _TOLERANCE + 4 * torch.finfo(times.dtype).eps * times.abs()


def eligible_origins(series: SeriesSet, region: Region, horizon: float = 1.0) -> Origins:
    """Every row from which something in the region can be forecast within the horizon.

    An origin is never earlier than the last row before the region, so what lies between origin and target is
    never data of another part.
    """
    owner = series.series_of_row
    rows = torch.arange(len(series.times))
    seen = torch.arange(len(series))
    from_row = series.count_until(seen, region.lower).sub(1).maximum(series.offsets[:-1])  # (N,)
    until = torch.minimum(series.times + horizon + rounding(series.times), region.upper[owner])
    first = torch.maximum(rows + 1, series.count_until(owner, region.lower[owner]))
    last = series.count_until(owner, until) - 1
    observed = series.mask.any(1).cumsum(0)
    before = torch.where(series.offsets[:-1] > 0, observed[series.offsets[:-1].clamp(min=1) - 1], 0)
    has_history = observed > before[owner]
    has_target = observed[last.clamp(min=0)] > observed[(first - 1).clamp(min=0)]
    keep = (first <= last) & (rows >= from_row[owner]) & has_history & has_target
    groups, fold = _groups(series, rows[keep], horizon)
    return Origins(series, rows[keep], first[keep], last[keep], groups, fold)


def _groups(series: SeriesSet, row: Tensor, horizon: float) -> tuple[Tensor, Tensor]:
    """The group of each origin, `(E,)`: that of its series, or its stretch of time; and its fold, `(E,)`.

    Where groups of series are few, time is cut into as many stretches with like numbers of origins as are two horizons
    long on average, ten at most. Where not even five are, groups stay, and stretches are shorter for a single one.
    """
    present = series.series_of_row[row]
    groups, owner = series.group[present].unique(return_inverse=True)
    by_series = owner, series.key[present].unique(return_inverse=True)[1] % FOLDS
    if len(groups) >= _MANY or len(row) == 0:
        return by_series
    ordered = series.times[row].sort().values
    stretches = min(_MOST, int(float(ordered[-1] - ordered[0]) / (_LONG * horizon)))
    if stretches < _FEWEST and len(groups) > 1:
        return by_series
    stretch = torch.searchsorted(ordered, series.times[row]) * max(stretches, _FEWEST) // len(row)
    return stretch, stretch % FOLDS


def draw_windows(origins: Origins, config: WindowConfig, batch: int, generator: torch.Generator) -> Window:
    """A random training batch: series in proportion to their length in contexts, K origins each, thinned contexts.

    The last origin is drawn first and the others from the rows before it that keep at least half a context's
    length (or start at the series' own beginning), so that long series are not trained on truncated pasts.
    """
    series = origins.series
    owner = series.series_of_row[origins.row]
    span = config.context
    per_series = torch.bincount(owner, minlength=len(series))
    weight = (per_series / span).ceil()
    chosen = torch.multinomial(weight.double(), batch, replacement=True, generator=generator)
    before = torch.cat([torch.zeros(1, dtype=torch.long), per_series.cumsum(0)])

    def pick(low: Tensor, high: Tensor, count: int) -> Tensor:  # uniform in [low, high), (B,) -> (B, count)
        share = torch.rand(batch, count, generator=generator, dtype=torch.float64)
        return low[:, None] + (share * (high - low)[:, None]).long()

    anchor = pick(before[chosen], before[chosen + 1], 1)[:, 0]
    end = origins.row[anchor]
    start = torch.maximum(series.offsets[chosen], end - span + 1)
    from_row = torch.where(start > series.offsets[chosen], start + span // 2, start)
    lowest = torch.searchsorted(origins.row, from_row.contiguous())
    others = pick(torch.minimum(lowest, anchor), anchor + 1, config.origins - 1)
    which = torch.cat([others, anchor[:, None]], 1).sort(1).values  # (B, K)
    window = _cut(origins, chosen, which, start, config.targets, generator)
    if config.pace:
        window = _paced(window, config.pace, generator)
    if config.noise:
        window = _noisy(window, config.noise, generator)
    return _thin(window, config.thinning, generator)


def fixed_windows(origins: Origins, config: WindowConfig, targets: int = 32, batch: int = 64) -> list[Window]:
    """The windows of a held-out part: for every series, origins evenly spread over its eligible rows, one per row.

    At least two per series, more where series are few, so that about `config.held_out` windows exist.
    """
    if len(origins) == 0:
        return []
    data = origins.series
    owner = data.series_of_row[origins.row]
    per_series = torch.bincount(owner, minlength=len(data))
    before = per_series.cumsum(0) - per_series
    present = torch.nonzero(per_series)[:, 0]
    count = max(2, -(-config.held_out // max(len(present), 1)))
    place = (torch.arange(count) + 0.5) / count
    rank = (place * per_series[present, None]).long()  # (N, count)
    fresh = torch.cat([torch.ones(len(present), 1, dtype=torch.bool), rank.diff(dim=1) > 0], 1)
    which = (before[present, None] + rank)[fresh]
    start = torch.maximum(data.offsets[owner[which]], origins.row[which] - config.context + 1)
    order = (origins.row[which] - start).argsort(stable=True)  # like lengths together: less padding
    return [
        _cut(origins, owner[chosen], chosen[:, None], begin, targets, None)
        for chosen, begin in zip(which[order].split(batch), start[order].split(batch), strict=True)
    ]


def _cut(
    origins: Origins, chosen: Tensor, which: Tensor, start: Tensor, targets: int, generator: torch.Generator | None
) -> Window:
    """Rows, origins and targets of the chosen series as tensors; targets are stratified where there are too many."""
    data = origins.series
    row, first, last = origins.row[which], origins.first[which], origins.last[which]  # (B, K)
    available = last - first + 1
    targets = min(targets, int(available.max()))
    slot = torch.arange(targets)
    jitter = torch.rand(*which.shape, targets, generator=generator) if generator else torch.full((1,), 0.5)
    spread = ((slot + jitter) * available[..., None] / targets).long()
    rank = torch.where(available[..., None] > targets, spread, slot)
    real = rank < available[..., None]
    target = first[..., None] + torch.minimum(rank, available[..., None] - 1)  # (B, K, H)
    reference = data.times[row[:, -1]]
    context = data.pad(start, row[:, -1], chosen, reference)
    query = Query(
        context,
        (data.times[row] - reference[:, None]).float(),
        (data.times[target] - reference[:, None, None]).float(),
        phases(data.times[target], data.times[row], data.periods),
        origins.group[which],
        origins.fold[which],
    )
    real = real & (query.lead > 0)  # float32 may place a target at an earlier origin, where it would be seen
    return Window(query, data.values[target], data.mask[target] & real[..., None], data.representative[chosen])


def _paced(window: Window, pace: float, generator: torch.Generator) -> Window:
    """Each series with its times stretched by a factor of its own; targets past the horizon are left out."""
    query = window.query
    factor = torch.exp(pace * (2 * torch.rand(len(query.origins), 1, generator=generator) - 1))
    context = replace(query.context, times=factor * query.context.times)
    query = replace(query, context=context, origins=factor * query.origins, times=factor[..., None] * query.times)
    return replace(window, query=query, mask=window.mask & (query.lead <= 1 + _TOLERANCE)[..., None])


def _noisy(window: Window, noise: float, generator: torch.Generator) -> Window:
    """Each context with errors on its values, whose deviation is its own, up to `noise`; what is asked stays exact."""
    context = window.query.context
    deviation = noise * torch.rand(len(context.values), 1, 1, generator=generator)
    values = context.values + context.mask * deviation * torch.randn(context.values.shape, generator=generator)
    return replace(window, query=replace(window.query, context=replace(context, values=values)))


def _thin(window: Window, thinning: float, generator: torch.Generator) -> Window:
    """Hide a random share, up to `thinning`, of each context's values: models meet sparser pasts than the table's."""
    mask = window.query.context.mask
    share = torch.rand(len(mask), 1, 1, generator=generator) * thinning
    keep = torch.rand(mask.shape, generator=generator) >= share
    context = replace(window.query.context, mask=mask & keep)
    return replace(window, query=replace(window.query, context=context))
