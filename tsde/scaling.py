"""Location and scale per channel and the time unit, fitted on rows that are learnt from; undone on forecasts."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from tsde.calendar import Cycle, cycles_seen, periods
from tsde.distribution import Quantiles, affine
from tsde.lattice import between_ends, ends, few_values
from tsde.noise import series_keys
from tsde.series import SeriesSet
from tsde.table import Table

_WINSOR = 20.0  # interquartile ranges from the median: one impossible value must not set a channel's scale


class Scaler(BaseModel):
    """`scaled = (value - location) / scale` per channel, and `scaled time = time / horizon`.

    Attributes:
        horizon: the time unit of all models, in seconds for datetimes or in the table's own numbers.
        cycles: of the calendar, on which forecasts may depend.
        values: that each channel takes, in its own unit; empty where they are many, or for all channels.
        ends: the least and the greatest value of each channel where it does not go beyond; or empty for all channels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: tuple[str, ...]
    horizon: float
    location: tuple[float, ...]
    scale: tuple[float, ...]
    cycles: tuple[Cycle, ...] = ()
    values: tuple[tuple[float, ...], ...] = ()
    ends: tuple[tuple[float | None, float | None], ...] = ()

    @classmethod
    def unit(cls, channels: tuple[str, ...], horizon: float) -> Scaler:
        """The scaler that leaves values as they are."""
        return cls(channels=channels, horizon=horizon, location=(0.0,) * len(channels), scale=(1.0,) * len(channels))

    @classmethod
    def fit(cls, table: Table, horizon: float, rows: NDArray[np.bool_], calendar: bool = False) -> Scaler:
        """Mean and deviation of the winsorised values in `rows (R,)`; a constant has its size for a scale.

        Also the values of channels that take few, ends that they come back to, and with `calendar` the cycles that the
        rows show.
        """
        dated = table.clock.kind == "datetime"  # plain numbers have no calendar
        values = table.values[rows]
        moments = [_moments(column[~np.isnan(column)]) for column in values.T]
        return cls(
            channels=table.channels,
            horizon=horizon,
            location=tuple(location for location, _ in moments),
            scale=tuple(scale for _, scale in moments),
            cycles=cycles_seen(table.times[rows], table.row_series[rows]) if dated and calendar else (),
            values=few_values(values),
            ends=ends(values),
        )

    def apply(self, table: Table, seed: int) -> SeriesSet:
        """A table as scaled series; `seed` and the series' name give its key for random numbers."""
        mask = ~np.isnan(table.values)
        scaled = _scaled(np.where(mask, table.values, self.location), np.array(self.location), np.array(self.scale))
        return SeriesSet(
            torch.from_numpy(np.ascontiguousarray(table.offsets)),
            torch.from_numpy(table.times / self.horizon),
            torch.from_numpy(scaled),
            torch.from_numpy(np.ascontiguousarray(mask)),
            series_keys(table.ids, seed),
            periods(self.cycles, self.horizon),
            series_keys([] if table.groups is None else table.groups, seed),
        )

    def scaled_values(self) -> tuple[Tensor, ...]:
        """The values that each channel takes, `(A,)` scaled as `apply` does; empty where they are many."""
        channels = zip(self.values, self.location, self.scale, strict=False)
        return tuple(torch.from_numpy(_scaled(np.array(values), *unit)) for values, *unit in channels)

    def scaled_ends(self) -> tuple[Tensor, Tensor] | None:
        """Ends of each channel, `(C,)` each, scaled as `apply` does; far out where it has none. None if none has.

        Rounded outward, so that `undo`, which keeps to the ends themselves, has them back exactly.
        """
        if (ends := self._ends()) is None:
            return None
        unit = np.array(self.location), np.array(self.scale)
        outward = np.array([[-np.inf], [np.inf]], np.float32)
        low, high = torch.from_numpy(np.nextafter(_scaled(ends, *unit), outward))
        return low, high

    def _ends(self) -> NDArray[np.float64] | None:
        """`(2, C)`, infinite where a channel has none; None if none has."""
        ends = np.array(self.ends, dtype=float).reshape(-1, 2).T
        return np.where(np.isnan(ends), [[-np.inf], [np.inf]], ends) if np.isfinite(ends).any() else None

    def undo(self, forecast: Quantiles) -> Quantiles:
        """A scaled forecast, batch shape `(..., C)`, in the channels' own units, float64."""
        location = torch.tensor(self.location, dtype=torch.float64)
        scale = torch.tensor(self.scale, dtype=torch.float64)
        found = affine(forecast, location, scale)
        ends = self._ends()
        return found if ends is None else between_ends(found, *torch.from_numpy(ends))


def _scaled(
    values: NDArray[np.float64], location: NDArray[np.float64] | float, scale: NDArray[np.float64] | float
) -> NDArray[np.float32]:
    """`(values - location) / scale`, where an absurd value stays finite in float32."""
    return np.ascontiguousarray(np.clip((values - location) / scale, -1e6, 1e6), np.float32)


def _moments(values: NDArray[np.float64]) -> tuple[float, float]:
    if len(values) == 0:
        return 0.0, 1.0
    power = np.frexp(np.abs(values).max())[1]
    values = np.ldexp(values, -power)  # exact, and no square of 1e200 or 1e-200 leaves the range of numbers
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    if high > low:
        values = values.clip(middle - _WINSOR * (high - low), middle + _WINSOR * (high - low))
    deviation = float(values.std())
    location = float(np.ldexp(values.mean(), power))
    changes = deviation > 1e-14 * float(np.abs(values).max())
    return location, float(np.ldexp(deviation, power)) if changes else abs(location) or 1.0
