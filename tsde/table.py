"""The table contract: what a user's table must hold, and the ragged series that come out of it.

A table has an id, a time and channels: wide (a column per channel) or tidy (a channel and a value column). An empty
cell was not observed. Whatever cannot be read without a guess is refused, with the line and the remedy.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tsde.channels import TableSchema, read_channels, require_columns
from tsde.clock import Clock
from tsde.errors import ArtifactError, MissingInputError
from tsde.files import write_file
from tsde.findings import Finding, TableError
from tsde.ragged import Queries, Table
from tsde.reading import read_sheet
from tsde.rows import Keys, merged_values, read_groups, read_keys, sorted_rows
from tsde.sheet import Sheet
from tsde.suspicion import suspicions

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


def read_table(
    source: str | Path | pd.DataFrame,
    schema: TableSchema = _DEFAULT,
    *,
    expected_channels: tuple[str, ...] | None = None,
    expected_clock: Clock | None = None,
    grouped: bool = False,
) -> Table:
    """Read a `.csv`, `.csv.gz` or `.parquet` file or a DataFrame.

    A forecast passes the channels and the clock of the model: those channels come out, in that order and observed or
    not, other columns are left out with a note, and times must be of the same kind. Groups of series are not looked at
    then, unless the table is to be scored (`grouped`) and has them.

    Raises:
        MissingInputError: there is no such file.
        UsageError: a file of another kind.
        TableError: a `DataError` that lists the first three errors and holds every finding.
    """
    return _read(source, schema, expected_channels, expected_clock, grouped).table


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
    return reading.findings + suspicions(reading.sheet, reading.table, reading.rows)


def read_queries(source: str | Path | pd.DataFrame, schema: TableSchema, clock: Clock) -> Queries:
    """Read the id and time columns of a table of questions; other columns are ignored.

    Raises:
        MissingInputError, UsageError: as `read_table` does.
        TableError: a missing column, a blank or unreadable cell, or times of another kind than the clock's.
    """
    return queries_of(read_sheet(source), schema, clock)


def queries_of(sheet: Sheet, schema: TableSchema, clock: Clock) -> Queries:
    """What `read_queries` reads, from a sheet."""
    sheet = sheet.keyed(schema.id_col)
    require_columns(sheet, schema, keys_only=True)
    keys = read_keys(sheet, schema, clock)
    if any(finding.severity == "error" for finding in keys.findings):
        raise TableError(keys.findings)
    cells = sheet.columns[schema.time_col]
    labels = cells.to_numpy() if pa.types.is_string(cells.type) else clock.format(keys.times)
    return Queries(keys.ids[keys.codes], keys.times, labels)


def write_parquet(table: Table, path: Path) -> None:
    """Write the canonical form: id, time, channels and groups as columns, all else as JSON in the metadata.

    The file appears whole or not at all.

    Raises:
        CannotWriteError: the disk or the folder refuses.
    """
    about = {"clock": table.clock.model_dump(), "channels": table.channels, "notes": table.notes}
    ids = pa.array(table.ids[table.row_series], pa.string())
    columns, names = [ids, *map(pa.array, (table.times, *table.values.T))], ["unique_id", "ds", *table.channels]
    if table.groups is not None:
        columns, names = [*columns, pa.array(table.groups[table.row_series], pa.string())], [*names, "group"]
    arrow = pa.table(columns, names, metadata={_METADATA: json.dumps(about | {"grouped": table.groups is not None})})
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
        arrow.validate(full=True)
        return _canonical(arrow, json.loads((arrow.schema.metadata or {})[_METADATA.encode()]))
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: torn, or not written by this program ({error!r}); write it again") from error


def _canonical(arrow: pa.Table, about: dict[str, Any]) -> Table:
    """The table that `write_parquet` wrote, `about` being its metadata; any of a dozen errors if it did not."""
    encoded = arrow.column(0).cast(pa.string()).dictionary_encode().combine_chunks()
    codes, ids = encoded.indices.to_numpy(), encoded.dictionary.to_numpy(zero_copy_only=False)
    if (np.diff(codes) < 0).any():
        raise ValueError("the rows of a series do not stand together")
    offsets, rest, groups = np.searchsorted(codes, np.arange(len(ids) + 1)), arrow.columns[1:], None
    if about.get("grouped"):  # which tables of an older version do not say
        *rest, belongs = rest
        groups = belongs.cast(pa.string()).to_numpy(zero_copy_only=False)[offsets[:-1]]
    times, *channels = (column.cast(pa.float64()).to_numpy() for column in rest)
    if len(channels) != len(about["channels"]):
        raise ValueError(f"expected the channels {about['channels']}, found {arrow.column_names[2:]}")
    return Table(
        ids=ids,
        offsets=offsets,
        times=times,
        values=np.stack(channels, axis=1),
        channels=tuple(about["channels"]),
        clock=Clock.model_validate(about["clock"]),
        notes=tuple(about["notes"]),
        groups=groups,
    )


@dataclass(frozen=True, eq=False)
class Reading:
    """A table, and what was found on the way to it."""

    sheet: Sheet
    table: Table
    rows: np.ndarray  # (R,) the sheet's row in which each of the table's rows first occurs
    findings: list[Finding]


def _read(
    source: str | Path | pd.DataFrame,
    schema: TableSchema,
    channels: tuple[str, ...] | None,
    clock: Clock | None,
    grouped: bool = False,
) -> Reading:
    sheet = read_sheet(source).keyed(schema.id_col)
    require_columns(sheet, schema, training=channels is None)
    return read_rows(sheet, schema, read_keys(sheet, schema, clock), channels, grouped)


def read_rows(
    sheet: Sheet, schema: TableSchema, keys: Keys, channels: tuple[str, ...] | None, grouped: bool = False
) -> Reading:
    """The table of rows whose keys are known; rows with an error are left out on the way, so that all are found.

    Raises:
        TableError: with all findings, those of the keys included, if one of them is an error.
    """
    findings = keys.findings
    cells = read_channels(sheet, schema, channels, findings)
    groups = None
    if (grouped or channels is None) and schema.group_col is not None and schema.group_col in sheet.columns:
        groups = read_groups(sheet, schema.group_col, keys, findings)
    rows = sorted_rows(sheet, keys, findings)
    codes, times = keys.codes[rows], keys.times[rows]
    starts = np.flatnonzero((np.diff(codes, prepend=-1) != 0) | (np.diff(times, prepend=np.nan) != 0))
    values = merged_values(sheet, schema, keys, cells, rows, starts, findings)
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
        groups=groups,
    )
    return Reading(sheet, table, rows[starts], findings)
