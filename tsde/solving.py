"""How the equations of one training step are solved: what is measured on the way, and what is kept for gradients.

Both are the training loop's to choose and a solver's to carry out; families know neither, so the choice travels beside
their calls, in context variables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_TINY = 1e-12


@dataclass
class Estimates:
    """A solver's own estimates of how hard its solutions are, a mean over rows for every step taken.

    error: the local error of a step relative to the state, both as root mean squares over its components.
    stiffness: |k_s - k_1| / |y_s - y_1| between two stages of a step, an estimate of the field's largest eigenvalue
        (Shampine 1977), per unit of the step's own time.
    """

    error: list[Tensor] = field(default_factory=list)
    stiffness: list[Tensor] = field(default_factory=list)

    def note(self, error: Tensor, state: Tensor, slopes: Tensor, points: Tensor) -> None:
        """Take down one step: its error and the state, and the differences of two slopes and of the points they are at.

        All are `(..., D)`.
        """
        size = state.square().mean(-1) + 1e-6
        self.error.append(((error.square().mean(-1) + _TINY) / size).sqrt().mean())
        rise, run = slopes.square().sum(-1), points.square().sum(-1)
        self.stiffness.append(((rise + _TINY) / (run + 1e-6)).sqrt().mean())


_estimates: ContextVar[Estimates | None] = ContextVar("estimates", default=None)
_chunk: ContextVar[int | None] = ContextVar("chunk", default=None)


def wanted() -> Estimates | None:
    """Where solvers take down their estimates, if anybody asks."""
    return _estimates.get()


@contextmanager
def estimating(ask: bool = True) -> Iterator[Estimates]:
    """Collect the estimates of all solutions inside."""
    estimates = Estimates()
    token = _estimates.set(estimates if ask else None)
    try:
        yield estimates
    finally:
        _estimates.reset(token)


@contextmanager
def recomputing(rows: int | None) -> Iterator[None]:
    """Inside, scans over time keep the states at every `rows`-th row only and recompute the rest for gradients."""
    token = _chunk.set(rows)
    try:
        yield
    finally:
        _chunk.reset(token)


def in_chunks(scan: Callable[..., Tensor], start: Tensor, *rows: Tensor) -> Tensor:
    """`scan(start, *rows)`, all states `(L, ...)` from rows `(L, ...)`, with as much kept as `recomputing` allows."""
    size, length = _chunk.get(), len(rows[0])
    if size is None or size >= length or not torch.is_grad_enabled():
        return scan(start, *rows)
    states = []
    for part in zip(*(row.split(size) for row in rows), strict=True):
        # scans draw nothing, so there is no state of a random generator to keep
        states.append(checkpoint(scan, start, *part, use_reentrant=False, preserve_rng_state=False))
        start = states[-1][-1].clone()  # a view would keep the states of the whole chunk
    return torch.cat(states)
