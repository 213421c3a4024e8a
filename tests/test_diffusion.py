"""Stochastic solvers against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from tsde.diffusion import Terms, euler_maruyama, interpolate
from tsde.flow import Rotation
from tsde.scans.pairs import to_complex, to_real
from tsde.synthetic import ou_moments

StepField = Callable[[int, Tensor], Tensor]


def brownian_path(
    drift: StepField,
    diffusion: StepField,
    state: Tensor,
    noise: Sequence[Tensor],
    h: float,
    rotation: Rotation | None = None,
) -> Tensor:
    """Euler and Maruyama's states for terms that know the number of the step, and no cost."""

    def dynamics(row: Tensor, z: Tensor) -> Terms:
        return Terms(drift(int(row), z), diffusion(int(row), z), z.new_zeros(()))

    return euler_maruyama(dynamics, state, torch.arange(len(noise) + 1), lambda i: noise[i], h, rotation).states


RATE, LEVEL, NOISE = 1.5, 0.7, 0.8


def simulate(
    paths: int, steps: int, span: float, start: float = 2.0, diffusion: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Euler-Maruyama of an Ornstein-Uhlenbeck process, `(steps + 1, paths, 1)`."""
    random = torch.Generator().manual_seed(1)
    state = torch.full((paths, 1), start, dtype=torch.float64)
    noise = [torch.randn(paths, 1, generator=random, dtype=torch.float64) for _ in range(steps)]
    spread = diffusion or (lambda z: torch.full_like(z, NOISE))
    return brownian_path(lambda i, z: RATE * (LEVEL - z), lambda i, z: spread(z), state, noise, span / steps)


def test_brownian_path_has_the_moments_of_its_process() -> None:
    """Weakly: the mean of Euler's recursion exactly up to sampling error, the law of the process up to O(h)."""
    paths, steps, span = 20_000, 50, 0.8
    end = simulate(paths, steps, span)[-1, :, 0]
    h = span / steps
    mean = LEVEL + (2.0 - LEVEL) * (1 - RATE * h) ** steps
    variance = NOISE**2 * h * sum((1 - RATE * h) ** (2 * i) for i in range(steps))
    assert float(end.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / paths))
    assert float(end.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / paths))
    exact_mean, exact_variance = ou_moments(2.0, span, RATE, LEVEL, NOISE)
    assert mean == pytest.approx(float(exact_mean), abs=0.02)
    assert variance == pytest.approx(float(exact_variance), rel=0.05)


def test_brownian_path_without_noise_is_euler() -> None:
    path = simulate(2, 30, 1.0, diffusion=torch.zeros_like)
    expected = LEVEL + (2.0 - LEVEL) * (1 - RATE / 30) ** np.arange(31)
    assert path.shape == (31, 2, 1)
    np.testing.assert_allclose(path[:, 1, 0].numpy(), expected, rtol=1e-12)


def test_brownian_path_scales_its_noise_by_the_root_of_the_step() -> None:
    """Pure Brownian motion: increments are sqrt(h) g xi exactly, for a diffusion that depends on the step."""
    noise = torch.randn(7, 3, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    path = brownian_path(
        lambda i, z: torch.zeros_like(z), lambda i, z: torch.full_like(z, i + 1.0), noise[0] * 0, list(noise), 0.04
    )
    expected = 0.2 * torch.arange(1, 8).double()[:, None, None] * noise
    torch.testing.assert_close(path.diff(dim=0), expected)


def modes() -> Rotation:
    return Rotation(torch.tensor([0.5, 3.0]).double(), torch.tensor([9.0, -25.0]).double())


def test_a_split_linear_part_is_exact() -> None:
    """Without drift and noise the path is the rotation of its start, on the grid and between its points."""
    start = torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)  # (S, B, K, 2M)
    still = [torch.zeros_like(start)] * 5
    path = brownian_path(lambda i, z: torch.zeros_like(z), lambda i, z: torch.ones_like(z), start, still, 0.2, modes())
    position = torch.tensor([0.0, 0.3, 1.0, 2.75, 4.999, 5.0]).double().expand(1, 3, 6)
    found = interpolate(path, position, 0.2, modes())
    expected = to_complex(start)[..., None, :] * modes().over(0.2 * position)
    torch.testing.assert_close(to_complex(found), expected)
    torch.testing.assert_close(
        path[3], to_real(to_complex(start) * modes().over(torch.tensor(0.6, dtype=torch.float64)))
    )


def test_a_split_linear_part_turns_each_shock() -> None:
    """Additive noise: the covariance of the path is the sum of its turned shocks, weakly of order one."""
    random = torch.Generator().manual_seed(7)
    steps, paths, h = 40, 8000, 0.02
    turn = Rotation(torch.tensor([2.0]).double(), torch.tensor([5.0]).double())
    noise = [torch.randn(paths, 2, generator=random, dtype=torch.float64) for _ in range(steps)]
    start = torch.zeros(paths, 2, dtype=torch.float64)
    path = brownian_path(lambda i, z: torch.zeros_like(z), lambda i, z: torch.full_like(z, 0.7), start, noise, h, turn)
    by_hand = sum(
        to_complex(0.7 * h**0.5 * xi) * turn.over(torch.tensor(h * (steps - i), dtype=torch.float64))
        for i, xi in enumerate(noise)
    )
    torch.testing.assert_close(to_complex(path[-1]), by_hand)
    variance = 0.7**2 / 4 * -math.expm1(-4 * h * steps)  # of each part of z' = lambda z with noise 0.7
    found = float(path[-1].square().mean())
    assert found == pytest.approx(variance, rel=5 * math.sqrt(1 / paths) + 2 * h)


def test_more_steps_leave_the_earlier_path_as_it_was() -> None:
    random = torch.Generator().manual_seed(3)
    noise = [torch.randn(4, 1, generator=random) for _ in range(9)]
    start = torch.ones(4, 1)
    short = brownian_path(lambda i, z: -z, lambda i, z: 0.3 * z, start, noise[:5], 0.1)
    assert torch.equal(brownian_path(lambda i, z: -z, lambda i, z: 0.3 * z, start, noise, 0.1)[:6], short)


def test_interpolation_against_numpy() -> None:
    random = torch.Generator().manual_seed(4)
    states = torch.randn(6, 2, 3, 4, 5, generator=random, dtype=torch.float64)  # (n + 1, S, B, K, D)
    position = 5 * torch.rand(3, 4, 7, generator=random, dtype=torch.float64)  # (B, K, H)
    position[0, 0, :3] = torch.tensor([0.0, 2.0, 5.0])
    found = interpolate(states, position)
    assert found.shape == (2, 3, 4, 7, 5)
    for s, b, k, d in [(0, 0, 0, 0), (1, 2, 3, 4), (1, 0, 1, 2)]:
        expected = np.interp(position[b, k].numpy(), np.arange(6), states[:, s, b, k, d].numpy())
        np.testing.assert_allclose(found[s, b, k, :, d].numpy(), expected, rtol=1e-12, atol=1e-12)


def test_interpolation_does_not_depend_on_later_steps() -> None:
    random = torch.Generator().manual_seed(5)
    states = torch.randn(9, 2, 1, 1, 3, generator=random)
    position = torch.tensor([0.0, 3.3, 5.0]).reshape(1, 1, 3)
    assert torch.equal(interpolate(states[:6], position), interpolate(states, position))
