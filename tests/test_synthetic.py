from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from tsde import synthetic

Generator = Callable[..., pd.DataFrame]
GENERATORS = [
    synthetic.ornstein_uhlenbeck,
    synthetic.cox_ingersoll_ross,
    synthetic.spirals,
    synthetic.stochastic_lorenz,
]


def unpack(table: pd.DataFrame, n_series: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Times `(B, N)` and values `(B, N, C)`."""
    values = table.drop(columns=["unique_id", "ds"]).to_numpy().reshape(n_series, -1, table.shape[1] - 2)
    return table["ds"].to_numpy().reshape(n_series, -1), values


def assert_mean(x: NDArray[np.float64], expected: float) -> None:
    """The mean of independent draws is within four standard errors."""
    assert abs(x.mean() - expected) < 4 * x.std() / np.sqrt(x.size)


@pytest.mark.parametrize("generate", GENERATORS)
def test_table_follows_the_contract(generate: Generator) -> None:
    table = generate(7, 11, seed=3)
    assert list(table.columns[:2]) == ["unique_id", "ds"]
    assert table["unique_id"].nunique() == 7 and (table.groupby("unique_id").size() == 11).all()
    assert pd.api.types.is_string_dtype(table["unique_id"])
    assert (table.drop(columns="unique_id").dtypes == "float64").all()
    assert np.isfinite(table.drop(columns="unique_id").to_numpy()).all()
    assert (table.groupby("unique_id")["ds"].diff().dropna() > 0).all()


@pytest.mark.parametrize("generate", GENERATORS)
def test_the_seed_is_the_table(generate: Generator) -> None:
    pd.testing.assert_frame_equal(generate(3, 5, seed=1, missing=0.3), generate(3, 5, seed=1, missing=0.3))
    assert not generate(3, 5, seed=1).equals(generate(3, 5, seed=2))


@pytest.mark.parametrize("generate", GENERATORS)
def test_missing_hides_values_and_changes_none(generate: Generator) -> None:
    whole, holed = generate(40, 20, seed=5), generate(40, 20, seed=5, missing=0.3)
    channels = whole.columns[2:]
    lost = holed[channels].isna()
    assert_mean(lost.to_numpy(float), 0.3)
    pd.testing.assert_frame_equal(holed, whole.assign(**whole[channels].mask(lost)))


def test_arrivals_are_poisson() -> None:
    times, _ = unpack(synthetic.ornstein_uhlenbeck(400, 30, intensity=5.0), 400)
    gaps = 5 * np.diff(times, prepend=0)
    assert_mean(gaps, 1.0)
    assert_mean((gaps - 1) ** 2, 1.0)
    assert_mean((gaps[:, 1:] - 1) * (gaps[:, :-1] - 1), 0.0)


PROCESSES = [
    (synthetic.ornstein_uhlenbeck, synthetic.ou_moments, {"rate": 0.7, "level": -2.0, "noise": 1.3}),
    (synthetic.cox_ingersoll_ross, synthetic.cir_moments, {"rate": 0.7, "level": 1.5, "noise": 0.9}),
]


@pytest.mark.parametrize(("generate", "moments", "law"), PROCESSES)
def test_transitions_have_the_stated_moments(generate: Generator, moments: Callable, law: dict[str, float]) -> None:
    times, values = unpack(generate(2000, 12, seed=2, **law), 2000)
    x = values[..., 0]
    mean, variance = moments(x[:, :-1], np.diff(times), **law)
    residual = (x[:, 1:] - mean) / np.sqrt(variance)
    assert_mean(residual, 0.0)
    assert_mean(residual**2, 1.0)
    assert_mean(residual[:, 1:] * residual[:, :-1], 0.0)


@pytest.mark.parametrize(("generate", "moments", "law"), PROCESSES)
def test_series_are_stationary(generate: Generator, moments: Callable, law: dict[str, float]) -> None:
    _, values = unpack(generate(4000, 3, seed=4, **law), 4000)
    mean, variance = moments(0.0, 1e3, **law)
    for k in range(3):
        assert_mean(values[:, k, 0], mean)
        assert_mean((values[:, k, 0] - mean) ** 2, variance)


@pytest.mark.parametrize(("generate", "moments", "law"), PROCESSES)
def test_moments_of_two_gaps_compose(generate: Generator, moments: Callable, law: dict[str, float]) -> None:
    x0, first, second = np.array([0.2, 1.0, 5.0]), 0.3, np.array([[0.5], [2.0]])
    middle, spread = moments(x0, first, **law)
    mean, inner = moments(middle, second, **law)
    direct = moments(x0, first + second, **law)
    np.testing.assert_allclose(direct[0], mean)
    # The total variance: the second gap's own (linear in its start) plus what the first leaves, damped.
    np.testing.assert_allclose(direct[1], inner + np.exp(-2 * law["rate"] * second) * spread)
    np.testing.assert_allclose(moments(x0, 0.0, **law), (x0, np.zeros(3)))


def test_cox_ingersoll_ross_is_never_negative() -> None:
    _, values = unpack(synthetic.cox_ingersoll_ross(300, 40, noise=2.0), 300)
    assert values.min() >= 0


def test_spirals_follow_their_flow_in_both_senses() -> None:
    times, values = unpack(synthetic.spirals(60, 9, decay=0.3, turn=1.7, noise=0.0), 60)
    ahead = [synthetic.spiral_flow(values[:, :-1], np.diff(times), 0.3, turn) for turn in (1.7, -1.7)]
    errors = np.abs(np.stack(ahead) - values[:, 1:]).max((2, 3))
    assert errors.min(0).max() < 1e-12
    assert 0.2 < (errors[0] < errors[1]).mean() < 0.8
    noisy = unpack(synthetic.spirals(60, 9, decay=0.3, turn=1.7, noise=0.2), 60)[1]
    assert_mean((noisy - values) ** 2, 0.04)


def test_spiral_flow_solves_its_equation() -> None:
    step, start = 1e-6, np.array([1.5, -0.4])
    slope = (synthetic.spiral_flow(start, step, 0.3, 1.7) - start) / step
    np.testing.assert_allclose(slope, np.array([[-0.3, -1.7], [1.7, -0.3]]) @ start, rtol=1e-4)


def lorenz(_: float, state: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y, z = state
    return np.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])


def test_lorenz_without_noise_solves_its_equation() -> None:
    times, values = unpack(synthetic.stochastic_lorenz(3, 4, noise=0.0, step=2e-5, intensity=20.0), 3)
    for clock, path in zip(times, values, strict=True):
        solved = solve_ivp(lorenz, (clock[0], clock[-1]), path[0], t_eval=clock, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(path, solved.y.T, atol=0.02)


def test_lorenz_noise_has_the_stated_size() -> None:
    times, values = unpack(synthetic.stochastic_lorenz(200, 30, intensity=1e5), 200)
    gaps = np.diff(times)[..., None]
    drift = np.moveaxis(lorenz(0.0, np.moveaxis(values[:, :-1], -1, 0)), 0, -1)
    shock = (np.diff(values, axis=1) - drift * gaps) / np.sqrt(gaps) / 0.15
    for channel in range(3):
        assert_mean(shock[..., channel], 0.0)
        assert_mean(shock[..., channel] ** 2, 1.0)
    assert_mean(shock[..., 0] * shock[..., 1], 0.0)


def test_lorenz_reaches_its_attractor() -> None:
    _, values = unpack(synthetic.stochastic_lorenz(20, 200), 20)
    late = values[:, 100:]
    assert np.abs(late).max() < 60 and late[..., 2].mean() > 15
