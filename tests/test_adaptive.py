"""Adaptive steps: the error that was asked for, gradients of the steps taken, and what becomes of divergence."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
import torchsde
from scipy.linalg import expm
from torch import Tensor

from tsde import adaptive
from tsde.config import Experiment
from tsde.fitting import fit_predictor
from tsde.flow import ControlledField, DenseSolution, Rotation, Solver, controlled, flow, semilinear
from tsde.models import MODELS
from tsde.path import ControlPath
from tsde.synthetic import ornstein_uhlenbeck
from tsde.table import read_table

UNIT = torch.tensor([0.0, 1.0]).double()


def logistic(s: float, z: Tensor) -> Tensor:
    """z' = (1 + cos s) z (1 - z); z = 1 / (1 + (1 / z0 - 1) exp(-s - sin s))."""
    return (1 + math.cos(s)) * z * (1 - z)


def exact_logistic(start: Tensor, times: Tensor) -> Tensor:
    return 1 / (1 + (1 / start - 1) * torch.exp(-times - times.sin())[:, None, None])


@pytest.mark.parametrize("tolerance", [1e-4, 1e-7, 1e-10])
def test_error_is_near_the_tolerance_at_every_time(tolerance: float) -> None:
    start = torch.tensor([[0.1], [0.3], [0.8], [1.5]]).double()
    times = torch.tensor([0.0, 0.1, 0.5, 1.7, 2.0]).double()
    error = (adaptive.solve(logistic, start, times, tolerance) - exact_logistic(start, times)).abs().max()
    assert 1e-4 * tolerance < float(error) < 10 * tolerance


def test_the_row_with_the_largest_error_sets_the_steps() -> None:
    """A hard row is as exact beside many easy ones as alone, where a norm over all of them would hide it."""

    def field(_: float, z: Tensor) -> Tensor:
        return torch.stack([6 * z[:, 1], -6 * z[:, 0]], 1)

    start = torch.zeros(200, 2, dtype=torch.float64)
    start[17, 0] = 1.0
    found = adaptive.solve(field, start, UNIT, 1e-6)[-1]
    torch.testing.assert_close(found[17], torch.tensor([math.cos(6), -math.sin(6)]).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(found[17], adaptive.solve(field, start[17:18], UNIT, 1e-6)[-1, 0], rtol=0, atol=1e-12)


def test_flow_is_the_solution_after_one_unit() -> None:
    start = torch.tensor([[0.2], [0.9]]).double()
    found = flow(logistic, start, Solver(method="dopri5", tolerance=1e-9))
    torch.testing.assert_close(found, exact_logistic(start, UNIT)[-1], rtol=0, atol=1e-8)


@pytest.mark.parametrize("start", [[0.0, 0.0], [0.7, -0.4], [1e-60, 0.0]])
def test_gradients_are_those_of_the_solution(start: list[float]) -> None:
    """Also of a row that rests at the origin, where a norm has no derivative."""
    state = torch.tensor([start, [1.0, 2.0]]).double().requires_grad_()
    rate = torch.tensor(0.8).double().requires_grad_()
    found = adaptive.solve(lambda _, z: rate * torch.sin(z), state, UNIT, 1e-9)[-1]
    by_state, by_rate = torch.autograd.grad(found.sum(), [state, rate])
    # tan(z(1)/2) = tan(z(0)/2) e^rate
    again = state.detach().clone().requires_grad_()
    pace = rate.detach().clone().requires_grad_()
    exact = 2 * torch.atan(torch.tan(again / 2) * pace.exp())
    expected = torch.autograd.grad(exact.sum(), [again, pace])
    torch.testing.assert_close(by_state, expected[0], rtol=0, atol=1e-7)
    torch.testing.assert_close(by_rate, expected[1], rtol=0, atol=1e-7)


DIVERGENT: dict[str, tuple[Callable[[float, Tensor], Tensor], float]] = {
    "finite time": (lambda s, z: z**2, 2.0),
    "overflow": (lambda s, z: z**3, 1e200),
    "no number in": (lambda s, z: -z, math.nan),
    "infinity in": (lambda s, z: -z, math.inf),
    "no number on the way": (lambda s, z: z * (math.nan if s > 0.5 else 1.0), 1.0),
    "stiff beyond measure": (lambda s, z: -1e9 * (z - math.cos(1e7 * s)), 0.0),
}


@pytest.mark.parametrize("kind", DIVERGENT)
def test_divergence_is_not_a_number_and_no_exception(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptive, "MAX_STEPS", 100)
    field, start = DIVERGENT[kind]
    state = torch.full((2, 3), start, dtype=torch.float64, requires_grad=True)
    found = adaptive.solve(field, state, UNIT, 1e-6)
    assert found.shape == (2, 2, 3) and found.isnan().all()
    (gradient,) = torch.autograd.grad(found.sum(), state)  # a loss may still be differentiated before it is looked at
    assert not gradient.isfinite().any()


def test_controlled_with_adaptive_steps() -> None:
    """A field that the path alone moves: F(z) = tanh(b) is constant, so z = z0 e^{lambda t} + F (X(t) - X(0))."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    elapsed = torch.rand(2, 4, generator=generator, dtype=torch.float64)
    path = ControlPath(steps[:, 0], steps, None, None, torch.arange(5).expand(2, -1), elapsed)
    field = ControlledField(
        torch.zeros(4, 4).double(), torch.zeros(4).double(), torch.zeros(12, 4).double(), steps[0].flatten()
    )
    start = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    solver = Solver(method="dopri5", tolerance=1e-10)
    matrix = torch.tanh(steps[0].flatten()).reshape(3, 4)
    expected = torch.cat([start[:, None], start[:, None] + steps.cumsum(1) @ matrix], 1).transpose(0, 1)
    torch.testing.assert_close(controlled(field, path, start, solver), expected, rtol=1e-9, atol=1e-9)
    turning = Rotation(torch.tensor([0.5, 1.0]).double(), torch.tensor([3.0, -2.0]).double())
    fixed = controlled(field, path, start, Solver(method="rk4"), turning)
    torch.testing.assert_close(controlled(field, path, start, solver, turning), fixed, rtol=1e-9, atol=1e-9)


RATE = torch.tensor([[-0.5 + 6j, 0.3], [-0.8j, -4.0 - 11j]], dtype=torch.complex128)
PUSH = torch.tensor([1.0 - 0.5j, 0.2j], dtype=torch.complex128)
START = torch.tensor([[1.0, 0.5j], [-1j, 2.0]], dtype=torch.complex128)


def solve_affine(steps: int, tolerance: float | None, until: float) -> DenseSolution:
    """z' = RATE z + PUSH, its diagonal as the linear flow and the rest as g."""
    rate = RATE.diagonal()
    rest = RATE - torch.diag(rate)
    turn = Rotation(-rate.real, rate.imag)
    return semilinear(turn, lambda z: z @ rest.T + PUSH, START, torch.tensor(until).double(), steps, tolerance)


def exact_affine(times: Tensor) -> Tensor:
    """By one matrix exponential of the state with a one appended: `(N, H, 2)`."""
    whole = np.zeros((3, 3), complex)
    whole[:2, :2], whole[:2, 2] = RATE.numpy(), PUSH.numpy()
    rows = np.concatenate([START.numpy(), np.ones((2, 1))], 1)
    return torch.from_numpy(np.stack([rows @ expm(whole * t).T for t in times.tolist()], 1)[..., :2])


@pytest.mark.parametrize("tolerance", [1e-5, 1e-9])
def test_semilinear_reaches_the_grid_within_the_tolerance(tolerance: float) -> None:
    grid = torch.arange(57).double() / 40  # eight points per fixed step
    solution = solve_affine(5, tolerance, 1.4)
    assert len(solution.states) == 57
    exact = exact_affine(grid)
    assert 1e-4 * tolerance < float((solution.states.transpose(0, 1) - exact).abs().max()) < 20 * tolerance
    found = solution.at(grid.expand(2, -1))
    torch.testing.assert_close(found, solution.states.transpose(0, 1), rtol=1e-12, atol=1e-12)


def test_semilinear_is_of_second_order_between_grid_points() -> None:
    """Where the drive is taken for constant; at the grid points themselves nothing is left of that."""
    errors = []
    for steps in (1, 2, 4):
        middle = (torch.arange(8 * steps).double() + 0.5) / (8 * steps)
        errors.append(
            float((solve_affine(steps, 1e-8, 1.0).at(middle.expand(2, -1)) - exact_affine(middle)).abs().max())
        )
    assert -np.polyfit(range(3), np.log2(errors), 1)[0] == pytest.approx(2, abs=0.15)


def test_semilinear_gradients_are_those_of_fine_fixed_steps() -> None:
    leads = torch.tensor([[0.2, 1.0], [0.6, 0.4]]).double()

    def gradients(steps: int, tolerance: float | None) -> tuple[Tensor, ...]:
        sources = [
            x.clone().requires_grad_() for x in (START, torch.tensor([0.5, 2.0]).double(), torch.ones(2).double())
        ]
        state, decay, frequency = sources
        field = lambda z: torch.complex(torch.sin(z.imag), torch.cos(z.real))  # noqa: E731
        solution = semilinear(Rotation(decay, frequency), field, state, leads, steps, tolerance)
        return torch.autograd.grad(solution.at(leads).abs().sum(), sources)

    for found, expected in zip(gradients(5, 1e-9), gradients(1000, None), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tolerance", [None, 1e-5])
def test_a_divergent_semilinear_solution_is_not_finite(tolerance: float | None) -> None:
    turn = Rotation(torch.tensor([0.5]), torch.tensor([1.0]))
    start = torch.full((2, 1), 3.0, dtype=torch.complex64)
    solution = semilinear(turn, lambda z: z * z.abs().square(), start, torch.tensor([1.0]), 12, tolerance)
    assert not torch.isfinite(torch.view_as_real(solution.at(torch.ones(2, 1)))).any()


QUARTERS = torch.linspace(0, 1, 5).double()


def geometric(tolerance: float, entropy: int = 5) -> Tensor:
    """dz = z / 2 dt + z / 3 dW from one, at four times."""
    start = torch.ones(50, 1).double()
    return adaptive.solve_stochastic(lambda t, z: z / 2, lambda t, z: z / 3, start, QUARTERS, tolerance, entropy)


def test_adaptive_paths_converge_on_their_brownian_motion() -> None:
    """Ito's sense: z(1) = exp(1/2 - 1/18 + W(1) / 3), at every tolerance with the W(1) that its entropy draws."""
    motion = torchsde.BrownianInterval(
        0.0, 1.0, size=(50, 1), dtype=torch.float64, entropy=5, dt=0.25, levy_area_approximation="space-time"
    )
    exact = torch.exp(1 / 2 - 1 / 18 + motion(0.0, 1.0) / 3)
    errors = [float((geometric(tolerance)[-1] - exact).abs().max()) for tolerance in (1e-2, 1e-5)]
    assert errors[0] < 0.05 and errors[1] < 1e-3 and errors[1] < errors[0] / 5
    assert torch.equal(geometric(1e-2), geometric(1e-2))
    assert not torch.allclose(geometric(1e-2, 6), geometric(1e-2), rtol=0.01)


@pytest.mark.filterwarnings("ignore:Hitting minimum allowed step size")
def test_an_adaptive_path_that_overflows_is_not_a_number() -> None:
    start = torch.full((2, 1), 3.0, dtype=torch.float64, requires_grad=True)
    found = adaptive.solve_stochastic(lambda t, z: z**3, lambda t, z: z / 3, start, QUARTERS, 1e-2, 5)
    assert found.shape == (5, 2, 1) and found.isnan().all()
    (gradient,) = torch.autograd.grad(found.sum(), start)
    assert gradient.isnan().all()


@pytest.mark.parametrize("family", ["filter", "neural_cde", "latent_sde"])
def test_an_adaptive_forecast_does_not_depend_on_its_neighbours(family: str) -> None:
    """Steps follow the worst row of a batch, so a predictor asks such a model for one series at a time."""
    sizes = {"modes": 4, "hidden": 8, "control": 4, "width": 8, "horizon_modes": 4, "samples": 2, "train_samples": 2}
    known = MODELS[family].config.model_fields  # type: ignore[attr-defined]
    model = {"family": family, "tolerance": 1e-2, "steps": 3} | {k: v for k, v in sizes.items() if k in known}
    experiment = Experiment.model_validate(
        {
            "horizon": 1.5,
            "model": model,
            "train": {"steps": 1, "batch": 4, "members": 1, "workers": 1},
            "windows": {"held_out": 4, "origins": 1, "targets": 2},
        }
    )
    frame = ornstein_uhlenbeck(12, 8, rate=0.5, seed=0)
    predictor = fit_predictor(read_table(frame), experiment).predictor
    assert predictor.members[0].adaptive
    few = frame[frame["unique_id"].isin(["ou-0002", "ou-0007"])]
    whole, part = (predictor.forecast(read_table(table), horizon=1.0, step=0.5) for table in (frame[:64], few))
    beside = whole[whole["unique_id"].isin(part["unique_id"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(beside, part.reset_index(drop=True), check_exact=True)
