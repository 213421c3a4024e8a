"""One thread, so that a result does not depend on how many the machine offers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    # freed memory stays with a worker: to map it anew costs page faults, a sixth of a training step (glibc)
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
"""What a process that only trains or forecasts should be started with."""


@contextmanager
def single_thread() -> Iterator[None]:
    """Sums are split between threads and so rounded differently; models this small are faster on one anyway."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
