"""What a check finds in a table: coded findings, and the list of all codes with what they mean and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from tsde.errors import DataError

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing a check found in a table.

    Attributes:
        code: what it is, for programs: a key of `CODES`.
        severity: an error keeps the table from being read, a warning does not.
        message: a sentence that says where, what was expected, what came and what to do.
        rows: the first ten places: line numbers of a CSV file (the header is line 1), otherwise rows counted from 1.
        count: how many places there are in all; 0 when the finding has no place of its own.
        column: the column, or in a tidy table the channel, that it is about; None for the whole table.
        series: the ids that stand in `rows`, each once, where they are known.
    """

    code: str
    severity: Severity
    message: str
    rows: tuple[int, ...] = ()
    count: int = 0
    column: str | None = None
    series: tuple[str, ...] = ()


class TableError(DataError):
    """A table that cannot be used; `findings` holds all that was found in it, warnings included."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__(self.findings)  # the constructor's own argument, so that the exception survives pickling

    def __str__(self) -> str:
        errors = [finding.message for finding in self.findings if finding.severity == "error"]
        more = [f"... and {len(errors) - 3} more; `tsde validate` lists them all"] if len(errors) > 3 else []
        return "\n".join(errors[:3] + more)


def severity_of(code: str) -> Severity:
    """E-... is an error, W-... a warning."""
    return "error" if code.startswith("E-") else "warning"


def refusal(code: str, message: str, places: Iterable[int] = (), column: str | None = None) -> TableError:
    """An error about a whole file or about these lines of it."""
    lines = tuple(places)
    return TableError([Finding(code, severity_of(code), message, lines[:10], len(lines), column)])


def quoted(name: object) -> str:
    """A name or a cell in quotes, cut where it is too long for a message."""
    text = str(name)
    return repr(text if len(text) <= 80 else text[:77] + "...")


def listed(names: Iterable[object], most: int = 20) -> str:
    """Names in quotes, at most so many of them, for a message."""
    several = list(names)
    more = f" and {len(several) - most} more" if len(several) > most else ""
    return ", ".join(map(quoted, several[:most])) + more


def located(name: str, unit: str, rows: Sequence[int], count: int | None = None, series: Sequence[str] = ()) -> str:
    """How a message begins: the table's name, the first three places of `count` and the first three series."""
    total = len(rows) if count is None else count
    if not total:
        return name
    more = f" and {total - 3} more" if total > 3 else ""
    others = " and others" if len(series) > 3 else ""
    named = f", series {listed(series[:3])}{others}" if series else ""
    return f"{name}, {unit}{'s' if total > 1 else ''} {', '.join(map(str, rows[:3]))}{more}{named}"


CODES: dict[str, tuple[str, str]] = {
    "E-EMPTY": ("There are no rows of data.", "Write a header and at least one row."),
    "E-ENCODING": (
        "The file is not text in UTF-8, or in UTF-16 with a byte order mark: Latin-1, a binary file, NUL bytes.",
        "Save the table as CSV in UTF-8, or rename the file to what it is (`.csv.gz`, `.parquet`).",
    ),
    "E-GZIP": ("A `.csv.gz` file is torn, damaged or not gzip at all.", "Compress it again, or rename it to `.csv`."),
    "E-GZIP-LARGE": (
        "A `.csv.gz` file unpacks to over 1 GiB and over a hundred times its size, as damage or malice does.",
        "If it is a table, allow more bytes (`TSDE_MAX_UNPACKED=8589934592`), or unpack it.",
    ),
    "E-PARQUET": ("A `.parquet` file is torn, damaged or something else.", "Write it again."),
    "E-CSV": ("The text cannot be taken apart into rows and cells.", "Save the table as CSV again."),
    "E-QUOTE": (
        "A quotation mark is never closed, or stands inside a cell.",
        "Close it, or quote the whole cell and double the marks inside it.",
    ),
    "E-RAGGED-ROW": (
        "A row has more or fewer cells than the header.",
        "Complete the row, or quote cells that hold a separator.",
    ),
    "E-HEADER-SINGLE": (
        "The first line is not a row of column names: a title, a comment, `sep=;`, or an unknown separator.",
        "Remove the lines above the header; separate columns by comma, semicolon, tab or `|`.",
    ),
    "E-HEADER-BLANK": ("A column has no name.", "Name it or leave it out (pandas: `index=False`)."),
    "E-HEADER-DUPLICATE": ("Two columns have one name.", "Give every column a name of its own."),
    "E-COLUMN-MISSING": (
        "There is no column of this name for the id, the time, the channels, the values or the groups.",
        "Name the right one: `--id-col`, `--time-col`, `--channel-col`, `--value-col`, `--group-col`.",
    ),
    "E-COLUMN-TYPE": ("A column of names holds lists, bytes or the like.", "Write names as text or whole numbers."),
    "E-ID-BLANK": ("A row names no series.", "Name the series or drop the row."),
    "E-GROUP-BLANK": ("A row names no group.", "Name the group, perhaps by the id of its series, or drop the row."),
    "E-GROUP-CHANGES": (
        "The rows of a series name different groups.",
        "Correct the group, or give the parts of the series ids of their own.",
    ),
    "E-TIME-BLANK": ("A row has no time.", "Fill it or drop the row."),
    "E-TIME-UNREADABLE": (
        "A time is no finite number among numbers, no existing moment from year 1 to 9999 among datetimes, or "
        "written in another form than the rest.",
        "Correct the cell; write ISO 8601 throughout.",
    ),
    "E-TIME-AMBIGUOUS": (
        "Nothing shows whether 01/02/2024 is in January or in February.",
        "Write ISO 8601, or say `--dayfirst` if the day comes first.",
    ),
    "E-TIME-DIGITS": (
        "The times are digits such as 20240131, between which the gaps are no lengths of time.",
        "Write 2024-01-31; if they really are plain numbers, write them with a decimal point, 20240131.0.",
    ),
    "E-TIME-ZONE": ("Some times carry a zone and others do not.", "Give every time a zone, or none."),
    "E-TIME-CLOCK-CHANGE": (
        "A local time does not exist, or occurs twice, because clocks change.",
        "Write it with its offset from UTC, 2024-10-27T02:30+01:00, as all others then.",
    ),
    "E-TIME-KIND": (
        "The model was trained on datetimes and the table has numbers, or one has zones and the other none.",
        "Write the times as in training; `--timezone` places times without a zone.",
    ),
    "E-VALUE": (
        "A cell of a channel is no finite number below 1e300: text, an infinity, a boolean among numbers.",
        "Correct the cell, leave it empty if nothing was observed, or leave the column out (`--channels`).",
    ),
    "E-DECIMAL-COMMA": (
        "A number has a comma: 1,5, or 1,234, which may be 1.234 or 1234.",
        "Write a decimal point and no separator of thousands.",
    ),
    "E-THOUSANDS": (
        "A number has separators of thousands: 1,234.5 or 1.234,5 or 1 234.",
        "Write a decimal point and no separator of thousands.",
    ),
    "E-CHANNEL-BLANK": ("A row of a tidy table names no channel.", "Name it or drop the row."),
    "E-CHANNEL-MISSING": (
        "A channel that was asked for, or that the model knows, is not there.",
        "Add it, even empty; in training, `--channels` chooses others.",
    ),
    "E-NO-CHANNEL": (
        "No column beside the id and the time holds a number.",
        "Write numbers (0 and 1 for false and true); check the header.",
    ),
    "E-DUPLICATE": (
        "A time stands more than once in a series (in a tidy table: for one channel).",
        "Drop the repeats, or merge them with `--duplicates mean|first|last`; if a column names what was measured, "
        "the table is tidy.",
    ),
    "E-TOO-LARGE": (
        "A tidy table would have over two billion cells in wide form.",
        "Check `--channel-col`, or choose channels (`--channels`).",
    ),
    "W-UNSORTED-ROWS": ("Rows stand after a later time of their series; they were sorted.", "Nothing, if expected."),
    "W-DUPLICATE": ("Repeated times were merged as asked.", "Nothing, if expected."),
    "W-LEFT-OUT-TEXT": (
        "Columns or channels without a single number are left out.",
        "Nothing, or write numbers (0 and 1 for false and true) to use them.",
    ),
    "W-LEFT-OUT-EMPTY": ("Columns or channels without any value are left out.", "Nothing, or fill them."),
    "W-LEFT-OUT-EXTRA": ("Columns or channels that the model or a tidy table does not use are left out.", "Nothing."),
    "W-TIME-LOOKS-LIKE-DATE": (
        "Times that look like seconds, milli-, micro- or nanoseconds since 1970 are taken as plain numbers.",
        "Nothing, if horizons are given in that unit; else write ISO 8601. If units are mixed, write one.",
    ),
    "W-TIME-OPTION": (
        "A time zone or the order of day and month is given for times that are plain numbers.",
        "Leave the option out, or write the times as dates.",
    ),
    "W-TIME-ROUNDED": (
        "Times finer than a microsecond are cut to it; whole numbers beyond 2^53 keep about 16 digits.",
        "Nothing, if that is fine enough; else subtract an origin and write plain numbers.",
    ),
    "W-TIME-FAR": (
        "A datetime lies before the year 1000 or after 2200, as placeholders such as 9999-12-31 do.",
        "Drop the row or correct the time.",
    ),
    "W-HUGE-GAP": ("A gap is over a thousand times the usual one.", "Check the times."),
    "W-SINGLE-ROW": ("Series have a single row and show no change over time.", "Nothing, or add their history."),
    "W-CONSTANT-CHANNEL": ("A channel never changes.", "Leave it out (`--channels`)."),
    "W-EMPTY-CHANNEL": ("A channel that was asked for was never observed.", "Leave it out, or fill it."),
    "W-WILD-VALUE": (
        "Values lie over 50 robust standard deviations from the channel's median, as -999 for missing does.",
        "Check their unit and digits; leave the cell empty if nothing was observed.",
    ),
    "W-UNIT": (
        "The values of some series in a channel are over a million times those of the others, or as much smaller.",
        "Check that all series use one unit.",
    ),
    "W-SIMILAR-NAMES": (
        "Ids or channels differ by blanks, upper and lower case or Unicode form alone; they count as different.",
        "Write one name alike in all rows.",
    ),
    "W-ROW-NUMBER": ("A column without a real name counts the rows, as a saved index does.", "Leave it out."),
}


def catalogue() -> str:
    """All codes as a Markdown table, errors first."""
    rows = [f"| `{code}` | {meaning} | {remedy} |" for code, (meaning, remedy) in CODES.items()]
    return "\n".join(["| code | what it means | what to do |", "|---|---|---|", *rows])
