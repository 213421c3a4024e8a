"""Scaling: fitted on the rows it is given, robust, undone on the distribution, blind to a channel's unit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tsde.distribution import Quantiles
from tsde.scaling import Scaler
from tsde.table import Table, read_table

LEVELS = torch.tensor([0.1, 0.5, 0.9])


def table(values: np.ndarray, ids: list[str] | None = None) -> Table:
    """Values `(R, C)` at times 0, 1, ... of one series, or of the series `ids (R,)`."""
    names = [f"c{i}" for i in range(values.shape[1])]
    frame = pd.DataFrame(values, columns=names)
    frame.insert(0, "unique_id", ids or ["a"] * len(values))
    frame.insert(1, "ds", np.arange(len(values), dtype=float))
    return read_table(frame, expected_channels=tuple(names))  # also the empty ones


def fit(values: np.ndarray, horizon: float = 4.0) -> Scaler:
    return Scaler.fit(table(values), horizon, np.ones(len(values), dtype=bool))


def normals(rows: int = 200, channels: int = 2) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, channels)) * [2.0, 0.5][:channels] + [10.0, -3.0][:channels]


def test_scaled_channels_have_mean_zero_and_deviation_one() -> None:
    values = normals()
    series = fit(values).apply(table(values), 0)
    np.testing.assert_allclose(series.values.numpy().mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(series.values.numpy().std(0), 1, atol=1e-6)


def test_only_the_given_rows_count() -> None:
    values = normals()
    rows = np.arange(200) < 120
    changed = values.copy()
    changed[~rows] = 1e4
    assert Scaler.fit(table(values), 4.0, rows) == Scaler.fit(table(changed), 4.0, rows)
    assert Scaler.fit(table(values), 4.0, rows) != Scaler.fit(table(values), 4.0, ~rows)


def test_moments_ignore_what_was_not_observed() -> None:
    values = normals()
    holed = values.copy()
    holed[::3, 0] = np.nan
    kept = np.delete(values[:, 0], np.s_[::3])
    assert fit(holed).location[0] == pytest.approx(kept.mean())
    assert fit(holed).scale[0] == pytest.approx(kept.std())


def test_apply_masks_times_and_keys() -> None:
    values = normals(6)
    values[2, 1] = np.nan
    values[4] = np.nan
    data = table(values, ids=["b", "b", "b", "a", "a", "a"])  # the table sorts series by name
    series = fit(normals(), horizon=4.0).apply(data, seed=5)
    assert series.offsets.tolist() == [0, 3, 6]
    assert series.times.dtype == torch.float64 and series.times.tolist() == [0.75, 1.0, 1.25, 0.0, 0.25, 0.5]
    np.testing.assert_array_equal(series.mask.numpy(), ~np.isnan(data.values))
    assert (series.values[~series.mask] == 0).all()
    assert series.values.dtype == torch.float32
    both = fit(normals()).apply(data.select(np.array([1, 0])), seed=5)
    assert torch.equal(both.key, series.key.flip(0))
    assert not torch.equal(fit(normals()).apply(data, seed=6).key, series.key)


@pytest.mark.parametrize("kind", ["constant", "empty", "single"])
def test_a_channel_without_spread_is_measured_by_its_size(kind: str) -> None:
    values = normals()
    values[:, 1] = {"constant": 7.0, "empty": np.nan, "single": np.nan}[kind]
    if kind == "single":
        values[3, 1] = 7.0
    scaler = fit(values)
    assert scaler.scale[1] == (1.0 if kind == "empty" else 7.0)
    assert scaler.location[1] == (0.0 if kind == "empty" else 7.0)
    assert torch.isfinite(scaler.apply(table(values), 0).values).all()


def test_one_impossible_value_counts_as_twenty_interquartile_ranges() -> None:
    wild, winsorised = normals(), normals()
    low, middle, high = np.quantile(np.append(np.delete(wild[:, 0], 5), 1e12), [0.25, 0.5, 0.75])
    wild[5, 0], winsorised[5, 0] = 1e12, middle + 20 * (high - low)
    assert fit(wild).location[0] == pytest.approx(winsorised[:, 0].mean())
    assert fit(wild).scale[0] == pytest.approx(winsorised[:, 0].std())
    scaled = fit(wild).apply(table(wild), 0).values
    assert torch.isfinite(scaled).all() and scaled[5, 0] == 1e6  # clipped, yet still by far the largest


def test_the_largest_floats_stay_finite() -> None:
    values = normals()
    values[5, 0], values[6, 0] = 9e299, -9e299
    assert torch.isfinite(fit(values).apply(table(values), 0).values).all()


@pytest.mark.parametrize("unit", [1e-15, 1e-9, 1e-3, 1e3, 1e9])
def test_a_change_of_unit_changes_no_scaled_value(unit: float) -> None:
    """Amounts in mole or farad are tiny numbers, amounts in bytes are large ones."""
    values = normals()
    reference = fit(values).apply(table(values), 0).values
    moved = values * unit
    np.testing.assert_allclose(fit(moved).apply(table(moved), 0).values, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("power", [980, -980])
def test_a_unit_at_the_edge_of_the_range_costs_no_digit(power: int) -> None:
    values = normals()
    there = fit(np.ldexp(values, power))
    assert there.location == tuple(np.ldexp(fit(values).location, power))
    assert there.scale == tuple(np.ldexp(fit(values).scale, power))


def test_a_shift_changes_no_scaled_value() -> None:
    values = normals()
    reference = fit(values).apply(table(values), 0).values
    moved = values + 5000.0
    np.testing.assert_allclose(fit(moved).apply(table(moved), 0).values, reference, rtol=1e-4, atol=1e-5)


def test_undo_is_the_inverse() -> None:
    values = normals()
    scaler = fit(values)
    scaled = scaler.apply(table(values), 0).values
    law = scaler.undo(Quantiles(scaled, scaled[..., None] + torch.tensor([-1.0, 0.0, 1.0]), LEVELS))
    scale = np.array(scaler.scale)
    assert law.mean.dtype == torch.float64
    np.testing.assert_allclose(law.mean.numpy(), values, atol=1e-5)
    expected = values[..., None] + scale[:, None] * np.array([-1.0, 0.0, 1.0])
    np.testing.assert_allclose(law.values.numpy(), expected, atol=1e-5)


def test_unit_leaves_values_as_they_are() -> None:
    values = normals()
    series = Scaler.unit(("c0", "c1"), 4.0).apply(table(values), 0)
    np.testing.assert_allclose(series.values.numpy(), values, rtol=1e-6)


def test_round_trip_as_json() -> None:
    scaler = fit(normals())
    assert Scaler.model_validate_json(scaler.model_dump_json()) == scaler


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(0, 9))
def test_ends_come_back_exactly(end: float, size: float, seed: int) -> None:
    column = end + size * np.random.default_rng(seed).exponential(size=(100, 1))
    column[::5] = end
    scaler = fit(column)
    assert scaler.ends == ((end, None),)
    found = scaler.scaled_ends()
    assert found is not None
    low, _ = found
    assert (scaler.apply(table(column), 0).values >= low).all()
    law = scaler.undo(Quantiles(low, low[:, None].expand(1, 3), LEVELS))
    assert (law.values == end).all() and (law.mean == end).all()
