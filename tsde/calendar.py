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

_HARMONICS = 2
PHASES = 2 * _HARMONICS * len(CYCLES)
"""Numbers that say where in all cycles a time lies."""

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


def phases(times: Tensor, periods: Tensor) -> Tensor:
    """sin(k theta) and cos(k theta) - 1 for k = 1, 2 of each cycle, theta = 2 pi t / period.

    Args:
        times: `(...)` float64. periods: `(3,)`, from `periods`; an infinite one gives zeros.

    Returns:
        `(..., 12)` float32.
    """
    if torch.isinf(periods).all():  # the usual case, in training and forecasts alike
        return times.new_zeros(*times.shape, PHASES, dtype=torch.float32)
    turn = times[..., None] / periods
    angle = (2 * math.pi * (turn - turn.floor()))[..., None] * torch.arange(1, _HARMONICS + 1)
    return torch.cat([angle.sin(), angle.cos() - 1], -1).flatten(-2).float()
