"""A CSV or Parquet file or a DataFrame as a sheet: its cells as they were written."""

from __future__ import annotations

import gzip
import zlib
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tsde.csvtext import check_header, read_csv
from tsde.errors import MissingInputError, UsageError
from tsde.findings import refusal
from tsde.packed import Unpacked
from tsde.sheet import Sheet

_GZIP, _PIECE = b"\x1f\x8b", 2**20


def read_sheet(source: str | Path | pd.DataFrame) -> Sheet:
    """Read a `.csv`, `.tsv`, `.csv.gz` or `.parquet` file, or take a DataFrame's columns (its index is ignored).

    Raises:
        MissingInputError: there is no such file, or it may not be read.
        UsageError: the file's suffix is none of these.
        TableError: no rows, a torn file, not UTF-8, a bad header or rows of uneven length.
    """
    if isinstance(source, pd.DataFrame):
        return _from_frame(source)
    name = str(source)
    lower = Path(source).name.lower()
    if lower.endswith(".parquet"):
        with _opened(source) as file:
            return _from_parquet(file, name)
    if lower.endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz")):
        with _opened(source) as file:
            data = _unpacked(file, name) if lower.endswith(".gz") else file.read()
        return parse_csv(data, name)
    _opened(source).close()
    raise UsageError(f"{name}: expected a table that ends in .csv, .csv.gz or .parquet; rename or convert it")


def parse_csv(data: bytes, name: str) -> Sheet:
    """The bytes of a CSV file as a sheet; errors as of `read_sheet`."""
    header, columns, lines = read_csv(data, name)
    return _sheet(name, header, columns, lines)


def sheet_of_arrow(name: str, table: pa.Table) -> Sheet:
    """The columns of a Parquet file, but for the index that pandas may have added; errors as of `read_sheet`."""
    try:
        table.validate(full=True)  # Arrow trusts text to be UTF-8 until something stumbles over it
    except pa.ArrowException as error:
        raise refusal("E-PARQUET", f"{name}: not a readable Parquet file ({error}); write it again") from error
    kept = [i for i, column in enumerate(table.column_names) if not column.startswith("__index_level_")]
    return _sheet(name, [table.column_names[i] for i in kept], [table.column(i) for i in kept])


def _opened(source: str | Path) -> BufferedReader:
    try:
        return open(source, "rb")
    except FileNotFoundError as error:
        raise MissingInputError(f"{source}: there is no such file") from error
    except IsADirectoryError as error:
        raise MissingInputError(f"{source}: expected a file, found a directory; name the table in it") from error
    except (OSError, ValueError) as error:  # a forbidden file, a name too long, a NUL in the name
        raise MissingInputError(f"{source}: the file cannot be read: {error}") from error


def _unpacked(file: BufferedReader, name: str) -> bytes:
    if file.peek(2) and not file.peek(2).startswith(_GZIP):
        raise refusal("E-GZIP", f"{name}: expected a gzip file, found something else; rename it, or compress it again")
    inside = Unpacked(file, name)
    try:
        return b"".join(iter(lambda: inside.read(_PIECE), b""))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise refusal("E-GZIP", f"{name}: not a whole gzip file ({error}); compress it again") from error


def _from_parquet(file: BinaryIO, name: str) -> Sheet:
    try:
        table = pq.ParquetFile(file).read()  # pq.read_table would take columns from a path such as `run=1/t.parquet`
    except (pa.ArrowException, OSError) as error:
        raise refusal("E-PARQUET", f"{name}: not a readable Parquet file ({error}); write it again") from error
    return sheet_of_arrow(name, table)


def _from_frame(frame: pd.DataFrame) -> Sheet:
    names = [str(name) for name in frame.columns]
    columns = [_pandas_column(frame.iloc[:, i]) for i in range(frame.shape[1])]  # by position: names may repeat
    return _sheet("the table", names, columns)


def _pandas_column(column: pd.Series) -> pa.ChunkedArray:
    # Arrow would take periods for integers and a mix of naive and zoned datetimes for naive ones; their text tells.
    try:
        typed = column if column.dtype.kind in "iufbM" else column.astype(str)
        return pa.chunked_array([pa.Array.from_pandas(typed)])
    except (pa.ArrowException, UnicodeEncodeError, TypeError, ValueError) as error:
        message = f"the table: column {str(column.name)!r} holds what is no text ({error}); write it as text or numbers"
        raise refusal("E-COLUMN-TYPE", message, column=str(column.name)) from error


def _sheet(name: str, header: list[str], columns: list[pa.ChunkedArray], lines: np.ndarray | None = None) -> Sheet:
    """A sheet with a sound header and one Arrow type for every kind of text; without lines, rows count from 1."""
    if lines is None:
        check_header(name, header)
    n_rows = len(columns[0]) if columns else 0
    if not n_rows:
        raise refusal("E-EMPTY", f"{name}: expected a header and rows of data, found no rows")
    unit, places = ("row", np.arange(1, n_rows + 1)) if lines is None else ("line", lines)
    names = [column.strip() for column in header]
    return Sheet(name, dict(zip(names, map(_plain_type, columns), strict=True)), places, unit)


def _plain_type(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    text = pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return column.cast(pa.string() if text else kind)
