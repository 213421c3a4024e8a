"""The part of a table that a model has not seen: what it is scored on and drawn against."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from pipelines.card import Card
from pipelines.data import Facts
from tsde.errors import DataError
from tsde.fitting import Fitted, prepare
from tsde.predictor import Predictor
from tsde.series import SeriesSet
from tsde.table import Table
from tsde.windows import Region, Split, Window, eligible_origins, fixed_windows

_REMEDY = "score the model on a table that it has not seen"


@dataclass(frozen=True)
class HeldOut:
    """Windows with known answers, and the region of the table's series that they were cut from.

    `series` are all rows of the table, scaled; `part` says in words what the held-out part is.
    """

    table: Table
    series: SeriesSet
    region: Region
    windows: list[Window]
    part: str

    def cut(self, reach: float = np.inf) -> tuple[Table, Table]:
        """Each held-out series before and after one origin: where its region starts, or halfway if it has no start.

        Series with nothing on either side of that origin are left out. The origin is moved on to the first row that is
        followed by another within `reach`, in the table's own time, where there is one.
        """
        offsets = self.table.offsets
        whole = torch.isinf(self.region.lower).numpy()
        known = self.series.count_until(torch.arange(self.table.n_series), self.region.lower).numpy()  # rows before it
        middle = offsets[:-1] + (np.diff(offsets) + 1) // 2
        until = np.where(whole, middle, known)
        until = _followed(self.table, until, reach)
        open_region = (self.region.upper > self.region.lower).numpy()
        kept = np.flatnonzero(open_region & (until > offsets[:-1]) & (until < offsets[1:]))
        return _rows(self.table, kept, offsets[:-1], until), _rows(self.table, kept, until, offsets[1:])


def _followed(table: Table, until: np.ndarray, reach: float) -> np.ndarray:
    """For each series the first row, `until (N,)` or a later one, that comes within `reach` after the one before it."""
    soon = np.append(np.diff(table.times) <= reach, False)  # the row after this one does
    soon[table.offsets[1:] - 1] = False  # that one belongs to another series
    following = np.where(soon, np.arange(len(soon)), len(soon))
    following = np.minimum.accumulate(following[::-1])[::-1]
    found = following[np.maximum(until - 1, 0)]
    return np.where((until > table.offsets[:-1]) & (found < table.offsets[1:]), found + 1, until)


def of_training(table: Table, fitted: Fitted) -> HeldOut:
    """The test part of the table that a predictor was just trained on."""
    return _test_part(fitted.predictor, table, fitted.split, fitted.test)


def of_table(predictor: Predictor, table: Table, facts: Facts) -> HeldOut:
    """What a model has not seen of a table: the test part if it was trained on it, otherwise all of it.

    Raises:
        DataError: there is nothing to score.
    """
    card = Card.of(predictor)
    if card is not None and card.data.same_data(facts):
        _require_groups(predictor, card.data, facts)
        parts = prepare(table, predictor.experiment, predictor.scaler)
        found = _test_part(predictor, table, parts.split, parts.test)
    else:
        found = _everything(predictor, table)
    if not found.windows:
        if not (found.region.upper > found.region.lower).any():
            raise DataError(f"{found.part} is empty (split.test was {predictor.experiment.split.test:g}): {_REMEDY}")
        horizon = predictor.clock.format_duration(predictor.scaler.horizon)
        raise DataError(
            f"nothing to score in {found.part}: no row follows another within the horizon {horizon}; {_REMEDY}"
        )
    return found


def _require_groups(predictor: Predictor, trained: Facts, found: Facts) -> None:
    """Refuse the training table with its series in other groups than in training: its parts could not be told.

    Raises:
        DataError: they belong to something else, or to nothing.
    """
    if trained.groups != found.groups:
        column = predictor.experiment.data.group_col
        expected = "no groups" if column is None else f"the groups that column {column!r} named in training"
        raise DataError(
            f"this is the training table, whose parts follow from the groups of its series: expected {expected}, got "
            f"{'others' if found.groups else 'none'}; give it as it was, or {_REMEDY}"
        )


def _test_part(predictor: Predictor, table: Table, split: Split, windows: list[Window]) -> HeldOut:
    series = predictor.scaler.apply(table, predictor.experiment.seed)
    return HeldOut(table, series, split.test, windows, "the test part of the training table")


def _everything(predictor: Predictor, table: Table) -> HeldOut:
    series = predictor.scaler.apply(table, predictor.experiment.seed)
    infinity = torch.full((len(series),), torch.inf, dtype=torch.float64)
    region = Region(-infinity, infinity)
    origins = eligible_origins(series.telling(), region)
    windows = fixed_windows(origins, predictor.experiment.windows) if len(origins) else []
    part = f"all {table.n_series} series of a table other than the training table"
    return HeldOut(table, series, region, windows, part)


def _rows(table: Table, series: np.ndarray, first: np.ndarray, end: np.ndarray) -> Table:
    """Rows `first[i]` to `end[i] - 1` of each of the given series."""
    lengths = (end - first)[series]
    offsets = np.append(0, lengths.cumsum())
    rows = np.arange(offsets[-1]) + np.repeat(first[series] - offsets[:-1], lengths)
    groups = None if table.groups is None else table.groups[series]
    found = replace(table, ids=table.ids[series], offsets=offsets, groups=groups)
    return replace(found, times=table.times[rows], values=table.values[rows])
