"""Moving states through time: where ordinary and controlled differential equations are solved.

Each row of a batch has its own clock. A change of time makes one solve of them: over a gap `g`,
dz = f(t, z) dt is dz = g f(t0 + g s, z) ds with s in [0, 1], and dz = f dt + h dW is g f ds + sqrt(g) h dW_s,
exactly. Fixed steps, differentiated through (discretise, then optimise), unless adaptive ones are asked for. A row that
diverges becomes not finite and stays alone: training stops on it, forecasting gives it a status of its own.
Stochastic equations are in `diffusion.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import pad, silu

from tsde import adaptive
from tsde.adaptive import TimeField
from tsde.path import ControlPath
from tsde.scans.controlled import controlled_scan
from tsde.scans.pairs import to_complex, to_real, turns
from tsde.solving import in_chunks, wanted
from tsde.tableau import TABLEAUS, Tableau

Field_ = Callable[[Tensor], Tensor]
"""An autonomous vector field on states `(N, D)`; what does not depend on the state is a constant of its closure."""


class Solver(BaseModel):
    """A Runge-Kutta method: fixed and equal steps, or `dopri5` with steps as long as its error estimate allows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["euler", "midpoint", "heun", "rk4", "dopri5"] = "midpoint"
    substeps: int = Field(1, ge=1, description="steps per interval; adaptive methods choose their own")
    tolerance: float = Field(1e-4, gt=0, allow_inf_nan=False, description="relative and absolute, of adaptive methods")

    @property
    def adaptive(self) -> bool:
        """Whether the steps follow the error."""
        return self.method not in TABLEAUS


def cheap_tanh(x: Tensor) -> Tensor:
    """tanh(x) = 2 sigmoid(2x) - 1; nine times faster than torch's tanh on a CPU."""
    return torch.sigmoid(2 * x).mul(2).sub(1)


def flow(field: TimeField, state: Tensor, solver: Solver) -> Tensor:
    """Solve dz/ds = field(s, z) over the unit interval s in [0, 1], `(N, D)` -> `(N, D)`.

    Per-row gaps are the caller's factor in the field (the change of time above).
    """
    if solver.adaptive:
        return adaptive.solve(field, state, state.new_tensor([0.0, 1.0]), solver.tolerance)[-1]
    tableau, h = TABLEAUS[solver.method], 1.0 / solver.substeps
    for i in range(solver.substeps):
        state = _runge_kutta(field, i * h, state, h, tableau)
    return state


def _runge_kutta(field: TimeField, s: float, state: Tensor, h: float, tableau: Tableau) -> Tensor:
    """One step from `s` to `s + h`."""
    slopes: list[Tensor] = []
    point = state
    for node, weights in zip(tableau.nodes, tableau.alpha, strict=True):
        point = _combined(state, weights, slopes, h)
        slopes.append(field(s + node * h, point))
    after = _combined(state, tableau.beta, slopes, h)
    if (estimates := wanted()) is not None:
        if tableau.lower is None:  # Euler's error is what Heun's method would add
            end = field(s + h, after)
            estimates.note(h / 2 * (end - slopes[0]), after, end - slopes[0], after - state)
        else:
            error = _combined(state, tableau.lower, slopes, h) - after
            estimates.note(error, after, slopes[-1] - slopes[0], point - state)
    return after


def _combined(state: Tensor, weights: tuple[float, ...], slopes: list[Tensor], h: float) -> Tensor:
    for weight, slope in zip(weights, slopes, strict=False):
        if weight:
            state = torch.add(state, slope, alpha=weight * h)
    return state


class ControlledField(NamedTuple):
    """F(z) = tanh(B silu(A z + a) + b) in R^{P x D}, by its weights `(W, D)`, `(W,)`, `(P D, W)` and `(P D,)`."""

    inner: Tensor
    inner_bias: Tensor
    outer: Tensor
    outer_bias: Tensor

    def along(self, control: Tensor, state: Tensor) -> Tensor:
        """F(z)^T dX: `(B, P)` and `(B, D)` -> `(B, D)`."""
        hidden = silu(torch.addmm(self.inner_bias, state, self.inner.t()))
        matrix = cheap_tanh(torch.addmm(self.outer_bias, hidden, self.outer.t()))
        # a batched matrix product may round by a row's place in the batch; a sum does not
        return (matrix.unflatten(-1, (control.shape[-1], -1)) * control[..., None]).sum(1)


def controlled(
    field: ControlledField, path: ControlPath, start: Tensor, solver: Solver, rotation: Rotation | None = None
) -> Tensor:
    """dz = lambda z dt + F(z) dX along a control path: states at its grid points, `(n + 1, B, D)`, time first.

    On each interval the linear flow comes first, exactly, and then the controlled part (Lie-Trotter splitting).

    Args:
        start: z(0), `(B, D)`.
        rotation: lambda, on consecutive pairs of the state as complex modes; none means zero.
    """
    turned = None if rotation is None else rotation.over(path.elapsed.t())
    if solver.adaptive or wanted() is not None:
        return _controlled_eagerly(field, path, start, solver, turned)
    tableau = TABLEAUS[solver.method]
    if not path.intervals:
        return start[None]
    drive = path.drive(tableau.nodes, solver.substeps).unflatten(0, (path.intervals, solver.substeps))

    def scan(z: Tensor, dx: Tensor, turn: Tensor | None = None) -> Tensor:
        return controlled_scan(z, turn, dx.flatten(0, 1), *field, tableau)[solver.substeps :: solver.substeps]

    states = in_chunks(scan, start, drive, *(() if turned is None else (turned,)))
    return torch.cat([start[None], states])


def _controlled_eagerly(
    field: ControlledField, path: ControlPath, start: Tensor, solver: Solver, turns: Tensor | None
) -> Tensor:
    state, states = start, [start]
    for interval in range(path.intervals):

        def along(s: float, z: Tensor, interval: int = interval) -> Tensor:
            return field.along(path.derivative(interval, s), z)

        state = state if turns is None else to_real(to_complex(state) * turns[interval])
        state = flow(along, state, solver)
        states.append(state)
    return torch.stack(states)


class Rotation(NamedTuple):
    """Diagonal linear flow z' = lambda z of complex modes with Re lambda < 0; both `(M,)`."""

    decay: Tensor  # -Re lambda > 0
    frequency: Tensor

    @property
    def rate(self) -> Tensor:
        """lambda."""
        return torch.complex(-self.decay, self.frequency)

    def over(self, gap: Tensor) -> Tensor:
        """exp(lambda gap), exact at any gap: `(...)` -> complex `(..., M)`."""
        return _each_once(lambda gap: turns(self.decay, self.frequency, gap), gap)

    def turned(self, time: Tensor | float) -> Tensor:
        """exp(i Im lambda t), the frame that turns with the modes: `(...)` -> complex `(..., M)`."""
        angle = self.frequency * torch.as_tensor(time, dtype=self.frequency.dtype)[..., None]
        return torch.polar(torch.ones_like(angle), angle)

    def drive(self, gap: Tensor) -> Tensor:
        """Integral of exp(lambda (gap - s)) over s in [0, gap]: what a constant input adds; complex `(..., M)`."""
        return _each_once(lambda gap: torch.expm1(self.rate * gap[..., None]) / self.rate, gap)


_ALIGNED = 128  # elementwise functions may round the last few numbers of a tensor otherwise than all before them


def _each_once(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function(x)`, `(...)` -> `(..., M)`; where nothing is differentiated, once for numbers that repeat often.

    Forecasts ask all series for the same leads, and regular series have few different gaps.
    """
    if torch.is_grad_enabled() or x.numel() < 2 * _ALIGNED:
        return function(x)
    some = x.flatten()[: 2 * _ALIGNED]
    if 2 * len(some.unique()) > len(some):  # sorting them all would take as long as half of the work
        return function(x)
    distinct, place = torch.unique(x, return_inverse=True)
    if 2 * len(distinct) > x.numel():
        return function(x)
    found = function(pad(distinct, (0, -len(distinct) % _ALIGNED)))
    return found.index_select(0, place.flatten()).unflatten(0, x.shape)


def steps_until(lead: Tensor, h: float) -> Tensor:
    """Steps of a uniform grid that it takes to reach each lead, at least one: int64, the shape of `lead`.

    A lead on a grid point belongs to the step that ends there, whether or not the solution goes on.
    """
    return (lead / h).ceil().long().clamp(min=1)


_FINER = 8  # grid points cost an adaptive method no evaluations, and between them the output is of order two only


class DenseSolution(NamedTuple):
    """A semilinear solution on a uniform grid: `states (n + 1, N, M)` and drives `(n, N, M)`, complex, step `h`."""

    rotation: Rotation
    states: Tensor
    drives: Tensor
    h: float

    def at(self, lead: Tensor) -> Tensor:
        """States at `lead (N, H)` >= 0 -> complex `(N, H, M)`: z(t_i + s) = e^{lambda s} z_i + phi(s) N_i."""
        index = steps_until(lead, self.h) - 1
        rest = lead - index.to(lead.dtype) * self.h
        place = (index * len(lead) + torch.arange(len(lead), device=lead.device)[:, None]).flatten()
        before, drive = (x.flatten(0, 1).index_select(0, place).unflatten(0, lead.shape) for x in self[1:3])
        return torch.addcmul(self.rotation.over(rest) * before, self.rotation.drive(rest), drive)


def semilinear(
    rotation: Rotation, field: Field_, state: Tensor, until: Tensor, steps_per_unit: int, tolerance: float | None = None
) -> DenseSolution:
    """z' = lambda z + g(z) from lead 0 to at least `max(until)` by the exponential midpoint rule, with dense output.

        z_{i+1/2} = e^{lambda h/2} z_i + phi(h/2) g(z_i),   N_i = g(z_{i+1/2}),
        z_{i+1} = e^{lambda h} z_i + phi(h) N_i

    with phi(s) the integral of e^{lambda u} over [0, s] (Hochbruck and Ostermann 2010, "Exponential integrators",
    section 2.3). The step is fixed, so more steps for a later query leave the earlier ones as they were.

    Args:
        field: g on complex `(N, M)`.
        state: `(N, M)` complex, at lead 0.
        until: leads that will be asked for, any shape.
        tolerance: of adaptive steps, which solve for w = e^{-i Im(lambda) t} z, so that fast modes do not make them
            short, and whose own dense output fills a grid several times finer.
    """
    h = 1.0 / (steps_per_unit * (1 if tolerance is None else _FINER))
    steps = int(steps_until(until, h).max())
    half, whole = state.real.new_tensor(h / 2), state.real.new_tensor(h)
    turn_half, drive_half = rotation.over(half), rotation.drive(half)
    turn, drive = rotation.over(whole), rotation.drive(whole)
    if tolerance is not None:
        grid = torch.arange(steps + 1, device=until.device, dtype=half.dtype) * h

        def turning(t: float, w: Tensor) -> Tensor:
            w, turn = to_complex(w), rotation.turned(t)
            return to_real(turn.conj() * field(turn * w) - rotation.decay * w)

        solved = to_complex(adaptive.solve(turning, to_real(state), grid, tolerance)) * rotation.turned(grid)[:, None]
        return DenseSolution(rotation, solved, (solved[1:] - turn * solved[:-1]) / drive, h)
    estimates = wanted()
    states, drives = [state], []
    for _ in range(steps):
        slope = field(state)
        middle = torch.addcmul(turn_half * state, drive_half, slope)
        drives.append(field(middle))
        if estimates is not None:
            # in the turning frame, since that is what adaptive steps have to follow
            back = rotation.turned(h / 2).conj()
            moved = back * middle - state
            change = back * drives[-1] - slope - rotation.decay * moved
            estimates.note(to_real(h * change), to_real(middle), to_real(change), to_real(moved))
        state = torch.addcmul(turn * state, drive, drives[-1])
        states.append(state)
    return DenseSolution(rotation, torch.stack(states), torch.stack(drives), h)
