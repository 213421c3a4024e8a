"""Worker processes side by side that are spoken to in lines, and are gone when their work is, however it ends."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Generic, TypeVar

from tsde.errors import TsdeError

Task = TypeVar("Task")
Reply = TypeVar("Reply")


class Crew(Generic[Task, Reply]):
    """`count` processes of one module; they start up while their first tasks are still being prepared.

    Files and lines instead of inherited memory keep user scripts free of `if __name__ == "__main__"`.

    Args:
        command: the module, `python -m`, and its arguments.
        environment: what it sets beside this process's own.
        write: a task as a line for a worker's standard input.
        read: a line of a worker's standard output as a reply, and whether that ends its task.
        trade: of the workers, and `lost` what becomes of their work without one, for messages.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        count: int,
        write: Callable[[Task], str],
        read: Callable[[str], tuple[Reply, bool]],
        trade: str,
        lost: str,
    ):
        self._command, self._environment, self._count = [sys.executable, "-m", *command], environment, count
        self._write, self._read, self._trade, self._lost = write, read, trade, lost
        self._lines: queue.Queue[tuple[int, str | None]] = queue.Queue()
        self._workers: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Crew[Task, Reply]:
        path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            for number in range(self._count):
                worker = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, **self._environment, **path},
                    process_group=0,  # Ctrl-C reaches this process alone, which ends the workers
                )
                self._workers.append(worker)
                threading.Thread(target=self._follow, args=(number, worker), daemon=True).start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def work(self, tasks: Iterable[Task]) -> Iterator[Reply]:
        """Have the tasks done, each by the next worker that is free; yields replies as they come.

        Raises:
            TsdeError: a worker ended before its work.
        """
        waiting = iter(tasks)
        busy = sum(self._give(number, waiting) for number in range(self._count))
        while busy:
            number, line = self._lines.get()
            if line is None:
                raise TsdeError(f"a {self._trade} process {self._fate(number)}; {self._lost}")
            reply, done = self._read(line)
            yield reply
            if done:
                busy += self._give(number, waiting) - 1

    def _give(self, number: int, waiting: Iterator[Task]) -> bool:
        """Send a worker its next task, if there is one."""
        task = next(waiting, None)
        if task is None:
            return False
        stdin = self._workers[number].stdin
        assert stdin is not None
        with suppress(BrokenPipeError):  # of a worker that ended: its output ends too, and says so
            stdin.write(f"{self._write(task)}\n")
            stdin.flush()
        return True

    def _fate(self, number: int) -> str:
        status = self._workers[number].wait()
        if status < 0:
            return f"was killed by signal {-status}{' (perhaps memory ran out)' * (status == -signal.SIGKILL)}"
        return "ended early, see the message above"

    def _follow(self, number: int, worker: subprocess.Popen[str]) -> None:
        assert worker.stdout is not None
        for line in worker.stdout:
            self._lines.put((number, line))
        self._lines.put((number, None))

    def _end(self) -> None:
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.wait()
