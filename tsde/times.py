"""The time column of a sheet: plain numbers or datetimes in any usual form, on one clock."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tsde.clock import Clock
from tsde.findings import Finding, quoted
from tsde.sheet import Sheet, misspelt, numbers, observed
from tsde.stamps import END, FIRST, Stamps, parsed_stamps, typed_stamps

_USUAL = tuple(int(np.datetime64(day, "us").astype(np.int64)) for day in ("1000-01-01", "2200-01-01"))
_EXACT = 2.0**53  # from here on, float64 skips whole numbers
_UNITS = {"seconds": 1.0, "milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}


def read_times(
    sheet: Sheet, name: str, timezone: str | None = None, dayfirst: bool = False, expected: Clock | None = None
) -> tuple[np.ndarray, Clock | None, list[Finding]]:
    """The time column of a sheet.

    A column that holds more numbers than datetimes is a number clock. Datetimes are ISO 8601 of any precision, or have
    day and month first in an order that the column itself or `dayfirst` proves. They all carry a zone, or none does,
    and then they are local to `timezone` if that is given. The clock writes times in `timezone`, else in the one zone
    or offset that the column has, else in UTC. An `expected` clock spares numbers the question whether they are dates.

    Returns:
        Times `(n,)` float64, NaN where there is an error; the clock, None if no cell could be read; the findings.
    """
    column = sheet.columns[name]
    stamps = typed_stamps(column)
    if stamps is None:
        values, wrong = numbers(column)
        text = wrong.any() and pa.types.is_string(column.type)
        stamps = parsed_stamps(observed(column), dayfirst) if text else None
        if stamps is None or stamps.readable.sum() < np.isfinite(values).sum():
            times, clock, found = _number_times(sheet, name, values, wrong, expected)
            if clock and (timezone or dayfirst):
                option, use = ("--timezone", "have no zone") if timezone else ("--dayfirst", "have no days")
                text = f"the times in column {quoted(name)} are numbers and {use}: {option} changes nothing"
                found.append(sheet.finding("W-TIME-OPTION", text, column=name))
            return times, clock, found
    return _datetimes(sheet, name, stamps, timezone)


def _number_times(
    sheet: Sheet, name: str, values: np.ndarray, wrong: np.ndarray, expected: Clock | None
) -> tuple[np.ndarray, Clock | None, list[Finding]]:
    readable = np.isfinite(values)
    clock = Clock(kind="number") if readable.any() else None
    form = "a finite number like the others" if clock else "datetimes or numbers"
    found = _complaints(sheet, name, np.isnan(values) & ~wrong, wrong, form)
    if clock is None:
        return values, clock, found
    if (large := np.abs(values) >= _EXACT).any():
        text = f"the times in column {quoted(name)} reach 2^53, where numbers keep about 16 digits"
        found.append(sheet.finding("W-TIME-ROUNDED", f"{text}; subtract an origin to keep them all", large, name))
    if expected is None:
        found += _date_like(sheet, name, values[readable], readable)
    return values, clock, found


def _date_like(sheet: Sheet, name: str, values: np.ndarray, rows: np.ndarray) -> list[Finding]:
    """Refuse whole numbers that are all dates written as digits; say if they all look like time since 1970."""
    if values.min() < 19e6:
        return []
    if _are_calendar_digits(values) and _are_whole(sheet.columns[name].filter(pa.array(rows))):
        text = f"the times in column {quoted(name)} are dates written as digits, {sheet.cells(name, rows)}"
        remedy = "write 2024-01-31; plain numbers that only look like dates need a decimal point, as in 20240131.0"
        return [sheet.finding("E-TIME-DIGITS", f"{text}; {remedy}", rows, name)]
    scales = np.array(list(_UNITS.values()))
    like = (values[:, None] > 4.7e8 * scales) & (values[:, None] < 4.1e9 * scales)  # the years 1985 to 2099
    if not like.any(1).all():
        return []
    units = [unit for unit, rows_like in zip(_UNITS, like.T, strict=True) if rows_like.any()]
    text = f"the times in column {quoted(name)} look like {' and '.join(units)} since 1970"
    remedy = "are taken as plain numbers; horizons are then in that unit too, or write ISO 8601"
    if len(units) > 1:
        remedy = "are taken as plain numbers; write all in one unit"
    return [sheet.finding("W-TIME-LOOKS-LIKE-DATE", f"{text} and {remedy}", column=name)]


def _are_whole(cells: pa.ChunkedArray) -> bool:
    """Whether all cells are whole numbers without a decimal point, by which a user can say that they are no dates."""
    if pa.types.is_string(cells.type):
        return bool(pc.all(pc.match_substring_regex(observed(cells), r"^\d+$")).as_py())
    return bool(pa.types.is_integer(cells.type))


def _are_calendar_digits(values: np.ndarray) -> bool:
    """Whether all are 20240131, 202401312359 or 20240131235959 between 1900 and 2100."""
    for divisor in (1, 10**4, 10**6):
        if not ((values >= 19e6 * divisor) & (values < 2101e4 * divisor)).all():
            continue
        day, clock = np.divmod(values.astype(np.int64), divisor)
        month, date = day // 100 % 100, day % 100
        hour, minute = (clock // 100, clock % 100) if divisor < 10**6 else (clock // 10**4, clock // 100 % 100)
        exists = (month >= 1) & (month <= 12) & (date >= 1) & (date <= 31) & (hour < 24) & (minute < 60)
        return bool(exists.all())
    return False


def _datetimes(
    sheet: Sheet, name: str, stamps: Stamps, timezone: str | None
) -> tuple[np.ndarray, Clock | None, list[Finding]]:
    inside = (stamps.micros >= FIRST) & (stamps.micros < END)
    stamps = replace(stamps, readable=stamps.readable & inside)
    wrong = ~stamps.readable & ~stamps.blank
    found = _complaints(sheet, name, stamps.blank, wrong, "ISO 8601 (2024-01-31T12:00) or the others' form")
    if stamps.ambiguous.any():
        cell = sheet.cells(name, stamps.ambiguous)
        remedy = "write ISO 8601 (2024-01-31), or set the dayfirst option (--dayfirst) if the day comes first"
        text = f"nothing shows whether the time {cell} in column {quoted(name)} has the day or the month first"
        found.append(sheet.finding("E-TIME-AMBIGUOUS", f"{text}; {remedy}", stamps.ambiguous, name))
    micros, odd = _to_utc(sheet, name, stamps, timezone, found)
    readable = stamps.readable & ~odd
    if (finer := stamps.finer & readable).any():
        text = f"the times {sheet.cells(name, finer)} in column {quoted(name)} are finer than a microsecond and are cut"
        found.append(sheet.finding("W-TIME-ROUNDED", text, finer, name))
    if (far := readable & ((micros < _USUAL[0]) | (micros >= _USUAL[1]))).any():
        text = f"the times {sheet.cells(name, far)} in column {quoted(name)} lie far off; drop rows with placeholders"
        found.append(sheet.finding("W-TIME-FAR", text, far, name))
    zone = timezone or stamps.zone or "UTC" if stamps.zoned.any() else timezone
    times = np.where(readable, micros / 1e6, np.nan)
    return times, Clock(kind="datetime", timezone=zone) if stamps.readable.any() else None, found


def _to_utc(
    sheet: Sheet, name: str, stamps: Stamps, timezone: str | None, found: list[Finding]
) -> tuple[np.ndarray, np.ndarray]:
    """Microseconds `(n,)` int64 with local times moved to UTC, and `(n,)` bool, cells whose zone is in doubt."""
    odd = stamps.readable & (stamps.zoned != _majority(stamps.zoned, stamps.readable))
    if odd.any():
        state = "has a time zone where others have none" if stamps.zoned[odd][0] else "has no time zone where others do"
        text = f"the time {sheet.cells(name, odd)} in column {quoted(name)} {state}; give every time a zone, or none"
        found.append(sheet.finding("E-TIME-ZONE", text, odd, name))
    if timezone is None or stamps.zoned.any():
        return stamps.micros, odd
    local = pd.DatetimeIndex(stamps.micros.view("datetime64[us]"))
    placed = local.tz_localize(timezone, ambiguous="NaT", nonexistent="NaT").tz_convert("UTC").tz_localize(None)
    odd = np.asarray(placed.isna()) & stamps.readable
    if odd.any():
        text = f"the time {sheet.cells(name, odd)} is skipped or occurs twice when clocks change in {timezone}"
        found.append(sheet.finding("E-TIME-CLOCK-CHANGE", f"{text}; write it with its offset from UTC", odd, name))
    return placed.to_numpy().astype("datetime64[us]").astype(np.int64), odd


def _majority(answer: np.ndarray, counted: np.ndarray) -> bool:
    """Whether at least half of the counted cells answer True."""
    return bool(2 * (answer & counted).sum() >= counted.sum())


def _complaints(sheet: Sheet, name: str, blank: np.ndarray, wrong: np.ndarray, expected: str) -> list[Finding]:
    found = []
    if blank.any():
        text = f"the time in column {quoted(name)} is blank; fill it or drop the row"
        found.append(sheet.finding("E-TIME-BLANK", text, blank, name))
    if wrong.any():
        if misspelt(sheet.columns[name], wrong).comma.any():
            expected = "a decimal point, not a comma"
        text = f"the time {sheet.cells(name, wrong)} in column {quoted(name)} is not readable; expected {expected}"
        found.append(sheet.finding("E-TIME-UNREADABLE", text, wrong, name))
    return found
