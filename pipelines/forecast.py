"""Forecasts of a table's series as a table, written whole or not at all."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines import pictures
from pipelines.data import table_for
from pipelines.messages import note
from tsde.errors import DataError, DivergedError, UsageError
from tsde.files import write_file
from tsde.plot import save_figure
from tsde.predictor import Predictor
from tsde.table import Queries, Table, read_queries

SUFFIXES = (".csv", ".csv.gz", ".parquet")


@dataclass(frozen=True)
class Question:
    """What is asked: regular times up to a horizon after each series' last row, or the rows of a table of times.

    Raises:
        UsageError: both kinds at once, or neither.
    """

    horizon: str | None = None
    step: str | None = None
    times: Path | None = None
    levels: Sequence[float] = (80.0,)
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.horizon is None) == (self.times is None):
            found = "both" if self.horizon else "neither"
            raise UsageError(f"expected --horizon (with --step if you like) or else --times, got {found}")
        if self.step is not None and self.horizon is None:
            raise UsageError("--step divides a --horizon; a table of --times says by itself when")
        object.__setattr__(self, "levels", tuple(dict.fromkeys(self.levels)))

    def queries(self, predictor: Predictor, table: Table, columns: Mapping[str, Any]) -> Queries:
        """The question as (series, time) pairs."""
        if self.times is None:
            assert self.horizon is not None
            return predictor.queries(table, self.horizon, self.step)
        schema = predictor.experiment.data.model_copy(update=dict(columns))
        queries = read_queries(self.times, schema, predictor.clock)
        unknown = sorted(set(queries.ids) - set(table.ids))
        if unknown:
            note(f"note: {len(unknown)} ids of {self.times} are not in the table, first {unknown[0]!r}")
        return queries


@dataclass(frozen=True)
class Outputs:
    """What to write beside returning the forecasts: their table, samples of them, a fan chart.

    Raises:
        UsageError: an unknown suffix, or samples without a place to go.
    """

    table: Path | None = None
    samples: int = 0
    samples_table: Path | None = None
    picture: Path | None = None

    def __post_init__(self) -> None:
        for path in (self.table, self.samples_table):
            if path is not None and not path.name.endswith(SUFFIXES):
                raise UsageError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}")
        if self.picture is not None and self.picture.suffix not in (".png", ".svg"):
            raise UsageError(f"{self.picture}: expected a picture that ends in .png or .svg")
        if (self.samples > 0) != (self.samples_table is not None):
            raise UsageError("--samples N and --samples-out P go together: how many, and where to")


def run(
    model: Path, source: Path, question: Question, outputs: Outputs, columns: Mapping[str, Any] | None = None
) -> pd.DataFrame:
    """Forecast the series of a table and write what was asked for."""
    predictor = Predictor.load(model)
    table = table_for(predictor, source, columns)
    queries = question.queries(predictor, table, columns or {})
    found = predictor.answer(table, queries, question.seed, outputs.samples)
    frame = predictor.frame(found, queries, question.levels)
    if outputs.samples_table is not None and found.samples is not None:
        write_file(outputs.samples_table, encode(_samples(frame, found.samples), outputs.samples_table))
    if outputs.picture is not None:
        save_figure(pictures.fan(predictor, frame, queries, question.levels, table), outputs.picture)
    if outputs.table is not None:
        write_file(outputs.table, encode(frame, outputs.table))
    return frame


def plan(
    model: Path,
    source: Path,
    question: Question,
    outputs: Outputs,
    columns: Mapping[str, Any] | None = None,
    as_json: bool = False,
) -> str:
    """What `run` would do, once everything but the forecast itself has been checked."""
    predictor = Predictor.load(model)
    table = table_for(predictor, source, columns)
    queries = question.queries(predictor, table, columns or {})
    rows = len(queries.ids) * len(predictor.channels)
    places = [str(path) for path in (outputs.table, outputs.samples_table, outputs.picture) if path]
    if as_json:
        return json.dumps({"dry_run": True, "series": table.n_series, "rows": rows, "files": places}, indent=1)
    where = " and ".join(places) or "stdout"
    return f"would forecast from {table.n_series:,} series and write {rows:,} rows to {where}; nothing was written"


def encode(frame: pd.DataFrame, path: Path) -> bytes:
    """A table as the bytes of a file of this suffix; equal tables give equal bytes."""
    if path.name.endswith(".parquet"):
        buffer = BytesIO()
        frame.to_parquet(buffer, index=False)
        return buffer.getvalue()
    text = as_csv(frame).encode()
    return gzip.compress(text, mtime=0) if path.name.endswith(".gz") else text


def as_csv(frame: pd.DataFrame) -> str:
    """CSV with nine digits, more than a float32 model knows."""
    return frame.to_csv(index=False, float_format="%.9g", lineterminator="\n")


def as_json(frame: pd.DataFrame, outputs: Outputs) -> str:
    """The summary for programs."""
    statuses = {str(name): int(count) for name, count in frame["status"].value_counts().items()}
    about = {"forecasts": str(outputs.table), "series": frame.iloc[:, 0].nunique(), "rows": len(frame)}
    return json.dumps(about | {"statuses": statuses}, indent=1)


def summary(frame: pd.DataFrame) -> str:
    """One line: how many series and rows, and what came of them."""
    counts = frame["status"].value_counts()
    statuses = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    return f"{frame.iloc[:, 0].nunique():,} series, {len(frame):,} rows: {statuses}"


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


def _samples(frame: pd.DataFrame, drawn: np.ndarray) -> pd.DataFrame:
    """Draws from each marginal, `(S, M, C)`, one row each: the forecast's keys, `sample` from 0 and `value`."""
    keys = frame.iloc[:, :3]  # id, time, channel
    count = len(drawn)
    repeated = keys.loc[keys.index.repeat(count)].reset_index(drop=True)
    return repeated.assign(sample=np.tile(np.arange(count), len(keys)), value=drawn.reshape(count, -1).T.ravel())
