"""A table that is larger than memory as parts of whole series, each read and checked as a small table is.

The file is read once, in blocks. Ids and times are read there, and rows go to disk sorted by id; the other cells are
read part by part. What a part says does not depend on where blocks and parts begin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from tsde.blocks import merged, read_blocks
from tsde.channels import TableSchema, read_channels, require_columns
from tsde.clock import Clock
from tsde.findings import Finding, TableError
from tsde.rows import Keys, read_keys
from tsde.runs import Run, Span, read_span, write_run
from tsde.sheet import Sheet, categories
from tsde.stamps import date_order
from tsde.table import Queries, Reading, queries_of, read_rows


class Spilled(BaseModel, frozen=True):
    """The rows of a table's file on disk.

    Attributes:
        name, unit: as a sheet's. columns: the file's.
        kept: the columns that are stored, after id, time and line.
        notes: what was found on the way.
    """

    name: str
    unit: str
    columns: tuple[str, ...]
    kept: tuple[str, ...]
    runs: tuple[Run, ...]
    notes: tuple[Finding, ...]


def spill_table(
    path: Path,
    schema: TableSchema,
    channels: tuple[str, ...],
    clock: Clock,
    folder: Path,
    report: Callable[[int], None],
    block: int,
) -> Spilled | None:
    """Write a table's rows to `folder` as sorted runs, reading `block` bytes at a time.

    Returns:
        None if the rows can only be understood together: days before months here, and not there.

    Raises:
        MissingInputError, UsageError, TableError: as `read_table` does for ids, times and the form of the file.
    """
    cells = (schema.channel_col, schema.value_col) if schema.channel_col else channels
    kept = tuple(name for name in cells if name is not None)
    findings: list[Finding] = []
    runs: list[Run] = []
    orders: set[str | None] = set()
    columns: tuple[str, ...] = ()
    for sheet in (found.keyed(schema.id_col) for found in read_blocks(path, block)):
        if not orders:
            columns = tuple(sheet.columns)
            require_columns(sheet, schema)
            read_channels(sheet, schema, channels, [])  # refuses columns that are not there
        if tuple(sheet.columns) != columns:
            return None
        orders.add(date_order(sheet.columns[schema.time_col], schema.dayfirst))
        keys = _keys(sheet, schema, clock, findings)
        if keys is not None:
            rows = _sorted(keys, sheet.lines, [sheet.columns[name] for name in kept])
            runs.append(write_run(rows, folder / f"table-{len(runs)}.arrow", per_row=64 + 24 * len(channels)))
        report(int(sheet.lines[-1]))
    if None in orders or len(orders) > 1:
        return None
    notes = tuple(merged(findings, sheet.name, sheet.unit))
    if _refused(findings):
        raise TableError(notes)
    return Spilled(name=sheet.name, unit=sheet.unit, columns=columns, kept=kept, runs=tuple(runs), notes=notes)


def read_part(spilled: Spilled, span: Span, schema: TableSchema, channels: tuple[str, ...], clock: Clock) -> Reading:
    """The series of a range of ids as a table, with what was found in their rows.

    Raises:
        TableError: their rows hold an error.
    """
    rows = read_span(spilled.runs, span)
    columns = {name: pa.chunked_array([pa.nulls(len(rows))]) for name in spilled.columns}  # their names make notes
    columns |= dict(zip((schema.id_col, *spilled.kept), (rows.column(0), *rows.columns[3:]), strict=True))
    sheet = Sheet(spilled.name, columns, rows.column(2).to_numpy(), spilled.unit, schema.id_col)
    ids, codes = categories(sheet, schema.id_col)
    keys = Keys(ids, codes, rows.column(1).to_numpy(), clock, [])
    return read_rows(sheet, schema, keys, channels)


def spill_queries(
    path: Path, schema: TableSchema, clock: Clock, folder: Path, per_row: int, block: int
) -> list[Run] | None:
    """Write a table of questions to `folder` as runs sorted by id; each question will weigh `per_row` bytes.

    Returns:
        None as `spill_table` does.

    Raises:
        MissingInputError, UsageError, TableError: as `read_queries` does.
    """
    findings: list[Finding] = []
    runs: list[Run] = []
    orders: set[str | None] = set()
    seen = 0
    columns: tuple[str, ...] = ()
    for sheet in read_blocks(path, block):
        if not orders:
            columns = tuple(sheet.columns)
            require_columns(sheet, schema, keys_only=True)
        if tuple(sheet.columns) != columns:
            return None
        orders.add(date_order(sheet.columns[schema.time_col], schema.dayfirst))
        try:
            asked = queries_of(sheet, schema, clock)
        except TableError as error:
            findings += error.findings
        else:
            place = np.arange(seen, seen + len(asked.ids))
            cells = [pa.array(asked.ids, pa.string()), asked.times, pa.array(asked.labels, pa.string()), place]
            rows = pa.table(cells, ["id", "time", "label", "place"])
            rows = rows.sort_by([("id", "ascending"), ("place", "ascending")])
            runs.append(write_run(rows, folder / f"queries-{len(runs)}.arrow", per_row))
        seen += len(sheet.lines)
    if None in orders or len(orders) > 1:
        return None
    if findings:
        raise TableError(merged(findings, sheet.name, sheet.unit))
    return runs


def read_questions(runs: Sequence[Run], span: Span) -> tuple[Queries, np.ndarray]:
    """The questions about a range of ids in their order, and the place of each among all of them, `(Q,)` int64."""
    rows = read_span(runs, span).sort_by("place")
    ids, times, labels, place = (column.to_numpy() for column in rows.columns)
    return Queries(ids, times, labels), place


def _keys(sheet: Sheet, schema: TableSchema, clock: Clock, findings: list[Finding]) -> Keys | None:
    """The keys of a block, unless there is an error in these or in earlier ones."""
    try:
        keys = read_keys(sheet, schema, clock)
    except TableError as error:
        findings += error.findings
        return None
    findings += keys.findings
    return None if _refused(findings) else keys


def _refused(findings: Sequence[Finding]) -> bool:
    return any(finding.severity == "error" for finding in findings)


def _sorted(keys: Keys, lines: np.ndarray, columns: Sequence[pa.ChunkedArray]) -> pa.Table:
    """Id, time, line and other columns, by id, and otherwise in the order of the file."""
    ids = pa.DictionaryArray.from_arrays(keys.codes.astype(np.int32), pa.array(keys.ids, pa.string()))
    names = ["id", "time", "line", *map(str, range(len(columns)))]
    rows = pa.table([ids.cast(pa.string()), keys.times, lines, *columns], names)
    if (np.diff(keys.codes) < 0).any():
        rows = rows.take(pa.array(np.argsort(keys.codes, kind="stable")))
    return rows
