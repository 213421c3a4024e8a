"""CSV bytes as columns of text, each row with its line; or why they cannot be that.

Every cell stays text, so that an id `007` or `NA` survives; what a column means is decided by whoever asks for it.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import re
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.csv

from tsde.findings import TableError, listed, located, quoted, refusal

SEPARATORS = ",;\t|"
_BYTE_ORDER_MARKS = {  # the longer ones first: UTF-32's begins like UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_FORMATS = {
    b"\x1f\x8b": "compressed by gzip; rename it to .csv.gz, or decompress it once more",
    b"PK\x03\x04": "an Excel or zip file; save the table as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel file; save the table as CSV",
    b"PAR1": "a Parquet file; rename it to .parquet",
}
_WORTH_THREADS = 2**22  # bytes
_MOST_BLOCK = 2**31 - 1  # bytes


def read_csv(data: bytes, name: str) -> tuple[list[str], list[pa.ChunkedArray], np.ndarray]:
    """Column names, columns and `(n,)` int64 lines of a CSV separated by comma, semicolon, tab or bar.

    Raises:
        TableError: not text in UTF-8 or UTF-16, an empty file, a bad header, stray quotation marks, uneven rows.
    """
    data = _plain_lines(_as_utf8(data, name))
    if not data or data.isspace():
        raise refusal("E-EMPTY", f"{name}: the file is empty; expected a header and rows of data")
    try:
        header, separator, line = _header(data, name)
        check_header(name, header, (line,))  # before Arrow, which reads columns by name
        if b'"' in data:
            _check_quotes(data, separator, name)
        table = _parse(data, header, separator)
    except (UnicodeDecodeError, csv.Error, pa.ArrowInvalid) as error:
        raise _diagnosis(data, name, error) from error
    if table.column_names != header:
        raise refusal("E-CSV", f"{name}, line {line}: the header cannot be taken apart; save the table as CSV again")
    plain = data.count(b"\n") + (data[-1:] != b"\n") == table.num_rows + 1  # no blank line, no break inside quotes
    lines = np.arange(2, table.num_rows + 2) if plain else _record_lines(data)[1:]
    return header, table.columns, lines


def check_header(name: str, header: list[str], line: tuple[int, ...] = ()) -> None:
    """Refuse a blank or repeated column name, leaving surrounding blanks aside."""
    names, where = [column.strip() for column in header], located(name, "line", line)
    if "" in names:
        message = f"{where}: column {names.index('') + 1} has no name; name it, or leave it out (pandas: index=False)"
        raise refusal("E-HEADER-BLANK", message, line)
    if len(set(names)) < len(names):
        twice = list(dict.fromkeys(column for column in names if names.count(column) > 1))
        message = f"{where}: the name {listed(twice)} stands more than once; give every column a name of its own"
        raise refusal("E-HEADER-DUPLICATE", message, line, twice[0])


def _as_utf8(data: bytes, name: str) -> bytes:
    encoding = next((known for mark, known in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), None)
    if encoding is not None:
        try:
            data = data.decode(encoding).encode()
        except UnicodeDecodeError as error:
            message = f"{name}: broken {encoding.upper()} ({error.reason}); save the table as CSV in UTF-8"
            raise refusal("E-ENCODING", message) from error
    data = data.removeprefix(codecs.BOM_UTF8)
    if known := next((what for mark, what in _FORMATS.items() if data.startswith(mark)), None):
        raise refusal("E-ENCODING", f"{name}: not CSV but {known}")
    if (place := data.find(b"\0")) >= 0:
        wide = data[:200].count(b"\0") > len(data[:200]) / 4
        guess = "UTF-16 without a byte order mark?" if wide else "a binary file, or a torn one?"
        line = data.count(b"\n", 0, place) + 1
        message = f"{name}, line {line}: not a text file, it holds byte 0x00 ({guess}); save the table as CSV in UTF-8"
        raise refusal("E-ENCODING", message, [line])
    return data


def _plain_lines(data: bytes) -> bytes:
    """Lone carriage returns, which end a line too, as line feeds."""
    if b"\r" in data and data.count(b"\r") != data.count(b"\r\n"):
        data = re.sub(rb"\r(?!\n)", b"\n", data)
    return data if b"\n" in data else data + b"\n"


def _header(data: bytes, name: str) -> tuple[list[str], str, int]:
    """Column names, the separator and the header's line.

    The separator is the one that cuts the first row into as many cells as the header; failing that, or among
    several, the one that cuts the header into most.
    """
    text = io.TextIOWrapper(io.BytesIO(data), "utf-8", newline="")
    numbered = ((line, cells) for line, cells in enumerate(text, 1) if cells.strip("\r\n"))
    sample = list(islice(numbered, 50))
    found = {}
    for separator in SEPARATORS:
        records = csv.reader((cells for _, cells in sample), delimiter=separator)
        found[separator] = (next(records), _first(records))

    def fit(separator: str) -> tuple[bool, int]:
        header, first = found[separator]
        return len(header) > 1 and len(first) in (0, len(header)), len(header)

    separator = max(SEPARATORS, key=fit)
    header, line = found[separator][0], sample[0][0]
    cut = len(header) > 1 or (header[0].strip().isidentifier() and all(len(row) < 2 for _, row in found.values()))
    if not cut or header[0].lower().startswith("sep="):
        message = (
            f"{name}, line {line}: expected column names separated by a comma, semicolon, tab or |, found "
            f"{quoted(sample[0][1].strip())}; remove the lines above the header, or save the table as CSV with commas"
        )
        raise refusal("E-HEADER-SINGLE", message, [line])
    return header, separator, line


def _first(records: Iterator[list[str]]) -> list[str]:
    """The next record; none if it is the last, or too long to be looked at."""
    try:
        return next(records, [])
    except csv.Error:
        return []


def _check_quotes(data: bytes, separator: str, name: str) -> None:
    """Refuse a quotation mark that neither opens nor closes a cell, nor is doubled inside one.

    Arrow reads such cells in its own way, and counts lines from there on in another than an editor does.
    """
    text = np.frombuffer(data, np.uint8)
    marks = np.flatnonzero(text == ord('"'))
    fence = np.zeros(256, bool)
    fence[[ord(character) for character in f'{separator}\r\n"']] = True
    opens = fence[text[marks - 1]] | (marks == 0)
    closes = fence[text[np.minimum(marks + 1, len(text) - 1)]] | (marks == len(text) - 1)
    good = closes
    good[::2] = opens[::2]
    if good.all() and len(marks) % 2 == 0:
        return
    wrong = int(good.argmin()) if not good.all() else len(marks) - 1
    start = marks[wrong - wrong % 2]
    line, end = (data.count(b"\n", 0, place) + 1 for place in (start, marks[wrong]))
    if good[wrong]:
        problem = "a quotation mark is opened and never closed; close or remove it"
    elif wrong % 2:
        problem = f"a quotation mark is opened, and the next, on line {end}, does not end the cell; close or double it"
    else:
        problem = "a quotation mark stands inside a cell; quote the whole cell and double the mark"
    raise refusal("E-QUOTE", f"{name}, line {line}: {problem}", [line])


def _parse(data: bytes, header: list[str], separator: str, ragged: list[pa.csv.InvalidRow] | None = None) -> pa.Table:
    """Every column as text; rows of another length than the header's go to `ragged`, if given, or raise."""
    try:
        return _parse_blocks(data, header, separator, ragged, None)
    except pa.ArrowInvalid as error:
        if "straddling" not in str(error):
            raise
        return _parse_blocks(data, header, separator, ragged, min(len(data) + 1, _MOST_BLOCK))  # a row of megabytes


def _parse_blocks(
    data: bytes, header: list[str], separator: str, ragged: list[pa.csv.InvalidRow] | None, block: int | None
) -> pa.Table:
    def skip(row: pa.csv.InvalidRow) -> str:
        assert ragged is not None
        ragged.append(row)
        return "skip"

    return pa.csv.read_csv(
        pa.BufferReader(data),
        # Arrow knows the numbers of rows in a single thread only; and a pool that has barely started when the program
        # ends aborts it
        pa.csv.ReadOptions(use_threads=ragged is None and len(data) > _WORTH_THREADS, block_size=block),
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
        message = (
            f"{name}, line {line}: byte 0x{data[wrong.start]:02x} is not UTF-8 (perhaps Latin-1); "
            "save the table as CSV in UTF-8, for instance with: iconv -f WINDOWS-1252 -t UTF-8"
        )
        return refusal("E-ENCODING", message, [line])
    ragged: list[pa.csv.InvalidRow] = []
    with contextlib.suppress(csv.Error, pa.ArrowInvalid):
        header, separator, _ = _header(data, name)
        _parse(data, header, separator, ragged)
    if not ragged:
        return refusal("E-CSV", f"{name}: not a readable CSV file ({error}); save the table as CSV again")
    places = _record_lines(data)[[row.number - 1 for row in ragged]].tolist()
    message = (
        f"{located(name, 'line', places)}: expected {len(header)} cells as in the header, "
        f"found {ragged[0].actual_columns} in {quoted(ragged[0].text)}; complete the row, or quote a cell that holds a "
        "separator"
    )
    return refusal("E-RAGGED-ROW", message, places)
