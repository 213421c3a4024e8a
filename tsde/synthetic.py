"""Irregularly observed processes whose law is known: a forecast of them can be held against the truth.

Each generator returns a table in the default contract: `unique_id`, `ds` (a number, sorted within a series), one column
per channel, NaN where a value was not observed. Observations of a series arrive as a Poisson process of the given
`intensity` (so gaps are exponential with mean `1 / intensity`), and each value is lost with probability `missing`.
The first row lies one gap after time zero. Equal seeds give equal tables.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def ornstein_uhlenbeck(
    n_series: int,
    n_obs: int,
    rate: float = 1.0,
    level: float = 0.0,
    noise: float = 1.0,
    seed: int = 0,
    *,
    intensity: float = 4.0,
    missing: float = 0.0,
) -> pd.DataFrame:
    """Stationary `dX = rate (level - X) dt + noise dW` in channel `y`, drawn from its exact transition."""
    random = np.random.default_rng(seed)
    times, gaps = _poisson_times(random, n_series, n_obs, intensity)
    x = random.normal(level, noise / np.sqrt(2 * rate), n_series)
    values = np.empty((n_series, n_obs, 1))
    for k in range(n_obs):
        mean, variance = ou_moments(x, gaps[:, k], rate, level, noise)
        values[:, k, 0] = x = random.normal(mean, np.sqrt(variance))
    return _table("ou", ["y"], times, values, missing, random)


def ou_moments(x0: ArrayLike, gap: ArrayLike, rate: float, level: float, noise: float) -> tuple[Array, Array]:
    """Mean and variance of the Gaussian law of the Ornstein-Uhlenbeck process `gap` after it was at `x0`.

        mean = level + (x0 - level) exp(-rate gap),    variance = noise^2 / (2 rate) (1 - exp(-2 rate gap))

    Shapes broadcast.
    """
    x0, gap = np.asarray(x0, float), np.asarray(gap, float)
    mean = level + (x0 - level) * np.exp(-rate * gap)
    return mean, np.broadcast_to(-np.expm1(-2 * rate * gap) * noise**2 / (2 * rate), mean.shape)


def cox_ingersoll_ross(
    n_series: int,
    n_obs: int,
    rate: float = 1.0,
    level: float = 1.0,
    noise: float = 0.5,
    seed: int = 0,
    *,
    intensity: float = 4.0,
    missing: float = 0.0,
) -> pd.DataFrame:
    """Stationary `dX = rate (level - X) dt + noise sqrt(X) dW`, never negative, in channel `y`; exact transition.

    `X(t + gap) = c chi`, where chi is noncentral chi-square with `4 rate level / noise^2` degrees of freedom and
    noncentrality `X(t) exp(-rate gap) / c`, and `c = noise^2 (1 - exp(-rate gap)) / (4 rate)`; the stationary law is
    Gamma of shape `2 rate level / noise^2`.

    Source: Cox, Ingersoll and Ross (1985), A theory of the term structure of interest rates, section 3.
    """
    random = np.random.default_rng(seed)
    times, gaps = _poisson_times(random, n_series, n_obs, intensity)
    half_degrees = 2 * rate * level / noise**2
    x = random.gamma(half_degrees, noise**2 / (2 * rate), n_series)
    values = np.empty((n_series, n_obs, 1))
    for k in range(n_obs):
        scale = -np.expm1(-rate * gaps[:, k]) * noise**2 / (4 * rate)
        x = scale * random.noncentral_chisquare(2 * half_degrees, x * np.exp(-rate * gaps[:, k]) / scale)
        values[:, k, 0] = x
    return _table("cir", ["y"], times, values, missing, random)


def cir_moments(x0: ArrayLike, gap: ArrayLike, rate: float, level: float, noise: float) -> tuple[Array, Array]:
    """Mean and variance of the Cox-Ingersoll-Ross process `gap` after it was at `x0`. With `a = exp(-rate gap)`,

        mean = level + (x0 - level) a,    variance = noise^2 / rate (x0 a (1 - a) + level (1 - a)^2 / 2)

    Shapes broadcast. Source: Cox, Ingersoll and Ross (1985), section 3.
    """
    x0, gap = np.asarray(x0, float), np.asarray(gap, float)
    decay, rest = np.exp(-rate * gap), -np.expm1(-rate * gap)
    return level + (x0 - level) * decay, noise**2 / rate * (x0 * decay * rest + level * rest**2 / 2)


def spirals(
    n_series: int,
    n_obs: int,
    decay: float = 0.2,
    turn: float = 2.0,
    noise: float = 0.05,
    seed: int = 0,
    *,
    intensity: float = 8.0,
    missing: float = 0.0,
) -> pd.DataFrame:
    """Inward spirals in channels `x`, `y`, seen through Gaussian noise; half of them (at random) turn clockwise.

    The state starts at a random angle, its radius uniform on [1, 2], and follows `spiral_flow` exactly. Given its start
    and sense of rotation an observation has the law `N(spiral_flow(start, t), noise^2 I)`.
    """
    random = np.random.default_rng(seed)
    times, _ = _poisson_times(random, n_series, n_obs, intensity)
    angle, radius = random.uniform(0, 2 * np.pi, n_series), random.uniform(1, 2, n_series)
    start = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    sense = random.choice([-1.0, 1.0], n_series)
    path = spiral_flow(start[:, None], times, decay, turn * sense[:, None])
    return _table("spiral", ["x", "y"], times, random.normal(path, noise), missing, random)


def spiral_flow(start: ArrayLike, gap: ArrayLike, decay: float, turn: ArrayLike) -> Array:
    """The plane turned by `turn * gap` (counter-clockwise) and shrunk by `exp(-decay gap)`.

    It solves `x' = -decay x - turn y`, `y' = turn x - decay y`. Shapes: start `(..., 2)`, gap and turn `(...)`
    -> `(..., 2)`, broadcast.
    """
    start = np.asarray(start, float)
    moved = (start[..., 0] + 1j * start[..., 1]) * np.exp((1j * np.asarray(turn) - decay) * np.asarray(gap))
    return np.stack([moved.real, moved.imag], axis=-1)


def stochastic_lorenz(
    n_series: int,
    n_obs: int,
    sigma: float = 10.0,
    rho: float = 28.0,
    beta: float = 8 / 3,
    noise: float = 0.15,
    seed: int = 0,
    *,
    intensity: float = 40.0,
    missing: float = 0.0,
    step: float = 0.002,
) -> pd.DataFrame:
    """The Lorenz attractor with independent noise on each of its channels `x`, `y`, `z`, started from `N(0, I)`.

        dx = sigma (y - x) dt + noise dW_1
        dy = (x (rho - z) - y) dt + noise dW_2
        dz = (x y - beta z) dt + noise dW_3

    Euler-Maruyama; each gap of each series is cut into equal steps no longer than `step`, so observation times are
    exact. No law in closed form: draw more series for one.

    Source: Li, Wong, Chen and Duvenaud (2020), Scalable gradients for stochastic differential equations.
    Deviation: Poisson times, values neither scaled nor blurred by measurement noise.
    """
    random = np.random.default_rng(seed)
    times, gaps = _poisson_times(random, n_series, n_obs, intensity)
    state = random.standard_normal((3, n_series))
    values = np.empty((n_series, n_obs, 3))
    for k in range(n_obs):
        steps = int(np.ceil(gaps[:, k].max() / step))
        width = gaps[:, k] / steps
        for shock in random.normal(0, noise * np.sqrt(width), (steps, 3, n_series)):
            x, y, z = state
            state = state + width * np.stack([sigma * (y - x), x * (rho - z) - y, x * y - beta * z]) + shock
        values[:, k] = state.T
    return _table("lorenz", ["x", "y", "z"], times, values, missing, random)


def _poisson_times(random: np.random.Generator, n_series: int, n_obs: int, intensity: float) -> tuple[Array, Array]:
    """Arrival times of independent Poisson processes and the gaps before them, both `(n_series, n_obs)`."""
    gaps = random.exponential(1 / intensity, (n_series, n_obs))
    return gaps.cumsum(axis=1), gaps


def _table(
    name: str, channels: Sequence[str], times: Array, values: Array, missing: float, random: np.random.Generator
) -> pd.DataFrame:
    """Times `(B, N)` and values `(B, N, C)` as a table of B * N rows, each value lost with probability `missing`."""
    n_series, n_obs = times.shape
    seen = np.where(random.random(values.shape) < missing, np.nan, values)
    ids = [f"{name}-{series:04d}" for series in range(n_series)]
    columns = dict(zip(channels, seen.reshape(-1, len(channels)).T, strict=True))
    return pd.DataFrame({"unique_id": np.repeat(ids, n_obs), "ds": times.ravel(), **columns})
