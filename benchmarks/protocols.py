"""The boards' protocols: from files under a data folder to a scaled table, a split and fixed test windows.

What holds on every board:

- A fold is split by series. The published protocols know training, validation and test; conformal calibration needs
  series that no member has seen, so half of the published *validation* series are used for calibration instead.
  Training and test series are exactly the protocol's.
- A test window's context ends at the last observed row at or before a board's cut; its targets are all kept values
  after the cut (or the next few rows, where a board says so). Calibration windows are cut by the same rule.
- Training origins are drawn anywhere in the training series, and validation origins are spread over the validation
  series: the ordinary loop, which is never shown a board's cut.
- The horizon, the models' unit of time, is set a little above the span of the targets, because it counts from the
  last observed row and not from the cut.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsde.clock import Clock
from tsde.errors import MissingInputError
from tsde.fitting import Parts
from tsde.scaling import Scaler
from tsde.series import SeriesSet
from tsde.table import Table
from tsde.windows import Fold, Query, Region, Split, Window

CONTEXT = 256  # rows, the library's default; no board's context before its cut is longer but B5's longest


@dataclass(frozen=True)
class Task:
    """One fold of one set, ready for training. Scores are in the table's units, which are the board's."""

    table: Table
    parts: Parts


@dataclass(frozen=True)
class Board:
    """A board: its sets, how many folds (or seeds) it has, and how one of them is made."""

    name: str
    title: str
    sets: tuple[str, ...]
    folds: int
    unit: str
    load: Callable[[Path, str, int], Task]


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


def physiome(data: Path, name: str, fold: int) -> Task:
    """B1, Physiome-ODE (ICLR 2025): trajectories of a biological ODE, sparsely observed.

    Fold f: values standardised per channel over all series and times, test included, as published; series with any
    |z| > 10 dropped; series shuffled with seed f and split 70 / 20 / 10; N(0, 0.05) added to inputs and targets, so
    that no MSE is below 0.0025; each (time, channel) value kept with probability 0.2. Context: the first half of the
    span; targets: the kept values of the second. Micro MSE over them, in standard deviations. Shuffle, noise and
    sampling come from one numpy generator with seed f: the folds are equivalent to the published ones, not the same.
    """
    file = np.load(require(data / "boards" / "physiome" / f"{name}.npz"))
    clock, values = file["t"].astype(float), file["values"].astype(float)
    scaled = (values - values.mean((0, 1))) / values.std((0, 1))
    scaled = scaled[(np.abs(scaled) <= 10).all((1, 2))]
    random = np.random.default_rng(fold)
    parted = Parted.shares(random.permutation(len(scaled)), 0.7, 0.2)
    noisy = scaled + random.normal(0, 0.05, scaled.shape)
    seen = np.where(random.random(scaled.shape) < 0.2, noisy, np.nan)
    half = (clock[0] + clock[-1]) / 2
    table = table_from_grid(seen, clock, tuple(str(channel) for channel in file["channels"]))
    return assemble(table, parted, half, horizon=1.1 * half, seed=fold)


def mujoco(data: Path, name: str, fold: int) -> Task:
    """B2, MuJoCo Hopper (Stable Neural SDEs, ICLR 2024): a set is a share of dropped steps in percent.

    Windows j = 0..39 of each trajectory, in order: 50 steps of context and 10 of targets; trajectories 0-69, 70-84
    and 85-99 for training, validation and test (the last 7 of validation calibrate). `int(50 r)` context steps lose
    all channels: one torch generator with seed 56789, `randperm(50)` per window in order. A fold is a seed of the
    training; the data is the same. Values are scaled for training, and scores are in raw units over all targets.
    """
    dropped = int(50 * int(name) / 100)
    trajectories = np.load(require(data / "boards" / "mujoco_hopper.npy")).astype(float)
    windows = np.stack([run[j : j + 60] for run in trajectories for j in range(40)])
    generator = torch.Generator().manual_seed(56789)
    for window in windows:
        window[torch.randperm(50, generator=generator)[:dropped].numpy()] = np.nan
    table = table_from_grid(windows, np.arange(60.0), tuple(f"x{channel}" for channel in range(14)))
    order = np.arange(len(windows))
    parted = Parted(order[:2800], order[2800:3120], order[3120:3400], order[3400:])
    wait = 50 / (50 - dropped)  # mean steps between kept ones
    return assemble(table, parted, 49.5, horizon=10 + wait, seed=fold, scaled=True)


def ushcn(data: Path, name: str, fold: int) -> Task:
    """B5, USHCN sporadic, protocol A: five daily weather variables of US stations, z-scored, about 1.1 values a row.

    The folds are given. Context: t <= 150 (of 200; a unit is 7.45 days); targets: the next three rows of a station;
    micro MSE in standard deviations. Training stations are learnt from over all of their 200 units. The file is
    rebuilt from NOAA's, 1,098 stations against 1,114: published scores are roughly comparable only.
    """
    rows = pd.read_csv(require(data / "boards" / "ushcn_sporadic.csv.gz")).sort_values(["ID", "Time"])
    folds = json.loads(require(data / "boards" / "ushcn_sporadic_folds.json").read_text())
    values = rows[[f"Value_{c}" for c in range(5)]].to_numpy(float, copy=True)
    values[rows[[f"Mask_{c}" for c in range(5)]].to_numpy() == 0] = np.nan
    channels = ("precipitation", "snow", "snow_depth", "max_temperature", "min_temperature")
    table = table_from_rows(rows["ID"].to_numpy(), rows["Time"].to_numpy(float), values, channels)
    place = {int(station): index for index, station in enumerate(table.ids)}
    train, validation, test = (
        np.array([place[station] for station in folds[fold][part]]) for part in ("train", "val", "test")
    )
    return assemble(table, Parted.carved(train, validation, test), 150.0, horizon=4.0, seed=fold, next_rows=3)


def physionet(data: Path, name: str, fold: int) -> Task:
    """B6, PhysioNet-2012 set a: 3,997 stays in intensive care, 37 channels, 48 hours.

    Stays in the order of their ids, permuted by numpy's generator with seed 0, 60 / 20 / 20; repeated values of one
    minute averaged; z-scored by the training stays, then values outside 5 sd dropped. Context: 24 h; targets: the
    next 24 h; micro MSE and CRPS in standard deviations. No published number is for this subset.
    """
    tidy = pd.read_parquet(require(data / "boards" / "physionet2012_a.parquet"))
    wide = tidy.pivot_table("Value", ["rec", "minutes"], "Parameter", aggfunc="mean", observed=True).sort_index()
    stay, minutes = (wide.index.get_level_values(level).to_numpy() for level in ("rec", "minutes"))
    channels = tuple(str(channel) for channel in wide.columns)
    names = np.unique(stay)
    parted = Parted.shares(np.random.default_rng(0).permutation(len(names)), 0.6, 0.2)
    learnt = wide[np.isin(stay, names[parted.train])]
    values = ((wide - learnt.mean()) / learnt.std()).to_numpy(copy=True)
    values[~(np.abs(values) <= 5)] = np.nan
    kept = ~np.isnan(values).all(1)
    table = table_from_rows(stay[kept], minutes[kept].astype(float), values[kept], channels, names)
    return assemble(table, parted, 1440.0, horizon=1.05 * 1440, seed=fold)


PHYSIOME_SETS = ("DUP03", "LEN01", "LI01", "PUR01", "HOD01", "PHI01", "WOD01", "LEN02", "WAN01", "NEL01")

BOARDS = {
    "B1": Board("B1", "Physiome-ODE", PHYSIOME_SETS, 5, "standard deviations", physiome),
    "B2": Board("B2", "MuJoCo Hopper, by share of dropped steps", ("0", "30", "50", "70"), 5, "raw units", mujoco),
    "B5": Board("B5", "USHCN sporadic, protocol A", ("sporadic",), 5, "standard deviations", ushcn),
    "B6": Board("B6", "PhysioNet-2012 a", ("a",), 1, "standard deviations", physionet),
}
"""B3 (stochastic Lorenz) and B4 (MoCap) are not built yet."""


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
    scaled: bool = False,
) -> Task:
    """Scale, split and cut: `cut` in the table's time, `scaled` where the table is not standardised already."""
    learnt = np.isin(table.row_series, np.concatenate([parted.train, parted.validation]))
    scaler = Scaler.fit(table, horizon, learnt) if scaled else Scaler.unit(table.channels, horizon)
    series = scaler.apply(table, seed)
    train, validation, calibration, test = (
        whole_series(len(series), part) for part in (parted.train, parted.validation, parted.calibration, parted.test)
    )
    held_out = (
        windows_at(series, torch.from_numpy(part), cut / horizon, next_rows)
        for part in (parted.calibration, parted.test)
    )
    return Task(table, Parts(scaler, series, Split((Fold(train, validation),), calibration, test), *held_out))


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
    return Window(Query(context, torch.zeros(len(row), 1), times), series.values[target], mask, chosen)
