"""Ragged series as padded tensors: the currency between tables and models.

Padding repeats the last time of a series with the mask off, so a zero gap that observes nothing *is* padding and
no lengths exist anywhere. Masked values are zero in the tensor, but no model may rely on that.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from tsde.calendar import periods


@dataclass(frozen=True)
class SeriesBatch:
    """B series, each on its own clock.

    Attributes:
        times: `(B, L)` float32, non-decreasing along L, in scaled units (one unit is the forecast horizon) and
            relative to a reference of the series' own; only differences carry meaning.
        values: `(B, L, C)` float32, scaled; anything where the mask is off.
        mask: `(B, L, C)` bool, True where a value was observed.
        key: `(B,)` int64, the identity of each series for random numbers: a sampled forecast depends on the key
            of its series and on nothing else in the batch.
        static: `(B, S)` float32, what is known of a series and never changes; S may be 0.
        controls: a second batch of known inputs (doses, calendar), observed in the future too; no family reads it yet.
    """

    times: Tensor
    values: Tensor
    mask: Tensor
    key: Tensor
    static: Tensor
    controls: SeriesBatch | None = None

    @property
    def observed(self) -> Tensor:
        """`(B, L)` bool: rows in which anything was observed; padding never is."""
        return self.mask.any(-1)

    @property
    def gaps(self) -> Tensor:
        """`(B, L)` time since the row before, zero for the first row and for padding."""
        return torch.diff(self.times, dim=1, prepend=self.times[:, :1])

    def last_row(self, origins: Tensor) -> Tensor:
        """Index of the last row at or before each origin, `(B, K)` -> `(B, K)`, clamped to the first row."""
        after = torch.searchsorted(self.times.contiguous(), origins.contiguous(), right=True)
        return (after - 1).clamp(min=0)


@dataclass(frozen=True)
class SeriesSet:
    """N ragged series end to end: what a scaled table is, and what windows are cut from.

    Attributes:
        offsets: `(N + 1,)` int64; series n owns rows `offsets[n]` to `offsets[n + 1] - 1`.
        times: `(R,)` float64, scaled, increasing within a series.
        values: `(R, C)` float32, scaled, zero where unobserved.
        mask: `(R, C)` bool.
        key: `(N,)` int64.
        periods: `(3,)` float64, lengths of the calendar's cycles in scaled units; infinite where there is none.
        belongs: `(N,)` int64, equal for series that tell of each other, as a patient's stays do; empty where none do.
    """

    offsets: Tensor
    times: Tensor
    values: Tensor
    mask: Tensor
    key: Tensor
    periods: Tensor = field(default_factory=lambda: periods((), 1.0))
    belongs: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def series_of_row(self) -> Tensor:
        """`(R,)` int64."""
        return torch.repeat_interleave(torch.arange(len(self)), self.offsets.diff())

    @cached_property
    def group(self) -> Tensor:
        """`(N,)` int64, from 0 on in the order of the keys: what each series belongs to, or itself."""
        return (self.belongs if len(self.belongs) else self.key).unique(return_inverse=True)[1]

    @cached_property
    def representative(self) -> Tensor:
        """`(N,)` int64, the first series of each one's group, under whose number the group is scored."""
        group, series = self.group, torch.arange(len(self))
        return torch.full_like(series, len(self)).scatter_reduce(0, group, series, "amin")[group]

    def telling(self) -> SeriesSet:
        """Without the rows that observe nothing, but for the last one of a series, from which forecasts start."""
        kept = self.mask.any(1)
        kept[self.offsets[1:] - 1] = True
        offsets = pad(kept.cumsum(0), (1, 0))[self.offsets]
        return replace(self, offsets=offsets, times=self.times[kept], values=self.values[kept], mask=self.mask[kept])

    def count_until(self, series: Tensor, times: Tensor, strict: bool = False) -> Tensor:
        """Row index just after the last row of `series` that is at or before `times` (`strict`: before), both `(...)`.

        Bisection for all questions at once, on each series' own clock, so exact where one common axis would round.
        """
        low, high = self.offsets[series], self.offsets[series + 1]
        for _ in range(int(self.offsets.diff().max()).bit_length() if len(self) else 0):
            middle = (low + high) // 2
            found = self.times[middle.clamp(max=len(self.times) - 1)]
            passed = (low < high) & ((found < times) if strict else (found <= times))
            low, high = torch.where(passed, middle + 1, low), torch.where(passed, high, middle)
        return low

    def pad(
        self, first: Tensor, last: Tensor, series: Tensor, reference: Tensor, length: int | None = None
    ) -> SeriesBatch:
        """Rows `first` to `last` (inclusive, `(B,)`) of the given series as a batch, times relative to `reference`."""
        length = int((last - first).max()) + 1 if length is None else length
        step = torch.arange(length)
        row = torch.minimum(first[:, None] + step, last[:, None])  # (B, L)
        real = step <= (last - first)[:, None]
        times = (self.times[row] - reference[:, None]).float()
        mask = self.mask[row] & real[..., None]
        values = self.values[row] * mask
        return SeriesBatch(times, values, mask, self.key[series], values.new_zeros(len(first), 0))
