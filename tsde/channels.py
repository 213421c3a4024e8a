"""What a table's columns mean: the schema a user states, and the values of the channels, wide or tidy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from zoneinfo import ZoneInfo

import numpy as np
from pydantic import BaseModel, field_validator, model_validator

from tsde.findings import Finding, TableError, listed, quoted
from tsde.sheet import Misspelt, Sheet, categories, misspelt, numbers

_FORECAST_COLUMN = re.compile("channel|status|tsde(-.*)?")  # beside the id and the time: see `Predictor.columns`


class TableSchema(BaseModel, frozen=True, extra="forbid"):
    """How to read a table.

    Attributes:
        id_col, time_col: columns that name the series and give the time.
        channels: the channels, in order; None takes every other numeric column, or every name in `channel_col`, sorted.
        channel_col, value_col: both for a tidy table, neither for a wide one.
        group_col: column that names what series belong to, such as the patient of several stays. A group is never split
            between training and what a model is validated, calibrated or scored on. Forecasts need none.
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
    group_col: str | None = None
    duplicates: Literal["error", "mean", "first", "last"] = "error"
    timezone: str | None = None
    dayfirst: bool = False

    @field_validator("channels", mode="before")
    @classmethod
    def _listed(cls, channels: object) -> object:
        if isinstance(channels, str):
            raise ValueError("expected a list of names, such as [a, b]")
        return channels

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
        roles = [name for name in self.roles if name is not None]
        if len(set(roles)) < len(roles):
            raise ValueError(f"the columns {listed(roles)} must differ from each other")
        if taken := [name for name in (self.id_col, self.time_col) if _FORECAST_COLUMN.fullmatch(name)]:
            text = "is a column of every forecast table"
            raise ValueError(f"{listed(taken)} {text}; give the column of the ids or times another name")
        if self.channels is None:
            return self
        if not self.channels or len(set(self.channels)) < len(self.channels):
            raise ValueError(f"channels must be distinct names, at least one; found {listed(self.channels) or 'none'}")
        if self.channel_col is None and (clash := set(self.channels) & set(roles)):
            raise ValueError(f"{listed(sorted(clash))} cannot be a channel and the id, time or group as well")
        return self

    @property
    def roles(self) -> tuple[str | None, ...]:
        """The columns that are no channels of a wide table."""
        return self.id_col, self.time_col, self.channel_col, self.value_col, self.group_col


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


def require_columns(sheet: Sheet, schema: TableSchema, keys_only: bool = False, training: bool = False) -> None:
    """Refuse a sheet that lacks a column with a role; groups are for training.

    Raises:
        TableError: with one finding per role, naming the columns there are and the option that names another.
    """
    roles = {"--id-col": ("series", schema.id_col), "--time-col": ("times", schema.time_col)}
    if not keys_only and schema.channel_col is not None and schema.value_col is not None:
        roles |= {"--channel-col": ("channels", schema.channel_col), "--value-col": ("values", schema.value_col)}
    if training and schema.group_col is not None:
        roles |= {"--group-col": ("groups", schema.group_col)}
    missing = [(option, *role) for option, role in roles.items() if role[1] not in sheet.columns]
    if missing:
        raise TableError(
            sheet.finding(
                "E-COLUMN-MISSING",
                f"there is no column {quoted(column)} for the {purpose}; the columns are {listed(sheet.columns)}; "
                f"name the right one with {option}",
                column=column,
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


def _read_wide(sheet: Sheet, schema: TableSchema, expected: tuple[str, ...] | None, findings: list[Finding]) -> Cells:
    named = schema.channels if expected is None else expected
    others = [column for column in sheet.columns if column not in schema.roles]
    _require_channels(sheet, named, others, "column")
    candidates = others if named is None else list(named)
    values, kept = np.empty((len(sheet.lines), len(candidates))), np.ones(len(candidates), bool)
    text: dict[str, str] = {}
    empty: list[str] = []
    for i, column in enumerate(candidates):
        values[:, i], bad = numbers(sheet.columns[column])
        form = misspelt(sheet.columns[column], bad)
        nothing = named is None and bool(np.isnan(values[:, i]).all())
        if nothing and (words := bad & ~form.numeric).any():
            text[column], kept[i] = sheet.cell(column, int(words.argmax())), False
        elif nothing and not bad.any():
            empty.append(column)
            kept[i] = False
        else:
            _complain(sheet, column, None, bad, form, expected is not None, findings)
    _leave_out_text(sheet, "columns", text, findings)
    _leave_out(sheet, "W-LEFT-OUT-EMPTY", "columns that are empty", empty, findings)
    if expected is not None:
        extra = [column for column in others if column not in expected]
        _leave_out(sheet, "W-LEFT-OUT-EXTRA", "columns that are not expected", extra, findings)
    names = tuple(name for name, keep in zip(candidates, kept, strict=True) if keep)
    return Cells(names, values if kept.all() else values[:, kept], None)


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
    form = misspelt(sheet.columns[value_col], bad)
    if (code < 0).any():
        text = f"the channel in column {quoted(channel_col)} is blank; name it or drop the row"
        findings.append(sheet.finding("E-CHANNEL-BLANK", text, code < 0, channel_col))
    words = bad & ~form.numeric
    observed, wrong, wordy = (
        np.bincount(code[mask & (code >= 0)], minlength=len(names)) for mask in (~np.isnan(values), bad, words)
    )
    named = schema.channels if expected is None else expected
    if named is None:
        text, empty = (observed == 0) & (wordy > 0), (observed == 0) & (wrong == 0)
        spoken = np.flatnonzero(words & (code >= 0))
        first = spoken[np.unique(code[spoken], return_index=True)[1]]
        examples = {names[code[row]]: sheet.cell(value_col, row) for row in first.tolist() if text[code[row]]}
        _leave_out_text(sheet, "channels", examples, findings)
        _leave_out(sheet, "W-LEFT-OUT-EMPTY", "channels that are empty", names[empty], findings)
        named = tuple(names[~text & ~empty])
    else:
        _require_channels(sheet, named if expected is None else None, names.tolist(), "channel")
        others = [name for name in names if name not in named]
        _leave_out(sheet, "W-LEFT-OUT-EXTRA", "channels that are not expected", others, findings)
    place = {name: i for i, name in enumerate(named)}
    code = np.array([*(place.get(name, -1) for name in names), -1])[code]  # a blank, -1, picks the last entry
    _complain(sheet, value_col, channel_col, bad & (code >= 0), form, expected is not None, findings)
    spare = [column for column in sheet.columns if column not in schema.roles]
    _leave_out(sheet, "W-LEFT-OUT-EXTRA", "columns that a tidy table does not use", spare, findings)
    return Cells(named, values[:, None], code)


def _require_channels(sheet: Sheet, named: tuple[str, ...] | None, present: list[str], what: str) -> None:
    if named is not None and (missing := [name for name in named if name not in present]):
        share = "" if len(missing) == len(named) else f", {len(missing)} of the {len(named)} expected"
        text = f"there is no {what} {listed(missing)}{share}; found {listed(present) or 'none'}"
        remedy = "add it, even empty; in training, --channels chooses others"
        raise TableError([sheet.finding("E-CHANNEL-MISSING", f"{text}; {remedy}", column=missing[0])])


def _leave_out(sheet: Sheet, code: str, what: str, names: Sequence[str] | np.ndarray, findings: list[Finding]) -> None:
    if len(names):
        findings.append(sheet.finding(code, f"{what} and are left out: {listed(names)}", column=str(names[0])))


def _leave_out_text(sheet: Sheet, what: str, examples: Mapping[str, str], findings: list[Finding]) -> None:
    """Note the columns or channels without a single number, each with something that stands in it."""
    if examples:
        found = [f"{quoted(name)} (such as {quoted(cell)})" for name, cell in examples.items()]
        more = f" and {len(found) - 20} more" if len(found) > 20 else ""
        text = f"{what} that hold no number and are left out: {', '.join(found[:20])}{more}"
        findings.append(sheet.finding("W-LEFT-OUT-TEXT", text, column=next(iter(examples))))


def _complain(
    sheet: Sheet,
    column: str,
    channel_col: str | None,
    bad: np.ndarray,
    form: Misspelt,
    fixed: bool,
    findings: list[Finding],
) -> None:
    """Add an error for each way in which cells are no finite number; `fixed` if the channels cannot be chosen."""
    plain = "write a decimal point and no separator of thousands, as in 1234.5"
    remedy = "correct the cell, or leave it empty if nothing was observed"
    choice = "" if fixed else "; or choose other channels (--channels)"
    doubt = "may be decimal or separate thousands"
    for code, rows, what in (
        ("E-DECIMAL-COMMA", bad & form.comma, f"a number with a comma, which {doubt}; {plain}"),
        ("E-THOUSANDS", bad & form.thousands, f"a number with separators of thousands; {plain}"),
        ("E-VALUE", bad & ~form.comma & ~form.thousands, f"expected a finite number below 1e300; {remedy}{choice}"),
    ):
        if rows.any():
            channel = None if channel_col is None else sheet.cell(channel_col, int(rows.argmax()))
            spoken = "" if channel is None else f" for channel {quoted(channel)}"
            text = f"column {quoted(column)} holds {sheet.cells(column, rows)}{spoken}, {what}"
            findings.append(sheet.finding(code, text, rows, column if channel is None else channel))
