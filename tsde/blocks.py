"""A table's file in blocks of rows, for tables that are larger than the memory.

Each block is a sheet like the whole file's, with the file's own line numbers.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from tsde.findings import Finding, TableError, located, refusal
from tsde.packed import Unpacked
from tsde.reading import parse_csv, read_sheet, sheet_of_arrow
from tsde.sheet import Sheet

_HEADER = re.compile(rb"(?:\xef\xbb\xbf)?[\r\n]*[^\r\n][^\n]*\n")
_CELLS = 2**20  # of a Parquet file per block
_TEXT = re.compile(r"\.[ct]sv(\.gz)?$", re.IGNORECASE)


class _Bytes(Protocol):
    def read(self, size: int, /) -> bytes: ...


def read_blocks(path: Path, size: int = 2**24) -> Iterator[Sheet]:
    """The sheets of consecutive rows of a `.csv`, `.csv.gz` or `.parquet` file, each from about `size` bytes of CSV.

    Texts that are not lines of UTF-8 (UTF-16, say) come in one block. A block whose first row fits another separator
    than the header does has other columns than the block before it.

    Raises:
        MissingInputError, UsageError, TableError: as `read_sheet` does; of a file with several flaws, for the first.
    """
    name = str(path)
    if not path.is_file() or not (_TEXT.search(path.name) or path.name.lower().endswith(".parquet")):
        yield read_sheet(path)
    elif path.name.lower().endswith((".csv", ".tsv")):
        with path.open("rb") as file:
            yield from _csv_blocks(file, path, size)
    elif path.name.lower().endswith(".gz"):
        try:
            with path.open("rb") as packed:
                yield from _csv_blocks(Unpacked(packed, name), path, size)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            with path.open("rb") as raw:
                if raw.read(2) != b"\x1f\x8b":
                    read_sheet(path)  # says that it is something else
            raise refusal("E-GZIP", f"{name}: not a whole gzip file ({error}); compress it again") from error
    else:
        try:
            yield from _parquet_blocks(path, name)
        except (pa.ArrowException, OSError) as error:
            raise refusal("E-PARQUET", f"{name}: not a readable Parquet file ({error}); write it again") from error


def moved(finding: Finding, name: str, unit: str, shift: int) -> Finding:
    """The same finding when its rows stand `shift` places further down."""
    return _placed(finding, name, unit, replace(finding, rows=tuple(row + shift for row in finding.rows)))


def merged(findings: Iterable[Finding], name: str, unit: str) -> list[Finding]:
    """Findings of a table's parts as findings of the table: what says the same comes once, with all its places.

    Warnings of one code about rows of one column are one warning, in the words of the first.
    """
    found: dict[tuple[str, str | None, str], Finding] = {}
    for finding in findings:
        same = finding.severity == "warning" and finding.count > 0
        key = finding.code, finding.column, "" if same else _text(finding, name, unit)
        if before := found.get(key):
            series = tuple(dict.fromkeys([*before.series, *finding.series]))
            rows, count = (*before.rows, *finding.rows)[:10], before.count + finding.count
            finding = _placed(before, name, unit, replace(before, rows=rows, count=count, series=series))
        found[key] = finding
    return list(found.values())


def _placed(finding: Finding, name: str, unit: str, place: Finding) -> Finding:
    """What one finding says, said of the rows of another."""
    return replace(place, message=f"{_beginning(place, name, unit)}: {_text(finding, name, unit)}")


def _text(finding: Finding, name: str, unit: str) -> str:
    """A finding's message without the places."""
    return finding.message.removeprefix(f"{_beginning(finding, name, unit)}: ")


def _beginning(finding: Finding, name: str, unit: str) -> str:
    return located(name, unit, finding.rows, finding.count, finding.series)


def _csv_blocks(file: _Bytes, path: Path, size: int) -> Iterator[Sheet]:
    """Whole records of about `size` bytes at a time, each block parsed under the file's header."""
    data = file.read(size)
    header = _HEADER.match(data)
    if header is None or b"\0" in data[:4096]:
        yield read_sheet(path)
        return
    rest, more, seen, empty = data[header.end() :], True, 0, True
    while more:
        block = file.read(size)
        more = len(block) > 0
        rest += block
        cut = _record_end(rest) if more else len(rest)
        part, rest = rest[:cut], rest[cut:]
        if part.strip() or (not more and empty):
            empty = False
            yield _parsed(header.group() + part, str(path), seen)
        seen += part.count(b"\n") + part.count(b"\r") - part.count(b"\r\n")


def _parsed(data: bytes, name: str, shift: int) -> Sheet:
    try:
        sheet = parse_csv(data, name)
    except TableError as error:
        raise TableError(moved(finding, name, "line", shift) for finding in error.findings) from error
    return replace(sheet, lines=sheet.lines + shift)


def _record_end(data: bytes) -> int:
    """Where the last whole record ends: after a line break with an even number of quotation marks before it."""
    end, quotes = data.rfind(b"\n") + 1, data.count(b'"')
    after = len(data)
    while end and quotes:
        quotes_after = data.count(b'"', end, after)
        quotes -= quotes_after
        if quotes % 2 == 0:
            break
        after, end = end, data.rfind(b"\n", 0, end - 1) + 1
    return end


def _parquet_blocks(path: Path, name: str) -> Iterator[Sheet]:
    file = pq.ParquetFile(path)
    seen = 0
    for batch in file.iter_batches(max(1, _CELLS // max(1, file.metadata.num_columns))):
        sheet = sheet_of_arrow(name, pa.table(batch))
        yield replace(sheet, lines=sheet.lines + seen)
        seen += len(sheet.lines)
    if not seen:
        yield read_sheet(path)  # which says what is wrong with no rows
