"""One of the processes that forecast a large table: `python -m pipelines.worker FOLDER MODEL OUTPUT...`.

A task is a line of JSON on the standard input, a range of series; the answers go to files in FOLDER, and the reply is
a line of JSON on the standard output. When the input ends, the work is done or whoever wanted it is gone; then a worker
clears away FOLDER and unfinished OUTPUTs, which a killed program cannot do for itself.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from pipelines.answers import Answer, Shape, Tally, arbitrary, in_order, regular
from pipelines.question import Question
from tsde.bulk import Spilled, read_part, read_questions
from tsde.errors import TsdeError
from tsde.files import clear_abandoned
from tsde.findings import Finding, TableError
from tsde.predictor import Predictor
from tsde.runs import Run, Span
from tsde.table import Reading, TableSchema

JOB = "job.json"
_BATCH = 2**18  # bytes of an answer that are read back at once


class Job(BaseModel, frozen=True):
    """What all tasks share."""

    table_schema: TableSchema
    question: Question
    shape: Shape
    table: Spilled
    queries: tuple[Run, ...] | None


class Task(BaseModel, frozen=True):
    """One range of series, to be answered or only to be checked, because another range is refused already."""

    number: int
    span: Span
    check: bool = False


class Reply(BaseModel):
    """How far a task is, and once `share` is 1, what came of it: findings in the rows, or an error of any other type.

    `unknown` counts the ids that were asked for and are not in the table, and `example` is the first of them.
    """

    number: int
    share: float
    findings: tuple[Finding, ...] = ()
    tally: Tally = Tally()
    unknown: int = 0
    example: str = ""
    error: str = ""
    message: str = ""

    def raise_error(self) -> None:
        """Raise what the worker could not handle, as the type that it was."""
        if self.error:
            kinds = {kind.__name__: kind for kind in TsdeError.__subclasses__()}
            raise kinds.get(self.error, TsdeError)(self.message)


def forecasts_file(folder: Path, number: int) -> Path:
    """Where a task leaves its forecasts."""
    return folder / f"forecasts-{number}.arrow"


def samples_file(folder: Path, number: int) -> Path:
    """Where a task leaves its samples."""
    return folder / f"samples-{number}.arrow"


def solve(folder: Path, predictor: Predictor, job: Job, task: Task) -> Iterator[Reply]:
    """Do a task; the last reply is its result."""
    try:
        found = read_part(job.table, task.span, job.table_schema, predictor.channels, predictor.clock)
    except TableError as error:
        yield Reply(number=task.number, share=1, findings=error.findings)
        return
    reply = Reply(number=task.number, share=1, findings=tuple(found.findings))
    if not task.check:
        for answer in _answers(predictor, job, task, found, reply, folder):
            reply.tally.add(answer)
            yield Reply(number=task.number, share=min(0.99, reply.tally.series / max(1, found.table.n_series)))
    yield reply


def _answers(predictor: Predictor, job: Job, task: Task, found: Reading, reply: Reply, folder: Path) -> Iterator[Tally]:
    """Answer and write; yields what came of it piece by piece."""
    if job.queries is None:
        answers = regular(predictor, found.table, job.question, job.shape)
    else:
        queries, place = read_questions(job.queries, task.span)
        unknown = np.setdiff1d(queries.ids.astype(str), found.table.ids.astype(str))
        reply.unknown, reply.example = len(unknown), str(unknown[0]) if len(unknown) else ""
        answers = in_order(arbitrary(predictor, found.table, queries, place, job.question, job.shape))
    yield from _write(folder, task.number, answers)


def _write(folder: Path, number: int, answers: Iterable[Answer]) -> Iterator[Tally]:
    writers: dict[Path, pa.ipc.RecordBatchFileWriter] = {}
    try:
        for answer in answers:
            rows = {forecasts_file(folder, number): answer.forecasts, samples_file(folder, number): answer.samples}
            for path, table in rows.items():
                if table is not None:
                    if path not in writers:
                        writers[path] = pa.ipc.new_file(str(path), table.schema)
                    writers[path].write_table(table, max_chunksize=_BATCH * len(table) // table.nbytes + 1)
            yield answer.tally
    finally:
        for writer in writers.values():
            writer.close()


def _work(folder: Path, model: Path) -> None:
    """A worker's whole life."""
    parent = os.getppid()
    predictor = Predictor.load(model)
    job: Job | None = None
    for line in sys.stdin:
        task = Task.model_validate_json(line)
        job = job or Job.model_validate_json((folder / JOB).read_bytes())
        try:
            for reply in solve(folder, predictor, job, task):
                _send(reply)
                if os.getppid() != parent:  # whoever wanted this result is gone
                    return
        except (TsdeError, OSError) as error:
            kind = "CannotWriteError" if isinstance(error, OSError) else type(error).__name__
            _send(Reply(number=task.number, share=1, error=kind, message=str(error)))


def _send(reply: Reply) -> None:
    os.write(1, (reply.model_dump_json() + "\n").encode())


if __name__ == "__main__":
    place, source, *outputs = map(Path, sys.argv[1:])
    try:
        _work(place, source)
    except BrokenPipeError:
        raise SystemExit(1) from None
    finally:
        shutil.rmtree(place, ignore_errors=True)
        for path in outputs:
            clear_abandoned(Path(os.path.realpath(path)))
