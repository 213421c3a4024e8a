"""Times as numbers: seconds since the epoch for datetimes, or the number itself; and back to text."""

from __future__ import annotations

import math
import re
from decimal import ROUND_CEILING, Decimal
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from tsde.errors import UsageError
from tsde.sheet import plain_numbers

_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_WORDS = {"sec": "s", "second": "s", "minute": "min", "hour": "h", "day": "d", "week": "w"}
_FIRST_DAY, _LAST_DAY = np.datetime64("0001-01-02"), np.datetime64("9999-12-31")
_DURATION = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([a-zA-Z]*)\s*")


class Clock(BaseModel, frozen=True, extra="forbid"):
    """How the times of a table are numbers.

    Attributes:
        kind: "datetime", seconds since 1970-01-01T00:00:00; or "number", the number that stands in the table.
        timezone: None for numbers and naive datetimes; otherwise seconds count in UTC and text is written in this zone,
            a name such as Europe/Paris or an offset such as +02:00.
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
        said = text if isinstance(text, str) else str(text).removesuffix(".0")  # as it was typed
        match = _DURATION.fullmatch(said)
        if match is None:
            raise UsageError(f"{said!r} is not a length of time; {remedy}")
        word = match[2].lower().removesuffix("s") or match[2].lower()
        unit = _WORDS.get(word, word)
        if self.kind == "number" and unit:
            raise UsageError(f"{said!r} has the unit {match[2]!r}; {remedy}")
        if self.kind == "datetime" and unit not in _UNITS:
            problem = f"the unit {match[2]!r}, which is unknown" if unit else "no unit"
            raise UsageError(f"{said!r} has {problem}; the table's times are dates: {remedy}")
        length = float(match[1]) * _UNITS.get(unit, 1.0)
        if not 0 < length < math.inf:
            raise UsageError(f"{said!r} is not a finite length above zero; {remedy}")
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

    def round_up(self, length: float) -> float:
        """The shortest time not below `length` that has three digits in a unit that suits it."""
        units = ("d", "h", "min") if self.kind == "datetime" else ()
        unit = next((_UNITS[unit] for unit in units if length >= _UNITS[unit]), 1.0)
        number = Decimal(str(length / unit))
        return unit * float(number.quantize(Decimal((0, (1,), number.adjusted() - 2)), ROUND_CEILING))

    def mismatch(self, other: Clock) -> str | None:
        """Why times on the other clock cannot be placed on this one; None if they can."""
        if self.kind != other.kind:
            kinds = {"datetime": "datetimes", "number": "plain numbers"}
            return f"expected times that are {kinds[self.kind]}, found {kinds[other.kind]}; write them alike"
        if (self.timezone is None) == (other.timezone is None):
            return None
        if self.timezone is None:
            return "expected times without a time zone, found times with one; take the zone off"
        remedy = "write 2024-01-31T12:00Z, or name the zone (--timezone)"
        return f"expected times with a time zone, found times without; {remedy}"


def _iso(moments: np.ndarray) -> np.ndarray:
    text = pc.replace_substring_regex(pa.array(np.datetime_as_string(moments)), r"\.?0+$", "")
    return text.to_numpy(zero_copy_only=False)
