"""Rows on disk in runs, each sorted by series, so that all rows of any range of series can be read back together.

The first half of a merge sort: what does not fit into memory is written in pieces that do, and read in ranges that do.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from tsde.errors import CannotWriteError

_BATCH = 2**12  # rows that are read at once


class Run(BaseModel, frozen=True):
    """One sorted piece: for each of its batches the first id, and what its rows weigh in memory, in bytes."""

    path: Path
    firsts: tuple[str, ...]
    weights: tuple[int, ...]


class Span(BaseModel, frozen=True):
    """A range of ids, `lower <= id < upper` as text; None is no bound."""

    lower: str | None
    upper: str | None


def write_run(rows: pa.Table, path: Path, per_row: int = 0) -> Run:
    """Write rows, whose first column is the id as text, sorted; each weighs `per_row` bytes more than it takes here.

    Raises:
        CannotWriteError: the disk is full.
    """
    batches = rows.combine_chunks().to_batches(_BATCH)
    try:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
    except OSError as error:
        raise CannotWriteError(f"cannot write {path}, where the table is sorted: {error}") from error
    whole = rows.nbytes / max(1, len(rows))
    return Run(
        path=path,
        firsts=tuple(batch.column(0)[0].as_py() for batch in batches),
        weights=tuple(int((whole + per_row) * len(batch)) for batch in batches),
    )


def spans(runs: Sequence[Run], budget: int) -> list[Span]:
    """Ranges that cover all ids in order and whose rows weigh about `budget` bytes; a series is never cut in two."""
    batches = sorted((first, weight) for run in runs for first, weight in zip(run.firsts, run.weights, strict=True))
    bounds: list[str] = [batches[0][0]]
    weight = 0
    for first, more in batches:
        if weight + more > budget and first != bounds[-1]:
            bounds.append(first)
            weight = 0
        weight += more
    edges = [None, *bounds[1:], None]
    return [Span(lower=lower, upper=upper) for lower, upper in itertools.pairwise(edges)]


def read_span(runs: Sequence[Run], span: Span) -> pa.Table:
    """The rows of a range of ids, run after run, so those of one series in the order in which they were written."""
    with pa.OSFile(str(runs[0].path)) as source:
        parts = [pa.ipc.open_file(source).schema.empty_table()]
    for run in runs:
        start = 0 if span.lower is None else max(0, bisect_left(run.firsts, span.lower) - 1)
        stop = len(run.firsts) if span.upper is None else bisect_left(run.firsts, span.upper)
        if start < stop:
            with pa.OSFile(str(run.path)) as source:
                reader = pa.ipc.open_file(source)
                parts += [_inside(reader.get_batch(i), span) for i in range(start, stop)]
    return pa.concat_tables(parts)


def _inside(batch: pa.RecordBatch, span: Span) -> pa.Table:
    ids = batch.column(0)
    if span.lower is not None and ids[0].as_py() < span.lower:
        batch = batch.filter(pc.greater_equal(ids, span.lower))
        ids = batch.column(0)
    if span.upper is not None and len(ids) and ids[-1].as_py() >= span.upper:
        batch = batch.filter(pc.less(ids, span.upper))
    return pa.table(batch)
