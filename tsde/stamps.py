"""Cells as datetimes: typed ones, and text in any usual spelling."""

from __future__ import annotations

import re
from dataclasses import dataclass
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tsde.sheet import observed

_CLOCK = r"(?P<hour>\d{1,2})(?::(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d+))?)?)?"
_ZONE = r" *(?P<zone>Z|UTC|GMT|(?P<sign>[+-])(?P<zone_hour>\d{2}):?(?P<zone_minute>\d{2})?)?"
_YEAR_FIRST = r"(?P<year>\d{4})[-/](?P<month>\d{1,2})(?:[-/](?P<day>\d{1,2}))?"
_YEAR_LAST = r"(?P<one>\d{1,2})[-/.](?P<two>\d{1,2})[-/.](?P<last>\d{4})"
_DATETIME = rf"(?i)^(?:{_YEAR_FIRST}|{_YEAR_LAST})(?:[T ] *{_CLOCK}{_ZONE})?$"
_FINER = r"[.,]\d{6}\d*[1-9]"  # than a microsecond

_DAY = 86_400_000_000  # microseconds
FIRST, END = (int(np.datetime64(day, "us").astype(np.int64)) for day in ("0001-01-01", "10000-01-01"))


@dataclass(frozen=True, eq=False)
class Stamps:
    """Cells as datetimes, all `(n,)`: int64 microseconds since the epoch (UTC where zoned), and bool masks.

    `finer` marks those that were cut to microseconds, and `zone` is the one that all zoned cells share, if they do.
    """

    micros: np.ndarray
    blank: np.ndarray
    readable: np.ndarray
    zoned: np.ndarray
    ambiguous: np.ndarray
    finer: np.ndarray
    zone: str | None = None


def typed_stamps(column: pa.ChunkedArray) -> Stamps | None:
    """Typed datetimes, and the text that Arrow reads itself, quickly: the usual ISO 8601, all naive or all zoned."""
    kind = column.type
    if pa.types.is_string(kind):
        return _quick_stamps(observed(column))
    if pa.types.is_timestamp(kind):
        per_unit = {"s": 1_000_000, "ms": 1000, "us": 1, "ns": 1}[kind.unit]
    elif pa.types.is_date(kind):
        per_unit = _DAY if pa.types.is_date32(kind) else 1000
    else:
        return None
    counted = column.cast(pa.int32()) if pa.types.is_date32(kind) else column
    ticks = counted.cast(pa.int64()).fill_null(0).to_numpy()
    known = column.is_valid().to_numpy()
    nano = pa.types.is_timestamp(kind) and kind.unit == "ns"
    whole = ticks // 1000 if nano else ticks
    inside = (whole >= FIRST // per_unit) & (whole < END // per_unit)  # or the product could overflow
    none = np.zeros(len(ticks), bool)
    zone = kind.tz if pa.types.is_timestamp(kind) else None
    return Stamps(
        np.where(inside, whole, 0) * per_unit,
        ~known,
        known & inside,
        np.full(len(ticks), zone is not None),
        ambiguous=none,
        finer=ticks % 1000 != 0 if nano else none,
        zone=zone if zone is not None and _is_zone(zone) else None,
    )


def _quick_stamps(cells: pa.ChunkedArray) -> Stamps | None:
    for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            moments = cells.cast(kind, safe=False)
        except pa.ArrowInvalid:
            continue
        known = moments.is_valid().to_numpy()
        micros = moments.cast(pa.int64()).fill_null(0).to_numpy()
        zoned, none = np.full(len(micros), kind.tz is not None), np.zeros(len(micros), bool)
        return Stamps(micros, ~known, known, zoned, none, none, zone=_shared_offset(cells) if kind.tz else None)
    return None


def _shared_offset(cells: pa.ChunkedArray) -> str | None:
    """The offset from UTC that all of these zoned cells end with, spelled alike; None if they differ."""
    tail = pc.utf8_slice_codeunits(cells.drop_null()[0], 10)  # behind the date, which has hyphens too
    offset = pc.extract_regex(tail, r"(?P<offset>Z|[+-]\d{2}(?::?\d{2})?)$").as_py()
    if offset is None or not pc.all(pc.ends_with(cells, offset["offset"])).as_py():
        return None
    digits = offset["offset"].replace(":", "")
    return _offset_name(0 if digits == "Z" else int(digits[0] + "1") * (int(digits[1:3]) * 60 + int(digits[3:] or 0)))


def _offset_name(minutes: int) -> str:
    if minutes == 0:
        return "UTC"
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"


def _is_zone(name: str) -> bool:
    if re.fullmatch(r"[+-]([01]\d|2[0-3]):[0-5]\d", name):
        return True
    try:
        return bool(ZoneInfo(name))
    except (KeyError, ValueError, OSError):
        return False


def date_order(column: pa.ChunkedArray, dayfirst: bool = False) -> str | None:
    """The order of day, month and year in a column's cells: "year", "day" or "month" comes first; "none" in numbers.

    None if the cells themselves do not agree on one, or do not show it. Parts of a column that have the same order,
    and have one at all, read together as they read apart.
    """
    if typed_stamps(column) is not None:
        return "year"
    fields = pc.extract_regex(observed(column), _DATETIME) if pa.types.is_string(column.type) else None
    if fields is None or not pc.any(fields.is_valid()).as_py():
        return "none"
    one, two = (pc.struct_field(fields, part) for part in ("one", "two"))
    year_last = pc.greater(pc.binary_length(one), 0)
    if not pc.any(year_last).as_py():
        return "year"
    day, month = (pc.any(pc.greater(part.filter(year_last).cast(pa.int64()), 12)).as_py() for part in (one, two))
    if not pc.all(year_last).as_py() or (day and month) or not (day or month or dayfirst):
        return None
    return "month" if month else "day"


def parsed_stamps(cells: pa.ChunkedArray, dayfirst: bool) -> Stamps:
    """Text that `_quick_stamps` could not read as a whole, taken apart cell by cell."""
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
    offsets = np.unique(offset[readable & zoned])
    zone = _offset_name(int(offsets[0])) if len(offsets) == 1 else None
    finer = pc.match_substring_regex(cells, _FINER).fill_null(False).to_numpy()
    return Stamps(micros, cells.is_null().to_numpy(), readable, zoned, ambiguous & readable, finer, zone)
