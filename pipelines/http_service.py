"""From an accepted request to its forecast: one thread reads, one thread computes, and a few requests may wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np
import pandas as pd
from fastapi import Request, Response
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

import tsde
from pipelines.card import Card
from pipelines.http_guard import read_body, until_gone
from pipelines.http_models import (
    Forecast,
    Limits,
    Question,
    Refusal,
    about_times,
    fields,
    frame,
    question,
    refusal,
    require,
)
from tsde.clock import Clock
from tsde.errors import UsageError
from tsde.predictor import Predictor
from tsde.table import Queries, Table, TableError, TableSchema, read_queries, read_table

_PIECE = 2**13  # cells between two looks at the clock: some tenths of a second


class Metadata(BaseModel, frozen=True):
    """What is served: `manifest` is the SHA-256 of the model's manifest, which has that of every file."""

    tsde: str
    manifest: str
    family: str
    channels: tuple[str, ...]
    horizon: str | float
    clock: Clock
    columns: TableSchema
    limits: Limits
    card: dict[str, Any] | None


class State(BaseModel, frozen=True):
    """`ok`, or why not."""

    status: str


class Job:
    """A request from its acceptance on: when it is over, and whether anybody still waits for it."""

    def __init__(self, seconds: float) -> None:
        self.deadline, self.wanted = time.monotonic() + seconds, True

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def check(self) -> None:
        """Give up what nobody waits for any more.

        Raises:
            Refusal: 503.
        """
        if not self.wanted or self.left <= 0:
            raise late()


def late() -> Refusal:
    """What a request hears that took too long."""
    message = "the forecast was not ready in time; ask for fewer series or times, or when the service has less to do"
    return refusal(HTTPStatus.SERVICE_UNAVAILABLE, "E-TIMEOUT", message)


@dataclass(frozen=True)
class Asked:
    """A request that was read and found sound."""

    question: Question
    table: Table
    queries: Queries

    def facts(self) -> dict[str, int]:
        """Its size, for the log."""
        sizes = {"series": self.table.n_series, "rows": self.table.n_rows, "times": len(self.queries.ids)}
        return sizes | {"samples": self.question.samples}


class Service:
    """A predictor, a thread that reads requests, a thread that computes, and a bounded number of requests before them.

    All arithmetic runs in one thread, one request after the other, so that the number of threads that torch uses, a
    setting of the whole process, is the same for all.
    """

    def __init__(self, predictor: Predictor, limits: Limits, manifest: str = "") -> None:
        self.predictor, self.limits, self.manifest = predictor, limits, manifest
        self._reader = ThreadPoolExecutor(1, "tsde-read")
        self._computer = ThreadPoolExecutor(1, "tsde-compute")
        self._accepted = 0
        self._piece_began: float | None = None

    async def forecast(self, request: Request) -> Response:
        """Forecast every series of a table, as `tsde forecast` does."""
        with self._place() as job:
            body = await read_body(request, self.limits.body, min(self.limits.reading, job.left))
            request.state.facts["bytes"] = len(body)
            work = asyncio.ensure_future(self._work(job, body, request.state.facts))
            gone = asyncio.ensure_future(until_gone(request))
            try:
                await asyncio.wait({work, gone}, timeout=job.left, return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    return Response(work.result(), media_type="application/json")
                raise ClientDisconnect if gone.done() else late()
            finally:
                job.wanted = False  # a thread that is at it stops at its next look
                work.cancel()
                gone.cancel()

    async def metadata(self) -> Metadata:
        """Which model this is, what it expects and what it was trained on."""
        experiment, card = self.predictor.experiment, Card.of(self.predictor)
        return Metadata(
            tsde=tsde.__version__,
            manifest=self.manifest,
            family=experiment.model.family,
            channels=self.predictor.channels,
            horizon=experiment.horizon,
            clock=self.predictor.clock,
            columns=experiment.data,
            limits=self.limits,
            card=card and card.model_dump(mode="json", exclude={"scores", "curves"}),
        )

    async def healthz(self) -> State:
        """Whether the process answers."""
        return State(status="ok")

    async def readyz(self, response: Response) -> State:
        """Whether forecasts come: not if one step of a computation has taken longer than two requests may."""
        if self._piece_began is not None and time.monotonic() - self._piece_began > 2 * self.limits.timeout:
            response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
            return State(status="the computation is stuck")
        return State(status="ok")

    def close(self) -> None:
        """Let accepted work end and the threads with it."""
        self._reader.shutdown()
        self._computer.shutdown()

    @contextmanager
    def _place(self) -> Iterator[Job]:
        if self._accepted >= self.limits.queue:
            message = f"{self._accepted} requests are being answered, as many as may wait; try again a little later"
            raise refusal(HTTPStatus.TOO_MANY_REQUESTS, "E-BUSY", message, Retry_After="1")
        self._accepted += 1
        try:
            yield Job(self.limits.timeout)
        finally:
            self._accepted -= 1

    async def _work(self, job: Job, body: bytes, facts: dict[str, Any]) -> bytes:
        loop = asyncio.get_running_loop()
        asked = await loop.run_in_executor(self._reader, self.read, job, body)
        facts |= asked.facts()
        found = await loop.run_in_executor(self._computer, self.compute, job, asked)
        return await loop.run_in_executor(self._reader, found.encode)

    def read(self, job: Job, body: bytes) -> Asked:
        """A body as a table and what is asked of it.

        Raises:
            Refusal: whatever is wrong with it.
        """
        job.check()
        asked = question(body)
        try:
            schema = asked.schema_of(self.predictor.experiment.data)
            channels, clock = self.predictor.channels, self.predictor.clock
            require(len(asked.rows) * len(channels), self.limits.cells, "rows by channels")
            records = frame(asked.rows, "rows", self.limits)
            table = read_table(records, schema, expected_channels=channels, expected_clock=clock)
            require(table.n_series, self.limits.series, "series")
            return Asked(asked, table, self._queries(asked, table, schema))
        except ValidationError as error:
            raise fields(error) from error
        except TableError as error:
            errors_first = sorted(error.findings, key=lambda finding: finding.severity)
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, *errors_first) from error
        except UsageError as error:
            raise refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "E-QUESTION", str(error)) from error

    def _queries(self, asked: Question, table: Table, schema: TableSchema) -> Queries:
        if asked.times is not None:
            try:
                queries = read_queries(frame(asked.times, "times", self.limits), schema, self.predictor.clock)
            except TableError as error:
                raise about_times(error) from error
        else:
            horizon = self.predictor.experiment.horizon if asked.horizon is None else asked.horizon
            reach = self.predictor.clock.parse_duration(horizon)
            stride = reach if asked.step is None else self.predictor.clock.parse_duration(asked.step)
            require(table.n_series * max(1.0, reach / stride), self.limits.times, "times")
            queries = self.predictor.queries(table, horizon, asked.step)
        self.predictor.columns(asked.levels)
        require(asked.samples, self.limits.samples, "samples")
        numbers = 2 + 2 * len(asked.levels) + asked.samples
        require(len(queries.ids) * len(self.predictor.channels) * numbers, self.limits.values, "numbers to answer")
        return queries

    def compute(self, job: Job, asked: Asked) -> Forecast:
        """The forecast, some series at a time, which changes none of it; between two pieces a job may be given up.

        Raises:
            Refusal: 503 when it is over.
        """
        channels = len(self.predictor.channels)
        frames, drawn, places = [], [], []
        try:
            for table, queries, place in self._pieces(asked):
                job.check()
                self._piece_began = time.monotonic()
                found = self.predictor.answer(table, queries, asked.question.seed, asked.question.samples)
                frames.append(self.predictor.frame(found, queries, asked.question.levels))
                places.append(place)
                if found.samples is not None:
                    drawn.append(found.samples.reshape(asked.question.samples, -1).T)
        finally:
            self._piece_began = None
        rows = (np.concatenate(places)[:, None] * channels + np.arange(channels)).ravel()
        order = np.argsort(rows)
        whole = pd.concat(frames, ignore_index=True).iloc[order]
        return Forecast(whole, np.concatenate(drawn)[order] if drawn else None, asked.table.notes)

    def _pieces(self, asked: Asked) -> Iterator[tuple[Table, Queries, np.ndarray]]:
        """The work cut between series: their tables, their queries, and where those stand in the question."""
        table, queries = asked.table, asked.queries
        owner = pd.Index(table.ids).get_indexer(pd.Index(queries.ids)).clip(min=0)  # an unknown id goes with the first
        cost = np.bincount(owner, minlength=table.n_series) * len(self.predictor.channels) + 32
        piece = np.cumsum(cost) // _PIECE
        for number in np.unique(piece[owner]):
            place = np.flatnonzero(piece[owner] == number)
            part = Queries(queries.ids[place], queries.times[place], queries.labels[place])
            yield table.select(np.flatnonzero(piece == number)), part, place
