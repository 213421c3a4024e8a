"""What a table's columns mean: the schema a user states, and the values of the channels, wide or tidy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from zoneinfo import ZoneInfo

import numpy as np
from pydantic import BaseModel, field_validator, model_validator

from tsde.reading import Finding, Sheet, TableError, categories, decimal_commas, listed, numbers


class TableSchema(BaseModel, frozen=True, extra="forbid"):
    """How to read a table.

    Attributes:
        id_col, time_col: columns that name the series and give the time.
        channels: the channels, in order; None takes every other numeric column, or every name in `channel_col`, sorted.
        channel_col, value_col: both for a tidy table, neither for a wide one.
        duplicates: what becomes of a repeated (id, time), or (id, time, channel) in a tidy table: an error, or per
            channel the mean, the first or the last (in the file) of the observed cells.
        timezone: the zone in which naive datetimes are local times; None keeps them naive.
        dayfirst: 01/02/2024 is 1 February.
    """

    id_col: str = "unique_id"
    time_col: str = "ds"
    channels: tuple[str, ...] | None = None
    channel_col: str | None = None
    value_col: str | None = None
    duplicates: Literal["error", "mean", "first", "last"] = "error"
    timezone: str | None = None
    dayfirst: bool = False

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, timezone: str | None) -> str | None:
        try:
            return timezone if timezone is None else ZoneInfo(timezone).key
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(f"{timezone!r} is no time zone; expected a name such as Europe/Paris") from error

    @model_validator(mode="after")
    def _distinct_columns(self) -> TableSchema:
        if (self.channel_col is None) != (self.value_col is None):
            raise ValueError("a tidy table needs channel_col and value_col, a wide one neither; give both or none")
        roles = [name for name in (self.id_col, self.time_col, self.channel_col, self.value_col) if name is not None]
        if len(set(roles)) < len(roles):
            raise ValueError(f"the columns {listed(roles)} must differ from each other")
        if self.channels is None:
            return self
        if not self.channels or len(set(self.channels)) < len(self.channels):
            raise ValueError(f"channels must be distinct names, at least one; found {listed(self.channels) or 'none'}")
        if self.channel_col is None and (clash := set(self.channels) & set(roles)):
            raise ValueError(f"{listed(sorted(clash))} cannot be a channel and the id or time as well")
        return self


@dataclass(frozen=True, eq=False)
class Cells:
    """The channels' values before rows are sorted and merged.

    Attributes:
        channels: C names.
        values: `(n, C)` float64 of a wide table, `(n, 1)` of a tidy one; NaN where unobserved.
        code: of a tidy table the channel each row speaks of, `(n,)` int64, -1 for one that was left out; else None.
    """

    channels: tuple[str, ...]
    values: np.ndarray
    code: np.ndarray | None


def require_columns(sheet: Sheet, schema: TableSchema, keys_only: bool = False) -> None:
    """Refuse a sheet that lacks a column with a role, or a wide table's named channel.

    Raises:
        TableError: with one finding per role, naming the columns there are and the option that names another.
    """
    roles = {"--id-col": ("series", schema.id_col), "--time-col": ("times", schema.time_col)}
    if not keys_only and schema.channel_col is not None and schema.value_col is not None:
        roles |= {"--channel-col": ("channels", schema.channel_col), "--value-col": ("values", schema.value_col)}
    missing = [(option, *role) for option, role in roles.items() if role[1] not in sheet.columns]
    if missing:
        raise TableError(
            sheet.finding(
                "E-COLUMN-MISSING",
                f"there is no column {column!r} for the {purpose}; the columns are {listed(sheet.columns)}; "
                f"name the right one with {option}",
            )
            for option, purpose, column in missing
        )


def read_channels(
    sheet: Sheet, schema: TableSchema, expected: tuple[str, ...] | None, findings: list[Finding]
) -> Cells:
    """The channels of a sheet; `expected` overrides the schema's and need not occur in a tidy table.

    Errors and notes are added to `findings`; cells with an error are NaN.

    Raises:
        TableError: there is no channel, or a named one is missing.
    """
    if schema.channel_col is None or schema.value_col is None:
        cells = _read_wide(sheet, schema, expected, findings)
    else:
        cells = _read_tidy(sheet, schema, schema.channel_col, schema.value_col, expected, findings)
    if not cells.channels:
        text = "no channel is left: no column beside the id and the time holds a number"
        raise TableError([*findings, sheet.finding("E-NO-CHANNEL", f"{text}; the columns are {listed(sheet.columns)}")])
    return cells


def merge(values: np.ndarray, starts: np.ndarray, how: str) -> np.ndarray:
    """Merge runs of rows, `(n, C)` with runs that begin at `starts (G,)`, into one row each, `(G, C)`.

    `how` takes per channel the "mean", or else the "first" or "last", of the observed cells; NaN where there are none.
    """
    if len(starts) == len(values):
        return values
    seen = ~np.isnan(values)
    if how == "mean":
        counts = np.add.reduceat(seen, starts, dtype=np.int64)
        sums = np.add.reduceat(np.where(seen, values, 0.0), starts)
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    row = np.arange(len(values))[:, None]
    if how == "last":
        picked = np.maximum.reduceat(np.where(seen, row, -1), starts)
    else:
        picked = np.minimum.reduceat(np.where(seen, row, len(values)), starts)
    padded = np.append(values, np.full((1, values.shape[1]), np.nan), axis=0)  # -1 and n are the row of NaN
    return np.take_along_axis(padded, picked, axis=0)


def _read_wide(sheet: Sheet, schema: TableSchema, expected: tuple[str, ...] | None, findings: list[Finding]) -> Cells:
    named = schema.channels if expected is None else expected
    others = [column for column in sheet.columns if column not in (schema.id_col, schema.time_col)]
    _require_channels(sheet, named, others, "column")
    candidates = others if named is None else list(named)
    values, kept = np.empty((len(sheet.lines), len(candidates))), np.ones(len(candidates), bool)
    text, empty = kept.copy(), kept.copy()
    for i, column in enumerate(candidates):
        values[:, i], bad = numbers(sheet.columns[column])
        commas = decimal_commas(sheet.columns[column], bad)
        nothing = named is None and bool(np.isnan(values[:, i]).all())
        text[i], empty[i] = nothing and bad.sum() > commas.sum(), nothing and not bad.any()
        if not text[i]:
            _complain(sheet, column, bad, commas, findings)
    names, kept = np.array(candidates, object), ~text & ~empty
    _leave_out(sheet, "W-LEFT-OUT-TEXT", "columns that hold no number", names[text], findings)
    _leave_out(sheet, "W-LEFT-OUT-EMPTY", "columns that are empty", names[empty], findings)
    if expected is not None:
        extra = [column for column in others if column not in expected]
        _leave_out(sheet, "W-LEFT-OUT-EXTRA", "columns that are not expected", extra, findings)
    return Cells(tuple(names[kept]), values if kept.all() else values[:, kept], None)


def _read_tidy(
    sheet: Sheet,
    schema: TableSchema,
    channel_col: str,
    value_col: str,
    expected: tuple[str, ...] | None,
    findings: list[Finding],
) -> Cells:
    names, code = categories(sheet, channel_col)
    values, bad = numbers(sheet.columns[value_col])
    commas = decimal_commas(sheet.columns[value_col], bad)
    if (code < 0).any():
        text = f"the channel in column {channel_col!r} is blank; name it or drop the row"
        findings.append(sheet.finding("E-CHANNEL-BLANK", text, code < 0))
    observed, wrong, comma = (
        np.bincount(code[mask & (code >= 0)], minlength=len(names)) for mask in (~np.isnan(values), bad, commas)
    )
    named = schema.channels if expected is None else expected
    if named is None:
        text, empty = (observed == 0) & (wrong > comma), (observed == 0) & (wrong == 0)
        _leave_out(sheet, "W-LEFT-OUT-TEXT", "channels that hold no number", names[text], findings)
        _leave_out(sheet, "W-LEFT-OUT-EMPTY", "channels that are empty", names[empty], findings)
        named = tuple(names[~text & ~empty])
    else:
        _require_channels(sheet, named if expected is None else None, names.tolist(), "channel")
        others = [name for name in names if name not in named]
        _leave_out(sheet, "W-LEFT-OUT-EXTRA", "channels that are not expected", others, findings)
    place = {name: i for i, name in enumerate(named)}
    code = np.array([*(place.get(name, -1) for name in names), -1])[code]  # a blank, -1, picks the last entry
    _complain(sheet, value_col, bad & (code >= 0), commas, findings)
    roles = (schema.id_col, schema.time_col, channel_col, value_col)
    spare = [column for column in sheet.columns if column not in roles]
    _leave_out(sheet, "W-LEFT-OUT-EXTRA", "columns that a tidy table does not use", spare, findings)
    return Cells(named, values[:, None], code)


def _require_channels(sheet: Sheet, named: tuple[str, ...] | None, present: list[str], what: str) -> None:
    if named is not None and (missing := [name for name in named if name not in present]):
        text = f"there is no {what} {listed(missing)}; expected {listed(named)}, found {listed(present)}"
        remedy = "add it, even empty; in training, --channels chooses others"
        raise TableError([sheet.finding("E-CHANNEL-MISSING", f"{text}; {remedy}")])


def _leave_out(sheet: Sheet, code: str, what: str, names: Sequence[str] | np.ndarray, findings: list[Finding]) -> None:
    if len(names):
        findings.append(sheet.finding(code, f"{what} and are left out: {listed(names)}", severity="warning"))


def _complain(sheet: Sheet, column: str, bad: np.ndarray, commas: np.ndarray, findings: list[Finding]) -> None:
    """Add an error for numbers with a comma and one for cells that are otherwise no finite number."""
    if (comma := bad & commas).any():
        text = f"column {column!r} holds {sheet.cells(column, comma)}, a number with a comma"
        findings.append(sheet.finding("E-DECIMAL-COMMA", f"{text}; write it with a decimal point, as in 1.5", comma))
    if (other := bad & ~commas).any():
        text = f"column {column!r} holds {sheet.cells(column, other)}, expected a finite number"
        remedy = "correct the cell, leave it empty if nothing was observed, or choose other channels (--channels)"
        findings.append(sheet.finding("E-VALUE", f"{text}; {remedy}", other))
