"""Forecasts of a table's series as a table, written whole or not at all."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import bulk, pictures
from pipelines.answers import Shape, Tally, arbitrary, in_order, regular
from pipelines.data import schema_for
from pipelines.messages import note
from pipelines.progress import forecast_progress
from pipelines.question import Outputs, Question, unknown_note
from pipelines.rows import SAMPLE_COLUMNS, is_text, write_table
from tsde.errors import DataError, DivergedError
from tsde.plot import save_figure
from tsde.predictor import Predictor
from tsde.table import Queries, Table, TableSchema, read_queries, read_table

__all__ = ["Outputs", "Question", "run"]

_LARGE_FILE = 2**24  # bytes of CSV that are worth several processes
_LARGE_ANSWER = 2**18  # and rows of output that are
_LARGE_TABLE = 2**11  # series that are worth a look at how long they take
_PROBE = 2**7  # series that show it
_START = 4.0  # seconds of work that are worth a process, which takes over two to start


def run(
    model: Path,
    source: Path,
    question: Question,
    outputs: Outputs,
    columns: Mapping[str, Any] | None = None,
    workers: int | None = None,
    quiet: bool = True,
) -> Tally:
    """Forecast the series of a table and write what was asked for.

    A large table, or one whose forecasts take long, is spilled to disk beside the output and answered by `workers`
    processes, by default as many as there are cores and work for; a small one in memory, unless `workers` are given.
    The output is the same.
    """
    outputs.require_place(model, source, question.times)
    predictor = Predictor.load(model)
    schema = schema_for(predictor, columns)
    if workers is None and not _is_large(source) and (question.times is None or not _is_large(question.times)):
        known = _read(predictor, schema, source, question)
        if _rows(predictor, known, question) * (1 + outputs.samples) < _LARGE_ANSWER:
            workers = min(os.cpu_count() or 1, int(_seconds(predictor, known, question) / _START))
        if workers is not None and workers < 2:
            return _in_memory(predictor, known, question, outputs)
    with forecast_progress(quiet) as report:
        tally = bulk.run(predictor, model, schema, source, question, outputs, workers or os.cpu_count() or 1, report)
    return tally or _in_memory(predictor, _read(predictor, schema, source, question), question, outputs)


@dataclass(frozen=True, eq=False)
class _Known:
    """A table that was read as a whole, and the times that are asked for, if a table of them is."""

    table: Table
    queries: Queries | None


def _read(predictor: Predictor, schema: TableSchema, source: Path, question: Question) -> _Known:
    table = read_table(source, schema, expected_channels=predictor.channels, expected_clock=predictor.clock)
    return _Known(table, read_queries(question.times, schema, predictor.clock) if question.times else None)


def _rows(predictor: Predictor, known: _Known, question: Question) -> int:
    """How many rows the forecast will have."""
    if known.queries is not None:
        return len(known.queries.ids) * len(predictor.channels)
    assert question.horizon is not None
    return known.table.n_series * len(predictor.leads(question.horizon, question.step)) * len(predictor.channels)


def _seconds(predictor: Predictor, known: _Known, question: Question) -> float:
    """About how long a process takes to forecast, from the time that a small part takes; 0 for a small table."""
    if known.table.n_series < _LARGE_TABLE:
        return 0.0
    some = known.table.select(np.arange(_PROBE))
    if known.queries is None:
        assert question.horizon is not None
        queries = predictor.queries(some, question.horizon, question.step)
    else:
        asked = np.isin(known.queries.ids.astype(str), some.ids.astype(str))
        queries = Queries(known.queries.ids[asked], known.queries.times[asked], known.queries.labels[asked])
    started = time.process_time()
    predictor.answer(some, queries)
    took = time.process_time() - started
    rows = len(queries.ids) * len(predictor.channels)
    return took * _rows(predictor, known, question) / max(1, rows)


def _in_memory(predictor: Predictor, known: _Known, question: Question, outputs: Outputs) -> Tally:
    """The answers about a table that was read as a whole."""
    names = predictor.columns(question.levels)
    shape = Shape(is_text(outputs.table), outputs.samples, is_text(outputs.samples_table))
    _tell(known, question)
    if known.queries is None:
        answers = list(regular(predictor, known.table, question, shape))
    else:
        place = np.arange(len(known.queries.ids))
        answers = list(in_order(arbitrary(predictor, known.table, known.queries, place, question, shape)))
    if outputs.samples_table is not None:
        rows = [answer.samples for answer in answers if answer.samples is not None]
        write_table(outputs.samples_table, [*names[:3], *SAMPLE_COLUMNS], rows)
    if outputs.picture is not None:
        save_figure(pictures.of_answers(predictor, known.table, known.queries, question), outputs.picture)
    write_table(outputs.table, names, [answer.forecasts for answer in answers])
    tally = Tally()
    for answer in answers:
        tally.add(answer.tally)
    return tally


def plan(
    model: Path,
    source: Path,
    question: Question,
    outputs: Outputs,
    columns: Mapping[str, Any] | None = None,
    as_json: bool = False,
) -> str:
    """What `run` would do, once everything but the forecast itself has been checked."""
    outputs.require_place(model, source, question.times)
    predictor = Predictor.load(model)
    known = _read(predictor, schema_for(predictor, columns), source, question)
    _tell(known, question)
    rows, series = _rows(predictor, known, question), known.table.n_series
    places = [str(path) for path in (outputs.table, outputs.samples_table, outputs.picture) if path]
    if as_json:
        return json.dumps({"dry_run": True, "series": series, "rows": rows, "files": places}, indent=1)
    where = " and ".join(places) or "stdout"
    return f"would forecast from {series:,} series and write {rows:,} rows to {where}; nothing was written"


def require_ok(rows: Mapping[str, int]) -> None:
    """Refuse any status but ok, of which `rows` tells how many rows have each.

    Raises:
        DivergedError: some diverged. DataError: some are not ok for what was asked or known.
    """
    wrong = {status: count for status, count in rows.items() if status != "ok" and count}
    if wrong:
        counts = ", ".join(f"{count:,} {status}" for status, count in wrong.items())
        message = f"--strict expects the status ok in all {sum(rows.values()):,} rows, found {counts}; all were written"
        raise (DivergedError if "diverged" in wrong else DataError)(message)


def _tell(known: _Known, question: Question) -> None:
    """Tell what reading did to the table, and what was asked in vain."""
    for text in known.table.notes:
        note(f"note: {text}")
    if known.queries is not None and (unknown := sorted(set(known.queries.ids) - set(known.table.ids))):
        note(unknown_note(len(unknown), question.times, unknown[0]))


def _is_large(path: Path) -> bool:
    """Whether a file may hold more than a process should deal with alone; one that cannot be read does not."""
    try:
        if path.name.lower().endswith(".parquet"):
            about = pq.read_metadata(path)
            return about.num_rows * about.num_columns * 8 > _LARGE_FILE
        packed = 6 if path.name.lower().endswith(".gz") else 1
        return path.stat().st_size * packed > _LARGE_FILE
    except (OSError, pa.ArrowException):
        return False
