"""What comes in over HTTP and what goes out: strict JSON, a question of known fields, the forecast as records."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from tsde.findings import listed
from tsde.sheet import plain_numbers
from tsde.table import Finding, TableError, TableSchema

_ONE_ERROR: Any = Field(fail_fast=True)  # a million would take minutes to tell
Records = Annotated[list[dict[str, Any]], _ONE_ERROR]
RECORDS = "records of column and cell: number, text, or null where nothing was observed"


class Limits(BaseModel, frozen=True, extra="forbid"):
    """What one request may ask for, and how many may ask at once.

    Attributes:
        body: bytes of a request.
        rows, series, columns, cells: of its table; cells are rows by columns.
        times: (series, time) pairs to forecast.
        samples: draws per marginal.
        values: numbers in an answer: times by channels by (mean, median, interval bounds and samples).
        queue: requests accepted at once, from the first byte of a body to the end of the computation.
        reading: seconds for a body to arrive.
        timeout: seconds from acceptance to the answer.
    """

    body: int = Field(8 * 2**20, gt=0)
    rows: int = Field(100_000, gt=0)
    series: int = Field(10_000, gt=0)
    columns: int = Field(1_000, gt=0)
    cells: int = Field(2_000_000, gt=0)
    times: int = Field(100_000, gt=0)
    samples: int = Field(1_000, ge=0)
    values: int = Field(500_000, gt=0)
    queue: int = Field(16, gt=0)
    reading: float = Field(20.0, gt=0, allow_inf_nan=False)
    timeout: float = Field(60.0, gt=0, allow_inf_nan=False)


class Refusal(Exception):
    """A request that gets no forecast: its status and the findings that say why."""

    def __init__(self, status: HTTPStatus, *findings: Finding, **headers: str) -> None:
        super().__init__(status)
        self.status, self.findings = status, findings
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def refusal(status: HTTPStatus, code: str, message: str, **headers: str) -> Refusal:
    """A refusal for one reason that has no place in a table."""
    return Refusal(status, Finding(code, "error", message), **headers)


class Problem(BaseModel, frozen=True):
    """Why a request was refused: findings as `tsde validate --json` gives them, rows counted from 1."""

    findings: list[Finding]


class Answer(BaseModel, frozen=True):
    """The rows that `tsde forecast` writes, as records, with `tsde-samples` if asked for, and what reading noted."""

    forecast: list[dict[str, str | float | list[float | None] | None]]
    notes: list[str]


class Question(BaseModel, frozen=True, extra="forbid", strict=True):
    """Histories, and what to forecast: times up to a horizon after each series' last row, or a list of times.

    The fields are the options of `tsde forecast`; without a horizon or times the model's own horizon is asked for.
    """

    rows: Records = Field(description=f"The histories, wide or tidy as in training: {RECORDS}.")
    horizon: str | float | None = Field(None, description="How far ahead: 30d, 12h, or a number as the times are.")
    step: str | float | None = Field(None, description="Forecast every step up to the horizon.")
    times: Records | None = Field(None, description="Or forecast for these ids and times, in this order.")
    levels: Annotated[list[Annotated[float, Field(gt=0, lt=100)]], _ONE_ERROR] = Field(
        [80.0], max_length=50, description="Central intervals in percent."
    )
    seed: int = Field(0, ge=-(2**63), lt=2**63, description="Of sampled forecasts and samples.")
    samples: int = Field(0, ge=0, description="Draws from each marginal.")
    id_col: str | None = Field(None, description="Column with the series' id; as in training without.")
    time_col: str | None = Field(None, description="Column with the time; as in training without.")
    duplicates: Literal["error", "mean", "first", "last"] | None = Field(None, description="Rows that repeat a time.")
    timezone: str | None = Field(None, description="Zone of times written without one, such as Europe/Paris.")
    dayfirst: bool | None = Field(None, description="01/02/2024 is 1 February.")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.times is not None and (self.horizon is not None or self.step is not None):
            raise ValueError("times say by themselves when: leave out horizon and step, or times")
        return self

    @field_validator("levels")
    @classmethod
    def _each_once(cls, levels: list[float]) -> list[float]:
        return list(dict.fromkeys(levels))

    def schema_of(self, trained: TableSchema) -> TableSchema:
        """How to read the rows: as in training, but for the fields that were given, and without groups."""
        given = self.model_dump(include={"id_col", "time_col", "duplicates", "timezone", "dayfirst"}, exclude_none=True)
        return TableSchema.model_validate(trained.model_dump() | given | {"group_col": None})


def question(body: bytes) -> Question:
    """A body as a question.

    Raises:
        Refusal: 400 for what is not JSON, 422 for unknown, missing or wrong fields.
    """
    found = strict_json(body)
    if isinstance(found, dict) and (unknown := found.keys() - Question.model_fields.keys()):
        message = f"unknown fields {listed(sorted(unknown))}; expected some of {', '.join(Question.model_fields)}"
        raise refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "E-FIELD", message)
    try:
        return Question.model_validate(found)
    except ValidationError as error:
        raise fields(error) from error


def fields(error: ValidationError) -> Refusal:
    """A refusal that names each wrong field."""
    found = [
        Finding("E-FIELD", "error", f"{'.'.join(map(str, e['loc'])) or 'the body'}: {e['msg']}")
        for e in error.errors(include_input=False, include_url=False, include_context=False)[:20]
    ]
    return Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, *found)


def strict_json(body: bytes) -> Any:
    """Bytes as JSON in UTF-8, without what lenient readers let through.

    Raises:
        Refusal: 400 for anything else: NaN and Infinity, a name twice in an object, nesting too deep to read, half a
            surrogate pair, an integer of thousands of digits.
    """
    try:
        found = json.loads(body.decode(), object_pairs_hook=_distinct, parse_constant=_no_constant)
        if re.search(rb"\\u[dD][89a-fA-F]", body):
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise _malformed("half a surrogate pair is no text") from error
    except RecursionError as error:
        raise _malformed("it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise _malformed(f"byte {error.start} is not UTF-8") from error
    except ValueError as error:
        raise _malformed(str(error)) from error
    return found


def _malformed(reason: str) -> Refusal:
    return refusal(HTTPStatus.BAD_REQUEST, "E-JSON", f"the body is not JSON: {reason}; expected one JSON object")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name {name[:80]!r} stands twice in an object")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON; write null where nothing was observed")


def frame(records: Sequence[dict[str, Any]], field: str, limits: Limits) -> pd.DataFrame:
    """Records as the table that they are; a name that a record lacks is an unobserved cell.

    Raises:
        Refusal: 413 for too many rows or columns, 422 for a cell that is a list or an object.
    """
    require(len(records), limits.rows if field == "rows" else limits.times, field)
    names = list(dict.fromkeys(name for record in records for name in record))
    require(len(names), limits.columns, "columns")
    require(len(records) * len(names), limits.cells, "rows by columns")
    return pd.DataFrame({name: _column([record.get(name) for record in records], name, field) for name in names})


def require(count: float, limit: int, what: str) -> None:
    """Refuse with 413 what is above a limit."""
    if count > limit:
        size = f"{count:,.0f}" if count < 1e15 else "over 10^15"
        message = f"the request has {size} {what}; at most {limit:,} are answered at once: send less at a time"
        raise refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "E-TOO-LARGE", message)


def _column(cells: list[Any], name: str, field: str) -> np.ndarray:
    """Numbers as numbers where float64 holds them exactly, everything else as text, as a CSV would have it."""
    kinds = set(map(type, cells)) - {type(None)}
    if nested := kinds & {list, dict}:
        row = next(row for row, cell in enumerate(cells, 1) if type(cell) in nested)
        message = f"{field}, row {row}: column {name!r} holds a list or an object; expected {RECORDS}"
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, Finding("E-FIELD", "error", message, (row,), 1))
    if kinds <= {int, float} and all(abs(cell) <= 2**53 for cell in cells if type(cell) is int):
        return np.array(cells, np.float64)
    return np.array([_text(cell) for cell in cells], object)


def _text(cell: str | float | None) -> str | None:
    """As a column of numbers alone would be written where it names series: 7.0 is 7."""
    if isinstance(cell, float):
        return str(plain_numbers(np.array([cell]))[0])
    return cell if cell is None or isinstance(cell, str) else repr(cell)


def about_times(error: TableError) -> TableError:
    """The same findings, saying that they are about the second table of a question."""
    return TableError(replace(finding, message=f"times: {finding.message}") for finding in error.findings)


@dataclass(frozen=True)
class Forecast:
    """A forecast table, `(M * C)` rows, the samples of each row, `(M * C, S)`, and the notes of reading."""

    frame: pd.DataFrame
    samples: np.ndarray | None
    notes: tuple[str, ...]

    def encode(self) -> bytes:
        """As an `Answer` in JSON; every number is written so that it reads back to the same bits, or as null."""
        parts = b",".join(self._chunks())
        return b'{"forecast":[' + parts + b'],"notes":' + json.dumps(self.notes).encode() + b"}"

    def _chunks(self, rows: int = 1000) -> Iterator[bytes]:
        """Some rows at a time, since one long call would keep every other thread waiting."""
        for start in range(0, len(self.frame), rows):
            part = self.frame.iloc[start : start + rows]
            columns = {str(name): _plain(part[name].to_numpy()) for name in part.columns}
            if self.samples is not None:
                columns["tsde-samples"] = _plain(self.samples[start : start + rows])
            records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            yield json.dumps(records, allow_nan=False, separators=(",", ":")).encode()[1:-1]


def _plain(values: np.ndarray) -> list[Any]:
    """Values as Python has them, None for a number that is not finite."""
    if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
        values = values.astype(object)
        values[~finite] = None
    return values.tolist()
