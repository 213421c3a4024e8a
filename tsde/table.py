"""The table contract: what a user's table must hold, and the ragged series that come out of it.

A table has an id, a time and channels: wide (a column per channel) or tidy (a channel and a value column). An empty
cell was not observed. Whatever cannot be read without a guess is refused, with the line and the remedy.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tsde.channels import Cells, TableSchema, merge, read_channels, require_columns
from tsde.clock import Clock, read_times
from tsde.errors import ArtifactError, MissingInputError, UsageError
from tsde.files import write_file
from tsde.reading import NO_ROWS, Finding, Sheet, TableError, categories, listed, read_sheet

__all__ = [
    "Clock",
    "Finding",
    "Queries",
    "Table",
    "TableError",
    "TableSchema",
    "check_table",
    "read_parquet",
    "read_queries",
    "read_table",
    "write_parquet",
]


_DEFAULT = TableSchema()
_METADATA = "tsde"  # the key in a Parquet file's metadata
_MAX_CELLS = 2**31  # 16 GiB: a tidy table that large in wide form has the wrong channel column


@dataclass(frozen=True, eq=False)
class Table:
    """N ragged series of C channels in R rows, sorted by id (as text), then by time; no time repeats in a series.

    Attributes:
        ids: `(N,)` object, the names of the series as written.
        offsets: `(N + 1,)` int64; series i is rows `offsets[i]:offsets[i + 1]`.
        times: `(R,)` float64 on the clock: seconds since the epoch, or the number itself.
        values: `(R, C)` float64, NaN where nothing was observed, which may be a whole row.
        channels: C names.
        clock: how times are numbers.
        notes: what reading did that the user should know, in sentences.
    """

    ids: np.ndarray
    offsets: np.ndarray
    times: np.ndarray
    values: np.ndarray
    channels: tuple[str, ...]
    clock: Clock
    notes: tuple[str, ...] = ()

    @property
    def n_series(self) -> int:
        return len(self.ids)

    @property
    def n_rows(self) -> int:
        return len(self.times)

    @property
    def row_series(self) -> np.ndarray:
        """The series that each row belongs to, `(R,)` int64."""
        return np.repeat(np.arange(self.n_series), np.diff(self.offsets))

    def select(self, series: np.ndarray) -> Table:
        """The series with these indices, `(k,)` int, in the order given."""
        lengths = np.diff(self.offsets)[series]
        offsets = np.append(0, np.cumsum(lengths))
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][series] - offsets[:-1], lengths)
        return Table(
            self.ids[series], offsets, self.times[rows], self.values[rows], self.channels, self.clock, self.notes
        )

    def frame(self, id_col: str = "unique_id", time_col: str = "ds") -> pd.DataFrame:
        """A wide table, `(R, 2 + C)`, with times as the text that `read_table` reads back.

        Raises:
            UsageError: a channel has the name of the id or time column.
        """
        if clash := {id_col, time_col} & set(self.channels):
            raise UsageError(f"{listed(sorted(clash))} is a channel; choose another name for the id or time column")
        frame = pd.DataFrame(self.values, columns=list(self.channels))
        frame.insert(0, id_col, self.ids[self.row_series])
        frame.insert(1, time_col, self.clock.format(self.times))
        return frame


@dataclass(frozen=True, eq=False)
class Queries:
    """Which times are asked of which series, in the order of the user's table; nothing is dropped or merged.

    Attributes:
        ids: `(Q,)` object, the series as written; they need not exist.
        times: `(Q,)` float64 on the clock that was asked for.
        labels: `(Q,)` object, the time cells exactly as written.
    """

    ids: np.ndarray
    times: np.ndarray
    labels: np.ndarray


def read_table(
    source: str | Path | pd.DataFrame,
    schema: TableSchema = _DEFAULT,
    *,
    expected_channels: tuple[str, ...] | None = None,
    expected_clock: Clock | None = None,
) -> Table:
    """Read a `.csv`, `.csv.gz` or `.parquet` file or a DataFrame.

    A forecast passes the channels and the clock of the model: those channels come out, in that order and observed or
    not, other columns are left out with a note, and times must be of the same kind.

    Raises:
        MissingInputError: there is no such file.
        UsageError: a file of another kind.
        TableError: a `DataError` that lists the first three errors and holds every finding.
    """
    return _read(source, schema, expected_channels, expected_clock).table


def check_table(
    source: str | Path | pd.DataFrame,
    schema: TableSchema = _DEFAULT,
    *,
    expected_channels: tuple[str, ...] | None = None,
    expected_clock: Clock | None = None,
) -> list[Finding]:
    """Everything `read_table` would refuse or note; if it refuses nothing, also what is readable but suspicious.

    Raises:
        MissingInputError, UsageError: as `read_table` does.
    """
    try:
        reading = _read(source, schema, expected_channels, expected_clock)
    except TableError as error:
        return list(error.findings)
    return reading.findings + _suspicions(reading)


def read_queries(source: str | Path | pd.DataFrame, schema: TableSchema, clock: Clock) -> Queries:
    """Read the id and time columns of a table of questions; other columns are ignored.

    Raises:
        MissingInputError, UsageError: as `read_table` does.
        TableError: a missing column, a blank or unreadable cell, or times of another kind than the clock's.
    """
    sheet = read_sheet(source)
    require_columns(sheet, schema, keys_only=True)
    keys = _read_keys(sheet, schema, clock)
    if keys.findings:
        raise TableError(keys.findings)
    cells = sheet.columns[schema.time_col]
    labels = cells.to_numpy() if pa.types.is_string(cells.type) else clock.format(keys.times)
    return Queries(keys.ids[keys.codes], keys.times, labels)


def write_parquet(table: Table, path: Path) -> None:
    """Write the canonical form: id, time and channels as columns, clock, channels and notes as JSON in the metadata.

    The file appears whole or not at all.

    Raises:
        CannotWriteError: the disk or the folder refuses.
    """
    about = {"clock": table.clock.model_dump(), "channels": table.channels, "notes": table.notes}
    ids = pa.array(table.ids[table.row_series], pa.string())
    columns = [ids, *map(pa.array, (table.times, *table.values.T))]
    arrow = pa.table(columns, ["unique_id", "ds", *table.channels], metadata={_METADATA: json.dumps(about)})
    buffer = io.BytesIO()
    pq.write_table(arrow, buffer)
    write_file(path, buffer.getvalue())


def read_parquet(path: str | Path) -> Table:
    """Read back what `write_parquet` wrote, bit by bit the same.

    Raises:
        MissingInputError: there is no such file.
        ArtifactError: it is torn, or something else wrote it.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInputError(f"{path}: there is no such file")
    try:
        arrow = pq.ParquetFile(path).read()
        about = json.loads((arrow.schema.metadata or {})[_METADATA.encode()])
        clock = Clock.model_validate(about["clock"])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ArtifactError(f"{path}: torn, or not written by this program ({error!r}); write it again") from error
    encoded = arrow.column(0).dictionary_encode().combine_chunks()
    offsets = np.searchsorted(encoded.indices.to_numpy(), np.arange(len(encoded.dictionary) + 1))
    times, *channels = (column.to_numpy() for column in arrow.columns[1:])
    return Table(
        ids=encoded.dictionary.to_numpy(zero_copy_only=False),
        offsets=offsets,
        times=times,
        values=np.stack(channels, axis=1),
        channels=tuple(about["channels"]),
        clock=clock,
        notes=tuple(about["notes"]),
    )


@dataclass(frozen=True, eq=False)
class _Keys:
    """The id and time columns: N sorted ids, `(n,)` places among them (-1: blank), `(n,)` times (NaN: unreadable)."""

    ids: np.ndarray
    codes: np.ndarray
    times: np.ndarray
    clock: Clock
    findings: list[Finding]


@dataclass(frozen=True, eq=False)
class _Reading:
    """A table, and what was found on the way to it."""

    sheet: Sheet
    table: Table
    rows: np.ndarray  # (R,) the sheet's row in which each of the table's rows first occurs
    findings: list[Finding]


def _read(
    source: str | Path | pd.DataFrame, schema: TableSchema, channels: tuple[str, ...] | None, clock: Clock | None
) -> _Reading:
    """The table; rows with an error are left out on the way, so that all other errors are found too, and raised."""
    sheet = read_sheet(source)
    require_columns(sheet, schema)
    keys = _read_keys(sheet, schema, clock)
    findings = keys.findings
    cells = read_channels(sheet, schema, channels, findings)
    rows = _sorted_rows(sheet, keys, findings)
    codes, times = keys.codes[rows], keys.times[rows]
    starts = np.flatnonzero((np.diff(codes, prepend=-1) != 0) | (np.diff(times, prepend=np.nan) != 0))
    values = _merged_values(sheet, schema, keys, cells, rows, starts, findings)
    if any(finding.severity == "error" for finding in findings):
        raise TableError(findings)
    table = Table(
        ids=keys.ids,
        offsets=np.searchsorted(codes[starts], np.arange(len(keys.ids) + 1)),
        times=times[starts],
        values=values,
        channels=cells.channels,
        clock=keys.clock,
        notes=tuple(finding.message for finding in findings if finding.severity == "warning"),
    )
    return _Reading(sheet, table, rows[starts], findings)


def _read_keys(sheet: Sheet, schema: TableSchema, expected: Clock | None) -> _Keys:
    """The ids and times, on the expected clock if there is one."""
    findings = []
    ids, codes = categories(sheet, schema.id_col)
    if (codes < 0).any():
        text = f"the id in column {schema.id_col!r} is blank; name the series or drop the row"
        findings.append(sheet.finding("E-ID-BLANK", text, codes < 0))
    times, clock, found = read_times(sheet, schema.time_col, schema.timezone, schema.dayfirst)
    findings += found
    if clock is None:
        raise TableError(findings)
    problem = expected and expected.mismatch(clock)
    if problem:
        findings.append(sheet.finding("E-TIME-KIND", f"column {schema.time_col!r}: {problem}"))
    return _Keys(ids, codes, times, expected if expected and not problem else clock, findings)


def _sorted_rows(sheet: Sheet, keys: _Keys, findings: list[Finding]) -> np.ndarray:
    """The rows that have an id and a time, by series, then time, then place in the file."""
    rows = np.flatnonzero((keys.codes >= 0) & ~np.isnan(keys.times))
    if (np.diff(keys.codes[rows]) < 0).any():
        rows = rows[np.argsort(keys.codes[rows], kind="stable")]
    late = (np.diff(keys.times[rows]) < 0) & (np.diff(keys.codes[rows]) == 0)
    if late.any():
        text = "rows stand after a later time of their series and were sorted"
        findings.append(sheet.finding("W-UNSORTED-ROWS", text, rows[1:][late], "warning"))
        rows = rows[np.lexsort((keys.times[rows], keys.codes[rows]))]
    return rows


def _merged_values(
    sheet: Sheet,
    schema: TableSchema,
    keys: _Keys,
    cells: Cells,
    rows: np.ndarray,
    starts: np.ndarray,
    findings: list[Finding],
) -> np.ndarray:
    """Values `(R, C)` of the runs of sorted rows, which share an id and a time, that begin at `starts (R,)`."""
    if cells.code is None:
        _judge_repeats(sheet, schema, keys, rows, starts, findings)
        return merge(cells.values[rows], starts, schema.duplicates)
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
    values.flat[cell[known][cell_starts]] = merge(cells.values[rows[known]], cell_starts, schema.duplicates)[:, 0]
    return values


def _judge_repeats(
    sheet: Sheet, schema: TableSchema, keys: _Keys, rows: np.ndarray, starts: np.ndarray, findings: list[Finding]
) -> None:
    """Refuse runs of more than one row, or note how they are merged."""
    sizes = np.diff(np.append(starts, len(rows)))
    repeated = rows[np.repeat(sizes > 1, sizes)]
    if not len(repeated):
        return
    row = repeated[:1]
    where = f"series {keys.ids[keys.codes[row]][0]!r} at {keys.clock.format(keys.times[row])[0]}"
    if schema.channel_col is not None:
        where += f", channel {sheet.columns[schema.channel_col][int(row[0])].as_py()!r}"
    if schema.duplicates == "error":
        text = f"{where} stands more than once; drop the repeats, or merge them with --duplicates mean|first|last"
        findings.append(sheet.finding("E-DUPLICATE", text, repeated))
    else:
        text = f"repeated times were merged ({schema.duplicates}): {(sizes > 1).sum()}, first {where}"
        findings.append(sheet.finding("W-DUPLICATE", text, repeated, "warning"))


def _suspicions(reading: _Reading) -> list[Finding]:
    """What is readable but rarely meant: constant or empty channels, single rows, odd times, holes, wild values."""
    sheet, table, found = reading.sheet, reading.table, []

    def warn(code: str, text: str, rows: np.ndarray = NO_ROWS) -> None:
        found.append(sheet.finding(code, text, reading.rows[rows], "warning"))

    def at(row: np.ndarray) -> str:
        return f"series {table.ids[table.row_series[row]][0]!r} at {table.clock.format(table.times[row])[0]}"

    for name, column in zip(table.channels, table.values.T, strict=True):
        seen = column[~np.isnan(column)]
        if not len(seen):
            warn("W-EMPTY-CHANNEL", f"channel {name!r} was never observed; nothing can be learnt of it")
            continue
        if len(seen) > 1 and seen.min() == seen.max():
            warn("W-CONSTANT-CHANNEL", f"channel {name!r} is always {seen[0]:g}; leave it out (--channels)")
        spread = 1.4826 * np.median(np.abs(seen - np.median(seen)))  # of a normal law, its standard deviation
        wild = np.flatnonzero(np.abs(column - np.median(seen)) > 50 * spread) if spread else NO_ROWS
        if len(wild):
            text = f"{at(wild[:1])}: {column[wild[0]]:g} in channel {name!r} is over 50 robust standard deviations"
            warn("W-WILD-VALUE", f"{text} from the median {np.median(seen):g}; check its unit and digits", wild)
    single = int((np.diff(table.offsets) == 1).sum())
    if single:
        warn("W-SINGLE-ROW", f"{single} of {table.n_series} series have a single row and show no change over time")
    if table.clock.kind == "number" and (guess := _date_like(table.times)):
        warn("W-TIME-LOOKS-LIKE-DATE", f"the times look like {guess} but are taken as plain numbers; write ISO 8601")
    gaps = np.diff(table.times)
    inside = np.diff(table.row_series) == 0
    holes = np.flatnonzero(inside & (gaps > 1000 * np.median(gaps[inside]))) if inside.any() else NO_ROWS
    if len(holes):
        usual = float(np.median(gaps[inside]))
        text = f"{at(holes[:1] + 1)} comes after {gaps[holes[0]] / usual:.0f} times the usual gap"
        near = table.clock.format_duration(float(f"{usual:.3g}"))
        warn("W-HUGE-GAP", f"{text} of about {near}; check the time", holes + 1)
    return found


def _date_like(times: np.ndarray) -> str | None:
    """What kind of date all of these numbers could be: between 1985 and 2100, seconds or finer, or digits 20240131."""
    for unit, scale in (("seconds", 1.0), ("milliseconds", 1e3), ("microseconds", 1e6), ("nanoseconds", 1e9)):
        if times.min() > 4.7e8 * scale and times.max() < 4.1e9 * scale:
            return f"{unit} since 1970"
    month, day = times // 100 % 100, times % 100
    digits = (times > 1.9e7) & (times < 2.1e7) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
    return "dates such as 20240131" if (digits & (day % 1 == 0)).all() else None
