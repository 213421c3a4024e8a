"""Work as it happens, on stderr: a bar on a terminal, and of training a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tsde.training import Progress

_EVERY = 10.0  # seconds between plain lines


@contextmanager
def training_progress(members: int, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """Yields the callback that shows each validation."""
    if quiet:
        yield lambda progress: None
    elif sys.stderr.isatty():
        with _bar(members) as report:
            yield report
    else:
        yield _lines(members)


@contextmanager
def _bar(members: int) -> Iterator[Callable[[Progress], None]]:
    from rich import progress as rich
    from rich.console import Console

    columns = (rich.TextColumn("{task.description}"), rich.BarColumn(bar_width=20), rich.TimeElapsedColumn())
    shares = dict.fromkeys(range(members), 0.0)  # members train side by side
    with rich.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("fitting the baselines, starting", total=members)

        def report(progress: Progress) -> None:
            if progress.trial is None:
                shares[progress.member] = progress.share
            bar.update(task, completed=sum(shares.values()), description=_sentence(progress, members))

        yield report
        bar.update(task, completed=members)  # a member that stopped early is done too


@contextmanager
def forecast_progress(quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """Yields the callback that shows what is being done, and how much of it: a share, zero while that is unknown."""
    if quiet or not sys.stderr.isatty():
        yield lambda doing, share: None
        return
    from rich import progress as rich
    from rich.console import Console

    columns = (rich.TextColumn("{task.description}"), rich.BarColumn(bar_width=20), rich.TimeElapsedColumn())
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("start", total=None)
        yield lambda doing, share: bar.update(task, description=doing, completed=share, total=1.0 if share else None)


def _lines(members: int) -> Callable[[Progress], None]:
    last = 0.0

    def report(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if progress.share >= 1 or now - last >= _EVERY:
            last = now
            print(f"{_sentence(progress, members)}, {progress.elapsed:.0f} s", file=sys.stderr)

    return report


def _sentence(progress: Progress, members: int) -> str:
    scores = f"validation CRPS {progress.validation_crps:.4f} (best {progress.best:.4f})"
    who = f"trial of {progress.trial}," if progress.trial else f"member {progress.member + 1}/{members}"
    return f"{who} step {progress.step} {scores}"
