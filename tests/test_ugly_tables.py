"""Ugly tables: each gets the right reading or one precise refusal, and every code that exists is shown by a table."""

from __future__ import annotations

import datetime as dt
import gzip
import json
import re
import warnings
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from tsde.blocks import read_blocks
from tsde.clock import Clock
from tsde.errors import ConfigError, MissingInputError
from tsde.findings import CODES, catalogue
from tsde.table import TableError, TableSchema, check_table, read_table

ROOT = Path(__file__).resolve().parents[1]
HEAD = "unique_id,ds,y\n"
TWO = "a,1,2\na,2,3\n"
TIDY = {"channel_col": "channel", "value_col": "value"}
TIDY_HEAD = "unique_id,ds,channel,value\n"
ZONED = {"expected_clock": Clock(kind="datetime", timezone="UTC")}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(content: str | bytes | pa.Table, name: str = "t.csv") -> Path:
        path = tmp_path / name
        if isinstance(content, pa.Table):
            pq.write_table(content, path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to_file


# ---------------------------------------------------------------------------------------------- the right reading


@pytest.mark.parametrize(
    ("content", "values"),
    [
        (b"\xef\xbb\xbf" + b'"unique_id",ds,y\n' + TWO.encode(), [2, 3]),
        (b"\xfe\xff" + (HEAD + TWO).encode("utf-16-be"), [2, 3]),
        ((HEAD + TWO).replace(",", "|"), [2, 3]),
        ("unique_id;ds;'a,b,c,d'\n" + TWO.replace(",", ";"), [2, 3]),  # more commas in the header than semicolons
        ('unique_id;ds;"a,b,c,d"\n' + TWO.replace(",", ";"), [2, 3]),
        ('unique_id,ds,"y\n(mg)"\n' + TWO, [2, 3]),
        (HEAD + "a,1,2\ra,2,3\n", [2, 3]),  # two kinds of line end
        (HEAD + "a,1,2\r\na,2,3\n\r\n\n", [2, 3]),
        ("unique_id,ds,y,note\na,1,2," + "x" * 3_000_000 + "\na,2,3,z\n", [2, 3]),
        (HEAD + "a,1,NaN\na,2,N/A\na,3,#N/A\na,4,NULL\na,5,<NA>\na,6,\na,7,3\n", [np.nan] * 6 + [3]),
        (HEAD + "a,1,1e-999\na,2,1e299\na,3,-1e299\n", [0, 1e299, -1e299]),
        (HEAD + "a,1,0.1000000000000000055511151231257827021181583404541015625\na,2,3\n", [0.1, 3]),
        ("unique_id,ds,y,y z\na,1,1e-6,1e6\na,2,2e-6,2e6\n", [1e-6, 2e-6]),
    ],
)
def test_read_as_meant(write: Write, content: str | bytes, values: list[float]) -> None:
    table = read_table(write(content))
    assert table.ids.tolist() == ["a"] and table.times.tolist() == list(range(1, len(values) + 1))
    np.testing.assert_array_equal(table.values[:, 0], values)


def test_a_header_over_two_lines_keeps_its_name(write: Write) -> None:
    assert read_table(write('unique_id,ds,"y\n(mg)"\n' + TWO)).channels == ("y\n(mg)",)
    refused = refusal(write('unique_id,ds,"y\n(mg)"\na,1,2\na,2,x\n'))
    assert refused.rows == (4,)


@pytest.mark.parametrize(
    ("zones", "label"),
    [
        (["2024-01-01T00:00+02:00", "2024-07-01T00:00+02:00"], "2024-01-01T00:00:00+02:00"),
        (["2024-01-01T00:00-0330", "2024-07-01T00:00-0330"], "2024-01-01T00:00:00-03:30"),
        (["2024-01-01 00:00:00+02", "2024-07-01 00:00:00+02"], "2024-01-01T00:00:00+02:00"),
        (["2024-1-1 0:00 +02:00", "2024-7-1 0:00 +0200"], "2024-01-01T00:00:00+02:00"),
        (["2024-01-01T00:00Z", "2024-07-01T00:00Z"], "2024-01-01T00:00:00+00:00"),
        (["2024-01-01 00:00 GMT", "2024-07-01 00:00 UTC"], "2024-01-01T00:00:00+00:00"),
        (["2024-01-01T00:00+01:00", "2024-07-01T00:00+02:00"], "2023-12-31T23:00:00+00:00"),
    ],
)
def test_times_come_back_in_the_zone_they_were_written_in(write: Write, zones: list[str], label: str) -> None:
    table = read_table(write(HEAD + "".join(f"a,{time},1\n" for time in zones)))
    moment = dt.datetime.fromisoformat(label).timestamp()
    assert table.times[0] == moment
    assert table.clock.format(table.times)[0] == label


@pytest.mark.parametrize(
    ("column", "times"),
    [
        (pa.array([dt.date(1, 1, 1), dt.date(9999, 12, 31)]), [-62135596800, 253402214400]),
        (pa.array([86_400_000, 0], pa.date64()), [0, 86400]),
        (pa.array([1, 2], pa.timestamp("s")), [1, 2]),
        (pa.array([1, 2], pa.timestamp("ms", "+02:00")), [0.001, 0.002]),
        (pa.array([1, 2], pa.timestamp("us", "Mars/Olympus")), [1e-6, 2e-6]),
        (pa.array([1, 2], pa.timestamp("us", "+0200")), [1e-6, 2e-6]),
        (pa.array([1, 2], pa.timestamp("us", "+99:99")), [1e-6, 2e-6]),
        (pa.array([1, 2], pa.int8()), [1, 2]),
        (pa.array([Decimal("1.5"), Decimal("2.5")]), [1.5, 2.5]),
        (pa.array(["1", "2"], pa.large_string()).dictionary_encode(), [1, 2]),
    ],
)
def test_parquet_times_of_any_type(write: Write, column: pa.Array, times: list[float]) -> None:
    path = write(pa.table({"unique_id": ["a", "a"], "ds": column, "y": [1.0, 2.0]}), "t.parquet")
    table = read_table(path)
    assert table.times.tolist() == times and len(table.clock.format(table.times)) == 2


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (pa.array([Decimal("1.10"), None]), [1.1, np.nan]),
        (pa.array([Decimal("1e70"), Decimal(2)], pa.decimal256(76, 0)), [1e70, 2]),
        (pa.array([2**64 - 1, 1], pa.uint64()), [2.0**64, 1]),
        (pa.array(np.array([1, 2], np.float16)), [1, 2]),
        (pa.array([1.0, 2.0]).dictionary_encode(), [1, 2]),
        (pa.array(["1", " 2 "], pa.string_view()), [1, 2]),
    ],
)
def test_parquet_values_of_any_type(write: Write, column: pa.Array, values: list[float]) -> None:
    path = write(pa.table({"unique_id": ["a", "a"], "ds": [1, 2], "y": column}), "t.parquet")
    np.testing.assert_array_equal(read_table(path).values[:, 0], values)


def test_parquet_index_and_nested_columns(write: Write, tmp_path: Path) -> None:
    frame = pd.DataFrame({"unique_id": ["a", "a"], "ds": [1, 2], "y": [1.0, 2.0], "l": [[1], [2]]})
    frame.set_index(["unique_id", "ds"]).to_parquet(tmp_path / "index.parquet")
    table = read_table(tmp_path / "index.parquet")
    assert table.channels == ("y",) and "'l' (such as '[1]')" in table.notes[0]


# ---------------------------------------------------------------------------------------------- one precise refusal


def refusal(path: Path, schema: dict | None = None, **expected: object) -> SimpleNamespace:
    """The only error of a table."""
    with pytest.raises(TableError) as caught:
        read_table(path, TableSchema(**(schema or {})), **expected)  # type: ignore[arg-type]
    errors = [finding for finding in caught.value.findings if finding.severity == "error"]
    assert len(errors) == 1, [finding.message for finding in errors]
    assert len(errors[0].message) < 1000
    return SimpleNamespace(**vars(errors[0]))


@pytest.mark.parametrize(
    ("content", "code", "rows", "words"),
    [
        ((HEAD + TWO).encode("utf-16-le"), "E-ENCODING", (1,), "UTF-16 without a byte order mark"),
        (HEAD + "a,1,2\na\0,2,3\n", "E-ENCODING", (3,), "byte 0x00 .a binary file"),
        ((HEAD + "é,1,2\n").encode("latin-1"), "E-ENCODING", (2,), "perhaps Latin-1.*iconv"),
        (gzip.compress(b"x", mtime=0), "E-ENCODING", (), r"gzip; rename it to \.csv\.gz"),
        (b"PK\x03\x04....", "E-ENCODING", (), "Excel"),
        (b"PAR1....", "E-ENCODING", (), r"rename it to \.parquet"),
        ((HEAD + TWO).replace(",", " "), "E-HEADER-SINGLE", (1,), "'unique_id ds y'; remove the lines above"),
        ("Export of 2024\n\n" + HEAD + TWO, "E-HEADER-SINGLE", (1,), "'Export of 2024'"),
        ("Export\n\n" + HEAD + TWO, "E-HEADER-SINGLE", (1,), "'Export'"),
        ("# by x\n" + HEAD + TWO, "E-HEADER-SINGLE", (1,), "'# by x'"),
        ("sep=;\n" + (HEAD + TWO).replace(",", ";"), "E-HEADER-SINGLE", (1,), "'sep=;'"),
        ("<html><body>404</body></html>", "E-HEADER-SINGLE", (1,), "html"),
        (HEAD.strip(), "E-EMPTY", (), "found no rows"),
        (HEAD + "a,1,2\n# note\na,2,3\n", "E-RAGGED-ROW", (3,), "found 1 in '# note'"),
        (HEAD + "a,1,2,9\na,2,3,9\n", "E-RAGGED-ROW", (2, 3), "expected 3 cells as in the header, found 4"),
        (HEAD + "a,1,2\na,2," + "9," * 99999 + "\n", "E-RAGGED-ROW", (3,), "found 100002"),
        (HEAD + 'a"b,1,2\n', "E-QUOTE", (2,), "inside a cell; quote the whole cell"),
        (HEAD + 'a,1,5"\n', "E-QUOTE", (2,), "inside a cell"),
        (HEAD + '"a"b,1,2\n', "E-QUOTE", (2,), "does not end the cell"),
        (HEAD + '"a\\"b",1,2\n', "E-QUOTE", (2,), "does not end the cell"),
        (HEAD + 'a,1,2\n"a,2,3\na,3,4\n"b",3,4\n', "E-QUOTE", (3,), "the next, on line 5, does not end"),
        (HEAD + 'a,1,2\na,2,"3\na,3,4\n', "E-QUOTE", (3,), "never closed"),
        (HEAD + 'a,1,"1,234"\na,2,12\n', "E-DECIMAL-COMMA", (2,), "decimal or separate thousands"),
        (HEAD + 'a,1,"1,234.5"\na,2,"2,345.5"\n', "E-THOUSANDS", (2, 3), "no separator of thousands"),
        ("unique_id;ds;y\na;1;1.234,5\na;2;1\n", "E-THOUSANDS", (2,), "'1.234,5'"),
        (HEAD + "a,1,1 234\na,2,1'234\n", "E-THOUSANDS", (2, 3), "series 'a'"),
        (HEAD + "a,1,1\u202f234\na,2,1_234\n", "E-THOUSANDS", (2, 3), "decimal point"),
        (HEAD + "a,1,inf\na,2,-inf\n", "E-VALUE", (2, 3), "'inf', '-inf', expected a finite number"),
        (HEAD + "a,1,1e300\na,2,-1e308\na,3,2\n", "E-VALUE", (2, 3), "a finite number below 1e300"),
        (HEAD + "a,1,\u22121\na,2,2\n", "E-VALUE", (2,), "series 'a': column 'y'"),
        (HEAD + "a,1,１２\na,2,2\n", "E-VALUE", (2,), "'１２'"),
        (HEAD + "a,1,0x1F\na,2,2\n", "E-VALUE", (2,), "'0x1F'"),
        (HEAD + "a,1,nan(abc)\na,2,2\n", "E-VALUE", (2,), "'nan"),
        (HEAD + "a,1," + "9" * 100_000 + "\na,2,2\n", "E-VALUE", (2,), "9[.]{3}'"),
        (HEAD + "a,1,true\na,2,0\n", "E-VALUE", (2,), "'true'"),
        (HEAD + "a,20240131,1\na,20240201,2\n", "E-TIME-DIGITS", (2, 3), r"20240131\.0"),
        (HEAD + "a,20240131235959,1\na,20240201000000,2\n", "E-TIME-DIGITS", (2, 3), "2024-01-31"),
        (HEAD + "a,0000-01-01,1\na,2024-01-01,2\n", "E-TIME-UNREADABLE", (2,), "'0000-01-01'"),
        (HEAD + "a,10000-01-01,1\na,2024-01-01,2\n", "E-TIME-UNREADABLE", (2,), "'10000-01-01'"),
        (HEAD + "a,0001-01-01T00:00+05:00,1\na,2024-01-01Z,2\n", "E-TIME-UNREADABLE", (2, 3), "ISO 8601"),
        (HEAD + "a,2024-01-01 03:04 PM,1\na,2024-01-01 03:04 AM,2\n", "E-TIME-UNREADABLE", (2, 3), "03:04 PM"),
        (HEAD + "a,2016-12-31T23:59:60,1\na,2017-01-01,2\n", "E-TIME-UNREADABLE", (2,), "23:59:60"),
        (HEAD + "a,9007199254740993,1\na,9007199254740992,2\n", "E-DUPLICATE", (2, 3), "rounded"),
        (HEAD + "a,2024-01-01T00:00:00.0000001,1\na,2024-01-01,2\n", "E-DUPLICATE", (2, 3), "rounded"),
        ("unique_id,ds,what,y\na,1,x,1\na,1,z,2\n", "E-DUPLICATE", (2, 3), "the table is tidy"),
        (HEAD + "a,1,true\na,2,false\n", "E-NO-CHANNEL", (), "no column beside the id and the time"),
        (HEAD + ("z" * 100_000 + ",1,1\n") * 2, "E-DUPLICATE", (2, 3), r"zzz\.\.\.'"),
    ],
)
def test_refused_precisely(write: Write, content: str | bytes, code: str, rows: tuple[int, ...], words: str) -> None:
    found = refusal(write(content))
    assert (found.code, found.rows) == (code, rows)
    assert re.search(words, found.message), found.message


def test_a_file_that_unpacks_without_end_is_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kilobytes of gzip that hold two megabytes, under a bound that is as small."""
    monkeypatch.setattr("tsde.packed._ANYHOW", 2**16)
    bomb = write(gzip.compress((HEAD + TWO).encode() + b"\n" * 2**21, mtime=0), "t.csv.gz")
    assert bomb.stat().st_size < 4096
    found = refusal(bomb)
    assert found.code == "E-GZIP-LARGE" and "TSDE_MAX_UNPACKED" in found.message
    with pytest.raises(TableError, match="TSDE_MAX_UNPACKED"):
        list(read_blocks(bomb, size=4096))
    monkeypatch.setenv("TSDE_MAX_UNPACKED", str(2**22))
    assert read_table(bomb).n_rows == sum(len(sheet.lines) for sheet in read_blocks(bomb, size=4096)) == 2
    monkeypatch.setenv("TSDE_MAX_UNPACKED", "4 GB")
    with pytest.raises(ConfigError, match="whole number of bytes"):
        read_table(bomb)


def test_a_large_table_that_shrinks_as_tables_do_is_read(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsde.packed._ANYHOW", 2**16)
    text = HEAD + "".join(f"a,{n},{n % 7}\n" for n in range(30_000))
    whole = write(gzip.compress(text.encode(), mtime=0), "t.csv.gz")
    assert 3 * whole.stat().st_size < len(text) > 2**16
    assert read_table(whole).n_rows == 30_000


def test_merging_large_repeats_does_not_overflow() -> None:
    """A thousand of the largest numbers that are read, and nothing a warning is due for."""
    frame = pd.DataFrame({"unique_id": "a", "ds": [1] * 1000 + [2], "y": [9.9e299] * 1000 + [0.0]})
    with warnings.catch_warnings(action="error"):
        table = read_table(frame, TableSchema(duplicates="mean"))
        assert table.values[:, 0].tolist() == [pytest.approx(9.9e299), 0.0]
        beyond = refusal(frame.replace(9.9e299, 1.7e308), {"duplicates": "mean"})
    assert beyond.code == "E-VALUE" and "below 1e300" in beyond.message


@pytest.mark.parametrize(
    ("name", "content", "code", "words"),
    [
        ("t.csv.gz", (HEAD + TWO).encode(), "E-GZIP", "rename it"),
        ("t.csv.gz", gzip.compress((HEAD + TWO).encode(), mtime=0)[:-6], "E-GZIP", "ended before"),
        ("t.csv.gz", gzip.compress((HEAD + TWO).encode(), mtime=0)[:-8] + bytes(8), "E-GZIP", "CRC"),
        ("t.csv.gz", gzip.compress((HEAD + TWO).encode(), mtime=0) + b"more", "E-GZIP", "not a whole gzip file"),
        ("t.csv.gz", gzip.compress(gzip.compress(b"x", mtime=0), mtime=0), "E-ENCODING", "gzip"),
        ("t.csv.gz", b"", "E-EMPTY", "the file is empty"),
        ("t.parquet", b"", "E-PARQUET", "write it again"),
        ("t.parquet", (HEAD + TWO).encode(), "E-PARQUET", "write it again"),
    ],
)
def test_files_that_are_not_what_they_are_called(
    write: Write, name: str, content: bytes, code: str, words: str
) -> None:
    found = refusal(write(content, name))
    assert found.code == code and words in found.message


def test_parquet_text_that_is_no_text(write: Write) -> None:
    cells = [None, pa.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0])), pa.py_buffer(b"a\xff")]
    broken = pa.Array.from_buffers(pa.string(), 2, cells)
    found = refusal(write(pa.table({"unique_id": broken, "ds": [1, 2], "y": [1.0, 2.0]}), "t.parquet"))
    assert found.code == "E-PARQUET" and "UTF8" in found.message
    frame = pd.DataFrame({"unique_id": pd.Series(["a", "\ud800"], dtype=object), "ds": [1, 2], "y": [1, 2]})
    with pytest.raises(TableError, match="column 'unique_id' holds what is no text"):
        read_table(frame)


@pytest.mark.parametrize(("unit", "tick"), [("s", 2**60), ("ms", 2**55), ("us", 2**62), ("s", -(2**60))])
def test_moments_beyond_the_calendar_are_refused_not_wrapped(unit: str, tick: int) -> None:
    stamps = pd.Series(np.array([tick, 5]).astype(f"datetime64[{unit}]"))
    with pytest.raises(TableError) as caught:
        read_table(pd.DataFrame({"unique_id": "a", "ds": stamps, "y": [1, 2]}))
    assert [(f.code, f.rows) for f in caught.value.findings] == [("E-TIME-UNREADABLE", (1,))]


def test_what_cannot_be_opened_is_a_missing_input(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder.csv").mkdir()
    for path, words in (
        (tmp_path / "none.csv", "no such file"),
        (tmp_path / "none.xlsx", "no such file"),
        (tmp_path / "folder.csv", "found a directory"),
        (tmp_path, "found a directory"),
        (tmp_path / ("x" * 300 + ".csv"), "cannot be read"),
        (tmp_path / "a\0b.csv", "cannot be read"),
        (write("x") / "t.csv", "cannot be read"),
    ):
        for call in (read_table, check_table):
            with pytest.raises(MissingInputError, match=words):
                call(path)

    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", forbidden)
    for name in ("t.csv", "t.parquet", "t.csv.gz"):
        with pytest.raises(MissingInputError, match="Permission denied"):
            read_table(tmp_path / name)


def test_a_tidy_table_names_the_channel(write: Write) -> None:
    path = write(TIDY_HEAD + "a,1,x,2\nb,1,z,oops\nb,2,z,3\nb,3,mood,good\na,2,mood,bad\n")
    found = refusal(path, TIDY)
    assert (found.code, found.rows, found.column, found.series) == ("E-VALUE", (3,), "z", ("b",))
    assert "column 'value' holds 'oops' for channel 'z'" in found.message
    notes = [f.message for f in check_table(path, TableSchema(**TIDY)) if f.code == "W-LEFT-OUT-TEXT"]
    assert notes and notes[0].endswith("'mood' (such as 'good')")


def test_remedies_name_options_that_the_command_has(write: Write) -> None:
    """`tsde forecast` has no --channels: the model fixes them."""
    path = write(HEAD + "a,1,2\na,2,x\n")
    assert "--channels" in refusal(path).message
    assert "--channels" not in refusal(path, expected_channels=("y",)).message


# ---------------------------------------------------------------------------------------------- every code

ROWS = "".join(f"a,{i},{1 + i % 7},{i}\n" for i in range(30))
SHOWN: dict[str, tuple[str | bytes, dict, dict]] = {
    "E-EMPTY": (HEAD, {}, {}),
    "E-ENCODING": (b"\xff", {}, {}),
    "E-QUOTE": (HEAD + 'a,1,"2\n', {}, {}),
    "E-RAGGED-ROW": (HEAD + "a,1\n", {}, {}),
    "E-HEADER-SINGLE": ("# x\n" + HEAD, {}, {}),
    "E-HEADER-BLANK": ("unique_id,ds,\na,1,2\n", {}, {}),
    "E-HEADER-DUPLICATE": ("unique_id,ds,ds\na,1,2\n", {}, {}),
    "E-CSV": ("unique_id,ds," + "y" * 200_000 + "\na,1,2\n", {}, {}),
    "E-COLUMN-MISSING": ("id,ds,y\na,1,2\n", {}, {}),
    "E-ID-BLANK": (HEAD + ",1,2\n", {}, {}),
    "E-GROUP-BLANK": ("unique_id,ds,y,g\na,1,2,\n", {"group_col": "g"}, {}),
    "E-GROUP-CHANGES": ("unique_id,ds,y,g\na,1,2,p\na,2,2,q\n", {"group_col": "g"}, {}),
    "E-TIME-BLANK": (HEAD + "a,,2\na,1,2\n", {}, {}),
    "E-TIME-UNREADABLE": (HEAD + "a,x,2\n", {}, {}),
    "E-TIME-AMBIGUOUS": (HEAD + "a,01/02/2024,2\n", {}, {}),
    "E-TIME-DIGITS": (HEAD + "a,20240101,2\n", {}, {}),
    "E-TIME-ZONE": (HEAD + "a,2024-01-01T00:00Z,2\na,2024-01-01T00:00,2\n", {}, {}),
    "E-TIME-CLOCK-CHANGE": (HEAD + "a,2024-03-31T02:30,2\n", {"timezone": "Europe/Paris"}, {}),
    "E-TIME-KIND": (HEAD + "a,1,2\n", {}, ZONED),
    "E-VALUE": (HEAD + "a,1,x\na,2,3\n", {}, {}),
    "E-DECIMAL-COMMA": (HEAD + 'a,1,"1,5"\n', {}, {}),
    "E-THOUSANDS": (HEAD + "a,1,1 234\n", {}, {}),
    "E-CHANNEL-BLANK": (TIDY_HEAD + "a,1,,2\na,2,x,3\n", TIDY, {}),
    "E-CHANNEL-MISSING": (HEAD + TWO, {"channels": ("z",)}, {}),
    "E-NO-CHANNEL": ("unique_id,ds\na,1\n", {}, {}),
    "E-DUPLICATE": (HEAD + "a,1,2\na,1,2\n", {}, {}),
    "W-UNSORTED-ROWS": (HEAD + "a,2,2\na,1,2\n", {}, {}),
    "W-DUPLICATE": (HEAD + "a,1,2\na,1,2\n", {"duplicates": "mean"}, {}),
    "W-LEFT-OUT-TEXT": ("unique_id,ds,y,z\na,1,2,x\n", {}, {}),
    "W-LEFT-OUT-EMPTY": ("unique_id,ds,y,z\na,1,2,\n", {}, {}),
    "W-LEFT-OUT-EXTRA": ("unique_id,ds,y,z\na,1,2,3\n", {}, {"expected_channels": ("y",)}),
    "W-TIME-LOOKS-LIKE-DATE": (HEAD + "a,1700000000,2\n", {}, {}),
    "W-TIME-OPTION": (HEAD + TWO, {"timezone": "Europe/Paris"}, {}),
    "W-TIME-ROUNDED": (HEAD + "a,2024-01-01T00:00:00.0000001,2\n", {}, {}),
    "W-TIME-FAR": (HEAD + "a,9999-12-31,2\na,2024-01-01,2\n", {}, {}),
    "W-HUGE-GAP": (HEAD + "a,1,1\na,2,2\na,3,3\na,99999,4\n", {}, {}),
    "W-SINGLE-ROW": (HEAD + "a,1,1\n", {}, {}),
    "W-CONSTANT-CHANNEL": (HEAD + "a,1,1\na,2,1\n", {}, {}),
    "W-EMPTY-CHANNEL": ("unique_id,ds,y,z\na,1,2,\n", {"channels": ("y", "z")}, {}),
    "W-WILD-VALUE": ("unique_id,ds,y,z\n" + ROWS + "a,99,-999,3\n", {}, {}),
    "W-UNIT": (HEAD + "a,1,1\na,2,2\nb,1,3\nb,2,2\nc,1,1e12\nc,2,2e12\n", {}, {}),
    "W-SIMILAR-NAMES": (HEAD + "a,1,1\nA ,2,2\n", {}, {}),
    "W-ROW-NUMBER": ("Unnamed: 0,unique_id,ds,y\n0,a,1,1\n1,a,2,7\n", {}, {}),
}
ELSEWHERE = {"E-GZIP", "E-GZIP-LARGE", "E-PARQUET", "E-COLUMN-TYPE", "E-TOO-LARGE"}  # not from CSV, or not small


def test_every_code_is_listed_and_shown() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "tsde").glob("*.py") if path.name != "findings.py")
    raised = set(re.findall(r'"([EW]-[A-Z]+(?:-[A-Z]+)*)"', sources))
    assert raised == set(CODES) == set(SHOWN) | ELSEWHERE


@pytest.mark.parametrize("code", SHOWN)
def test_a_code_has_its_place_and_its_subject(write: Write, code: str) -> None:
    content, schema, expected = SHOWN[code]
    path = write(content)
    found = {f.code: f for f in check_table(path, TableSchema(**schema), **expected)}
    finding = found[code]
    assert finding.severity == ("error" if code.startswith("E-") else "warning")
    assert finding.message.startswith(str(path)) and len(finding.rows) == min(finding.count, 10)
    assert list(finding.rows) == sorted(finding.rows)
    if finding.rows and finding.column and not code.startswith(("E-ID", "E-HEADER")):
        assert finding.series and f"series {finding.series[0]!r}" in finding.message


def test_the_list_of_codes_in_the_documentation_is_the_programs() -> None:
    assert catalogue() in (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------- tsde validate


def test_validate_as_json_has_stable_fields(write: Write) -> None:
    path = write("unique_id,ds,y,z\na,1,2,x\nb,1,oops,x\n")
    done = CliRunner().invoke(app, ["validate", str(path), "--json"])
    document = json.loads(done.stdout)
    assert done.exit_code == 65 and document["ok"] is False and document["table"] == str(path)
    error = next(finding for finding in document["findings"] if finding["code"] == "E-VALUE")
    message = error.pop("message")
    assert error == {
        "code": "E-VALUE",
        "severity": "error",
        "rows": [3],
        "count": 1,
        "column": "y",
        "series": ["b"],
    }
    assert "line 3, series 'b': column 'y' holds 'oops'" in message


def test_validate_as_json_is_ascii_whatever_the_names(write: Write) -> None:
    path = write("unique_id,ds,é\n日本,1,x\n日本,2,3\n", "t\udcff.csv")
    done = CliRunner().invoke(app, ["validate", str(path), "--json"])
    document = json.loads(done.stdout)
    assert done.stdout.isascii() and document["table"] == str(path)
    assert document["findings"][0]["column"] == "é" and document["findings"][0]["series"] == ["日本"]


def test_validate_tells_a_person_at_most_ten_findings_of_a_kind(write: Write) -> None:
    names = [f"c{i}" for i in range(300)]
    rows = "".join(f"a,{i}," + ",".join("1" for _ in names) + "\n" for i in range(2))
    path = write("unique_id,ds," + ",".join(names) + "\n" + rows)
    shown = CliRunner().invoke(app, ["validate", str(path)]).stdout
    assert shown.count("W-CONSTANT-CHANNEL") == 11 and "... and 290 more" in shown
    everything = json.loads(CliRunner().invoke(app, ["validate", str(path), "--json"]).stdout)
    assert len(everything["findings"]) == 300


@pytest.mark.parametrize(
    ("name", "code"), [("none.csv", 66), ("folder.csv", 66), ("broken.csv", 65), ("good.csv", 0), ("t.xlsx", 2)]
)
def test_exit_codes(write: Write, tmp_path: Path, name: str, code: int) -> None:
    (tmp_path / "folder.csv").mkdir()
    write(HEAD + TWO, "good.csv")
    write(HEAD + "a,1\n", "broken.csv")
    write("x", "t.xlsx")
    done = CliRunner().invoke(app, ["validate", str(tmp_path / name)])
    assert done.exit_code == code and "Traceback" not in done.output
