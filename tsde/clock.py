"""Times as numbers: seconds since the epoch for datetimes, or the number itself; and back to text."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from tsde.errors import UsageError
from tsde.reading import Finding, Sheet, decimal_commas, numbers, observed, plain_numbers

_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_WORDS = {"sec": "s", "second": "s", "minute": "min", "hour": "h", "day": "d", "week": "w"}
_FIRST_DAY, _LAST_DAY = np.datetime64("0001-01-02"), np.datetime64("9999-12-31")
_DURATION = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([a-zA-Z]*)\s*")

_CLOCK = r"(?P<hour>\d{1,2})(?::(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d+))?)?)?"
_ZONE = r" *(?P<zone>Z|UTC|(?P<sign>[+-])(?P<zone_hour>\d{2}):?(?P<zone_minute>\d{2})?)?"
_YEAR_FIRST = r"(?P<year>\d{4})[-/](?P<month>\d{1,2})(?:[-/](?P<day>\d{1,2}))?"
_YEAR_LAST = r"(?P<one>\d{1,2})[-/.](?P<two>\d{1,2})[-/.](?P<last>\d{4})"
_DATETIME = rf"(?i)^(?:{_YEAR_FIRST}|{_YEAR_LAST})(?:[T ] *{_CLOCK}{_ZONE})?$"


class Clock(BaseModel, frozen=True, extra="forbid"):
    """How the times of a table are numbers.

    Attributes:
        kind: "datetime", seconds since 1970-01-01T00:00:00; or "number", the number that stands in the table.
        timezone: None for numbers and naive datetimes; otherwise seconds count in UTC and text is written in this zone.
    """

    kind: Literal["datetime", "number"]
    timezone: str | None = None

    def parse_duration(self, text: str | float) -> float:
        """A length of time: "30d", "12h", "90min", "1.5d", "45s", "2w" as seconds; a plain number on a number clock.

        Raises:
            UsageError: not a length, not above zero, a unit on a number clock or none on a datetime clock.
        """
        remedy = (
            "type a number and a unit (s, min, h, d or w), such as 30d or 12h"
            if self.kind == "datetime"
            else "the table's times are numbers, so type a number in the same unit, such as 24"
        )
        match = _DURATION.fullmatch(str(text))
        if match is None:
            raise UsageError(f"{str(text)!r} is not a length of time; {remedy}")
        word = match[2].lower().removesuffix("s") or match[2].lower()
        unit = _WORDS.get(word, word)
        if self.kind == "number" and unit:
            raise UsageError(f"{str(text)!r} has the unit {match[2]!r}; {remedy}")
        if self.kind == "datetime" and unit not in _UNITS:
            problem = f"the unit {match[2]!r}, which is unknown" if unit else "no unit"
            raise UsageError(f"{str(text)!r} has {problem}; the table's times are dates: {remedy}")
        length = float(match[1]) * _UNITS.get(unit, 1.0)
        if not 0 < length < math.inf:
            raise UsageError(f"{str(text)!r} is not a finite length above zero; {remedy}")
        return length

    def format(self, times: np.ndarray) -> np.ndarray:
        """Times `(n,)` as text, `(n,)` object: ISO 8601 without needless digits, or the shortest number."""
        if self.kind == "number":
            return plain_numbers(times)
        whole = np.floor(times)  # apart from the fraction, which then keeps every digit that the times have
        micros = whole.astype(np.int64) * 1_000_000 + np.round((times - whole) * 1e6).astype(np.int64)
        moments = micros.astype("datetime64[us]")
        if self.timezone is None:
            return _iso(moments)
        local = moments.copy()
        zoned = (moments > _FIRST_DAY) & (moments < _LAST_DAY)  # elsewhere pandas knows no zones: written in UTC
        utc = pd.DatetimeIndex(moments[zoned], tz="UTC")
        local[zoned] = utc.tz_convert(self.timezone).tz_localize(None).to_numpy()
        # Before standard time, zones were off by odd seconds; ISO 8601 knows whole minutes, and the moment stays exact.
        minutes, which = np.unique(np.round((local - moments) / np.timedelta64(60, "s")), return_inverse=True)
        zones = [f"{'-' if m < 0 else '+'}{abs(m) // 60:02d}:{abs(m) % 60:02d}" for m in minutes.astype(int)]
        return _iso(moments + minutes.astype("timedelta64[m]")[which]) + np.array(zones, object)[which]

    def format_duration(self, length: float) -> str:
        """What `parse_duration` reads back to the same length: "30d", "12h", "24"."""
        if self.kind == "number":
            return str(plain_numbers(np.array([length]))[0])
        unit = next((unit for unit in ("d", "h", "min") if length % _UNITS[unit] == 0), "s")
        return f"{plain_numbers(np.array([length / _UNITS[unit]]))[0]}{unit}"

    def mismatch(self, other: Clock) -> str | None:
        """Why times on the other clock cannot be placed on this one; None if they can."""
        if self.kind != other.kind:
            kinds = {"datetime": "datetimes", "number": "plain numbers"}
            return f"expected times that are {kinds[self.kind]}, found {kinds[other.kind]}; write them alike"
        if (self.timezone is None) == (other.timezone is None):
            return None
        if self.timezone is None:
            return "expected times without a time zone, found times with one; take the zone off"
        return "expected times with a time zone, found times without; write 2024-01-31T12:00Z, or set the timezone"


def read_times(
    sheet: Sheet, name: str, timezone: str | None = None, dayfirst: bool = False
) -> tuple[np.ndarray, Clock | None, list[Finding]]:
    """The time column of a sheet.

    A column that holds more numbers than datetimes is a number clock. Datetimes are ISO 8601 of any precision, or have
    day and month first in an order that the column itself or `dayfirst` proves. They all carry a zone, or none does,
    and then they are local to `timezone` if that is given.

    Returns:
        Times `(n,)` float64, NaN where there is an error; the clock, None if no cell could be read; the errors.
    """
    column = sheet.columns[name]
    stamps = _arrow_stamps(column)
    if stamps is None:
        values, wrong = numbers(column)
        text = wrong.any() and pa.types.is_string(column.type)
        stamps = _parsed_stamps(observed(column), dayfirst) if text else None
        if stamps is None or stamps.readable.sum() < np.isfinite(values).sum():
            clock = Clock(kind="number") if np.isfinite(values).any() else None
            expected = "a finite number like the others" if clock else "datetimes or numbers"
            return values, clock, _complaints(sheet, name, np.isnan(values) & ~wrong, wrong, expected)
    wrong = ~stamps.readable & ~stamps.blank
    found = _complaints(sheet, name, stamps.blank, wrong, "ISO 8601 (2024-01-31T12:00) or the others' form")
    if stamps.ambiguous.any():
        cell = sheet.cells(name, stamps.ambiguous)
        remedy = "write ISO 8601 (2024-01-31), or set the dayfirst option (--dayfirst) if the day comes first"
        text = f"nothing shows whether the time {cell} in column {name!r} has the day or the month first; {remedy}"
        found.append(sheet.finding("E-TIME-AMBIGUOUS", text, stamps.ambiguous))
    micros, odd = _to_utc(sheet, name, stamps, timezone, found)
    zone = "UTC" if stamps.zoned.any() else timezone
    times = np.where(stamps.readable & ~odd, micros / 1e6, np.nan)
    return times, Clock(kind="datetime", timezone=zone) if stamps.readable.any() else None, found


@dataclass(frozen=True, eq=False)
class _Stamps:
    """Cells as datetimes, all `(n,)`: int64 microseconds since the epoch (UTC where zoned), and bool masks."""

    micros: np.ndarray
    blank: np.ndarray
    readable: np.ndarray
    zoned: np.ndarray
    ambiguous: np.ndarray


def _arrow_stamps(column: pa.ChunkedArray) -> _Stamps | None:
    """Typed datetimes, and the text that Arrow reads itself, quickly: the usual ISO 8601, all naive or all zoned."""
    if pa.types.is_string(column.type):
        column, kinds = observed(column), [pa.timestamp("us"), pa.timestamp("us", "UTC")]
    elif pa.types.is_timestamp(column.type):
        kinds = [pa.timestamp("us", column.type.tz)]
    elif pa.types.is_date(column.type):
        kinds = [pa.timestamp("us")]
    else:
        return None
    for kind in kinds:
        try:
            moments = column.cast(kind, safe=False)
        except pa.ArrowInvalid:
            continue
        readable = moments.is_valid().to_numpy()
        micros = moments.cast(pa.int64()).fill_null(0).to_numpy()
        zoned = np.full(len(micros), kind.tz is not None)
        return _Stamps(micros, ~readable, readable, zoned, ambiguous=np.zeros(len(micros), bool))
    return None


def _parsed_stamps(cells: pa.ChunkedArray, dayfirst: bool) -> _Stamps:
    """Text that `_arrow_stamps` could not read as a whole, taken apart cell by cell."""
    fields = pc.extract_regex(cells, _DATETIME)

    def text(part: str) -> pa.ChunkedArray:
        return pc.struct_field(fields, part).fill_null("")

    def whole(digits: pa.ChunkedArray) -> np.ndarray:
        return pc.if_else(pc.equal(digits, ""), "0", digits).cast(pa.int64()).to_numpy()

    year, month, day, one, two, last = (whole(text(part)) for part in ("year", "month", "day", "one", "two", "last"))
    hour, minute, second = (whole(text(part)) for part in ("hour", "minute", "second"))
    fraction = whole(pc.utf8_slice_codeunits(pc.utf8_rpad(text("fraction"), 6, "0"), 0, 6))
    zone_hour, zone_minute = whole(text("zone_hour")), whole(text("zone_minute"))
    west = pc.equal(text("sign"), "-").to_numpy()
    zoned = pc.not_equal(text("zone"), "").to_numpy()
    matched, year_last = fields.is_valid().to_numpy(), last > 0
    day_first = dayfirst or bool((one > 12).sum() > (two > 12).sum())
    ambiguous = year_last & (not (day_first or (two > 12).any()))
    year = np.where(year_last, last, year)
    month = np.where(year_last, two if day_first else one, month)
    day = np.where(year_last, one if day_first else two, np.maximum(day, pc.equal(text("day"), "").to_numpy()))
    first = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    length = ((first + 1).astype("datetime64[D]") - first.astype("datetime64[D]")).astype(np.int64)
    valid = (month >= 1) & (month <= 12) & (day >= 1) & (day <= length) & (hour < 24) & (minute < 60) & (second < 60)
    readable = matched & valid & (zone_hour < 24) & (zone_minute < 60)
    if (readable & ~year_last).any():
        readable &= ~year_last  # one form per column, and ISO 8601 is the safer one
    offset = np.where(west, -1, 1) * (zone_hour * 60 + zone_minute)
    minutes = ((first.astype("datetime64[D]").astype(np.int64) + day - 1) * 24 + hour) * 60 + minute - offset
    micros = np.where(readable, (minutes * 60 + second) * 1_000_000 + fraction, 0)
    return _Stamps(micros, cells.is_null().to_numpy(), readable, zoned, ambiguous & readable)


def _to_utc(
    sheet: Sheet, name: str, stamps: _Stamps, timezone: str | None, found: list[Finding]
) -> tuple[np.ndarray, np.ndarray]:
    """Microseconds `(n,)` int64 with local times moved to UTC, and `(n,)` bool, cells whose zone is in doubt."""
    odd = stamps.readable & (stamps.zoned != _majority(stamps.zoned, stamps.readable))
    if odd.any():
        state = "has a time zone where others have none" if stamps.zoned[odd][0] else "has no time zone where others do"
        text = f"the time {sheet.cells(name, odd)} in column {name!r} {state}; give every time a zone, or none"
        found.append(sheet.finding("E-TIME-ZONE", text, odd))
    if timezone is None or stamps.zoned.any():
        return stamps.micros, odd
    local = pd.DatetimeIndex(stamps.micros.view("datetime64[us]"))
    placed = local.tz_localize(timezone, ambiguous="NaT", nonexistent="NaT").tz_convert("UTC").tz_localize(None)
    odd = np.asarray(placed.isna()) & stamps.readable
    if odd.any():
        text = f"the time {sheet.cells(name, odd)} is skipped or occurs twice when clocks change in {timezone}"
        found.append(sheet.finding("E-TIME-CLOCK-CHANGE", f"{text}; write it with its offset from UTC", odd))
    return placed.to_numpy().astype("datetime64[us]").astype(np.int64), odd


def _majority(answer: np.ndarray, counted: np.ndarray) -> bool:
    """Whether at least half of the counted cells answer True."""
    return bool(2 * (answer & counted).sum() >= counted.sum())


def _complaints(sheet: Sheet, name: str, blank: np.ndarray, wrong: np.ndarray, expected: str) -> list[Finding]:
    found = []
    if blank.any():
        text = f"the time in column {name!r} is blank; fill it or drop the row"
        found.append(sheet.finding("E-TIME-BLANK", text, blank))
    if wrong.any():
        if decimal_commas(sheet.columns[name], wrong).any():
            expected = "a decimal point, not a comma"
        text = f"the time {sheet.cells(name, wrong)} in column {name!r} is not readable; expected {expected}"
        found.append(sheet.finding("E-TIME-UNREADABLE", text, wrong))
    return found


def _iso(moments: np.ndarray) -> np.ndarray:
    text = pc.replace_substring_regex(pa.array(np.datetime_as_string(moments)), r"\.?0+$", "")
    return text.to_numpy(zero_copy_only=False)
