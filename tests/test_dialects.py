"""Laws of reading: a table is the same in whatever form it is written, and a number is Python's number or refused."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from tsde.table import Table, TableError, TableSchema, check_table, read_table

TIDY = TableSchema(channel_col="channel", value_col="value")

# Anything that may stand in a cell: a lone carriage return counts as a line end, so it is not kept as it is.
IDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=8).filter(str.strip)
VALUES = st.none() | st.floats(-1e299, 1e299)
NUMBERS = st.floats(-1e7, 1e7) | st.integers(-(10**7), 10**7).map(float)
NAIVE = st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2190, 1, 1))
ZONED = NAIVE.map(lambda moment: moment.replace(tzinfo=dt.UTC))


@st.composite
def frames(draw: st.DrawFn, times: st.SearchStrategy = NUMBERS) -> pd.DataFrame:
    """A wide table of two channels, with an observation of each, in which no time repeats."""
    keys = st.tuples(IDS, times)
    rows = draw(st.dictionaries(keys, st.tuples(VALUES, VALUES), min_size=1, max_size=12))
    rows[draw(keys)] = (1.5, -2.0)
    table = [(*key, *values) for key, values in rows.items()]
    return pd.DataFrame(table, columns=["unique_id", "ds", "a", "b c"]).astype({"a": float, "b c": float})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dialects")


def assert_same(one: Table, other: Table) -> None:
    assert (one.channels, one.clock) == (other.channels, other.clock)
    for field in ("ids", "offsets", "times", "values"):
        assert_array_equal(getattr(one, field), getattr(other, field), strict=True)


def written(frame: pd.DataFrame, separator: str, quoting: int, line_end: str, encoding: str) -> bytes:
    """A frame as CSV by the standard library, another road than the program's or pandas'."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, quoting=quoting, lineterminator=line_end)
    writer.writerow(frame.columns)
    for row in frame.itertuples(index=False):
        writer.writerow(["" if cell is None or cell != cell else cell for cell in row])
    return text.getvalue().encode(encoding)


@settings(max_examples=100)
@given(
    frame=frames(),
    separator=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    line_end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    packed=st.booleans(),
)
def test_any_dialect_reads_back(
    frame: pd.DataFrame, separator: str, quoting: int, line_end: str, encoding: str, packed: bool, folder: Path
) -> None:
    data = written(frame, separator, quoting, line_end, encoding)
    path = folder / ("t.csv.gz" if packed else "t.csv")
    path.write_bytes(gzip.compress(data) if packed else data)
    table = read_table(path)
    rows = frame.sort_values(["unique_id", "ds"], ignore_index=True)
    ids = rows["unique_id"].to_numpy(object)
    assert_array_equal(table.ids[table.row_series], ids)
    assert_array_equal(table.times, rows["ds"])
    assert_array_equal(table.values, rows[["a", "b c"]])


@settings(max_examples=60)
@given(frame=frames(st.one_of(NUMBERS)) | frames(NAIVE) | frames(ZONED))
def test_csv_parquet_and_frames_agree(frame: pd.DataFrame, folder: Path) -> None:
    frame.to_parquet(folder / "t.parquet")
    frame.to_csv(folder / "t.csv", index=False)
    table = read_table(frame)
    assert_same(read_table(folder / "t.parquet"), table)
    assert_same(read_table(folder / "t.csv"), table)


@settings(max_examples=60)
@given(frame=frames(), seed=st.integers(0, 2**32 - 1))
def test_row_order_costs_no_more_than_a_note(frame: pd.DataFrame, seed: int) -> None:
    shuffled = frame.sample(frac=1, random_state=seed)
    assert_same(read_table(frame), read_table(shuffled))
    codes = [{finding.code for finding in check_table(rows)} - {"W-UNSORTED-ROWS"} for rows in (frame, shuffled)]
    assert codes[0] == codes[1]


@settings(max_examples=60)
@given(frame=frames())
def test_wide_and_tidy_agree(frame: pd.DataFrame) -> None:
    tidy = frame.melt(["unique_id", "ds"], var_name="channel", value_name="value")
    assert_same(read_table(tidy, TIDY), read_table(frame))
    findings = [{f.code for f in check_table(*source)} - {"W-UNSORTED-ROWS"} for source in ((tidy, TIDY), (frame,))]
    assert findings[0] == findings[1]


SPELLINGS = (
    st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.integers(-(10**30), 10**30).map(str)
    | st.text("0123456789+-.eE", min_size=1, max_size=12)
    | st.text("0123456789+-.,_ 'eEinfaxNA１\u00a0\u2212", min_size=1, max_size=10)
)


@settings(max_examples=250)
@given(cells=st.lists(SPELLINGS, min_size=1, max_size=4))
def test_a_number_is_pythons_number_or_is_refused(cells: list[str]) -> None:
    frame = pd.DataFrame({"unique_id": "a", "ds": range(len(cells) + 1), "y": [*cells, "1"]})
    try:
        values = read_table(frame).values[:-1, 0]
    except TableError as error:
        refused = {f.rows for f in error.findings}
        assert refused
        assert all(not np.isfinite(plain(cells[row - 1])) for rows in refused for row in rows)
    else:
        for cell, value in zip(cells, values, strict=True):
            assert np.isnan(value) or value == float(cell)
            assert not np.isnan(value) or cell.strip() in ("", "NA", "NaN", "nan", "-nan", "-NaN")


def plain(cell: str) -> float:
    """The number below 1e300 that a cell of ASCII without underscores spells; NaN if it spells none."""
    try:
        return float(cell) if cell.isascii() and "_" not in cell and abs(float(cell)) < 1e300 else np.nan
    except ValueError:
        return np.nan
