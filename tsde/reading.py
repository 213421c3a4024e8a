"""Bytes to columns: a CSV, a Parquet file or a DataFrame as its cells were written, each row with its line.

Every CSV cell stays text, so that an id `007` or `NA` survives; what a column means is decided by whoever asks for it.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from tsde.errors import DataError, MissingInputError, UsageError

Severity = Literal["error", "warning"]
MISSING = pa.array(["", "NA", "NaN", "nan", "null", "None"])  # a cell that says: nothing was observed
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
NO_ROWS = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Finding:
    """One thing a check found in a table.

    Attributes:
        code: what it is, for programs: `E-TIME-UNREADABLE`, `W-CONSTANT-CHANNEL`, ...
        severity: an error keeps the table from being read, a warning does not.
        message: a sentence that says where, what was expected, what came and what to do.
        rows: the first ten places: line numbers of a CSV file (the header is line 1), otherwise rows counted from 1.
        count: how many places there are in all; 0 when the finding has no place of its own.
    """

    code: str
    severity: Severity
    message: str
    rows: tuple[int, ...] = ()
    count: int = 0


class TableError(DataError):
    """A table that cannot be used; `findings` holds all that was found in it, warnings included."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__(self.findings)  # the constructor's own argument, so that the exception survives pickling

    def __str__(self) -> str:
        errors = [finding.message for finding in self.findings if finding.severity == "error"]
        more = [f"... and {len(errors) - 3} more; `tsde validate` lists them all"] if len(errors) > 3 else []
        return "\n".join(errors[:3] + more)


@dataclass(frozen=True, eq=False)
class Sheet:
    """A table as written.

    Attributes:
        name: what messages call it.
        columns: `(n,)` cells per column name: text, or the type that Parquet or pandas gave them.
        lines: `(n,)` int64, where each row stands; see `Finding.rows`.
        unit: what `lines` counts, "line" or "row".
    """

    name: str
    columns: dict[str, pa.ChunkedArray]
    lines: np.ndarray
    unit: str

    def finding(self, code: str, text: str, rows: np.ndarray = NO_ROWS, severity: Severity = "error") -> Finding:
        """A finding about the given rows, `(n,)` bool or `(k,)` indices, whose message starts with their places."""
        places = self.lines[rows]
        where = _where(self.name, self.unit, places)
        return Finding(code, severity, f"{where}: {text}", tuple(places[:10].tolist()), len(places))

    def cells(self, column: str, rows: np.ndarray) -> str:
        """What stands in the first three of these rows, `(n,)` bool, in quotes."""
        return listed(dict.fromkeys(str(self.columns[column][int(i)].as_py())[:80] for i in np.flatnonzero(rows)[:3]))


def read_sheet(source: str | Path | pd.DataFrame) -> Sheet:
    """Read a `.csv`, `.csv.gz` or `.parquet` file, or take a DataFrame's columns (its index is ignored).

    Raises:
        MissingInputError: there is no such file.
        UsageError: the file's suffix is none of the three.
        TableError: no rows, a torn file, not UTF-8, a bad header or rows of uneven length.
    """
    if isinstance(source, pd.DataFrame):
        columns = [_pandas_column(source.iloc[:, i]) for i in range(source.shape[1])]  # by position: names may repeat
        return _sheet("the table", [str(name) for name in source.columns], columns)
    path, name = Path(source), str(source)
    if not path.is_file():
        raise MissingInputError(f"{name}: there is no such file")
    if path.name.lower().endswith(".parquet"):
        return _read_parquet(path, name)
    if path.name.lower().endswith(".csv.gz"):
        try:
            return _read_csv(gzip.decompress(path.read_bytes()), name)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise _refusal("E-GZIP", f"{name}: not a whole gzip file ({error}); compress it again") from error
    if path.name.lower().endswith(".csv"):
        return _read_csv(path.read_bytes(), name)
    raise UsageError(f"{name}: expected a table that ends in .csv, .csv.gz or .parquet; rename or convert it")


def numbers(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Cells as numbers: `(n,)` float64, NaN where there is none, and `(n,)` bool, cells that are no finite number."""
    kind = column.type
    if pa.types.is_string(kind):
        cells = observed(column)
        try:
            parsed = cells.cast(pa.float64())
        except pa.ArrowInvalid:
            plain = pc.if_else(pc.match_substring_regex(cells, NUMBER), pc.utf8_ltrim(cells, "+"), None)
            parsed = plain.cast(pa.float64())
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        parsed = column.cast(pa.float64(), safe=False)
        cells = pc.if_else(pc.is_nan(parsed), None, parsed)
    else:
        cells, parsed = column, pa.nulls(len(column), pa.float64())
    values = parsed.to_numpy(zero_copy_only=False).astype(np.float64)  # a copy: Arrow's memory is read-only
    bad = cells.is_valid().to_numpy() & ~np.isfinite(values)
    values[bad] = np.nan
    return values, bad


def decimal_commas(column: pa.ChunkedArray, rows: np.ndarray) -> np.ndarray:
    """Which of the given rows, `(n,)` bool, hold a number with a decimal comma: `(n,)` bool."""
    found = np.zeros(len(rows), bool)
    if pa.types.is_string(column.type) and rows.any():
        cells = pc.utf8_trim_whitespace(column.filter(pa.array(rows)))
        found[rows] = pc.match_substring_regex(cells, r"^[+-]?\d*,\d+$").to_numpy()
    return found


def observed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text cells without surrounding blanks, null where they say that nothing was observed."""
    cells = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.is_in(cells, MISSING), None, cells)


def categories(sheet: Sheet, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A column's distinct names as written, sorted, `(N,)` object, and `(n,)` int64, each row's place, -1 if blank.

    Raises:
        TableError: its type has no text (a list, say).
    """
    column = sheet.columns[name]
    if pa.types.is_floating(column.type):
        column = pa.chunked_array([plain_numbers(column.to_numpy())], pa.string())
    try:
        encoded = column.cast(pa.string()).fill_null("").dictionary_encode().combine_chunks()
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        text = f"column {name!r} holds {column.type}, expected names; write them as text or whole numbers"
        raise TableError([sheet.finding("E-COLUMN-TYPE", text)]) from error
    names = encoded.dictionary.to_numpy(zero_copy_only=False)
    named = pc.not_equal(pc.utf8_trim_whitespace(encoded.dictionary), "").to_numpy(zero_copy_only=False)
    order = np.argsort(names[named])
    rank = np.full(len(names), -1)
    rank[np.flatnonzero(named)[order]] = np.arange(len(order))
    return names[named][order], rank[encoded.indices.to_numpy()]


def plain_numbers(values: np.ndarray) -> np.ndarray:
    """The shortest text that gives each number back, 24 rather than 24.0; None for NaN: `(n,)` object."""
    text = pa.array((np.asarray(values, np.float64) + 0.0).astype(str))  # adding zero turns -0.0 into 0.0
    plain = pc.if_else(pc.equal(text, "nan"), None, pc.replace_substring_regex(text, r"\.0$", ""))
    return plain.to_numpy(zero_copy_only=False)


def listed(names: Iterable[object]) -> str:
    """Names in quotes, at most twenty of them, for a message."""
    quoted = [repr(str(name)) for name in names]
    return ", ".join(quoted[:20]) + (f" and {len(quoted) - 20} more" if len(quoted) > 20 else "")


def _where(name: str, unit: str, places: Sequence[int] | np.ndarray) -> str:
    if not len(places):
        return name
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    return f"{name}, {unit}{'s' if len(places) > 1 else ''} {', '.join(map(str, places[:3]))}{more}"


def _refusal(code: str, message: str, places: Sequence[int] = ()) -> TableError:
    return TableError([Finding(code, "error", message, tuple(places[:10]), len(places))])


def _sheet(name: str, header: list[str], columns: list[pa.ChunkedArray], lines: np.ndarray | None = None) -> Sheet:
    """A sheet with a sound header and one Arrow type for every kind of text; without lines, rows count from 1."""
    _check_header(name, header, ())
    n_rows = len(columns[0]) if columns else 0
    if not n_rows:
        raise _refusal("E-EMPTY", f"{name}: expected a header and rows of data, found no rows")
    unit, places = ("row", np.arange(1, n_rows + 1)) if lines is None else ("line", lines)
    names = [column.strip() for column in header]
    return Sheet(name, dict(zip(names, map(_plain_type, columns), strict=True)), places, unit)


def _check_header(name: str, header: list[str], line: tuple[int, ...]) -> None:
    names, where = [column.strip() for column in header], _where(name, "line", line)
    if "" in names:
        message = f"{where}: column {names.index('') + 1} has no name; name it, or leave it out (pandas: index=False)"
        raise _refusal("E-HEADER-BLANK", message, line)
    if len(set(names)) < len(names):
        twice = listed(column for column in dict.fromkeys(names) if names.count(column) > 1)
        message = f"{where}: the name {twice} stands more than once; give every column a name of its own"
        raise _refusal("E-HEADER-DUPLICATE", message, line)


def _plain_type(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    text = pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return column.cast(pa.string() if text else kind)


def _pandas_column(column: pd.Series) -> pa.ChunkedArray:
    # Arrow would take periods for integers and a mix of naive and zoned datetimes for naive ones; their text tells.
    typed = column if column.dtype.kind in "iufbM" else column.astype(str)
    return pa.chunked_array([pa.Array.from_pandas(typed)])


def _read_parquet(path: Path, name: str) -> Sheet:
    try:
        table = pq.ParquetFile(path).read()  # pq.read_table would take columns from a path such as `run=1/t.parquet`
    except (pa.ArrowException, OSError) as error:
        raise _refusal("E-PARQUET", f"{name}: not a readable Parquet file ({error}); write it again") from error
    kept = [i for i, column in enumerate(table.column_names) if not column.startswith("__index_level_")]  # pandas'
    return _sheet(name, [table.column_names[i] for i in kept], [table.column(i) for i in kept])


def _read_csv(data: bytes, name: str) -> Sheet:
    """CSV bytes, separated by comma, semicolon or tab, as text columns."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            data = data.decode("utf-16").encode()
        except UnicodeDecodeError as error:
            raise _refusal("E-ENCODING", f"{name}: broken UTF-16; save the table as CSV in UTF-8") from error
    data = data.removeprefix(b"\xef\xbb\xbf")
    if b"\0" in data[:4096]:
        raise _refusal("E-ENCODING", f"{name}: not a text file; save the table as CSV in UTF-8")
    if not data or data.isspace():
        raise _refusal("E-EMPTY", f"{name}: the file is empty; expected a header and rows of data")
    if b"\n" not in data:
        data = data.replace(b"\r", b"\n")
    try:
        header, separator, line = _header(data)
        _check_header(name, header, (line,))  # before Arrow, which reads columns by name
        columns = _parse(data, header, separator).columns
    except (UnicodeDecodeError, csv.Error, pa.ArrowInvalid) as error:
        raise _diagnosis(data, name, error) from error
    n_rows = len(columns[0])
    plain = data.count(b"\n") + (data[-1:] != b"\n") == n_rows + 1  # no blank line, no line break inside quotes
    lines = np.arange(2, n_rows + 2) if plain else _record_lines(data)[1:]
    sheet = _sheet(name, header, columns, lines)
    if data.count(b'"') % 2 and "\n" in columns[-1][-1].as_py():  # Arrow takes all that follows for one cell
        message = f"{name}, line {lines[-1]}: a quotation mark is opened and never closed; close or remove it"
        raise _refusal("E-QUOTE", message, [int(lines[-1])])
    return sheet


def _header(data: bytes) -> tuple[list[str], str, int]:
    """Column names, the separator, which is the one that cuts the header into most cells, and the header's line."""
    text = io.TextIOWrapper(io.BytesIO(data), "utf-8", newline="")
    line, header = next((line, cells) for line, cells in enumerate(text, 1) if cells.strip("\r\n"))
    names = {separator: next(csv.reader([header], delimiter=separator)) for separator in ",;\t"}
    separator = max(names, key=lambda separator: len(names[separator]))
    return names[separator], separator, line


_WORTH_THREADS = 2**22  # bytes


def _parse(data: bytes, header: list[str], separator: str, ragged: list[pa.csv.InvalidRow] | None = None) -> pa.Table:
    """Every column as text; rows of another length than the header's go to `ragged`, if given, or raise."""

    def skip(row: pa.csv.InvalidRow) -> str:
        assert ragged is not None
        ragged.append(row)
        return "skip"

    return pa.csv.read_csv(
        pa.BufferReader(data),
        # Arrow knows the numbers of rows in a single thread only; and a pool that has barely started when the program
        # ends aborts it
        pa.csv.ReadOptions(use_threads=ragged is None and len(data) > _WORTH_THREADS),
        pa.csv.ParseOptions(
            delimiter=separator,
            newlines_in_values=b'"' in data,
            invalid_row_handler=None if ragged is None else skip,
        ),
        pa.csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False),
    )


def _record_lines(data: bytes) -> np.ndarray:
    """The line on which each record starts, header first, where blank lines or quoted line breaks shift them."""
    text = np.frombuffer(data, np.uint8)
    ends = np.append(np.flatnonzero(text == ord("\n")), len(text))
    starts = np.append(0, ends[:-1] + 1)
    closed = np.searchsorted(np.flatnonzero(text == ord('"')), ends) % 2 == 0  # an even number of quotes so far
    blank = (ends == starts) | ((ends == starts + 1) & (text[np.minimum(starts, len(text) - 1)] == ord("\r")))
    return np.flatnonzero(np.append(True, closed[:-1]) & ~blank) + 1


def _diagnosis(data: bytes, name: str, error: Exception) -> TableError:
    """Why a CSV file could not be parsed; slow, but only ever on the way to an error."""
    try:
        data.decode()
    except UnicodeDecodeError as wrong:
        line = data.count(b"\n", 0, wrong.start) + 1
        message = f"{name}, line {line}: byte 0x{data[wrong.start]:02x} is not UTF-8; save the table as CSV in UTF-8"
        return _refusal("E-ENCODING", message, [line])
    ragged: list[pa.csv.InvalidRow] = []
    with contextlib.suppress(csv.Error, pa.ArrowInvalid):
        header, separator, _ = _header(data)
        _parse(data, header, separator, ragged)
    if not ragged:
        return _refusal("E-CSV", f"{name}: not a readable CSV file ({error}); save the table as CSV again")
    places = _record_lines(data)[[row.number - 1 for row in ragged]]
    message = (
        f"{_where(name, 'line', places)}: expected {len(header)} cells as in the header, found "
        f"{ragged[0].actual_columns} in {ragged[0].text[:80]!r}; complete the row, or quote cells that hold a separator"
    )
    return _refusal("E-RAGGED-ROW", message, places.tolist())
