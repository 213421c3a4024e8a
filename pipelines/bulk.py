"""Forecasts of a table of any size: spilled to disk in parts of whole series, answered by workers, put together."""

from __future__ import annotations

import itertools
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipelines import pictures
from pipelines.answers import Shape, Tally, by_place
from pipelines.messages import note
from pipelines.question import Outputs, Question, unknown_note
from pipelines.rows import SAMPLE_COLUMNS, is_text, write_table
from pipelines.worker import JOB, Job, Reply, Task, forecasts_file, samples_file
from tsde.blocks import merged
from tsde.bulk import read_part, read_questions, spill_queries, spill_table
from tsde.crew import Crew
from tsde.errors import CannotWriteError
from tsde.files import staged
from tsde.findings import Finding, TableError
from tsde.plot import save_figure
from tsde.predictor import Predictor
from tsde.runs import Run, Span, spans
from tsde.table import TableSchema

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Report = Callable[[str, float], None]
_ROWS = 2**17  # of the output that are put in order at once
_PARTS = 4  # for each worker, so that all end at about the same time
_LEAST = 2**22  # bytes of a part, unless there is but one
_KEPT = str(2**26)  # bytes that a worker keeps to use again; asking for the same pages each time costs a quarter
_SETTINGS = {"OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": _KEPT, "MALLOC_MMAP_THRESHOLD_": _KEPT}


@dataclass(frozen=True)
class Sizes:
    """How much is held at once, in bytes: of the file while it is read, and of a part by each worker."""

    block: int = 2**24
    part: int = 2**26


@contextmanager
def scratch(outputs: Outputs) -> Iterator[Path]:
    """A folder beside the output, so on a disk that has room, which is gone at the end, also after a SIGTERM.

    What a run that was killed left is removed by the next one that writes the same output.
    """
    with ExitStack() as stack:
        try:
            if outputs.table is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tsde-")))
            else:
                place = outputs.table.with_name(f"{outputs.table.name}.parts")
                folder = stack.enter_context(staged(place, folder=True))
        except OSError as error:
            raise CannotWriteError(f"cannot write beside {outputs.table}: {error.strerror or error}") from error
        yield folder


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM unwind the stack as an interrupt does, so that nothing is left behind."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.getsignal(signal.SIGTERM)
    with suppress(ValueError):  # only the main thread may
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        with suppress(ValueError):
            signal.signal(signal.SIGTERM, before)


def forecasters(folder: Path, model: Path, places: Sequence[Path], count: int) -> Crew[Task, Reply]:
    """`count` processes that forecast parts of a table spilled to `folder`, and clear it away if this one is killed."""

    def read(line: str) -> tuple[Reply, bool]:
        reply = Reply.model_validate_json(line)
        reply.raise_error()
        return reply, reply.share == 1

    command = ["pipelines.worker", str(folder), str(model), *map(str, places)]
    return Crew(command, _SETTINGS, count, Task.model_dump_json, read, "forecasting", "no file was written")


def run(
    predictor: Predictor,
    model: Path,
    schema: TableSchema,
    source: Path,
    question: Question,
    outputs: Outputs,
    workers: int,
    report: Report,
    sizes: Sizes = Sizes(),
) -> Tally | None:
    """Forecast a table of any size with `workers` processes.

    Returns:
        None, and nothing is written, if its times can only be read all together.
    """
    names = predictor.columns(question.levels)
    places = [path for path in (outputs.table, outputs.samples_table) if path is not None]
    with terminable(), scratch(outputs) as folder, forecasters(folder, model, places, workers) as crew:
        shape = Shape(is_text(outputs.table), outputs.samples, is_text(outputs.samples_table))

        def read(row: int) -> None:
            report(f"read {row:,} rows", 0.0)

        table = spill_table(source, schema, predictor.channels, predictor.clock, folder, read, sizes.block)
        queries: Sequence[Run] | None = None
        if question.times is not None:
            weight = 200 + len(predictor.channels) * (300 + 150 * outputs.samples)
            queries = spill_queries(question.times, schema, predictor.clock, folder, weight, sizes.block)
        if table is None or (question.times is not None and queries is None):
            return None
        pa.default_memory_pool().release_unused()  # what reading took, which the workers need now
        job = Job(table_schema=schema, question=question, shape=shape, table=table, queries=queries)
        (folder / JOB).write_text(job.model_dump_json())
        runs = [*table.runs, *(queries or [])]
        share = sum(sum(run.weights) for run in runs) // (_PARTS * workers)
        outcome = Outcome(job, spans(runs, min(max(share, _LEAST), sizes.part)))
        numbers: Iterable[int] = outcome.finished(crew, report)
        window = None
        if queries is not None:
            numbers = list(numbers)  # the first question may be about the last series
            window = max(1, _ROWS // len(predictor.channels) // max(1, outputs.samples))
        write_table(outputs.table, names, _rows(folder, forecasts_file, numbers, window))
        if outputs.samples_table is not None:
            keys = [*names[:3], *SAMPLE_COLUMNS]
            numbers = range(len(outcome.spans))
            write_table(outputs.samples_table, keys, _rows(folder, samples_file, numbers, window))
        outcome.say_notes()
        if outputs.picture is not None:
            save_figure(_picture(predictor, job, outcome.spans[0]), outputs.picture)
    return outcome.tally


class Outcome:
    """What comes of the parts of a table, in their order."""

    def __init__(self, job: Job, spans: Sequence[Span]):
        self.job, self.spans, self.tally = job, spans, Tally()
        self._replies: dict[int, Reply] = {}

    def finished(self, crew: Crew[Task, Reply], report: Report) -> Iterator[int]:
        """Have all parts done; yields their numbers in order, each as soon as it and those before it are done.

        Raises:
            TableError: a row of any part holds an error; then the rest of the parts are only checked.
        """
        shares = np.zeros(len(self.spans))
        for reply in crew.work(self._tasks()):
            shares[reply.number] = reply.share
            report("forecast", float(shares.mean()))
            if reply.share == 1:
                before = self._done()
                self._replies[reply.number] = reply
                self.tally.add(reply.tally)
                if not self._refused():
                    yield from range(before, self._done())
        if self._refused():
            raise TableError(self._findings())

    def say_notes(self) -> None:
        """Tell what reading did to the table, and what was asked in vain."""
        for finding in self._findings():
            note(f"note: {finding.message}")
        unknown = [reply for _, reply in sorted(self._replies.items()) if reply.unknown]
        if unknown:
            count = sum(reply.unknown for reply in unknown)
            note(unknown_note(count, self.job.question.times, unknown[0].example))

    def _tasks(self) -> Iterator[Task]:
        for number, span in enumerate(self.spans):
            yield Task(number=number, span=span, check=self._refused())

    def _done(self) -> int:
        """How many parts from the first on are done."""
        return next(number for number in itertools.count() if number not in self._replies)

    def _refused(self) -> bool:
        return any(finding.severity == "error" for reply in self._replies.values() for finding in reply.findings)

    def _findings(self) -> list[Finding]:
        table = self.job.table
        found = [finding for _, reply in sorted(self._replies.items()) for finding in reply.findings]
        return merged([*table.notes, *found], table.name, table.unit)


def _rows(
    folder: Path, file: Callable[[Path, int], Path], numbers: Iterable[int], window: int | None
) -> Iterator[pa.Table]:
    """The encoded rows of all parts, one after the other, or by place with `window` questions at a time."""
    if window is None:
        for number in numbers:
            yield from _batches(file(folder, number))
            file(folder, number).unlink()
        return
    cursors = [Cursor(file(folder, number)) for number in numbers]
    for bound in itertools.count(window, window):
        pieces = [piece for cursor in cursors for piece in cursor.until(bound)]
        if pieces:
            yield by_place(pieces)
        elif all(cursor.at_end for cursor in cursors):
            return


def _batches(path: Path) -> Iterator[pa.Table]:
    with pa.OSFile(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            yield pa.table(reader.get_batch(number))


class Cursor:
    """A place in a file of rows sorted by their last column, `place`; the file is open only while it is read."""

    def __init__(self, path: Path):
        self._path, self._next = path, 0
        self._rest = self._read()

    @property
    def at_end(self) -> bool:
        return self._rest is None

    def until(self, bound: int) -> list[pa.Table]:
        """The next rows, as far as their place is below the bound."""
        pieces = []
        while self._rest is not None:
            cut = int(np.searchsorted(self._rest.column("place").to_numpy(), bound))
            pieces.append(self._rest.slice(0, cut))
            if cut < len(self._rest):
                self._rest = self._rest.slice(cut)
                break
            self._rest = self._read()
        return pieces

    def _read(self) -> pa.Table | None:
        with pa.OSFile(str(self._path)) as source:
            reader = pa.ipc.open_file(source)
            self._next += 1
            return pa.table(reader.get_batch(self._next - 1)) if self._next <= reader.num_record_batches else None


def _picture(predictor: Predictor, job: Job, span: Span) -> Figure:
    """A fan chart of a few series of one part."""
    table = read_part(job.table, span, job.table_schema, predictor.channels, predictor.clock).table
    queries = None if job.queries is None else read_questions(job.queries, span)[0]
    return pictures.of_answers(predictor, table, queries, job.question)
