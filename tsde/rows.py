"""From the rows of a sheet to sorted rows without repeats: by series, then by time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tsde.channels import Cells, TableSchema
from tsde.clock import Clock
from tsde.findings import Finding, TableError, quoted
from tsde.sheet import Sheet, categories
from tsde.times import read_times

_MAX_CELLS = 2**31  # 16 GiB: a tidy table that large in wide form has the wrong channel column


@dataclass(frozen=True, eq=False)
class Keys:
    """The id and time columns: N sorted ids, `(n,)` places among them (-1: blank), `(n,)` times (NaN: unreadable)."""

    ids: np.ndarray
    codes: np.ndarray
    times: np.ndarray
    clock: Clock
    findings: list[Finding]


def read_keys(sheet: Sheet, schema: TableSchema, expected: Clock | None) -> Keys:
    """The ids and times, on the expected clock if there is one."""
    findings = []
    ids, codes = categories(sheet, schema.id_col)
    if (codes < 0).any():
        text = f"the id in column {quoted(schema.id_col)} is blank; name the series or drop the row"
        findings.append(sheet.finding("E-ID-BLANK", text, codes < 0, schema.id_col))
    times, clock, found = read_times(sheet, schema.time_col, schema.timezone, schema.dayfirst, expected)
    findings += found
    if clock is None:
        raise TableError(findings)
    problem = expected and expected.mismatch(clock)
    if problem:
        findings.append(
            sheet.finding("E-TIME-KIND", f"column {quoted(schema.time_col)}: {problem}", column=schema.time_col)
        )
    return Keys(ids, codes, times, expected if expected and not problem else clock, findings)


def read_groups(sheet: Sheet, name: str, keys: Keys, findings: list[Finding]) -> np.ndarray:
    """The group of each series, `(N,)` object, from the column of that name."""
    names, codes = categories(sheet, name)
    if (codes < 0).any():
        text = f"the group in column {quoted(name)} is blank; name it, perhaps by the id of its series, or drop the row"
        findings.append(sheet.finding("E-GROUP-BLANK", text, codes < 0, name))
    rows = np.flatnonzero((codes >= 0) & (keys.codes >= 0))
    first = np.zeros(len(keys.ids), np.int64)
    first[keys.codes[rows[::-1]]] = codes[rows[::-1]]
    other = np.zeros(len(codes), bool)
    other[rows] = codes[rows] != first[keys.codes[rows]]
    if other.any():
        text = f"column {quoted(name)} holds {sheet.cells(name, other)}, and another group in rows of the same series"
        remedy = "a series belongs to one group: correct it, or give the parts of the series ids of their own"
        findings.append(sheet.finding("E-GROUP-CHANGES", f"{text}; {remedy}", other, name))
    return names[first] if len(names) else np.full(len(first), "", object)


def sorted_rows(sheet: Sheet, keys: Keys, findings: list[Finding]) -> np.ndarray:
    """The rows that have an id and a time, by series, then time, then place in the file."""
    rows = np.flatnonzero((keys.codes >= 0) & ~np.isnan(keys.times))
    if (np.diff(keys.codes[rows]) < 0).any():
        rows = rows[np.argsort(keys.codes[rows], kind="stable")]
    late = (np.diff(keys.times[rows]) < 0) & (np.diff(keys.codes[rows]) == 0)
    if late.any():
        text = "rows stand after a later time of their series and were sorted"
        findings.append(sheet.finding("W-UNSORTED-ROWS", text, rows[1:][late]))
        rows = rows[np.lexsort((keys.times[rows], keys.codes[rows]))]
    return rows


def merged_values(
    sheet: Sheet,
    schema: TableSchema,
    keys: Keys,
    cells: Cells,
    rows: np.ndarray,
    starts: np.ndarray,
    findings: list[Finding],
) -> np.ndarray:
    """Values `(R, C)` of the runs of sorted rows, which share an id and a time, that begin at `starts (R,)`."""
    if cells.code is None:
        _judge_repeats(sheet, schema, keys, rows, starts, findings)
        return _merge(cells.values[rows], starts, schema.duplicates)
    shape = (len(starts), len(cells.channels))
    if shape[0] * shape[1] > _MAX_CELLS:
        text = f"{shape[0]} times by {shape[1]} channels do not fit into memory"
        remedy = "check the channel column (--channel-col), or choose channels (--channels)"
        raise TableError([*findings, sheet.finding("E-TOO-LARGE", f"{text}; {remedy}")])
    run = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(rows))))
    cell = run * shape[1] + cells.code[rows]
    known = np.flatnonzero(cells.code[rows] >= 0)
    known = known[np.argsort(cell[known], kind="stable")]
    cell_starts = np.flatnonzero(np.diff(cell[known], prepend=-1) != 0)
    _judge_repeats(sheet, schema, keys, rows[known], cell_starts, findings)
    values = np.full(shape, np.nan)
    values.flat[cell[known][cell_starts]] = _merge(cells.values[rows[known]], cell_starts, schema.duplicates)[:, 0]
    return values


def _judge_repeats(
    sheet: Sheet, schema: TableSchema, keys: Keys, rows: np.ndarray, starts: np.ndarray, findings: list[Finding]
) -> None:
    """Refuse runs of more than one row, or note how they are merged."""
    sizes = np.diff(np.append(starts, len(rows)))
    repeated = rows[np.repeat(sizes > 1, sizes)]
    if not len(repeated):
        return
    row = repeated[:1]
    where, column = f"the time {keys.clock.format(keys.times[row])[0]}", schema.time_col
    if schema.channel_col is not None:
        column = sheet.cell(schema.channel_col, int(row[0]))
        where += f" of channel {quoted(column)}"
    if schema.duplicates == "error":
        text = f"{where} stands more than once; drop the repeats, or merge them with --duplicates mean|first|last"
        if schema.channel_col is None and any(finding.code == "W-LEFT-OUT-TEXT" for finding in findings):
            text += "; if a column names what was measured, the table is tidy (channel_col and value_col)"
        if any(finding.code == "W-TIME-ROUNDED" for finding in findings):
            text += "; times were rounded, which may have made them alike"
        findings.append(sheet.finding("E-DUPLICATE", text, repeated, column))
    else:
        text = f"repeated times were merged ({schema.duplicates}), first {where}"
        findings.append(sheet.finding("W-DUPLICATE", text, repeated, column))


def _merge(values: np.ndarray, starts: np.ndarray, how: str) -> np.ndarray:
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
