"""Channels of few values: quantiles go to the values, and no observation changes sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tsde.config import load_experiment
from tsde.distribution import GRID, Quantiles
from tsde.evaluation import evaluate, evaluate_both
from tsde.fitting import fit_predictor
from tsde.lattice import ends, few_values, towards_values
from tsde.metrics import crps_quantiles
from tsde.predictor import Predictor
from tsde.synthetic import spirals
from tsde.table import read_table

LEVELS = torch.tensor(GRID)
NUMBERS = st.integers(-2000, 2000).map(lambda number: number / 64)  # none so near to another that rounding joins them


def law(values: torch.Tensor) -> Quantiles:
    """Quantiles `(..., Q)` around the mean of each."""
    return Quantiles(values.mean(-1), values, LEVELS)


def drawn_of(forecast: Quantiles, values: list[torch.Tensor]) -> Quantiles:
    """Of a forecast `(..., C)`."""
    return towards_values(forecast, torch.arange(forecast.mean.shape[-1]).expand(forecast.mean.shape), values)


@given(
    known=st.lists(st.integers(-20, 20), min_size=2, max_size=8, unique=True).map(sorted),
    values=st.lists(NUMBERS, min_size=len(GRID), max_size=len(GRID)).map(sorted),
    scale=st.floats(0.5, 2),
)
def test_no_value_changes_sides_and_quantiles_never_cross(known: list[int], values: list[float], scale: float) -> None:
    atoms, before = torch.tensor(known) * scale, torch.tensor([values]) * scale
    after = drawn_of(law(before), [atoms]).values
    assert (after.diff() >= 0).all()
    torch.testing.assert_close(atoms[:, None] <= after, atoms[:, None] <= before)
    torch.testing.assert_close(atoms[:, None] >= after, atoms[:, None] >= before)


def test_quantiles_keep_a_twentieth_of_their_distance() -> None:
    found = drawn_of(law(torch.tensor([[-1.0, -0.4, 0.2, 1.4, 2.9, 3.4, 6.0]])), [torch.tensor([0.0, 1.0, 3.0])])
    expected = [[-0.525, -0.02, 0.01, 1.02, 2.995, 3.02, 5.05]]  # beyond half the outermost gap all move alike
    torch.testing.assert_close(found.values, torch.tensor(expected))


def test_other_channels_and_the_mean_stay() -> None:
    before = law(torch.randn(5, 2, len(GRID), generator=torch.Generator().manual_seed(0)).sort(-1).values)
    after = drawn_of(before, [torch.empty(0), torch.tensor([-1.0, 0.0, 1.0])])
    assert torch.equal(after.values[:, 0], before.values[:, 0]) and not torch.equal(after.values, before.values)
    assert torch.equal(after.mean, before.mean)
    assert drawn_of(before, []) is before


def test_a_smooth_law_of_counts_scores_better_at_the_counts() -> None:
    counts = torch.poisson(torch.full((4000,), 2.0), torch.Generator().manual_seed(0))
    smooth = law((2 + 2**0.5 * torch.special.ndtri(LEVELS)).expand(4000, 1, -1))
    drawn = drawn_of(smooth, [torch.arange(10.0)])
    before, after = (crps_quantiles(found.values[:, 0], LEVELS, counts).mean() for found in (smooth, drawn))
    assert after < 0.99 * before


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ([0.0, 1.0] * 10, (0.0, 1.0)),
        ([0.0, 1.0] * 9 + [0.0], ()),  # fewer than ten of each
        ([3.0] * 100, ()),
        ([], ()),
        (list(range(64)) * 10, tuple(range(64))),
        (list(range(65)) * 10, ()),
    ],
)
def test_few_values_are_at_most_64_with_ten_observations_each(column: list[float], values: tuple[float, ...]) -> None:
    rows = np.stack([np.array([*column, np.nan], dtype=float), np.arange(len(column) + 1.0)], 1)
    assert few_values(rows) == (values, ())


def test_a_served_forecast_is_drawn_and_covers_what_calibration_made_it_cover() -> None:
    frame = spirals(60, 12, seed=3)
    frame["y"] = (2 * frame["y"]).round().clip(-2, 2) * 1e6 + 1e9  # five values, far from their scaled ones
    frame.loc[0, "y"] = np.nan
    table = read_table(frame)
    overrides = ["train.steps=20", "train.members=1", "windows.held_out=60"]
    fitted = fit_predictor(table, load_experiment(None, overrides, horizon=1))
    predictor, channel = fitted.predictor, table.channels.index("y")
    assert predictor.scaler.values[channel] == tuple(1e9 + 1e6 * np.arange(-2.0, 3.0))
    drawn = predictor.residuals(fitted.test)
    scored = evaluate_both(predictor, fitted.test).after
    assert (
        scored == evaluate(predictor, fitted.test)
        and scored.overall.crps < evaluate(predictor, fitted.test, False).overall.crps
    )
    plain = predictor.scaler.model_copy(update={"values": ()})
    parts = predictor.members, predictor.calibrator, predictor.marginal
    smooth = Predictor(predictor.experiment, predictor.clock, plain, *parts).residuals(fitted.test)
    few = drawn.channel == channel
    assert torch.equal(drawn.forecast.values[~few], smooth.forecast.values[~few])
    value = drawn.value[few, None]
    atoms = predictor.scaler.scaled_values()[channel]
    assert torch.isin(value, atoms).all(), "scaled values differ from the scaled observations"
    near, far = ((found.forecast.values[few][..., None] - atoms).abs().amin(-1) for found in (drawn, smooth))
    inside = far < atoms.diff().min() / 2
    assert inside.double().mean() > 0.8
    torch.testing.assert_close(near[inside], 0.05 * far[inside], atol=1e-6, rtol=1e-3)
    assert torch.equal(value <= drawn.forecast.values[few], value <= smooth.forecast.values[few])
    assert torch.equal(value >= drawn.forecast.values[few], value >= smooth.forecast.values[few])


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([0.0, 3.5] * 10, (0.0, 3.5)),  # comes back to both
        ([0.0, *np.linspace(1, 2, 9)] * 10, (0.0, 2.0)),
        ([0.0, *np.linspace(1, 2, 60)] * 10, (None, None)),  # seldom at either
        ([*np.linspace(0, 1, 50), *[2.0] * 50], (None, None)),  # a level that rose, and stays
        ([0.0] * 9 + [1.0] * 9, (None, None)),  # came to each once
        ([7.0] * 50, (7.0, 7.0)),
        ([7.0] * 5, (None, None)),
        ([], (None, None)),
    ],
)
def test_an_end_is_one_that_a_channel_comes_back_to(
    column: list[float], expected: tuple[float | None, float | None]
) -> None:
    rows = np.stack([np.array(column), np.full(len(column), np.nan)], 1)
    assert ends(rows) == (expected, (None, None))
    gaps = np.full((2 * len(column), 1), np.nan)
    gaps[::2, 0] = column
    assert ends(gaps) == (expected,)


def test_forecasts_stay_between_the_ends_in_the_table_s_units(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    size = 60 * 20
    columns = {
        "unique_id": np.repeat(np.arange(60), 20),
        "ds": np.tile(np.arange(20.0), 60),
        "rain": np.maximum(rng.normal(-0.5, 1, size), 0) * 1e3,  # every third day
        "alarm": (rng.random(size) < 0.1).astype(float),
        "level": rng.normal(size=(60, 20)).cumsum(1).ravel(),
    }
    pd.DataFrame(columns).to_csv(tmp_path / "table.csv", index=False)
    table = read_table(tmp_path / "table.csv")
    settings = load_experiment(None, ["train.members=1"], horizon=4, model={"family": "ridge"})
    predictor = fit_predictor(table, settings).predictor
    assert predictor.scaler.ends == ((0.0, None), (0.0, 1.0), (None, None))
    found = predictor.answer(table, predictor.queries(table, 4, 1)).law
    everything = torch.cat([found.values, found.mean[..., None]], -1)
    assert everything[:, :2].min() == 0 and everything[:, 1].max() <= 1 and everything[:, 2].min() < 0
    free = Predictor(
        predictor.experiment,
        predictor.clock,
        predictor.scaler.model_copy(update={"ends": ()}),
        predictor.members,
        predictor.calibrator,
        predictor.marginal,
    )
    beyond = free.answer(table, predictor.queries(table, 4, 1)).law
    assert beyond.values[:, :2].min() < 0
    torch.testing.assert_close(everything[:, 2], torch.cat([beyond.values, beyond.mean[..., None]], -1)[:, 2])
