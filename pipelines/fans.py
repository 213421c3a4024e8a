"""Which held-out series a report shows: some that are forecast as well as most, and those that are forecast worst."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.heldout import HeldOut
from pipelines.pictures import panel
from tsde.metrics import crps_quantiles
from tsde.plot import FanPanel
from tsde.predictor import Predictor
from tsde.table import Queries, Table

LEVELS = (50.0, 80.0, 95.0)
HISTORY, ROWS = 3, 12
"""Horizons of the past that are drawn, and rows in any case."""
_SHOWN = 4  # of each kind, where there are so many
_ENOUGH = 3  # observations that make a picture, where there are series with as many
_CONSIDERED = 2000  # series; more take long, and the worst of so many are bad enough
_STEPS = 24  # times at which a fan is drawn over the horizon


@dataclass(frozen=True)
class Fan:
    """One channel of one series: its forecast beside what came, and the CRPS of that in standard deviations."""

    panel: FanPanel
    crps: float
    observations: int


@dataclass(frozen=True)
class Fans:
    """`typical` lie next to the `median` CRPS, `worst` at the top, among `series` of `total`; none is shown twice."""

    typical: list[Fan]
    worst: list[Fan]
    median: float
    series: int
    total: int


def choose(predictor: Predictor, held_out: HeldOut) -> Fans | None:
    """Forecast each held-out series from one origin and pick by what came within the horizon.

    None where nothing came after any origin.
    """
    reach = predictor.scaler.horizon * (1 + 1e-6)
    past, future = held_out.cut(reach)
    total = past.n_series
    first = np.arange(min(total, _CONSIDERED))
    past, future = past.select(first), future.select(first)
    if not past.n_series:
        return None
    origins = past.times[past.offsets[1:] - 1]
    future = _rows(future, future.times <= (origins + reach)[future.row_series])
    crps, count = _scores(predictor, past, future)
    enough = (count >= min(_ENOUGH, int(count.max()))) & (count > 0)
    if not enough.any():
        return None
    median = float(np.median(crps[enough]))
    shown = max(1, min(_SHOWN, int(enough.any(1).sum()) // 2))
    worst = _best(np.where(enough, -crps, np.inf), shown)
    off = np.where(enough, abs(crps - median), np.inf)
    off[[series for series, _ in worst]] = np.inf
    fans = _fans(predictor, past, future, [*_best(off, shown), *worst], crps, count)
    return Fans(fans[: -len(worst)], fans[-len(worst) :], median, past.n_series, total)


def _scores(predictor: Predictor, past: Table, future: Table) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Mean CRPS in standard deviations, and how many observations it is of, each `(N, C)`."""
    owner = future.row_series
    queries = Queries(future.ids[owner], future.times, predictor.clock.format(future.times))
    law, y = predictor.answer(past, queries).law, torch.from_numpy(future.values)
    score = crps_quantiles(law.values, law.levels, y).numpy() / np.array(predictor.scaler.scale)
    seen = ~np.isnan(future.values)
    total = np.zeros((past.n_series, len(past.channels)))
    count = np.zeros(total.shape, dtype=np.int64)
    np.add.at(total, owner, np.where(seen, score, 0.0))
    np.add.at(count, owner, seen)
    return total / np.maximum(count, 1), count


def _best(cost: NDArray[np.float64], most: int) -> list[tuple[int, int]]:
    """(series, channel) of the lowest finite costs `(N, C)`, one channel of a series at most."""
    channel = cost.argmin(1)
    lowest = cost.min(1)
    order = np.argsort(lowest, kind="stable")[:most]
    return [(int(place), int(channel[place])) for place in order if np.isfinite(lowest[place])]


def _fans(
    predictor: Predictor,
    past: Table,
    future: Table,
    chosen: list[tuple[int, int]],
    crps: NDArray[np.float64],
    count: NDArray[np.int64],
) -> list[Fan]:
    series = np.array([place for place, _ in chosen])
    past, future = past.select(series), future.select(series)
    reach = predictor.scaler.horizon
    stride = predictor.clock.format_duration(reach / _STEPS)
    queries = predictor.queries(past, predictor.clock.format_duration(reach), stride)
    frame = predictor.forecast(past, queries=queries, levels=LEVELS)
    origins = past.times[past.offsets[1:] - 1]
    last = past.offsets[1:][past.row_series] - np.arange(past.n_rows) <= ROWS
    past = _rows(past, last | (past.times >= (origins - HISTORY * reach)[past.row_series]))
    return [
        Fan(
            panel(predictor, frame, queries, LEVELS, past, future, str(past.ids[number]), channel),
            float(crps[place, channel]),
            int(count[place, channel]),
        )
        for number, (place, channel) in enumerate(chosen)
    ]


def _rows(table: Table, kept: NDArray[np.bool_]) -> Table:
    """Those rows of each series, `(R,)` bool; a series may be left with none."""
    sizes = np.bincount(table.row_series[kept], minlength=table.n_series)
    return replace(table, offsets=np.append(0, sizes.cumsum()), times=table.times[kept], values=table.values[kept])
