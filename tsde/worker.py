"""A process that trains members: `python -m tsde.worker FOLDER LAUNCHED`, started and fed by `tsde.members`.

It begins by listening to its standard input, before the seconds that importing takes: the input ends when the process
that started this one does, however that happened, and then nobody is left to want a result.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path


def _listen(members: queue.Queue[int]) -> None:
    for line in os.fdopen(0):
        members.put(int(line))
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    members: queue.Queue[int] = queue.Queue()
    threading.Thread(target=_listen, args=(members,), daemon=True).start()
    from tsde.members import work

    try:
        work(Path(sys.argv[1]), iter(members.get, None), time.monotonic() - float(sys.argv[2]))
    except (BrokenPipeError, KeyboardInterrupt):
        raise SystemExit(130) from None
