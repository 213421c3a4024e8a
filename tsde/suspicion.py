"""What is readable but rarely meant: constant or empty channels, single rows, holes, wild values, other units."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tsde.findings import Finding, listed, quoted
from tsde.ragged import Table
from tsde.sheet import NO_ROWS, Sheet

_NOT_A_NAME = r"^(Unnamed: \d+|index|level_\d+|_?row_?(id|num|number)?)$"


def suspicions(sheet: Sheet, table: Table, rows: np.ndarray) -> list[Finding]:
    """Warnings about a table that was read; `rows`, `(R,)`, are the sheet's rows in which the table's first occur."""
    found: list[Finding] = []
    counted = pc.match_substring_regex(pa.array(table.channels), _NOT_A_NAME).to_pylist()
    for name, column, nameless in zip(table.channels, table.values.T, counted, strict=True):
        found += _values(sheet, table, rows, name, column)
        if nameless and len(rows) > 1 and len(np.unique(column - rows)) == 1:
            text = f"column {quoted(name)} counts the rows, as a saved index does; leave it out (--channels)"
            found.append(sheet.finding("W-ROW-NUMBER", text, column=name))
    single = np.flatnonzero(np.diff(table.offsets) == 1)
    if len(single):
        text = f"{len(single)} of {table.n_series} series have a single row and show no change over time"
        found.append(sheet.finding("W-SINGLE-ROW", text, rows[table.offsets[single]]))
    found += _gaps(sheet, table, rows)
    groups = np.unique([] if table.groups is None else table.groups).astype(object)
    for what, names in (("ids", table.ids), ("channels", np.array(table.channels, object)), ("groups", groups)):
        if similar := _similar(names):
            text = f"{what} that differ by blanks, case or Unicode form alone count as different: {listed(similar)}"
            found.append(sheet.finding("W-SIMILAR-NAMES", text))
    return found


def _values(sheet: Sheet, table: Table, rows: np.ndarray, name: str, column: np.ndarray) -> list[Finding]:
    """What is odd about the values `(R,)` of one channel."""
    seen = column[~np.isnan(column)]
    channel = f"channel {quoted(name)}"
    if not len(seen):
        text = f"{channel} was never observed; nothing can be learnt of it"
        return [sheet.finding("W-EMPTY-CHANNEL", text, column=name)]
    found = []
    if len(seen) > 1 and seen.min() == seen.max():
        text = f"{channel} is always {seen[0]:g}; leave it out (--channels)"
        found.append(sheet.finding("W-CONSTANT-CHANNEL", text, column=name))
    with np.errstate(over="ignore", invalid="ignore"):
        median = np.median(seen)
        spread = 1.4826 * np.median(np.abs(seen - median))  # of a normal law, its standard deviation
        wild = np.flatnonzero(np.abs(column - median) > 50 * spread) if spread else NO_ROWS
    if len(wild):
        cases = _some(table, wild, [f"{column[i]:g}" for i in wild[:3]])
        text = f"{channel} is over 50 robust standard deviations from its median {median:g}: {cases}"
        found.append(sheet.finding("W-WILD-VALUE", f"{text}; check unit and digits", rows[wild], name))
    if (other := _other_units(table, column)) is not None:
        series, power = other
        names = listed(table.ids[series], 3)
        text = f"{channel} differs by a factor of 1e{power} or more between series, first {names}; check the units"
        found.append(sheet.finding("W-UNIT", text, rows[table.offsets[series]], name))
    return found


def _other_units(table: Table, column: np.ndarray) -> tuple[np.ndarray, int] | None:
    """Series whose values, in geometric mean, are a million times those of most or as much smaller; the power of 10."""
    sized = ~np.isnan(column) & (column != 0)
    logs = np.log10(np.abs(column), out=np.zeros(len(column)), where=sized)
    starts = table.offsets[:-1]
    counts = np.add.reduceat(sized, starts, dtype=np.int64)  # every series has a row
    known = np.flatnonzero(counts)
    if len(known) < 2:
        return None
    size = np.add.reduceat(logs, starts)[known] / counts[known]
    away = np.abs(size - np.sort(size)[(len(size) - 1) // 2])
    return (known[away > 6], int(away[away > 6].min())) if (away > 6).any() else None


def _gaps(sheet: Sheet, table: Table, rows: np.ndarray) -> list[Finding]:
    gaps = np.diff(table.times)
    inside = np.diff(table.row_series) == 0
    if not inside.any():
        return []
    usual = float(np.median(gaps[inside]))
    holes = np.flatnonzero(inside & (gaps > 1000 * usual))
    if not len(holes):
        return []
    cases = _some(table, holes + 1, [f"{gaps[i] / usual:.0f} times" for i in holes[:3]])
    near = table.clock.format_duration(float(f"{usual:.3g}"))
    text = f"a gap is over 1000 times the usual one of about {near}: {cases}; check the times"
    return [sheet.finding("W-HUGE-GAP", text, rows[holes + 1])]


def _some(table: Table, places: np.ndarray, what: list[str]) -> str:
    """The first three of these rows of the table as series, time and what is said of each."""
    first = places[:3]
    ids, times = table.ids[table.row_series[first]], table.clock.format(table.times[first])
    cases = [f"{quoted(name)} at {time} ({said})" for name, time, said in zip(ids, times, what, strict=True)]
    more = [f"and {len(places) - 3} more"] if len(places) > 3 else []
    return ", ".join([*cases, *more])


def _similar(names: np.ndarray) -> list[str]:
    """Names that are the same up to surrounding blanks, case and Unicode form."""
    plain = pc.utf8_lower(pc.utf8_trim_whitespace(pc.utf8_normalize(pa.array(names, pa.string()), "NFKC")))
    places, counts = np.unique(plain.dictionary_encode().indices.to_numpy(), return_counts=True)
    if not (counts > 1).any():
        return []
    place = plain.dictionary_encode().indices.to_numpy()
    repeated = np.isin(place, places[counts > 1])
    return names[repeated][np.argsort(place[repeated], kind="stable")].tolist()
