"""The table contract: right answers on sound tables whatever their form, and a precise refusal of all others."""

from __future__ import annotations

import datetime as dt
import gzip
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from pydantic import ValidationError

from tsde.clock import Clock
from tsde.errors import ArtifactError, CannotWriteError, DataError, MissingInputError, UsageError
from tsde.table import (
    Finding,
    Table,
    TableError,
    TableSchema,
    check_table,
    read_parquet,
    read_queries,
    read_table,
    write_parquet,
)

WIDE = TableSchema()
TIDY = TableSchema(channel_col="channel", value_col="value")
DATES, NUMBERS = Clock(kind="datetime"), Clock(kind="number")
HEAD = "unique_id,ds,y\n"
TIDY_HEAD = "unique_id,ds,channel,value\n"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes text or bytes to a file and hands back its path."""

    def to_file(content: str | bytes, name: str = "t.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to_file


def seconds(text: str) -> float:
    """Seconds since the epoch, by another road than the library's; naive text counts as UTC."""
    moment = dt.datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()


def refusal(source: Path | pd.DataFrame, schema: TableSchema = WIDE, **expected: object) -> list[Finding]:
    """The errors of a table, after checking that read_table and check_table agree on them."""
    with pytest.raises(TableError) as caught:
        read_table(source, schema, **expected)  # type: ignore[arg-type]
    errors = [finding for finding in caught.value.findings if finding.severity == "error"]
    assert errors == [f for f in check_table(source, schema, **expected) if f.severity == "error"]  # type: ignore[arg-type]
    assert str(caught.value).startswith(errors[0].message)
    return errors


def warnings(source: Path | pd.DataFrame, schema: TableSchema = WIDE) -> dict[str, Finding]:
    found = check_table(source, schema)
    assert all(finding.severity == "warning" and finding.code.startswith("W-") for finding in found)
    return {finding.code: finding for finding in found}


def assert_same(one: Table, other: Table) -> None:
    assert one.channels == other.channels
    assert one.clock == other.clock
    for field in ("ids", "offsets", "times", "values"):
        assert_array_equal(getattr(one, field), getattr(other, field), strict=True)


# ---------------------------------------------------------------------------------------------- sound tables


def test_wide_table(write: Write) -> None:
    text = "unique_id,ds,a,b\nz,2,1,\n007,1.5,2.5,NA\nNA,3,,null\nz,10,nan,4e-1\n"
    table = read_table(write(text))
    assert table.ids.tolist() == ["007", "NA", "z"]
    assert table.ids.dtype == object
    assert_array_equal(table.offsets, [0, 1, 2, 4], strict=False)
    assert_array_equal(table.times, [1.5, 3, 2, 10])
    assert_array_equal(table.values, [[2.5, np.nan], [np.nan, np.nan], [1, np.nan], [np.nan, 0.4]])
    assert (table.channels, table.clock, table.notes) == (("a", "b"), NUMBERS, ())
    assert (table.n_series, table.n_rows) == (3, 4)
    assert_array_equal(table.row_series, [0, 1, 2, 2])
    assert table.offsets.dtype == table.row_series.dtype == np.int64
    assert table.values.flags.writeable


def test_tidy_table_counts_followed_but_unobserved_times(write: Write) -> None:
    text = TIDY_HEAD + "s,1,b,1\ns,2,a,5\ns,1,a,\ns,3,b,\nr,1,b,7\n"
    table = read_table(write(text), TIDY)
    assert table.channels == ("a", "b")
    assert_array_equal(table.offsets, [0, 1, 4])
    assert_array_equal(table.times, [1, 1, 2, 3])
    assert_array_equal(table.values, [[np.nan, 7], [np.nan, 1], [5, np.nan], [np.nan, np.nan]])


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("compressed", [False, True])
def test_every_way_to_write_the_same_csv(
    write: Write, separator: str, line_end: str, encoding: str, compressed: bool
) -> None:
    text = "unique_id, ds ,y\né,1,2\nü, 3 , 4.5 \n".replace(",", separator).replace("\n", line_end).encode(encoding)
    table = read_table(write(gzip.compress(text), "t.CSV.gz") if compressed else write(text))
    assert table.ids.tolist() == ["é", "ü"]
    assert_array_equal(table.times, [1, 3])
    assert_array_equal(table.values, [[2], [4.5]])


def test_quoted_cells_and_ids_as_written(write: Write) -> None:
    table = read_table(write('unique_id,ds,y\n"a ""b"", c","1",2\n d ,2,"3"\n'))
    assert table.ids.tolist() == [" d ", 'a "b", c']


def test_numbers_in_every_spelling(write: Write) -> None:
    cells = ["1", "+2", "-3.", ".5", "1e3", "-1E-2", " 7 "]
    table = read_table(write(HEAD + "".join(f"s,{i},{cell}\n" for i, cell in enumerate(cells))))
    assert_array_equal(table.values[:, 0], [1, 2, -3, 0.5, 1000, -0.01, 7])


def test_a_file_and_a_frame_are_the_same_table(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "unique_id": [2, 2, 10],
            "ds": pd.to_datetime(["2024-01-02", "2024-01-01 12:00:00.5", "2023-01-01"], format="ISO8601"),
            "y": pd.array([1, None, 3], dtype="Int64"),
            "z": np.array([0.5, np.nan, 2], np.float32),
        },
        index=pd.Index([3, 4, 5]),
    )
    frame.to_parquet(tmp_path / "t.parquet")  # with its index as a column of its own
    frame.to_csv(tmp_path / "t.csv", index=False)
    tables = [read_table(source) for source in (frame, tmp_path / "t.parquet", tmp_path / "t.csv")]
    assert tables[0].ids.tolist() == ["10", "2"]
    assert_array_equal(tables[0].times, [seconds(t) for t in ("2023-01-01", "2024-01-01T12:00:00.5", "2024-01-02")])
    assert_array_equal(tables[0].values, [[3, 2], [np.nan, np.nan], [1, 0.5]])
    for table in tables[1:]:
        assert_same(table, tables[0])


@pytest.mark.parametrize(
    "ids",
    [[7, 8], [7.0, 8.0], ["7", "8"], pd.Categorical([7, 8]), pd.array(["7", "8"], dtype="string"), [np.int8(7), "8"]],
)
def test_ids_of_any_type_become_text(ids: object) -> None:
    assert read_table(pd.DataFrame({"unique_id": ids, "ds": [1, 2], "y": [1, 2]})).ids.tolist() == ["7", "8"]


@pytest.mark.parametrize(
    ("cells", "zone"),
    [
        ([dt.date(2024, 1, 1), dt.date(2024, 2, 1)], None),
        (pd.period_range("2024-01", periods=2, freq="M"), None),
        (pd.to_datetime(["2024-01-01", "2024-02-01"]).astype("datetime64[ns]"), None),
        (pd.to_datetime(["2024-01-01", "2024-02-01"]).astype("datetime64[s]"), None),
        (pd.to_datetime(["2024-01-01", "2024-02-01"]).tz_localize("UTC").tz_convert("Asia/Tokyo"), "Asia/Tokyo"),
        (pd.to_datetime(["2024-01-01", "2024-02-01"]).tz_localize("UTC").tz_convert("-03:30"), "-03:30"),
        (["2024-01-01T00:00Z", "2024-01-31T19:00-05:00"], "UTC"),
        (["2023-12-31T19:00-0500", "2024-01-31T19:00-0500"], "-05:00"),
    ],
)
def test_typed_and_zoned_times(cells: object, zone: str | None, tmp_path: Path) -> None:
    frame = pd.DataFrame({"unique_id": "a", "ds": cells, "y": [1, 2]})
    table = read_table(frame)
    assert_array_equal(table.times, [seconds("2024-01-01"), seconds("2024-02-01")])
    assert table.clock == Clock(kind="datetime", timezone=zone)
    assert [seconds(label) for label in table.clock.format(table.times)] == table.times.tolist()
    if not isinstance(frame["ds"].dtype, pd.PeriodDtype):
        frame.to_parquet(tmp_path / "t.parquet")
        assert_same(read_table(tmp_path / "t.parquet"), table)


@pytest.mark.parametrize(
    ("cell", "iso"),
    [
        ("2024-01-31", "2024-01-31T00:00:00"),
        ("2024-02", "2024-02-01T00:00:00"),
        ("2024/2/3 4:05", "2024-02-03T04:05:00"),
        ("2024-01-31 07", "2024-01-31T07:00:00"),
        ("2024-01-31T07:08:09.123456789", "2024-01-31T07:08:09.123456"),
        ("2024-01-31t07:08:09,5", "2024-01-31T07:08:09.5"),
        ("31.01.2024 10:30", "2024-01-31T10:30:00"),
        ("1/31/2024", "2024-01-31T00:00:00"),
        ("1600-02-29", "1600-02-29T00:00:00"),
        ("2024-01-31T07:00:00.25 -0330", "2024-01-31T07:00:00.25-03:30"),
        ("2024-01-31T07:00z", "2024-01-31T07:00:00+00:00"),
        ("2024-01-31 07:00+02", "2024-01-31T07:00:00+02:00"),
    ],
)
def test_spellings_of_a_datetime(write: Write, cell: str, iso: str) -> None:
    table = read_table(write(f'unique_id,ds,y\na,"{cell}",1\n'))
    assert table.times[0] == seconds(iso)
    assert table.clock.format(table.times)[0] == iso


def test_day_and_month_in_the_order_that_the_column_proves(write: Write) -> None:
    days = [seconds("2024-02-01"), seconds("2024-02-13")]
    assert_array_equal(read_table(write(HEAD + "a,01/02/2024,1\na,13/02/2024,1\n")).times, days)
    assert_array_equal(read_table(write(HEAD + "a,02/01/2024,1\na,02/13/2024,1\n")).times, days)
    only = read_table(write(HEAD + "a,01/02/2024,1\n"), TableSchema(dayfirst=True))
    assert_array_equal(only.times, days[:1])


def test_local_times_are_placed_in_their_zone(write: Write) -> None:
    schema = TableSchema(timezone="Europe/Paris")
    table = read_table(write(HEAD + "a,2024-01-01,1\na,2024-07-01,1\n"), schema)
    assert_array_equal(table.times, [seconds("2024-01-01T00:00+01:00"), seconds("2024-07-01T00:00+02:00")])
    assert table.clock.format(table.times).tolist() == ["2024-01-01T00:00:00+01:00", "2024-07-01T00:00:00+02:00"]
    zoned = read_table(write(HEAD + "a,2024-01-01T00:00Z,1\n"), schema)  # which needs no help, but is written there
    assert zoned.times[0] == seconds("2024-01-01") and zoned.clock.timezone == "Europe/Paris"


def test_notes_say_what_reading_did(write: Write) -> None:
    table = read_table(write("unique_id,ds,y,name,flag,void\na,2,1,x,true,\na,1,2,inf,false,NA\n"))
    assert table.channels == ("y",)
    text, void, unsorted = table.notes
    assert "line 3, series 'a': rows stand after a later time" in unsorted
    assert "hold no number and are left out: 'name' (such as 'x'), 'flag' (such as 'true')" in text
    assert "are empty and are left out: 'void'" in void


def test_named_channels_are_kept_in_order_even_if_empty(write: Write) -> None:
    table = read_table(write("unique_id,ds,a,b,c\ns,1,,2,x\n"), TableSchema(channels=("b", "a")))
    assert (table.channels, table.notes) == (("b", "a"), ())
    assert_array_equal(table.values, [[2, np.nan]])
    tidy = read_table(write(TIDY_HEAD + "s,1,b,2\ns,2,a,x\n"), TIDY.model_copy(update={"channels": ("b",)}))
    assert_array_equal(tidy.values, [[2], [np.nan]])  # the time at which only `a` was measured is still a row


def test_expected_channels_and_clock(write: Write) -> None:
    expected = ("b", "a")
    wide = read_table(write("unique_id,ds,a,b,c,t\ns,1,,2,3,x\n"), expected_channels=expected, expected_clock=NUMBERS)
    assert wide.channels == expected and "'c', 't'" in wide.notes[0]
    tidy = read_table(write(TIDY_HEAD + "s,1,b,2\ns,1,c,3\n"), TIDY, expected_channels=expected)
    assert_array_equal(tidy.values, [[2, np.nan]])
    assert "'c'" in tidy.notes[0]
    paris = Clock(kind="datetime", timezone="Europe/Paris")
    zoned = read_table(write(HEAD + "s,2024-01-01T00:00Z,1\n"), expected_clock=paris)
    assert zoned.clock == paris  # times on both are seconds in UTC


def test_a_tidy_channel_of_text_is_left_out_like_a_wide_column(write: Write) -> None:
    table = read_table(write(TIDY_HEAD + "s,1,a,2\ns,1,mood,good\ns,2,mood,bad\ns,2,void,\n"), TIDY)
    assert table.channels == ("a",)
    assert_array_equal(table.values, [[2], [np.nan]])
    assert "'mood' (such as 'good')" in table.notes[0] and "'void'" in table.notes[1]


@pytest.mark.parametrize(
    ("how", "merged"),
    [("mean", [[2, 5], [7, np.nan]]), ("first", [[1, 5], [7, np.nan]]), ("last", [[3, 5], [7, np.nan]])],
)
def test_repeated_times_are_merged_per_channel(write: Write, how: str, merged: list[list[float]]) -> None:
    wide = "unique_id,ds,a,b\ns,2,7,\ns,1,1,\ns,1,,5\ns,1,3,\n"
    tidy = TIDY_HEAD + "s,2,a,7\ns,1,a,1\ns,1,a,\ns,1,b,5\ns,1,a,3\n"
    for text, schema in ((wide, WIDE), (tidy, TIDY)):
        table = read_table(write(text), schema.model_copy(update={"duplicates": how}))
        assert_array_equal(table.times, [1, 2])
        assert_array_equal(table.values, merged)
        assert any(f"series 's': repeated times were merged ({how}), first the time 1" in n for n in table.notes)


def test_select_takes_series_in_the_order_given(write: Write) -> None:
    table = read_table(write(HEAD + "a,1,1\na,2,2\nb,1,3\nc,1,4\nc,5,5\n"))
    chosen = table.select(np.array([2, 0]))
    assert chosen.ids.tolist() == ["c", "a"]
    assert_array_equal(chosen.offsets, [0, 2, 4])
    assert_array_equal(chosen.times, [1, 5, 1, 2])
    assert_array_equal(chosen.values[:, 0], [4, 5, 1, 2])
    assert table.select(np.zeros(0, int)).n_rows == 0


def test_frame_refuses_a_channel_named_like_a_key(write: Write) -> None:
    table = read_table(write("id,t,ds\na,1,2\n"), TableSchema(id_col="id", time_col="t"))
    with pytest.raises(UsageError, match="'ds' is a channel"):
        table.frame()
    assert table.frame("id", "t").to_dict("list") == {"id": ["a"], "t": ["1"], "ds": [2.0]}


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("text", "code", "rows", "words"),
    [
        ("", "E-EMPTY", (), "the file is empty"),
        ("\n \n", "E-EMPTY", (), "the file is empty"),
        (HEAD, "E-EMPTY", (), "found no rows"),
        ("unique_id,ds,y,y\na,1,2,3\n", "E-HEADER-DUPLICATE", (1,), "'y' stands more than once"),
        ("\n,unique_id,ds,y\n0,a,1,2\n", "E-HEADER-BLANK", (2,), "column 1 has no name"),
        ("a,b\n1,2\n", "E-COLUMN-MISSING", (), "no column 'unique_id'.*'a', 'b'.*--id-col"),
        ("unique_id,b\n1,2\n", "E-COLUMN-MISSING", (), "no column 'ds'.*--time-col"),
        (HEAD + "a,1,2\na,2\n", "E-RAGGED-ROW", (3,), "expected 3 cells as in the header, found 2 in 'a,2'"),
        (HEAD + "a,1,2,\n\na,2,3,\n", "E-RAGGED-ROW", (2, 4), "found 4"),
        (HEAD + 'a,1,"2\na,2,3\n', "E-QUOTE", (2,), "never closed"),
        (HEAD.encode() + b"a,1,2\n\xe9,2,3\n", "E-ENCODING", (3,), "0xe9 is not UTF-8"),
        ("unique_id,ds,é\na,1,2\n".encode("latin-1"), "E-ENCODING", (1,), "save the table as CSV in UTF-8"),
        (HEAD.encode("utf-16") + b"a", "E-ENCODING", (), "broken UTF-16"),
        (b"\x00\x01\x02", "E-ENCODING", (1,), "not a text file"),
        (HEAD + ",1,2\na,1,2\n  ,2,3\n", "E-ID-BLANK", (2, 4), "id in column 'unique_id' is blank"),
        (HEAD + "a,,2\na,1,2\n", "E-TIME-BLANK", (2,), "time in column 'ds' is blank"),
        (HEAD + "a,,2\na,NA,2\n", "E-TIME-BLANK", (2, 3), "is blank"),
        (HEAD + "a,1,2\na,x,2\n", "E-TIME-UNREADABLE", (3,), "'x' .* expected a finite number"),
        (HEAD + "a,1,2\na,inf,2\n", "E-TIME-UNREADABLE", (3,), "'inf' .* expected a finite number"),
        (HEAD + "a,2024-01-01,2\na,5,2\n", "E-TIME-UNREADABLE", (3,), "'5' .* expected ISO 8601"),
        (HEAD + "a,2024-02-30,2\na,2024-01-01T25:00,2\n", "E-TIME-UNREADABLE", (2, 3), "'2024-02-30'"),
        (HEAD + "a,2024-01-31,2\na,13/02/2024,2\n", "E-TIME-UNREADABLE", (3,), "'13/02/2024'"),
        (HEAD + "a,13/02/2024,2\na,02/13/2024,2\na,14/02/2024,2\n", "E-TIME-UNREADABLE", (3,), "'02/13/2024'"),
        (HEAD + "a,2024-01-02-0230,2\n", "E-TIME-UNREADABLE", (2,), "'2024-01-02-0230'"),
        ("unique_id;ds;y\na;1,5;2\na;2;2\n", "E-TIME-UNREADABLE", (2,), "a decimal point, not a comma"),
        (HEAD + "a,01/02/2024,2\na,03/02/2024,2\n", "E-TIME-AMBIGUOUS", (2, 3), "ISO 8601 .*--dayfirst"),
        (HEAD + "a,2024-01-01T00:00Z,2\na,2024-01-02,2\n", "E-TIME-ZONE", (3,), "no time zone where others do"),
        (HEAD + "a,2024-01-01,2\na,2024-01-02,2\na,2024-01-02T00:00Z,2\n", "E-TIME-ZONE", (4,), "others have none"),
        (HEAD + "a,1,2\na,2,abc\n", "E-VALUE", (3,), "column 'y' holds 'abc', expected a finite number"),
        (HEAD + "a,1,2\na,2,inf\na,3,-inf\n", "E-VALUE", (3, 4), "'inf', '-inf'"),
        (HEAD + "a,1,2\na,2,true\na,3,1e999\n", "E-VALUE", (3, 4), "--channels"),
        ("unique_id;ds;y\na;1;1,5\na;2;2\n", "E-DECIMAL-COMMA", (2,), "'1,5', a number with a comma"),
        ("unique_id;ds;y\na;1;1,5\na;2;2,5\n", "E-DECIMAL-COMMA", (2, 3), "decimal point"),
        (HEAD + "a,1,x\na,2,y\n", "E-NO-CHANNEL", (), "no column beside the id and the time holds a number"),
        (
            HEAD + "a,1,2\nb,1,2\na,1,2\n",
            "E-DUPLICATE",
            (2, 4),
            "series 'a': the time 1 .*--duplicates mean|first|last",
        ),
    ],
)
def test_refusals_name_place_content_and_remedy(
    write: Write, text: str | bytes, code: str, rows: tuple[int, ...], words: str
) -> None:
    path = write(text)
    error = next(finding for finding in refusal(path) if finding.code == code)
    assert (error.rows, error.count) == (rows, len(rows))
    assert error.message.startswith(str(path) + (f", line{'s' * (len(rows) > 1)} {rows[0]}" if rows else ": "))
    with pytest.raises(DataError, match=words):
        raise DataError(error.message)


def test_one_reading_finds_all_errors(write: Write) -> None:
    path = write("unique_id,ds,y,z\n,1,1,1\na,q,1,1\na,3,q,1\na,4,1,q\na,5,1,1\na,5,1,1\n")
    errors = refusal(path)
    assert {error.code: error.rows for error in errors} == {
        "E-ID-BLANK": (2,),
        "E-TIME-UNREADABLE": (3,),
        "E-VALUE": (5,),
        "E-DUPLICATE": (6, 7),
    }
    assert [error.rows for error in errors if error.code == "E-VALUE"] == [(4,), (5,)]
    with pytest.raises(TableError) as caught:
        read_table(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4 and lines[3].startswith("... and 2 more")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.findings, str(again)) == (caught.value.findings, str(caught.value))


def test_a_finding_lists_ten_places_and_counts_all(write: Write) -> None:
    error = refusal(write(HEAD + "a,0,1\n" + "".join(f"a,{i},x\n" for i in range(1, 40))))[0]
    assert (error.rows, error.count) == (tuple(range(3, 13)), 39)
    assert "lines 3, 4, 5 and 36 more" in error.message


@pytest.mark.parametrize("name", ["t.parquet", "t.csv.gz"])
def test_a_torn_file_is_refused(write: Write, name: str) -> None:
    whole = gzip.compress(HEAD.encode() + b"a,1,2\n")
    assert refusal(write(whole[:-9], name))[0].code in ("E-PARQUET", "E-GZIP")


def test_other_files_are_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.csv, \.csv\.gz or \.parquet"):
        read_table(write(HEAD, "t.xlsx"))
    for call in (read_table, check_table):
        with pytest.raises(MissingInputError, match="no such file"):
            call(tmp_path / "none.csv", WIDE)


def test_a_frame_is_refused_by_row() -> None:
    frame = pd.DataFrame({"unique_id": ["a", None], "ds": [1, np.inf], "y": [np.inf, 1]})
    errors = refusal(frame)
    assert [(error.code, error.rows) for error in errors] == [
        ("E-ID-BLANK", (2,)),
        ("E-TIME-UNREADABLE", (2,)),
        ("E-VALUE", (1,)),
    ]
    assert errors[0].message.startswith("the table, row 2: ")
    assert refusal(frame.iloc[:0])[0].code == refusal(pd.DataFrame())[0].code == "E-EMPTY"
    assert refusal(frame.rename(columns={"ds": "y"}))[0].code == "E-HEADER-DUPLICATE"


@pytest.mark.parametrize(
    ("times", "code"),
    [
        ([pd.Timestamp("2024-01-01"), pd.Timestamp("2024-01-01", tz="UTC")], "E-TIME-ZONE"),
        ([pd.Timestamp("2024-01-01"), pd.NaT], "E-TIME-BLANK"),
        (pd.to_timedelta(["1h", "2h"]), "E-TIME-UNREADABLE"),
        ([True, False], "E-TIME-UNREADABLE"),
    ],
)
def test_typed_times_that_make_no_sense(times: object, code: str) -> None:
    assert refusal(pd.DataFrame({"unique_id": "a", "ds": times, "y": 1}))[0].code == code


def test_a_column_of_lists_names_no_series(tmp_path: Path) -> None:
    pq.write_table(pa.table({"unique_id": [[1], [2]], "ds": [1, 2], "y": [1, 2]}), tmp_path / "t.parquet")
    assert refusal(tmp_path / "t.parquet")[0].code == "E-COLUMN-TYPE"


def test_local_times_in_a_clock_change_are_refused(write: Write) -> None:
    path = write(HEAD + "a,2024-03-31T02:30,1\na,2024-10-27T02:30,1\na,2024-10-27,1\n")
    errors = refusal(path, TableSchema(timezone="Europe/Paris"))
    assert [(error.code, error.rows) for error in errors] == [("E-TIME-CLOCK-CHANGE", (2, 3))]


def test_tidy_refusals(write: Write) -> None:
    assert refusal(write(HEAD + "a,1,2\n"), TIDY)[0].message.endswith("name the right one with --channel-col")
    blank, value = refusal(write(TIDY_HEAD + "a,1,,2\na,1,b,2\na,2,b,x\n"), TIDY)
    assert (blank.code, blank.rows, value.code, value.rows) == ("E-CHANNEL-BLANK", (2,), "E-VALUE", (4,))
    repeat = refusal(write(TIDY_HEAD + "a,1,b,2\na,1,c,3\na,1,b,4\n"), TIDY)[0]
    assert (repeat.code, repeat.rows) == ("E-DUPLICATE", (2, 4)) and "channel 'b'" in repeat.message


def test_a_wrong_channel_column_is_refused_before_memory_runs_out() -> None:
    count = np.arange(50_000)
    frame = pd.DataFrame({"unique_id": "a", "ds": count, "channel": count, "value": 1.0})
    assert refusal(frame, TIDY)[0].code == "E-TOO-LARGE"


def test_missing_channels_are_named(write: Write) -> None:
    wide, tidy = write("unique_id,ds,a\ns,1,2\n"), write(TIDY_HEAD + "s,1,a,2\n", "tidy.csv")
    for path, schema in (
        (wide, TableSchema(channels=("a", "b"))),
        (tidy, TIDY.model_copy(update={"channels": ("a", "b")})),
    ):
        assert "'b', 1 of the 2 expected; found 'a'" in refusal(path, schema)[0].message
        none = refusal(path, schema.model_copy(update={"channels": ("x", "z")}))[0].message
        assert "'x', 'z'; found 'a'" in none and none.count("'x'") == none.count("'z'") == 1
    assert refusal(wide, expected_channels=("b", "a"))[0].code == "E-CHANNEL-MISSING"
    assert refusal(write("unique_id,ds,a\ns,1,x\n"), TableSchema(channels=("a",)))[0].code == "E-VALUE"


@pytest.mark.parametrize(
    ("cell", "clock", "words"),
    [
        ("1", DATES, "expected times that are datetimes, found plain numbers"),
        ("2024-01-01", NUMBERS, "expected times that are plain numbers, found datetimes"),
        ("2024-01-01T00:00Z", DATES, "expected times without a time zone"),
        ("2024-01-01", Clock(kind="datetime", timezone="UTC"), "expected times with a time zone"),
    ],
)
def test_times_of_another_kind_are_refused(write: Write, cell: str, clock: Clock, words: str) -> None:
    path = write(HEAD + f"a,{cell},1\n")
    error = refusal(path, expected_clock=clock)[0]
    assert error.code == "E-TIME-KIND" and words in error.message
    with pytest.raises(TableError, match=words):
        read_queries(path, WIDE, clock)


@pytest.mark.parametrize(
    "wrong",
    [
        {"timezone": "Mars/Olympus"},
        {"channel_col": "c"},
        {"id_col": "ds"},
        {"channels": ()},
        {"channels": ("a", "a")},
        {"channels": ("ds",)},
        {"duplicates": "sum"},
        {"id_column": "id"},
    ],
)
def test_a_schema_that_makes_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TableSchema.model_validate(wrong)


# ---------------------------------------------------------------------------------------------- suspicions


def test_a_sound_table_raises_no_suspicion(write: Write) -> None:
    assert check_table(write(HEAD + "a,1,1\na,2,2\nb,1,3\nb,3,4\n"), WIDE) == []


def test_suspicions(write: Write) -> None:
    rows = [f"a,{i},{1.1 + i % 3},4,{1e9 if i == 7 else 1 + i % 5}," for i in range(20)]
    text = "unique_id,ds,y,flat,wild,none\n" + "\n".join(rows) + "\na,90000,1,4,1,\nb,1,1,4,2,\n"
    found = warnings(write(text), TableSchema(channels=("y", "flat", "wild", "none")))
    assert {code: finding.rows for code, finding in found.items()} == {
        "W-CONSTANT-CHANNEL": (),
        "W-EMPTY-CHANNEL": (),
        "W-WILD-VALUE": (9,),
        "W-SINGLE-ROW": (23,),
        "W-HUGE-GAP": (22,),
    }
    assert "'flat' is always 4" in found["W-CONSTANT-CHANNEL"].message
    assert "series 'a': channel 'wild' is over" in found["W-WILD-VALUE"].message
    assert "'a' at 7 (1e+09)" in found["W-WILD-VALUE"].message
    assert "1 of 2 series" in found["W-SINGLE-ROW"].message
    assert "'a' at 90000" in found["W-HUGE-GAP"].message


@pytest.mark.parametrize("taken", ["channel", "status", "tsde", "tsde-lo-80"])
@pytest.mark.parametrize("role", ["id_col", "time_col"])
def test_the_names_of_a_forecasts_columns_are_taken(role: str, taken: str) -> None:
    with pytest.raises(ValueError, match=f"'{taken}' is a column of every forecast table; give the column"):
        TableSchema.model_validate({role: taken})
    assert TableSchema(channel_col="channel", value_col="status").channel_col == "channel"


@pytest.mark.parametrize(
    ("times", "guess"),
    [
        ((1700000000, 1700086400), "seconds since 1970"),
        ((1700000000000, 1700086400000), "milliseconds"),
        ((1700000000000000, 1700086400000000), "microseconds"),
        ((1700000000000000000, 1700086400000000000), "nanoseconds"),
        ((1700000000, 1700086400000), "seconds and milliseconds since 1970 and .*write all in one unit"),
        ((20240131, 20240299), None),
        ((5, 1700000000), None),
    ],
)
def test_numbers_that_look_like_dates(write: Write, times: tuple[int, int], guess: str | None) -> None:
    found = warnings(write(HEAD + f"a,{times[0]},1\na,{times[1]},2\n"))
    if guess is None:
        assert "W-TIME-LOOKS-LIKE-DATE" not in found
    else:
        assert re.search(guess, found["W-TIME-LOOKS-LIKE-DATE"].message)


# ---------------------------------------------------------------------------------------------- queries


def test_queries_keep_order_repeats_and_labels(write: Write) -> None:
    path = write("ds,note,unique_id\n2024-01-02,x,b\n 2024-01-01 06:00 ,y,007\n2024-01-02,,b\n")
    queries = read_queries(path, WIDE, DATES)
    assert queries.ids.tolist() == ["b", "007", "b"]
    assert queries.labels.tolist() == ["2024-01-02", " 2024-01-01 06:00 ", "2024-01-02"]
    assert_array_equal(queries.times, [seconds("2024-01-02"), seconds("2024-01-01T06:00"), seconds("2024-01-02")])


def test_typed_queries_get_the_labels_of_the_clock() -> None:
    frame = pd.DataFrame({"unique_id": [1, 2], "ds": pd.to_datetime(["2024-01-01", "2024-07-01"]).tz_localize("UTC")})
    clock = Clock(kind="datetime", timezone="Europe/Paris")
    queries = read_queries(frame, WIDE, clock)
    assert queries.labels.tolist() == ["2024-01-01T01:00:00+01:00", "2024-07-01T02:00:00+02:00"]
    naive = frame.assign(ds=["2024-01-01T01:00", "2024-07-01T02:00"])
    local = read_queries(naive, TableSchema(timezone="Europe/Paris"), clock)
    assert_array_equal(local.times, queries.times)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("unique_id,ds\na,\n", "E-TIME-BLANK"),
        ("unique_id,ds\na,1\na,soon\n", "E-TIME-UNREADABLE"),
        ("unique_id,ds\n,1\n", "E-ID-BLANK"),
        ("unique_id\na\n", "E-COLUMN-MISSING"),
        ("unique_id,ds\n", "E-EMPTY"),
    ],
)
def test_queries_are_refused_with_their_line(write: Write, text: str, code: str) -> None:
    with pytest.raises(TableError) as caught:
        read_queries(write(text), WIDE, NUMBERS)
    assert caught.value.findings[0].code == code


# ---------------------------------------------------------------------------------------------- the clock


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("30d", 2592000),
        ("12h", 43200),
        ("90min", 5400),
        ("1.5d", 129600),
        ("45s", 45),
        ("2w", 1209600),
        (" 1 Day ", 86400),
        ("3 hours", 10800),
        (".5h", 1800),
        ("1e-3s", 0.001),
    ],
)
def test_durations(text: str, length: float) -> None:
    assert DATES.parse_duration(text) == length


@pytest.mark.parametrize(
    ("clock", "text", "words"),
    [
        (DATES, "30", "no unit.*such as 30d"),
        (DATES, 30.0, "no unit"),
        (DATES, "0d", "above zero"),
        (DATES, "-3h", "above zero"),
        (DATES, "1e999d", "above zero"),
        (DATES, "3m", "unit 'm', which is unknown.*s, min, h, d or w"),
        (DATES, "soon", "not a length of time.*30d"),
        (DATES, "", "not a length of time"),
        (DATES, "nan", "not a length of time"),
        (NUMBERS, "30d", "the unit 'd'.*such as 24"),
        (NUMBERS, "0", "above zero"),
        (NUMBERS, float("inf"), "not a length of time"),
    ],
)
def test_durations_that_are_none(clock: Clock, text: str | float, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        clock.parse_duration(text)


@given(st.floats(1e-6, 1e12))
def test_a_duration_reads_back(length: float) -> None:
    assert DATES.parse_duration(DATES.format_duration(length)) == length
    assert NUMBERS.parse_duration(NUMBERS.format_duration(length)) == NUMBERS.parse_duration(length) == length


def test_durations_for_people() -> None:
    lengths = (2592000, 43200, 129600, 5400, 45, 0.5)
    assert [DATES.format_duration(length) for length in lengths] == ["30d", "12h", "36h", "90min", "45s", "0.5s"]
    assert [NUMBERS.format_duration(length) for length in (24.0, 1e10, 0.1)] == ["24", "10000000000", "0.1"]


@given(st.floats(1e-6, 1e12))
def test_a_duration_rounded_up_is_little_longer_and_has_three_digits(length: float) -> None:
    for clock in (DATES, NUMBERS):
        rounded = clock.round_up(length)
        assert length <= rounded * (1 + 1e-15) and rounded < length * 1.011
        assert clock.round_up(rounded) == pytest.approx(rounded, rel=1e-12)


def test_durations_are_rounded_up_for_people() -> None:
    lengths = {1713456.0: "19.9d", 30 * 86400.0: "30d", 5401.0: "1.51h", 61.2: "1.02min", 0.12345: "0.124s"}
    for length, text in lengths.items():
        assert DATES.round_up(length) == pytest.approx(DATES.parse_duration(text))
    assert NUMBERS.round_up(19.832) == 19.9 and NUMBERS.round_up(1234567.0) == 1240000 and NUMBERS.round_up(0.5) == 0.5


# float64 seconds tell microseconds apart until 2242
MOMENTS = st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2240, 1, 1))
ZONES = st.sampled_from([None, "UTC", "Europe/Paris", "America/St_Johns", "Asia/Kathmandu", "Africa/Monrovia"])


@given(st.lists(MOMENTS, min_size=1), ZONES)
def test_a_formatted_time_reads_back(moments: list[dt.datetime], zone: str | None) -> None:
    times = np.array([(moment - dt.datetime(1970, 1, 1)) / dt.timedelta(microseconds=1) for moment in moments]) / 1e6
    clock = Clock(kind="datetime", timezone=zone)
    text = clock.format(times)
    assert [seconds(label) for label in text] == pytest.approx(times.tolist(), abs=1e-6)
    queries = read_queries(pd.DataFrame({"unique_id": "a", "ds": text}), WIDE, clock)
    assert_array_equal(queries.times, times)


@given(st.lists(st.floats(-1e299, 1e299), min_size=1))
def test_a_formatted_number_reads_back(times: list[float]) -> None:
    queries = read_queries(pd.DataFrame({"unique_id": "a", "ds": NUMBERS.format(np.array(times))}), WIDE, NUMBERS)
    assert_array_equal(queries.times, times)


@given(st.lists(MOMENTS, min_size=1), st.sampled_from(["", "+02:00", "-0330"]))
def test_unusual_spellings_elsewhere_in_the_column_change_nothing(moments: list[dt.datetime], offset: str) -> None:
    """One cell that Arrow cannot read sends the whole column down the slow road."""
    cells = [moment.isoformat(" ") + offset for moment in moments]
    clock = Clock(kind="datetime", timezone="UTC" if offset else None)
    quick = read_queries(pd.DataFrame({"unique_id": "a", "ds": cells}), WIDE, clock)
    slow = read_queries(pd.DataFrame({"unique_id": "a", "ds": [*cells, f"2024/1/1 1:00{offset}"]}), WIDE, clock)
    assert_array_equal(slow.times[:-1], quick.times)


@given(st.lists(st.datetimes(dt.datetime(1950, 1, 1), dt.datetime(2037, 1, 1)), min_size=1), ZONES.filter(bool))
def test_local_times_agree_with_the_standard_library(moments: list[dt.datetime], zone: str) -> None:
    whole = [moment.replace(microsecond=0) for moment in moments]
    placed = [moment.replace(tzinfo=ZoneInfo(zone)) for moment in whole]
    twice = [moment.utcoffset() != moment.replace(fold=1).utcoffset() for moment in placed]
    frame = pd.DataFrame({"unique_id": "a", "ds": [moment.isoformat() for moment in whole]})
    schema = TableSchema(timezone=zone)
    clock = Clock(kind="datetime", timezone=zone)
    if any(twice):
        with pytest.raises(TableError, match="clocks change"):
            read_queries(frame, schema, clock)
    else:
        assert_array_equal(read_queries(frame, schema, clock).times, [moment.timestamp() for moment in placed])


# ---------------------------------------------------------------------------------------------- laws

IDS = st.sampled_from(["007", "7", "NA", "a", "Ä", "z z", "10"])
CELLS = st.none() | st.floats(-1e6, 1e6)
ROWS = st.lists(st.tuples(IDS, st.integers(-50, 50), CELLS, CELLS), min_size=1, max_size=40)


def wide_frame(rows: list[tuple[str, int, float | None, float | None]]) -> pd.DataFrame:
    """At least one observation of each channel, so that none is left out as empty."""
    rows = [*rows, ("first", 0, 1.0, 2.0)]
    return pd.DataFrame(rows, columns=["unique_id", "ds", "a", "b"]).astype({"a": float, "b": float})


@given(ROWS, st.sampled_from(["mean", "first", "last"]))
def test_merging_is_what_pandas_does(rows: list, how: str) -> None:
    frame = wide_frame(rows)
    table = read_table(frame, TableSchema(duplicates=how))
    expected = frame.groupby(["unique_id", "ds"]).agg(how)
    assert table.ids[table.row_series].tolist() == expected.index.get_level_values(0).tolist()
    assert_array_equal(table.times, expected.index.get_level_values(1))
    np.testing.assert_allclose(table.values, expected.to_numpy(), rtol=1e-12, atol=1e-9)


@given(ROWS, st.integers(0, 2**32 - 1))
def test_row_order_means_nothing(rows: list, seed: int) -> None:
    frame = wide_frame(rows).drop_duplicates(["unique_id", "ds"])
    assert_same(read_table(frame), read_table(frame.sample(frac=1, random_state=seed)))


@given(ROWS)
def test_tidy_and_wide_are_the_same_table(rows: list) -> None:
    frame = wide_frame(rows).drop_duplicates(["unique_id", "ds"])
    tidy = frame.melt(["unique_id", "ds"], var_name="channel", value_name="value")
    assert_same(read_table(tidy, TIDY), read_table(frame))


@settings(max_examples=30)
@given(rows=ROWS)
def test_text_frames_and_files_give_the_table_back(rows: list, tmp_path_factory: pytest.TempPathFactory) -> None:
    table = read_table(wide_frame(rows).drop_duplicates(["unique_id", "ds"]))
    folder = tmp_path_factory.mktemp("back")
    table.frame().to_csv(folder / "t.csv", index=False)
    write_parquet(table, folder / "t.parquet")
    for again in (read_table(table.frame()), read_table(folder / "t.csv"), read_parquet(folder / "t.parquet")):
        assert_same(again, table)


@settings(max_examples=60)
@given(
    records=st.lists(
        st.tuples(st.sampled_from(["plain", "two\nlines", 'say ""x""\n\n']), st.integers(0, 2)), min_size=1
    ),
    line_end=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
)
def test_line_numbers_count_blank_lines_and_quoted_breaks(
    records: list[tuple[str, int]], line_end: str, last: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text, lines = "unique_id,ds,y" + line_end, []
    for i, (cell, blanks) in enumerate(records):
        text += line_end * blanks
        lines.append(text.count("\n") + 1)
        text += f'"{cell}",{i},wrong{line_end}'
    path = tmp_path_factory.mktemp("lines") / "t.csv"
    path.write_bytes((text + (f"a,9999,1{line_end}" if last else "a,9999,1")).encode())
    error = refusal(path)[0]
    assert (error.code, error.rows, error.count) == ("E-VALUE", tuple(lines[:10]), len(lines))


# ---------------------------------------------------------------------------------------------- canonical files


def test_parquet_keeps_everything(write: Write, tmp_path: Path) -> None:
    text = "id,t,ds,unique_id\nNA,2024-01-02T00:00Z,0.1,\n007,2024-01-01T00:00Z,-0.0,5\nNA,2024-01-01T00:00Z,,\n"
    table = read_table(write(text), TableSchema(id_col="id", time_col="t"))
    write_parquet(table, tmp_path / "c.parquet")
    again = read_parquet(tmp_path / "c.parquet")
    assert_same(again, table)
    assert again.values.tobytes() == table.values.tobytes() and again.notes == table.notes and table.notes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.parquet", "t.csv"]


def test_parquet_of_no_rows(write: Write, tmp_path: Path) -> None:
    none = read_table(write(HEAD + "a,1,2\n")).select(np.zeros(0, int))
    write_parquet(none, tmp_path / "c.parquet")
    assert_same(read_parquet(tmp_path / "c.parquet"), none)


def test_a_failed_write_leaves_the_old_file(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError("no space left")

    table = read_table(write(HEAD + "a,1,2\n"))
    target = write("old", "c.parquet")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CannotWriteError, match="no space left"):
        write_parquet(table, target)
    assert target.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.parquet", "t.csv"]
    with pytest.raises(CannotWriteError):
        write_parquet(table, tmp_path / "nowhere" / "c.parquet")


def test_foreign_or_torn_parquet_is_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError):
        read_parquet(tmp_path / "none.parquet")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "foreign.parquet")
    for path in (tmp_path / "foreign.parquet", write(b"PAR1", "torn.parquet")):
        with pytest.raises(ArtifactError, match="write it again"):
            read_parquet(path)


def test_groups_are_read_and_kept(write: Write, tmp_path: Path) -> None:
    path = write("unique_id,ds,y,patient\nb,1,2,007\na,1,3,9\nc,2,4,007\nb,2,5,007\n")
    table = read_table(path, TableSchema(group_col="patient"))
    assert table.channels == ("y",) and table.groups.tolist() == ["9", "007", "007"]
    assert table.select(np.array([2, 0])).groups.tolist() == ["007", "9"]
    write_parquet(table, tmp_path / "table.parquet")
    back = read_parquet(tmp_path / "table.parquet")
    assert back.groups.tolist() == table.groups.tolist() and back.channels == ("y",)
    assert np.array_equal(back.values, table.values)


def test_a_tidy_table_has_groups_too(write: Write) -> None:
    path = write("unique_id,ds,what,value,patient\na,1,x,3,p\na,1,y,4,p\nb,1,x,5,q\n")
    table = read_table(path, TableSchema(channel_col="what", value_col="value", group_col="patient"))
    assert table.groups.tolist() == ["p", "q"] and not table.notes


def test_a_forecast_needs_no_groups(write: Write) -> None:
    schema = TableSchema(group_col="patient")
    path = write("unique_id,ds,y\na,1,2\n")
    assert read_table(path, schema, expected_channels=("y",), grouped=True).groups is None
    with pytest.raises(TableError, match="--group-col"):
        read_table(path, schema)
    blank = write("unique_id,ds,y,patient\na,1,2,\n")
    assert read_table(blank, schema, expected_channels=("y",)).groups is None
    with pytest.raises(TableError, match="is blank"):
        read_table(blank, schema, expected_channels=("y",), grouped=True)
