"""Solvers against closed forms: order of convergence, exact rotation, change of time, dense output."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from torch import Tensor

from tsde.flow import (
    DenseSolution,
    Rotation,
    Solver,
    cheap_tanh,
    flow,
    semilinear,
)
from tsde.scans.pairs import to_complex, to_real

METHODS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}


def slope(errors: list[float]) -> float:
    """Order of convergence: the slope of log error against log step, where the step halves each time."""
    return float(-np.polyfit(np.arange(len(errors)), np.log2(errors), 1)[0])


def logistic(s: float, z: Tensor) -> Tensor:
    """z' = (1 + cos s) z (1 - z); z = 1 / (1 + (1 / z0 - 1) exp(-s - sin s))."""
    return (1 + math.cos(s)) * z * (1 - z)


@pytest.mark.parametrize("method", METHODS)
def test_order_of_convergence(method: str) -> None:
    start = torch.tensor([[0.1], [0.3], [0.8], [1.5]], dtype=torch.float64)
    exact = 1 / (1 + (1 / start - 1) * math.exp(-1 - math.sin(1)))
    steps = (16, 32, 64, 128)
    errors = [
        float((flow(logistic, start, Solver(method=method, substeps=n)) - exact).abs().max())  # type: ignore[arg-type]
        for n in steps
    ]
    assert slope(errors) == pytest.approx(METHODS[method], abs=0.2)
    assert errors[-1] < 64.0 ** -METHODS[method]


@pytest.mark.parametrize("method", METHODS)
def test_change_of_time_matches_separate_solves(method: str) -> None:
    """dz/dt = f(t, z) over a gap of each row's own is dz/ds = gap f(t0 + gap s, z) over the unit interval."""
    random = np.random.default_rng(0)
    start, t0, gap = random.normal(size=(5, 2)), random.uniform(0, 9, 5), random.uniform(0, 0.7, 5)
    gap[2] = 0.0

    def pendulum(t: float, z: np.ndarray) -> np.ndarray:
        return np.array([z[1], np.cos(t) - np.sin(z[0])])

    expected = [
        solve_ivp(pendulum, (t, t + g), z, rtol=1e-11, atol=1e-12).y[:, -1]
        for t, g, z in zip(t0, gap, start, strict=True)
    ]
    clock, width = torch.from_numpy(t0), torch.from_numpy(gap)

    def field(s: float, z: Tensor) -> Tensor:
        t = clock + width * s
        return width[:, None] * torch.stack([z[:, 1], torch.cos(t) - torch.sin(z[:, 0])], 1)

    solved = flow(field, torch.from_numpy(start), Solver(method=method, substeps=400))  # type: ignore[arg-type]
    np.testing.assert_allclose(solved.numpy(), expected, atol=2e-3 if method == "euler" else 2e-6)
    assert torch.equal(solved[2], torch.from_numpy(start)[2])  # no time passed


def test_a_row_that_diverges_stays_alone() -> None:
    start = torch.tensor([[1.0], [1e30], [0.5]])
    solved = flow(lambda s, z: z**3, start, Solver(method="rk4"))
    assert not torch.isfinite(solved[1]).any()
    assert torch.equal(solved[[0, 2]], flow(lambda s, z: z**3, start[[0, 2]], Solver(method="rk4")))


def test_gradients_flow_through_a_solve() -> None:
    rate = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    solved = flow(lambda s, z: rate * z, torch.ones(1, 1, dtype=torch.float64), Solver(method="rk4", substeps=8))
    (gradient,) = torch.autograd.grad(solved.sum(), rate)
    assert float(gradient) == pytest.approx(math.exp(0.3), rel=1e-6)


def test_cheap_tanh_is_tanh() -> None:
    x = torch.linspace(-20, 20, 1001, dtype=torch.float64)
    torch.testing.assert_close(cheap_tanh(x), torch.tanh(x), rtol=0, atol=1e-14)


def rotation(dtype: torch.dtype = torch.float64) -> Rotation:
    return Rotation(torch.tensor([0.01, 0.5, 2.0, 30.0]).to(dtype), torch.tensor([0.0, 3.0, -7.0, 40.0]).to(dtype))


def test_rotation_is_a_one_parameter_group() -> None:
    gaps = torch.rand(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turn = rotation()
    assert torch.equal(turn.over(torch.zeros(3, dtype=torch.float64)), torch.ones(3, 4, dtype=torch.complex128))
    torch.testing.assert_close(turn.over(gaps[:, 0]) * turn.over(gaps[:, 1]), turn.over(gaps.sum(1)))
    assert turn.over(gaps).shape == (6, 2, 4)


def test_rotation_is_the_exponential() -> None:
    lam = -rotation().decay.numpy() + 1j * rotation().frequency.numpy()
    for gap in (0.0, 1e-9, 0.3, 5.0, 1e6):
        found = rotation().over(torch.tensor(gap, dtype=torch.float64)).numpy()
        np.testing.assert_allclose(found, np.exp(lam * gap), rtol=1e-8, atol=1e-12)


def test_rotation_stays_bounded_over_long_gaps() -> None:
    turned = rotation(torch.float32).over(torch.tensor([1e3, 1e8, 1e30]))
    assert torch.isfinite(torch.view_as_real(turned)).all() and (turned.abs() <= 1).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("gap", [0.0, 1e-3, 1 / 24, 0.5, 3.0])
def test_drive_is_the_integral_of_the_rotation(gap: float, dtype: torch.dtype, tolerance: float) -> None:
    nodes, weights = np.polynomial.legendre.leggauss(200)
    s = gap * (nodes + 1) / 2
    decay, frequency = (x.double().numpy() for x in rotation())
    kernel = np.exp((-decay + 1j * frequency) * (gap - s)[:, None])
    found = rotation(dtype).drive(torch.tensor(gap, dtype=dtype)).numpy()
    np.testing.assert_allclose(found, gap / 2 * weights @ kernel, rtol=tolerance, atol=tolerance * gap)


def linear_system() -> tuple[Rotation, Tensor, Tensor, Tensor]:
    """lambda, and g(z) = G z + c on two complex modes with G stiff enough to matter; start `(3, 2)`."""
    turn = Rotation(torch.tensor([0.5, 4.0]).double(), torch.tensor([6.0, -11.0]).double())
    matrix = torch.tensor([[0.3 + 0.5j, -1.0], [0.8j, -0.6]], dtype=torch.complex128)
    constant = torch.tensor([1.0 - 0.5j, 0.2j], dtype=torch.complex128)
    start = torch.tensor([[1.0, 0.5j], [-1j, 2.0], [0.0, 0.0]], dtype=torch.complex128)
    return turn, matrix, constant, start


def solve_linear(steps: int, leads: Tensor) -> Tensor:
    turn, matrix, constant, start = linear_system()
    return semilinear(turn, lambda z: z @ matrix.T + constant, start, leads, steps).at(leads)


def exact_linear(leads: Tensor) -> np.ndarray:
    """The affine system as one matrix exponential of the state with a one appended, `(N, H, 2)`."""
    turn, matrix, constant, start = linear_system()
    whole = np.zeros((3, 3), complex)
    whole[:2, :2] = np.diag((-turn.decay + 1j * turn.frequency).numpy()) + matrix.numpy()
    whole[:2, 2] = constant.numpy()
    rows = np.concatenate([start.numpy(), np.ones((3, 1))], 1)
    return np.array([[(expm(whole * t) @ z)[:2] for t in lead] for z, lead in zip(rows, leads.numpy(), strict=True)])


OFF_GRID = torch.tensor([[0.0, 0.013, 0.5, 1.0], [0.77, 0.25, 1.31, 0.61], [0.999, 1.49, 0.1, 0.33]]).double()


def test_semilinear_against_the_matrix_exponential() -> None:
    exact = exact_linear(OFF_GRID)
    errors = [float(np.abs(solve_linear(n, OFF_GRID).numpy() - exact).max()) for n in (16, 32, 64, 128)]
    assert slope(errors) == pytest.approx(2, abs=0.2)
    assert errors[-1] < 1e-3


def test_semilinear_is_exact_for_a_constant_drive() -> None:
    """Without a state in g the exponential rule is the solution, at any step and at any lead."""
    turn, _, constant, start = linear_system()
    solution = semilinear(turn, lambda z: constant.expand_as(z), start, OFF_GRID, 3).at(OFF_GRID)
    expected = turn.over(OFF_GRID) * start[:, None] + turn.drive(OFF_GRID) * constant
    torch.testing.assert_close(solution, expected, rtol=1e-12, atol=1e-12)


def test_dense_output_passes_through_the_grid_and_the_start() -> None:
    turn, matrix, constant, start = linear_system()
    solution = semilinear(turn, lambda z: z @ matrix.T + constant, start, torch.tensor([[1.0]]), 5)
    assert isinstance(solution, DenseSolution) and len(solution.states) == 6
    knots = solution.at(torch.arange(6).double()[None].expand(3, -1) / 5)
    torch.testing.assert_close(knots, solution.states.transpose(0, 1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(solution.at(torch.zeros(3, 1).double())[:, 0], start)


def test_dense_output_is_continuous_at_the_knots() -> None:
    leads = torch.tensor([[k / 12 + side for k in range(1, 12) for side in (-1e-9, 1e-9)]] * 3).double()
    found = solve_linear(12, leads).unflatten(1, (11, 2))
    torch.testing.assert_close(found[:, :, 0], found[:, :, 1], rtol=0, atol=1e-6)


def test_a_later_query_leaves_the_earlier_ones_as_they_were() -> None:
    later = torch.cat([OFF_GRID, torch.full((3, 1), 3.7).double()], 1)
    assert torch.equal(solve_linear(12, later)[:, :-1], solve_linear(12, OFF_GRID))


@pytest.mark.parametrize("steps", [5, 12])
def test_a_query_on_the_last_knot_does_not_depend_on_later_ones(steps: int) -> None:
    """Bit for bit, in single precision: a whole horizon is the commonest lead, asked beside near ones or far ones."""
    turn = Rotation(torch.tensor([0.5, 4.0]), torch.tensor([6.0, -11.0]))
    start = torch.tensor([[1.0, 0.5j], [-1j, 2.0]], dtype=torch.complex64)

    def solve(leads: Tensor) -> Tensor:
        return semilinear(turn, lambda z: torch.tanh(z.real) + 0.3j * z, start, leads, steps).at(leads)

    for lead in (1.0, 1.0 + 1e-6, 2.0):
        near, far = (solve(torch.tensor([[lead, other]] * 2))[:, 0] for other in (0.3, 3.5))
        assert torch.equal(near, far), f"lead {lead}"


def test_complex_and_real_views_are_inverse() -> None:
    x = torch.arange(12.0).reshape(3, 4)
    assert to_complex(x).shape == (3, 2) and to_complex(x)[1, 0] == 4 + 5j
    assert torch.equal(to_real(to_complex(x)), x)
