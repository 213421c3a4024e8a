"""Stochastic solvers converge: strongly and weakly with their order, and the cost beside a path to its integral."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tsde.diffusion import Dynamics, Method, Paths, Terms, diffuse
from tsde.flow import Rotation

GROWTH, SHARE = 0.6, 0.8  # of geometric Brownian motion, dz = GROWTH z dt + SHARE z dW


def order(errors: list[float]) -> float:
    """The slope of log error against log step, where the step halves each time."""
    return float(-np.polyfit(range(len(errors)), np.log2(errors), 1)[0])


def geometric(row: Tensor, z: Tensor) -> Terms:
    return Terms(GROWTH * z, SHARE * z, z.new_zeros(()))


def additive(row: Tensor, z: Tensor) -> Terms:
    return Terms(torch.sin(2 * z) + row, torch.full_like(z, SHARE), z.new_zeros(()))


def solve(method: Method, dynamics: Dynamics, start: Tensor, noise: Tensor, span: float = 1.0) -> Paths:
    """Over `noise (n, N, D)`; what the dynamics know at a grid point is its time."""
    steps = len(noise)
    rows = torch.linspace(0, span, steps + 1, dtype=torch.float64)
    return diffuse(method, dynamics, start, rows, lambda i: noise[i], span / steps)


def coarser(noise: Tensor, steps: int) -> Tensor:
    """The same Brownian paths by fewer, standardised increments."""
    parts = noise.unflatten(0, (steps, -1))
    return parts.sum(1) / parts.shape[1] ** 0.5


def strong_errors(method: Method, dynamics: Dynamics, exact: Callable[[Tensor], Tensor]) -> list[float]:
    noise = torch.randn(1024, 1000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start, target = torch.ones(1000, 1, dtype=torch.float64), exact(noise)
    return [
        float((solve(method, dynamics, start, coarser(noise, n)).states[-1] - target).abs().mean())
        for n in (16, 32, 64, 128)
    ]


def test_euler_maruyama_is_strongly_of_order_one_half_in_itos_sense() -> None:
    errors = strong_errors(
        "euler", geometric, lambda noise: torch.exp(GROWTH - SHARE**2 / 2 + SHARE * noise.sum(0) / 32)
    )
    assert order(errors) == pytest.approx(0.5, abs=0.12) and errors[-1] < 0.1


def test_reversible_heun_converges_strongly_in_stratonovichs_sense() -> None:
    """Order 1/2 at least; geometric Brownian motion has one noise, whose fields commute, and gets order 1."""
    errors = strong_errors("reversible_heun", geometric, lambda noise: torch.exp(GROWTH + SHARE * noise.sum(0) / 32))
    assert order(errors) == pytest.approx(1, abs=0.12) and errors[-1] < 0.05


@pytest.mark.parametrize("method", ["euler", "reversible_heun"])
def test_additive_noise_is_strongly_of_order_one(method: Method) -> None:
    start = torch.ones(1000, 1, dtype=torch.float64)
    errors = strong_errors(method, additive, lambda noise: solve(method, additive, start, noise).states[-1])
    assert order(errors) == pytest.approx(1, abs=0.15)


def cubature(steps: int, size: int = 1) -> tuple[Tensor, Tensor]:
    """All 3^(n D) paths of a three-valued noise, and their probabilities.

    Its moments up to the fifth are those of a standard normal number, so that expectations of polynomials of low degree
    are exact, without sampling.
    """
    values, weights = (-math.sqrt(3.0), 0.0, math.sqrt(3.0)), (1 / 6, 2 / 3, 1 / 6)
    paths = torch.tensor(list(itertools.product(values, repeat=steps * size)), dtype=torch.float64)
    chances = torch.tensor(list(itertools.product(weights, repeat=steps * size)), dtype=torch.float64).prod(1)
    return paths.unflatten(1, (steps, size)).transpose(0, 1), chances


def expected(method: Method, dynamics: Dynamics, steps: int, power: int) -> float:
    noise, chances = cubature(steps)
    start = torch.ones(len(chances), 1, dtype=torch.float64)
    return float(chances @ solve(method, dynamics, start, noise, 0.5).states[-1, :, 0] ** power)


@pytest.mark.parametrize("power", [1, 2])
def test_euler_maruyama_has_the_moments_of_its_recursion(power: int) -> None:
    """E z_n = (1 + a h)^n and E z_n^2 = ((1 + a h)^2 + b^2 h)^n; both tend to those of the process with order one."""
    for n in (1, 3, 6):
        h = 0.5 / n
        factor = 1 + GROWTH * h if power == 1 else (1 + GROWTH * h) ** 2 + SHARE**2 * h
        assert expected("euler", geometric, n, power) == pytest.approx(factor**n, rel=1e-12)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("method", ["euler", "reversible_heun"])
def test_moments_converge_weakly_with_order_one(method: Method, power: int) -> None:
    correction = 0.0 if method == "euler" else SHARE**2 / 2  # from Stratonovich's sense to Ito's
    rate = power * (GROWTH + correction) + power * (power - 1) / 2 * SHARE**2
    errors = [abs(expected(method, geometric, n, power) - math.exp(0.5 * rate)) for n in (2, 4, 8)]
    assert order(errors) > 0.8 and errors[-1] < 0.05 * math.exp(0.5 * rate)


def test_a_split_linear_part_keeps_the_weak_order() -> None:
    """z' = lambda z + b z dW: d E|z|^2 = (2 Re lambda + b^2) E|z|^2 dt, with lambda exact at any step."""
    turn = Rotation(torch.tensor([3.0]).double(), torch.tensor([40.0]).double())
    errors = []
    for n in (1, 2, 4):
        noise, chances = cubature(n, 2)
        start = torch.tensor([1.0, -0.5]).double().expand(len(chances), 2)

        def still(row: Tensor, z: Tensor) -> Terms:
            return Terms(torch.zeros_like(z), SHARE * z, z.new_zeros(()))

        paths = diffuse("euler", still, start, torch.zeros(n + 1), noise.unbind(0).__getitem__, 0.5 / n, turn)
        found = float(chances @ paths.states[-1].square().sum(-1)) / 1.25
        assert found == pytest.approx(math.exp(-3) * (1 + SHARE**2 * 0.5 / n) ** n, rel=1e-12)
        errors.append(abs(found - math.exp(0.5 * (SHARE**2 - 6))))
    assert order(errors) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(("method", "expected_order"), [("euler", 1), ("reversible_heun", 2)])
def test_the_cost_converges_to_its_integral(method: Method, expected_order: int) -> None:
    """z' = -z without noise and a rate of t z^2: the integral over [0, 2] is (1 - 5 e^-4) / 4, for z(0) = 1."""

    def dynamics(row: Tensor, z: Tensor) -> Terms:
        return Terms(-z, torch.zeros_like(z), row * z.square().sum(-1))

    start = torch.tensor([[1.0], [3.0]]).double()
    errors = []
    for n in (32, 64, 128, 256):
        cost = solve(method, dynamics, start, torch.zeros(n, 2, 1).double(), 2.0).cost
        assert cost.shape == (2,) and float(cost[1] / cost[0]) == pytest.approx(9, rel=1e-12)
        errors.append(abs(float(cost[0]) - (1 - 5 * math.exp(-4)) / 4))
    assert order(errors) == pytest.approx(expected_order, abs=0.15)


@pytest.mark.parametrize("method", ["euler", "reversible_heun"])
def test_a_constant_rate_costs_its_time(method: Method) -> None:
    def dynamics(row: Tensor, z: Tensor) -> Terms:
        return Terms(-z, torch.ones_like(z), z.new_ones(len(z)))

    start = torch.ones(3, 1, dtype=torch.float64)
    for n in (0, 1, 2, 7):
        cost = diffuse(method, dynamics, start, torch.zeros(n + 1), lambda i: start, 0.2).cost
        torch.testing.assert_close(cost.expand(3), torch.full((3,), 0.2 * n).double())


PULL, NOISE, STEER, SPAN = 1.5, 0.7, 0.9, 0.8


def posterior(row: Tensor, z: Tensor) -> Terms:
    """Prior dz = -PULL z dt + NOISE dW; the posterior adds NOISE u with u = STEER z, at a rate of u^2 / 2."""
    return Terms((NOISE * STEER - PULL) * z, torch.full_like(z, NOISE), 0.5 * (STEER * z).square().sum(-1))


def exact_divergence(start: float) -> float:
    """STEER^2 / 2 times the integral of E z^2 under the posterior, an Ornstein-Uhlenbeck process."""
    rate = PULL - NOISE * STEER
    level = NOISE**2 / (2 * rate)
    return STEER**2 / 2 * (level * SPAN + (start**2 - level) * -math.expm1(-2 * rate * SPAN) / (2 * rate))


def test_path_divergence_of_two_ornstein_uhlenbeck_processes() -> None:
    """Expected cost: Euler's by its own recursion of moments, exactly; both methods tend to the closed form."""
    for method, high in (("euler", 1), ("reversible_heun", 2)):
        errors = []
        for n in (2, 4, 8):
            noise, chances = cubature(n)
            start = torch.full((len(chances), 1), 1.3, dtype=torch.float64)
            cost = float(chances @ solve(method, posterior, start, noise, SPAN).cost)  # type: ignore[arg-type]
            h, second, by_hand = SPAN / n, 1.3**2, 0.0
            for _ in range(n):
                by_hand += h * STEER**2 / 2 * second
                second = (1 + h * (NOISE * STEER - PULL)) ** 2 * second + NOISE**2 * h
            if method == "euler":
                assert cost == pytest.approx(by_hand, rel=1e-12)
            errors.append(abs(cost - exact_divergence(1.3)))
        assert order(errors) == pytest.approx(high, abs=0.35), (method, errors)
        assert errors[-1] < 0.03
