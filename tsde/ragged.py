"""What a table is once it is read: ragged series; and what may be asked of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from tsde.clock import Clock
from tsde.errors import UsageError
from tsde.findings import listed


@dataclass(frozen=True, eq=False)
class Table:
    """N ragged series of C channels in R rows, sorted by id (as text), then by time; no time repeats in a series.

    Attributes:
        ids: `(N,)` object, the names of the series as written.
        offsets: `(N + 1,)` int64; series i is rows `offsets[i]:offsets[i + 1]`.
        times: `(R,)` float64 on the clock: seconds since the epoch, or the number itself.
        values: `(R, C)` float64, NaN where nothing was observed, which may be a whole row.
        channels: C names.
        clock: how times are numbers.
        notes: what reading did that the user should know, in sentences.
        groups: `(N,)` object, names of what the series belong to, such as a patient of several stays; None for nothing.
    """

    ids: np.ndarray
    offsets: np.ndarray
    times: np.ndarray
    values: np.ndarray
    channels: tuple[str, ...]
    clock: Clock
    notes: tuple[str, ...] = ()
    groups: np.ndarray | None = None

    @property
    def n_series(self) -> int:
        return len(self.ids)

    @property
    def n_rows(self) -> int:
        return len(self.times)

    @property
    def row_series(self) -> np.ndarray:
        """The series that each row belongs to, `(R,)` int64."""
        return np.repeat(np.arange(self.n_series), np.diff(self.offsets))

    def select(self, series: np.ndarray) -> Table:
        """The series with these indices, `(k,)` int, in the order given."""
        lengths = np.diff(self.offsets)[series]
        offsets = np.append(0, np.cumsum(lengths))
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][series] - offsets[:-1], lengths)
        groups = None if self.groups is None else self.groups[series]
        return replace(
            self, ids=self.ids[series], offsets=offsets, times=self.times[rows], values=self.values[rows], groups=groups
        )

    def frame(self, id_col: str = "unique_id", time_col: str = "ds") -> pd.DataFrame:
        """A wide table, `(R, 2 + C)`, with times as the text that `read_table` reads back.

        Raises:
            UsageError: a channel has the name of the id or time column.
        """
        if clash := {id_col, time_col} & set(self.channels):
            raise UsageError(f"{listed(sorted(clash))} is a channel; choose another name for the id or time column")
        frame = pd.DataFrame(self.values, columns=list(self.channels))
        frame.insert(0, id_col, self.ids[self.row_series])
        frame.insert(1, time_col, self.clock.format(self.times))
        return frame


@dataclass(frozen=True, eq=False)
class Queries:
    """Which times are asked of which series, in the order of the user's table; nothing is dropped or merged.

    Attributes:
        ids: `(Q,)` object, the series as written; they need not exist.
        times: `(Q,)` float64 on the clock that was asked for.
        labels: `(Q,)` object, the time cells exactly as written.
    """

    ids: np.ndarray
    times: np.ndarray
    labels: np.ndarray
