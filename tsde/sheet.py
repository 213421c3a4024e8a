"""A table as written: named columns of cells, each row with its line; and what cells mean to whoever asks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tsde.findings import Finding, TableError, listed, located, quoted, severity_of

# A cell that says: nothing was observed. What pandas takes for missing, beside "NaT".
MISSING = pa.array(
    ["", "NA", "NaN", "nan", "null", "None", "N/A", "n/a", "#N/A", "#NA", "<NA>", "NULL", "-nan", "-NaN", "NaT"]
)
_LARGEST = 1e300  # beyond, sums and forecasts of such numbers leave the range of float64
NO_ROWS = np.zeros(0, np.int64)

_NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
_COMMA = r"^[+-]?\d*,\d+$"
_THOUSANDS = (
    r"^[+-]?(\d{1,3}(,\d{3})+(\.\d*)?|\d{1,3}(\.\d{3})+,\d+|\d{1,3}(\.\d{3}){2,}"
    r"|\d{1,3}([ '’_\x{a0}\x{2009}\x{202f}]\d{3})+([.,]\d*)?)$"
)
_NUMBER_LIKE = rf"(?i)^({_NUMBER}|[+-]?inf(inity)?)$|{_COMMA}|{_THOUSANDS}"


@dataclass(frozen=True, eq=False)
class Sheet:
    """A table as written.

    Attributes:
        name: what messages call it.
        columns: `(n,)` cells per column name: text, or the type that Parquet or pandas gave them.
        lines: `(n,)` int64, where each row stands; see `Finding.rows`.
        unit: what `lines` counts, "line" or "row".
        id_col: the column whose cells name the series in messages, if it is there.
    """

    name: str
    columns: dict[str, pa.ChunkedArray]
    lines: np.ndarray
    unit: str
    id_col: str | None = None

    def keyed(self, id_col: str) -> Sheet:
        """The same, with messages that name the series of their rows."""
        return replace(self, id_col=id_col)

    def finding(self, code: str, text: str, rows: np.ndarray = NO_ROWS, column: str | None = None) -> Finding:
        """A finding about the given rows, `(n,)` bool or `(k,)` indices, whose message starts with their places."""
        index = np.flatnonzero(rows) if rows.dtype == bool else np.sort(rows)
        series = tuple(dict.fromkeys(filter(str.strip, self._ids(index[:10]))))
        places, count = tuple(self.lines[index[:10]].tolist()), len(index)
        message = f"{located(self.name, self.unit, places, count, series)}: {text}"
        return Finding(code, severity_of(code), message, places, count, column, series)

    def cells(self, column: str, rows: np.ndarray) -> str:
        """What stands in the first three of these rows, `(n,)` bool, in quotes."""
        return listed(dict.fromkeys(self.cell(column, row) for row in np.flatnonzero(rows)[:3].tolist()))

    def cell(self, column: str, row: int) -> str:
        """What stands there, as text; a whole number without decimals, "" for nothing."""
        scalar = self.columns[column][row]
        try:
            value = scalar.as_py()
        except (ArithmeticError, LookupError, ValueError):  # a moment that Python has no date for, an unknown zone
            value = f"{scalar.cast(pa.int64()).as_py()} as {scalar.type}"
        if isinstance(value, float):
            return str(plain_numbers(np.array([value]))[0] or "")
        return "" if value is None else str(value)

    def _ids(self, rows: np.ndarray) -> list[str]:
        if self.id_col is None or self.id_col not in self.columns:
            return []
        return [self.cell(self.id_col, row) for row in rows.tolist()]


def numbers(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Cells as numbers: `(n,)` float64, NaN where there is none, and `(n,)` bool, cells that are none below 1e300."""
    kind = column.type
    if pa.types.is_string(kind):
        cells = observed(column)
        try:
            parsed = cells.cast(pa.float64())
        except pa.ArrowInvalid:
            plain = pc.if_else(pc.match_substring_regex(cells, f"^{_NUMBER}$"), pc.utf8_ltrim(cells, "+"), None)
            parsed = plain.cast(pa.float64())
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        parsed = column.cast(pa.float64(), safe=False)
        cells = pc.if_else(pc.is_nan(parsed), None, parsed)
    else:
        cells, parsed = column, pa.nulls(len(column), pa.float64())
    values = parsed.to_numpy(zero_copy_only=False).astype(np.float64)  # a copy: Arrow's memory is read-only
    bad = cells.is_valid().to_numpy() & ~(np.abs(values) < _LARGEST)
    values[bad] = np.nan
    return values, bad


@dataclass(frozen=True, eq=False)
class Misspelt:
    """Why cells are no finite number, all `(n,)` bool.

    Attributes:
        comma: a number with a comma, which may be a decimal comma or separate thousands.
        thousands: a number with separators of thousands.
        numeric: either of these, an infinity, or a number too large: not text in any case.
    """

    comma: np.ndarray
    thousands: np.ndarray
    numeric: np.ndarray


def misspelt(column: pa.ChunkedArray, bad: np.ndarray) -> Misspelt:
    """What the bad cells, `(n,)` bool, of a column are."""
    none = np.zeros(len(bad), bool)
    if not bad.any():
        return Misspelt(none, none, none)
    if not pa.types.is_string(column.type):
        return Misspelt(none, none, bad if pa.types.is_floating(column.type) else none)
    cells = pc.utf8_trim_whitespace(column.filter(pa.array(bad)))

    def matching(pattern: str) -> np.ndarray:
        found = none.copy()
        found[bad] = pc.match_substring_regex(cells, pattern).to_numpy()
        return found

    comma = matching(_COMMA)
    return Misspelt(comma, matching(_THOUSANDS) & ~comma, matching(_NUMBER_LIKE))


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
        text = f"column {quoted(name)} holds {column.type}, expected names; write them as text or whole numbers"
        raise TableError([sheet.finding("E-COLUMN-TYPE", text, column=name)]) from error
    names = encoded.dictionary.to_numpy(zero_copy_only=False)
    named = pc.not_equal(pc.utf8_trim_whitespace(encoded.dictionary), "").to_numpy(zero_copy_only=False)
    order = np.argsort(names[named])
    rank = np.full(len(names), -1)
    rank[np.flatnonzero(named)[order]] = np.arange(len(order))
    return names[named][order], rank[encoded.indices.to_numpy()]


def plain_numbers(values: np.ndarray) -> np.ndarray:
    """The shortest text that gives each number back, 24 rather than 24.0; None for NaN: `(n,)` object."""
    values = np.asarray(values, np.float64) + 0.0  # which turns -0.0 into 0.0
    text, size = pa.array(values).cast(pa.string()), np.abs(values)
    odd = (size != 0) & ~((size >= 1e-4) & (size < 1e10))  # where Arrow may take another form than Python
    if odd.any():
        text = pc.replace_with_mask(text, pa.array(odd), pa.array(values[odd].astype(str)))
        text = pc.if_else(pc.equal(text, "nan"), None, pc.replace_substring_regex(text, r"\.0$", ""))
    return text.to_numpy(zero_copy_only=False)
