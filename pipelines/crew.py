"""Worker processes side by side, each with one thread, that are gone when their work is, however it ends."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from pipelines.worker import Reply, Task
from tsde.errors import TsdeError

_KEPT = str(2**26)  # bytes that a worker keeps to use again; asking for the same pages each time costs a quarter
_SETTINGS = {"OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": _KEPT, "MALLOC_MMAP_THRESHOLD_": _KEPT}


class Crew:
    """`count` workers on one folder; they start up while their first tasks are still being prepared."""

    def __init__(self, folder: Path, model: Path, places: Sequence[Path], count: int):
        self._lines: queue.Queue[tuple[int, str | None]] = queue.Queue()
        self._workers: list[subprocess.Popen[str]] = []
        self._command = [sys.executable, "-m", "pipelines.worker", str(folder), str(model), *map(str, places)]
        self._count = count

    def __enter__(self) -> Crew:
        environment = {**os.environ, **_SETTINGS, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        for number in range(self._count):
            worker = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
                process_group=0,  # Ctrl-C is for the program, which then ends them
            )
            self._workers.append(worker)
            threading.Thread(target=self._follow, args=(number, worker), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.kill()
            worker.wait()

    def work(self, tasks: Iterable[Task]) -> Iterator[Reply]:
        """Have the tasks done, each by the next worker that is free; yields replies as they come."""
        waiting = iter(tasks)
        busy = sum(self._give(number, waiting) for number in range(self._count))
        while busy:
            number, line = self._lines.get()
            if line is None:
                raise TsdeError("a forecasting process ended early; without a message above, memory may have run out")
            reply = Reply.model_validate_json(line)
            reply.raise_error()
            yield reply
            if reply.share == 1:
                busy += self._give(number, waiting) - 1

    def _give(self, number: int, waiting: Iterator[Task]) -> bool:
        """Send a worker its next task, if there is one."""
        task = next(waiting, None)
        if task is None:
            return False
        stdin = self._workers[number].stdin
        assert stdin is not None
        stdin.write(task.model_dump_json() + "\n")
        stdin.flush()
        return True

    def _follow(self, number: int, worker: subprocess.Popen[str]) -> None:
        assert worker.stdout is not None
        for line in worker.stdout:
            self._lines.put((number, line))
        self._lines.put((number, None))
