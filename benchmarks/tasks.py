"""A board's fold as a task for the ordinary training: a scaled table, a split and fixed test windows.

What holds on every board:

- A fold is split by series. The published protocols know training, validation and test; conformal calibration needs
  series that no member has seen, so half of the published *validation* series are used for calibration instead.
  Training and test series are exactly the protocol's. (B4 has three validation series only: there all of them serve
  both purposes.)
- A test window's context ends at the last observed row at or before a board's cut; its targets are all kept values
  after the cut (or the next few rows, where a board says so). Calibration windows are cut by the same rule.
- Training origins are drawn anywhere in the training series, and validation origins are spread over the validation
  series: the ordinary loop, which is never shown a board's cut.
- The horizon, the models' unit of time, is set a little above the span of the targets, because it counts from the
  last observed row and not from the cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsde.clock import Clock
from tsde.errors import MissingInputError
from tsde.fitting import Parts
from tsde.lattice import ends, few_values
from tsde.model import Forecaster
from tsde.predictor import Predictor
from tsde.scaling import Scaler
from tsde.series import SeriesSet
from tsde.table import Table
from tsde.windows import Fold, Query, Region, Split, Window

CONTEXT = 256  # rows, the library's default; no board's context before its cut is longer but B5's longest


@dataclass(frozen=True)
class Task:
    """One fold of one set, ready for training. Scores are in the table's units, which are the board's.

    `windows` holds settings of `WindowConfig` that differ on this board from the library's defaults.
    """

    table: Table
    parts: Parts
    windows: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Board:
    """A board: its sets, how many folds (or seeds) it has, and how one of them is made.

    Attributes:
        references: forecasters of this board alone, which are no families and are not trained by the loop.
        further: scores of this board alone, computed from a predictor and merged into its row.
        note: what readers of its tables should know, in Markdown.
    """

    name: str
    title: str
    sets: tuple[str, ...]
    folds: int
    unit: str
    load: Callable[[Path, str, int], Task]
    references: Mapping[str, Callable[[Task], Forecaster]] = field(default_factory=dict)
    further: Callable[[Task, Predictor], dict[str, Any]] = lambda task, predictor: {}
    note: str = ""


@dataclass(frozen=True)
class Parted:
    """Indices of the series of each part."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    calibration: NDArray[np.int64]
    test: NDArray[np.int64]

    @classmethod
    def carved(cls, train: NDArray[np.int64], validation: NDArray[np.int64], test: NDArray[np.int64]) -> Parted:
        """The second half of the validation series becomes the calibration series."""
        half = len(validation) // 2
        return cls(train, validation[:-half], validation[-half:], test)

    @classmethod
    def shares(cls, order: NDArray[np.int64], train: float, validation: float) -> Parted:
        """Consecutive shares of a shuffled order; the rest is for testing."""
        first, second = round(train * len(order)), round((train + validation) * len(order))
        return cls.carved(order[:first], order[first:second], order[second:])


def require(path: Path) -> Path:
    """The file itself.

    Raises:
        MissingInputError: it is not there.
    """
    if not path.is_file():
        raise MissingInputError(
            f"{path} is not there: boards read files that are not part of this repository; name their folder with "
            "--data FOLDER or TSDE_BOARDS"
        )
    return path


def table_from_grid(values: NDArray[np.float64], clock: NDArray[np.float64], channels: tuple[str, ...]) -> Table:
    """Series `(N, L, C)` on one clock `(L,)`, NaN where nothing was seen; rows without any value vanish."""
    count, length = values.shape[:2]
    owner, times = np.repeat(np.arange(count), length), np.tile(clock, count)
    rows = values.reshape(-1, values.shape[-1])
    seen = ~np.isnan(rows).all(1)
    return table_from_rows(owner[seen], times[seen], rows[seen], channels, np.arange(count))


def table_from_rows(
    owner: NDArray[np.int64],
    times: NDArray[np.float64],
    values: NDArray[np.float64],
    channels: tuple[str, ...],
    names: NDArray[np.int64] | None = None,
) -> Table:
    """Rows sorted by (owner, time) as a table; `names`, sorted, also lists series without a row."""
    names = np.unique(owner) if names is None else names
    offsets = np.searchsorted(owner, np.append(names, names[-1] + 1))
    ids, ordered = names.astype(str).astype(object), np.ascontiguousarray(values)
    return Table(ids, offsets, times, ordered, channels, Clock(kind="number"))


def assemble(
    table: Table,
    parted: Parted,
    cut: float,
    horizon: float,
    seed: int,
    next_rows: int | None = None,
    scale: Callable[[Table, float, NDArray[np.bool_]], Scaler] | None = None,
) -> Task:
    """Scale, split and cut: `cut` in the table's time; `scale` fits a scaler on the rows of training and validation
    series, where the table is not standardised already."""
    learnt = np.isin(table.row_series, np.concatenate([parted.train, parted.validation]))
    if scale is None:
        rows = table.values[learnt]
        told = {"values": few_values(rows), "ends": ends(rows)}
        scaler = Scaler.unit(table.channels, horizon).model_copy(update=told)
    else:
        scaler = scale(table, horizon, learnt)
    series = scaler.apply(table, seed)
    train, validation, calibration, test = (
        whole_series(len(series), part) for part in (parted.train, parted.validation, parted.calibration, parted.test)
    )
    calibrates, tests = (
        windows_at(series, torch.from_numpy(part), cut / horizon, next_rows)
        for part in (parted.calibration, parted.test)
    )
    split = Split((Fold(train, validation),), calibration, test)
    return Task(table, Parts(scaler, series, split, calibrates, tests, calibration.pieces()))


def whole_series(count: int, chosen: NDArray[np.int64]) -> Region:
    """The region of all targets of the chosen series and none of the others."""
    lower = torch.full((count,), -torch.inf, dtype=torch.float64)
    upper = lower.clone()
    upper[torch.from_numpy(chosen)] = torch.inf
    return Region(lower, upper)


def windows_at(
    series: SeriesSet, chosen: Tensor, cut: float, next_rows: int | None = None, batch: int = 32
) -> list[Window]:
    """One window per chosen series: known up to the last row at or before `cut`, asked for the rows after it.

    All rows after the cut are targets, or only the first `next_rows`. Series without a row on either side of the cut
    have no window. Series with like numbers of targets share a batch, which means less padding.
    """
    row = series.count_until(chosen, torch.full((len(chosen),), cut, dtype=torch.float64)) - 1
    count = (series.offsets[chosen + 1] - 1 - row).clamp(max=next_rows or len(series.times))
    order = count.argsort(stable=True)
    order = order[((row >= series.offsets[chosen]) & (count > 0))[order]]
    return [_window(series, chosen[part], row[part], count[part]) for part in order.split(batch)]


def _window(series: SeriesSet, chosen: Tensor, row: Tensor, count: Tensor) -> Window:
    """Contexts that end in `row (B,)` and the `count (B,)` rows after it, padded with the last of them."""
    slot = torch.arange(1, int(count.max()) + 1)
    target = (row[:, None] + slot.minimum(count[:, None]))[:, None]  # (B, 1, H)
    reference = series.times[row]
    context = series.pad(series.offsets[chosen].maximum(row - CONTEXT + 1), row, chosen, reference)
    times = (series.times[target] - reference[:, None, None]).float()
    mask = series.mask[target] & (slot <= count[:, None])[:, None, :, None]
    query = Query(context, torch.zeros(len(row), 1), times, group=series.group[chosen][:, None])
    return Window(query, series.values[target], mask, series.representative[chosen])
