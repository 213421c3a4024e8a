"""Where a channel's values lie, and forecasts with them: at few values, as counts and stages do, or between ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsde.distribution import Quantiles

_MOST = 64  # values that a channel may take
_FIRST = 10_000  # observations that mostly tell already: sorting millions takes longer than all else in scaling
_SUPPORT = 10  # observations per value, on average, below which more values are to be expected
_KEPT = 0.05  # of a quantile's distance from the nearest value
_OFTEN = 0.02  # share of the observations at an end
_RETURNS = 10  # times that a channel must come to an end: a level that rises by steps stays long at its highest, once


def few_values(rows: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    """The values that each channel of rows `(R, C)` takes, increasing; none where it takes one or many."""
    return tuple(_few(column[~np.isnan(column)]) for column in rows.T)


def _few(column: NDArray[np.float64]) -> tuple[float, ...]:
    if len(np.unique(column[:_FIRST])) > _MOST:
        return ()
    found = np.unique(column)
    return tuple(found.tolist()) if 1 < len(found) <= min(_MOST, len(column) / _SUPPORT) else ()


def ends(rows: NDArray[np.float64]) -> tuple[tuple[float | None, float | None], ...]:
    """The least and the greatest value of each channel of rows `(R, C)`, in order of time, where it often comes to it.

    No rain, no visit, a full scale: such a channel does not go beyond, nor does a constant. None where an end is only
    the farthest so far.
    """
    columns = [column[~np.isnan(column)] for column in rows.T]
    return tuple((_end(c, c.min()), _end(c, c.max())) if len(c) >= _RETURNS else (None, None) for c in columns)


def _end(column: NDArray[np.float64], farthest: np.float64) -> float | None:
    there = column == farthest
    comes = np.count_nonzero(there[1:] & ~there[:-1]) + int(there[0])
    often = comes >= _RETURNS and there.mean() >= _OFTEN
    return float(farthest) if often or there.all() else None


def between_ends(forecast: Quantiles, low: Tensor, high: Tensor) -> Quantiles:
    """Quantiles and mean moved to an end where they lie beyond it; ends broadcast to the batch shape."""
    values = forecast.values.clamp(low[..., None], high[..., None])
    return Quantiles(forecast.mean.clamp(low, high), values, forecast.levels)


def towards_values(forecast: Quantiles, channel: Tensor, values: Sequence[Tensor]) -> Quantiles:
    """Quantiles drawn to the nearest of the values that each channel takes; the mean stays.

        T(x) = a + .05 (x - a),    a the value nearest to x

    A learnt quantile function is smooth and misses the value that it belongs to by a little at every level, which the
    CRPS counts. T grows strictly and leaves every value where it is, so an observation is inside a drawn interval
    just when it is inside the original one: what calibration promises stays. Beyond the outermost values, T is as for
    half the gap next to them, and from there on moves everything alike.

    Args:
        channel: int64 in the forecast's batch shape.
        values: `(A,)` of each channel, increasing and scaled as the forecast; empty for one that is left as it is.
    """
    few = {number: known for number, known in enumerate(values) if len(known)}
    if not few:
        return forecast
    drawn = forecast.values.clone()
    for number, known in few.items():
        entries = channel == number
        drawn[entries] = _drawn(forecast.values[entries], known)
    return Quantiles(forecast.mean, drawn, forecast.levels)


def _drawn(x: Tensor, known: Tensor) -> Tensor:
    between = (known[1:] + known[:-1]) / 2
    edges = torch.cat([2 * known[:1] - between[:1], between, 2 * known[-1:] - between[-1:]])
    place = torch.bucketize(x, between)
    near = x.maximum(edges[place]).minimum(edges[place + 1])
    # each step is monotone in floating point too, so quantiles never cross
    return known[place] + _KEPT * (near - known[place]) + (x - near)
