"""Questions about a table, answered a few whole series at a time, so that memory does not grow with the table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa

from pipelines.question import Outputs, Question
from pipelines.rows import encode, encode_samples
from tsde.predictor import Predictor
from tsde.table import Queries, Table

_CELLS = 2**17
"""Forecasts, of one time and channel, that are made at once."""


@dataclass
class Tally:
    """What came of the forecasts: how many series and rows, and how many rows of each status."""

    series: int = 0
    rows: int = 0
    statuses: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        self.series += other.series
        self.rows += other.rows
        self.statuses.update(other.statuses)

    def as_json(self, outputs: Outputs) -> str:
        """The same for programs."""
        about = {"forecasts": str(outputs.table), "series": self.series, "rows": self.rows}
        return json.dumps(about | {"statuses": dict(self.statuses.most_common())}, indent=1)

    def sentence(self) -> str:
        """One line."""
        statuses = ", ".join(f"{count:,} {name}" for name, count in self.statuses.most_common())
        return f"{self.series:,} series, {self.rows:,} rows: {statuses}"


@dataclass(frozen=True)
class Shape:
    """In which form answers are wanted: as text or as typed columns, and how many samples of each.

    `text` and `samples_text` say which of both tables is CSV.
    """

    text: bool = True
    samples: int = 0
    samples_text: bool = True


@dataclass(frozen=True)
class Answer:
    """Encoded rows of some series, their samples if wanted, and what came of them."""

    forecasts: pa.Table
    samples: pa.Table | None
    tally: Tally


def regular(predictor: Predictor, table: Table, question: Question, shape: Shape) -> Iterator[Answer]:
    """The answers to a horizon, series by series."""
    assert question.horizon is not None
    per_series = len(predictor.leads(question.horizon, question.step))
    count = max(1, _most(predictor, shape) // per_series)
    for start in range(0, table.n_series, count):
        some = table.select(np.arange(start, min(start + count, table.n_series)))
        queries = predictor.queries(some, question.horizon, question.step)
        yield _answer(predictor, some, queries, question, shape)


def arbitrary(
    predictor: Predictor, table: Table, queries: Queries, place: np.ndarray, question: Question, shape: Shape
) -> Iterator[Answer]:
    """The answers to a table of times, ids in any order, each row with the `place (Q,)` of its question."""
    code, ids = pd.factorize(queries.ids)
    known = pd.Index(table.ids).get_indexer(pd.Index(ids))
    order = np.argsort(code, kind="stable")
    ends = np.cumsum(np.bincount(code))
    start = series = 0
    while start < len(order):
        # as many ids as fit, and at least one
        until = max(series + 1, int(np.searchsorted(ends, start + _most(predictor, shape), side="right")))
        chosen = np.sort(order[start : ends[until - 1]])
        owners = known[series:until]
        some = Queries(queries.ids[chosen], queries.times[chosen], queries.labels[chosen])
        yield _answer(predictor, table.select(owners[owners >= 0]), some, question, shape, place[chosen])
        start, series = int(ends[until - 1]), until


def in_order(answers: Iterable[Answer]) -> Iterator[Answer]:
    """All of the answers as one, their rows sorted by place."""
    found = list(answers)
    tally = Tally()
    for answer in found:
        tally.add(answer.tally)
    samples = [answer.samples for answer in found if answer.samples is not None]
    yield Answer(by_place([a.forecasts for a in found]), by_place(samples) if samples else None, tally)


def by_place(pieces: list[pa.Table]) -> pa.Table:
    """Rows sorted by their last column, `place`."""
    rows = pa.concat_tables(pieces)
    return rows.take(pa.array(np.argsort(rows.column("place").to_numpy(), kind="stable")))


def _most(predictor: Predictor, shape: Shape) -> int:
    """Queries that are answered at once."""
    return max(1, _CELLS // (len(predictor.channels) * (1 + shape.samples // 16)))


def _answer(
    predictor: Predictor,
    table: Table,
    queries: Queries,
    question: Question,
    shape: Shape,
    place: np.ndarray | None = None,
) -> Answer:
    found = predictor.answer(table, queries, question.seed, shape.samples)
    frame = predictor.frame(found, queries, question.levels)
    channels = len(predictor.channels)
    tally = Tally(len(pd.unique(queries.ids)), len(frame), Counter(found.status.repeat(channels).tolist()))
    rows = encode(frame, shape.text, place if place is None else place.repeat(channels))
    if found.samples is None:
        return Answer(rows, None, tally)
    keys, place = frame.iloc[:, :3], place if place is None else place.repeat(channels)  # id, time, channel
    return Answer(rows, encode_samples(keys, found.samples, shape.samples_text, place), tally)
