"""The cycles of the calendar: where in the day, the week and the year a time lies."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Cycle = Literal["day", "week", "year"]

CYCLES: dict[Cycle, float] = {"day": 86400.0, "week": 604800.0, "year": 31556952.0}
"""Lengths in seconds; the year is the mean one of the Gregorian calendar."""

_HARMONICS: dict[Cycle, int] = {"day": 4, "week": 2, "year": 2}
_DAY, _WEEK = (2 * _HARMONICS[cycle] for cycle in ("day", "week"))

PLAIN = 2 * sum(_HARMONICS.values())
"""Numbers that say where in each cycle by itself a time lies."""

ORIGIN = 4
"""Numbers that say where in the day an origin lies."""

PHASES = PLAIN + _DAY * _WEEK + ORIGIN
"""All numbers of `phases`."""

_PARTS = 8  # of a cycle, each of which must have been seen


def cycles_seen(times: NDArray[np.float64], series: NDArray[np.int64]) -> tuple[Cycle, ...]:
    """The cycles that series with times in seconds show: half of the series see two of them, and no eighth is left out.

    What is always measured in the morning, or in spring, says nothing of the rest of a day or a year; and where each
    patient is seen for a month, the season only tells the patients apart.

    Args:
        times: `(n,)`. series: `(n,)`, the series of each, ascending.
    """
    if len(times) == 0:
        return ()
    starts = np.flatnonzero(np.diff(series, prepend=-1))
    span = float(np.median(np.maximum.reduceat(times, starts) - np.minimum.reduceat(times, starts)))
    seen: list[Cycle] = []
    for cycle, length in CYCLES.items():
        if span >= 2 * length and len(np.unique(np.floor(times % length * _PARTS / length))) == _PARTS:
            seen.append(cycle)
    return tuple(seen)


def periods(cycles: Collection[Cycle], unit: float) -> Tensor:
    """Lengths of all cycles in units of `unit` seconds, `(3,)` float64; infinite for those left out."""
    lengths = [length / unit if cycle in cycles else math.inf for cycle, length in CYCLES.items()]
    return torch.tensor(lengths, dtype=torch.float64)


def phases(times: Tensor, origins: Tensor, periods: Tensor) -> Tensor | None:
    """Where in the cycles times lie, and where in the day they are asked: sin(k theta) and cos(k theta) - 1 with
    theta = 2 pi t / period, for k up to 4 of the day and up to 2 of the week and of the year; the products of the day's
    with the week's, for a Sunday's morning is not a Monday's; and those of the origins' days up to k = 2, for what a
    last value says of the next depends on its hour.

    Args:
        times: `(..., H)` float64. origins: `(...)` float64. periods: `(3,)`, from `periods`; an infinite one gives
            zeros.

    Returns:
        `(..., H, 52)` float32, the plain ones first and the origins' last; None if all periods are infinite.
    """
    if torch.isinf(periods).all():
        return None
    day, week, year = (_waves(times / p, count) for p, count in zip(periods, _HARMONICS.values(), strict=True))
    products = (day[..., :, None] * week[..., None, :]).flatten(-2)
    asked = _waves(origins / periods[0], ORIGIN // 2)[..., None, :].expand(*times.shape, -1)
    return torch.cat([day, week, year, products, asked], -1).float()


def _waves(turns: Tensor, count: int) -> Tensor:
    angle = (2 * math.pi * (turns - turns.floor()))[..., None] * torch.arange(1, count + 1)
    return torch.cat([angle.sin(), angle.cos() - 1], -1)
