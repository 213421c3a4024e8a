"""The same discretisation through torchdiffeq, torchcde and torchsde gives the same numbers and gradients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
import torchcde
import torchdiffeq
import torchsde
from torch import Tensor, nn

from tsde import adaptive
from tsde.diffusion import Method, Terms, diffuse
from tsde.flow import ControlledField, Solver, controlled, flow
from tsde.path import ControlPath, PathConfig, control_path
from tsde.series import SeriesBatch

BATCH, SIZE, CHANNELS, WIDTH = 3, 4, 2, 6
FIXED = {"euler": "euler", "midpoint": "midpoint", "heun": "heun2", "rk4": "rk4"}  # our name and theirs


def weights(*shapes: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    return [(0.7 * torch.randn(*shape, dtype=torch.float64)).requires_grad_() for shape in shapes]


def agree(found: Tensor, expected: Tensor, sources: Sequence[Tensor], tolerance: float = 1e-10) -> None:
    """Values, and gradients of a random functional of them with respect to every source."""
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert float(found.detach().abs().max()) > 0.1
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    both = (torch.autograd.grad(x, sources, weight, retain_graph=True) for x in (found, expected))
    for one, other in zip(*both, strict=True):
        assert float(other.abs().max()) > 0
        torch.testing.assert_close(one, other, rtol=10 * tolerance, atol=10 * tolerance)


# Ordinary differential equations


@pytest.mark.parametrize("substeps", [1, 5])
@pytest.mark.parametrize("method", FIXED)
def test_fixed_steps_are_those_of_torchdiffeq(method: str, substeps: int) -> None:
    start, matrix = weights((BATCH, SIZE), (SIZE, SIZE))

    def field(t: float | Tensor, z: Tensor) -> Tensor:
        return torch.sin(z @ matrix + 3 * t) * (1 + t)

    found = flow(field, start, Solver(method=method, substeps=substeps))  # type: ignore[arg-type]
    times, options = torch.tensor([0.0, 1.0]).double(), {"step_size": 1 / substeps}
    expected = torchdiffeq.odeint(field, start, times, method=FIXED[method], options=options)[-1]
    agree(found, expected, [start, matrix])


def test_adaptive_steps_are_those_of_torchdiffeq() -> None:
    """At a tight tolerance, where the norm that picks the steps no longer matters, nor a derivative of their length."""
    start, matrix = weights((BATCH, SIZE), (SIZE, SIZE))

    def field(t: float | Tensor, z: Tensor) -> Tensor:
        return torch.sin(z @ matrix + 3 * t)

    times = torch.tensor([0.0, 0.3, 1.0, 1.1]).double()
    expected = torchdiffeq.odeint(field, start, times, rtol=1e-11, atol=1e-11, method="dopri5")
    agree(adaptive.solve(field, start, times, 1e-11), expected, [start, matrix], 1e-9)


# Controlled differential equations


class TheirField(nn.Module):
    """Our field in the shape that torchcde asks for: `(B, D, P)`, the state first."""

    def __init__(self, field: ControlledField):
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        inner, inner_bias, outer, outer_bias = self.field
        hidden = nn.functional.silu(z @ inner.t() + inner_bias)
        return torch.tanh(hidden @ outer.t() + outer_bias).unflatten(-1, (-1, SIZE)).transpose(1, 2)


def observed(times: Tensor) -> tuple[SeriesBatch, Tensor]:
    """A fully observed batch at common times, and the path through it that both libraries shall follow."""
    values = torch.randn(BATCH, len(times), CHANNELS, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    clock = times.expand(BATCH, -1)
    key = torch.zeros(BATCH, dtype=torch.int64)
    batch = SeriesBatch(clock, values, torch.ones_like(values, dtype=torch.bool), key, torch.zeros(BATCH, 0))
    return batch, torch.cat([(clock - clock[:, :1])[..., None], values], -1)


GRIDS = {"even": torch.arange(6).double(), "uneven": torch.tensor([0.0, 0.7, 1.1, 2.6, 2.9, 4.0]).double()}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", ["linear", "hermite"])
def test_paths_are_those_of_torchcde(kind: str, grid: str) -> None:
    times = GRIDS[grid]
    batch, rows = observed(times)
    path = control_path(batch, PathConfig(kind=kind, counts=False))  # type: ignore[arg-type]
    theirs = their_path(kind, rows, times)
    for i, gap in enumerate(times.diff().tolist()):
        for s in (0.1, 0.5, 0.9):
            torch.testing.assert_close(path.derivative(i, s), theirs.derivative(times[i] + s * gap) * gap)


def their_path(kind: str, rows: Tensor, times: Tensor) -> torchcde.CubicSpline | torchcde.LinearInterpolation:
    if kind == "linear":
        return torchcde.LinearInterpolation(torchcde.linear_interpolation_coeffs(rows, t=times), t=times)
    return torchcde.CubicSpline(torchcde.hermite_cubic_coefficients_with_backward_differences(rows, t=times), t=times)


@pytest.mark.parametrize("substeps", [1, 2])
@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("kind", ["linear", "hermite"])
def test_controlled_solutions_are_those_of_torchcde(kind: str, method: str, substeps: int) -> None:
    """On an even grid, whose interval is the unit of time, so that steps of 1 / substeps are the same."""
    times = GRIDS["even"]
    batch, rows = observed(times)
    rows.requires_grad_()
    start, *drawn = weights(
        (BATCH, SIZE), (WIDTH, SIZE), (WIDTH,), ((CHANNELS + 1) * SIZE, WIDTH), ((CHANNELS + 1) * SIZE,)
    )
    field, solver = ControlledField(*drawn), Solver(method=method, substeps=substeps)  # type: ignore[arg-type]
    path = control_path(batch, PathConfig(kind=kind, counts=False))  # type: ignore[arg-type]
    options = {"step_size": 1 / substeps, "perturb": True}
    expected = torchcde.cdeint(
        their_path(kind, rows, times),
        TheirField(field),
        start,
        times,
        adjoint=False,
        method=FIXED[method],
        options=options,
    )
    agree(controlled(field, path, start, solver), expected.transpose(0, 1), [start, *drawn])


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("kind", ["linear", "hermite"])
def test_uneven_times_are_one_step_per_interval_of_torchcde(kind: str, method: str) -> None:
    """Our index grid is theirs after a change of time, which a Runge-Kutta step does not notice."""
    times = GRIDS["uneven"]
    batch, rows = observed(times)
    start, *drawn = weights(
        (BATCH, SIZE), (WIDTH, SIZE), (WIDTH,), ((CHANNELS + 1) * SIZE, WIDTH), ((CHANNELS + 1) * SIZE,)
    )
    field, path = ControlledField(*drawn), control_path(batch, PathConfig(kind=kind, counts=False))  # type: ignore[arg-type]
    expected = torchcde.cdeint(
        their_path(kind, rows, times), TheirField(field), start, times, adjoint=False, method=FIXED[method],
        options={"perturb": True},
    )  # fmt: skip
    found = controlled(field, path, start, Solver(method=method))  # type: ignore[arg-type]
    agree(found, expected.transpose(0, 1), [start, *drawn])


def test_gradients_reach_the_data_as_through_torchcde() -> None:
    times = GRIDS["even"]
    _, rows = observed(times)
    start, *drawn = weights(
        (BATCH, SIZE), (WIDTH, SIZE), (WIDTH,), ((CHANNELS + 1) * SIZE, WIDTH), ((CHANNELS + 1) * SIZE,)
    )
    rows.requires_grad_()
    knot = torch.arange(6).expand(BATCH, -1)
    path = ControlPath(rows[:, 0], rows.diff(dim=1), None, None, knot, torch.ones(BATCH, 5).double())
    found = controlled(ControlledField(*drawn), path, start, Solver(method="rk4"))
    expected = torchcde.cdeint(
        their_path("linear", rows, times), TheirField(ControlledField(*drawn)), start, times, adjoint=False,
        method="rk4", options={"step_size": 1.0, "perturb": True},
    )  # fmt: skip
    agree(found, expected.transpose(0, 1), [rows, start])


# Stochastic differential equations


class TheirEquation(nn.Module):
    """Posterior drift f, prior drift h and diagonal diffusion g, as torchsde names them."""

    noise_type = "diagonal"

    def __init__(self, sde_type: str, matrix: Tensor, prior: Tensor, spread: Tensor):
        super().__init__()
        self.sde_type, self.matrix, self.prior, self.spread = sde_type, matrix, prior, spread

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.sin(y @ self.matrix + t)

    def h(self, t: Tensor, y: Tensor) -> Tensor:
        return -y * self.prior

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return 0.3 + 0.5 * torch.sigmoid(y * self.spread)

    def dynamics(self, row: Tensor, z: Tensor) -> Terms:
        """The same equation as ours."""
        drift, diffusion = self.f(row, z), self.g(row, z)
        return Terms(drift, diffusion, 0.5 * ((drift - self.h(row, z)) / diffusion).square().sum(-1))


SOLVERS = [("euler", "euler", "ito"), ("reversible_heun", "reversible_heun", "stratonovich")]


@pytest.mark.parametrize(("ours", "theirs", "sense"), SOLVERS)
def test_stochastic_solutions_are_those_of_torchsde(ours: Method, theirs: str, sense: str) -> None:
    """On the same Brownian path: states, the divergence of posterior and prior, and the gradients of both."""
    start, matrix, prior, spread = weights((BATCH, SIZE), (SIZE, SIZE), (SIZE,), (SIZE,))
    equation, steps = TheirEquation(sense, matrix, prior, spread), 8
    h, times = 1 / steps, torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    # the column of the divergence wants a Brownian motion too, which nothing multiplies
    size = (BATCH, SIZE + 1)
    brownian = torchsde.BrownianInterval(0.0, 1.0, size=size, dtype=torch.float64, entropy=17, dt=h)
    shocks = [brownian(a, b)[:, :SIZE] / math.sqrt(h) for a, b in itertools.pairwise(times.tolist())]
    states, divergence = torchsde.sdeint(equation, start, times, bm=brownian, method=theirs, dt=h, logqp=True)

    found = diffuse(ours, equation.dynamics, start, times, shocks.__getitem__, h, None, (matrix, prior, spread))
    sources = [start, matrix, spread]
    agree(found.states, states, sources, 1e-9)
    agree(found.cost, divergence.sum(0), [*sources, prior], 1e-9)
