"""Answers as rows of a file: lines of CSV or typed columns, written piece by piece, whole or not at all."""

from __future__ import annotations

import csv
import io
import itertools
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tsde.errors import UsageError
from tsde.files import replacing

SUFFIXES = (".csv", ".csv.gz", ".parquet")
SAMPLE_COLUMNS = ("sample", "value")
"""What a table of samples has beside a forecast's keys."""

_ROW_GROUP = 2**18  # rows of a Parquet file that are read together
_POWERS = 10.0 ** np.arange(13)


def require_table_name(path: Path) -> None:
    """Refuse a path that does not say which kind of table to write."""
    if not path.name.endswith(SUFFIXES):
        raise UsageError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}")


def is_text(path: Path | None) -> bool:
    """Whether rows go there as lines of CSV, compressed or not; None is the standard output."""
    return path is None or not path.name.endswith(".parquet")


def as_csv(frame: pd.DataFrame) -> str:
    """CSV with nine digits, more than a float32 model knows."""
    return header(frame.columns) + "".join(csv_lines(frame).to_pylist())


def header(names: Iterable[str]) -> str:
    """The first line of a CSV file."""
    return ",".join(_quoted(pa.array(names, pa.large_string())).to_pylist()) + "\n"


def csv_lines(frame: pd.DataFrame) -> pa.LargeStringArray:
    """A line of CSV per row."""
    *cells, last = (_cells(frame.iloc[:, i]) for i in range(frame.shape[1]))
    return _joined(*cells, _joined(last, pa.scalar("", pa.large_string()), by="\n"))


def _joined(*cells: pa.Array | pa.Scalar, by: str = ",") -> pa.LargeStringArray:
    return pc.binary_join_element_wise(*cells, pa.scalar(by, pa.large_string()), null_handling="replace")


def _cells(column: pd.Series) -> pa.LargeStringArray:
    if column.dtype.kind == "f":
        return _nine_digits(column.to_numpy(np.float64))
    text = pa.array(column).cast(pa.large_string())
    return text if column.dtype.kind in "iu" else _quoted(text)


def _nine_digits(values: np.ndarray) -> pa.LargeStringArray:
    """Numbers as "%.9g" writes them, nothing for NaN.

    The shortest text that gives back a number rounded to nine digits has just these. Python itself writes what is not
    between 1e-4 and 1e9, since it takes another form there, and what lies next to the middle between two roundings.
    """
    size = np.abs(values)
    usual = (size >= 1e-4) & (size < 1e9 - 1)
    power = _POWERS[8 - np.floor(np.log10(size, where=usual, out=np.zeros_like(size))).astype(np.int64)]
    scaled = np.where(usual, values, 0.0) * power
    rounded = np.rint(scaled)
    usual &= np.abs(scaled - rounded) < 0.5 - 1e-6
    text = pa.array(rounded / power).cast(pa.large_string())
    if usual.all():
        return text
    others = ["" if value != value else f"{value:.9g}" for value in values[~usual].tolist()]  # NaN differs from itself
    return pc.replace_with_mask(text, pa.array(~usual), pa.array(others, pa.large_string()))


def _quoted(names: pa.LargeStringArray | pa.ChunkedArray) -> pa.LargeStringArray:
    """Text as it stands in a cell."""
    if not any(mark in piece for piece in _texts(names) for mark in (b'"', b",", b"\r", b"\n")):
        return names
    code, distinct = pd.factorize(names.to_numpy(zero_copy_only=False))
    return pa.array([_quote(name) for name in distinct], pa.large_string()).take(pa.array(code))


def _quote(name: str) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([name, ""])
    return text.getvalue().removesuffix(",\n")


def _texts(column: pa.LargeStringArray | pa.ChunkedArray) -> Iterator[bytes]:
    """All texts of a column, one after the other, in a few pieces."""
    for piece in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        _, ends, data = piece.buffers()
        if len(piece) and data is not None:
            ends = np.frombuffer(ends, np.int64)[piece.offset :][: len(piece) + 1]
            yield data[ends[0] : ends[-1]].to_pybytes()


def encode(frame: pd.DataFrame, text: bool, place: np.ndarray | None = None) -> pa.Table:
    """Rows as they travel: one column of CSV text or the frame's own columns, and last the `place` of each row."""
    rows = pa.table({"text": csv_lines(frame)}) if text else pa.Table.from_pandas(frame, preserve_index=False)
    return rows if place is None else rows.append_column("place", pa.array(place))


def encode_samples(keys: pd.DataFrame, drawn: np.ndarray, text: bool, place: np.ndarray | None = None) -> pa.Table:
    """Draws from each marginal, `(S, M, C)`, one row each: the `M * C` keys, `sample` from 0, `value`."""
    count, values = len(drawn), drawn.reshape(len(drawn), -1).T  # (M * C, S)
    if text:
        # a line per sample, with a zero byte where the key belongs, is the same for all keys
        pattern = "".join(f"\0,{number},%.9g\n" for number in range(count))
        lines = (pattern % tuple(row) for row in values.tolist())
        beginnings = (line.removesuffix("\n") for line in csv_lines(keys).to_pylist())
        texts = [line.replace("\0", beginning) for line, beginning in zip(lines, beginnings, strict=True)]
        rows = pa.table({"text": pa.array(texts, pa.large_string())})
    else:
        each = pa.Table.from_pandas(keys, preserve_index=False).replace_schema_metadata(None)
        rows = each.take(pa.array(np.repeat(np.arange(len(keys)), count)))
        drawing = np.tile(np.arange(count), len(keys)), values.ravel()
        for name, column in zip(SAMPLE_COLUMNS, drawing, strict=True):
            rows = rows.append_column(name, pa.array(column))
        place = place if place is None else place.repeat(count)
    return rows if place is None else rows.append_column("place", pa.array(place))


def _without_place(rows: pa.Table) -> pa.Table:
    """Encoded rows as they are written."""
    return rows.drop_columns("place") if "place" in rows.column_names[-1:] else rows


def write_table(path: Path | None, names: Sequence[str], rows: Iterable[pa.Table]) -> None:
    """Write encoded rows, which come piece by piece, to a table that appears when all have come; None is stdout.

    Raises:
        CannotWriteError: if it cannot be written.
    """
    if path is None:
        with tempfile.TemporaryFile() as file:
            _write_text(file, names, rows)
            file.seek(0)
            for text in iter(lambda: file.read(2**20), b""):
                sys.stdout.buffer.write(text)
            sys.stdout.flush()
        return
    with replacing(path) as file:
        if path.name.endswith(".parquet"):
            _write_parquet(file, rows)
        else:
            _write_text(file, names, rows, path.name.endswith(".gz"))


def _write_text(file: BinaryIO, names: Sequence[str], rows: Iterable[pa.Table], gzipped: bool = False) -> None:
    texts = (text for piece in rows for text in _texts(piece.column("text")))
    pieces = itertools.chain([header(names).encode()], texts)
    if not gzipped:
        file.writelines(pieces)
        return
    squeeze = zlib.compressobj(wbits=31)  # as gzip, without a time stamp: equal tables give equal bytes
    file.writelines(squeeze.compress(piece) for piece in pieces)
    file.write(squeeze.flush())


def _write_parquet(file: BinaryIO, rows: Iterable[pa.Table]) -> None:
    groups = _regrouped((_without_place(piece) for piece in rows), _ROW_GROUP)
    first = next(groups)
    with pq.ParquetWriter(file, first.schema) as writer:
        for group in itertools.chain([first], groups):
            writer.write_table(group, row_group_size=_ROW_GROUP)


def _regrouped(rows: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows in pieces of one size, wherever they were cut before."""
    waiting: list[pa.Table] = []
    count = 0
    for piece in rows:
        waiting.append(piece)
        count += len(piece)
        while count >= size:
            together = pa.concat_tables(waiting)
            yield together.slice(0, size).combine_chunks()
            waiting, count = [together.slice(size)], count - size
    if count:
        yield pa.concat_tables(waiting).combine_chunks()
