"""The calendar's cycles: which of them a table shows, where a time lies in them, and what a forecast makes of that."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from tsde.calendar import PHASES, cycles_seen, periods, phases
from tsde.config import load_experiment
from tsde.fitting import fit_predictor
from tsde.predictor import Predictor
from tsde.table import read_table

DAY, YEAR = 86400.0, 31556952.0


def test_cycles_must_be_seen_whole_and_twice() -> None:
    rng, one = np.random.default_rng(0), np.zeros(2000, np.int64)

    def seen(times: np.ndarray, series: np.ndarray = one) -> tuple[str, ...]:
        return cycles_seen(times, series[: len(times)])

    assert seen(rng.uniform(0, 3 * YEAR, 2000)) == ("day", "week", "year")
    assert seen(rng.uniform(0, 1.5 * YEAR, 2000)) == ("day", "week")
    assert seen(rng.uniform(0, 20 * DAY, 2000)) == ("day", "week")
    months = np.repeat(np.arange(100), 20)
    assert seen(months * 20 * DAY + rng.uniform(0, 30 * DAY, 2000), months) == ("day", "week")
    mornings = DAY * np.arange(2000) + rng.uniform(8 * 3600, 11 * 3600, 2000)
    assert seen(mornings) == ("week", "year")
    springs = YEAR * rng.integers(0, 5, 2000) + rng.uniform(0, 0.25 * YEAR, 2000)
    assert "year" not in seen(springs)
    assert seen(np.zeros(0)) == seen(np.zeros(5)) == ()


def test_phases_repeat_after_a_cycle_and_are_zero_without_one() -> None:
    times = torch.rand(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 40 * YEAR
    lengths = periods(("day", "year"), unit=3600.0)
    found = phases(times / 3600, lengths)
    assert found.shape == (5, 3, PHASES) and found.dtype == torch.float32
    day, week, year = found.split(4, -1)
    assert not week.any()
    assert torch.allclose(day, phases((times + 12 * DAY) / 3600, lengths)[..., :4], atol=2e-5)
    assert torch.allclose(year, phases((times + 3 * YEAR) / 3600, lengths)[..., 8:], atol=2e-5)
    assert torch.allclose(year[..., 0], torch.sin(2 * math.pi * times / YEAR).float(), atol=1e-4)
    assert not phases(times, periods((), 1.0)).any()


def seasonal(series: int = 40, rows: int = 60) -> pd.DataFrame:
    """Four years at random times of a channel that only the season moves, of no use a quarter of a year before."""
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 4 * YEAR, (series, rows)), 1).ravel()
    noise = 0.1 * rng.normal(size=series * rows)
    values = np.sin(2 * math.pi * times / YEAR) + noise
    stamps = pd.to_datetime(times, unit="s").floor("s")
    return pd.DataFrame({"unique_id": np.repeat(np.arange(series), rows), "ds": stamps, "x": values})


@pytest.fixture(scope="module")
def by_calendar() -> dict[bool, float]:
    """Test MSE of the ridge regression with and without the calendar."""
    table = read_table(seasonal())
    found = {}
    for calendar in (True, False):
        setting = [f"windows.calendar={str(calendar).lower()}", "train.members=1"]
        experiment = load_experiment(None, setting, horizon="120d", model={"family": "ridge"})
        fitted = fit_predictor(table, experiment)
        residuals = fitted.predictor.residuals(fitted.test)
        found[calendar] = float((residuals.forecast.mean - residuals.value).square().mean())
        assert fitted.predictor.scaler.cycles == (("day", "week", "year") if calendar else ())
    return found


def test_a_seasonal_channel_is_forecast_better_with_the_calendar(by_calendar: dict[bool, float]) -> None:
    assert by_calendar[True] < 0.5 * by_calendar[False]
    assert by_calendar[True] < 0.06  # in squared deviations; the noise alone is 0.02


def test_the_calendar_is_saved_and_asked_at_the_query_times(tmp_path) -> None:
    frame = seasonal(40, 60)
    experiment = load_experiment(
        None,
        [
            "windows.calendar=true",
            "train.steps=150",
            "train.members=1",
            "train.batch=16",
            "model.modes=4",
            "model.width=16",
        ],
        horizon="120d",
    )
    predictor = fit_predictor(read_table(frame), experiment).predictor
    predictor.save(tmp_path / "model")
    again = Predictor.load(tmp_path / "model")
    assert again.scaler.cycles == ("day", "week", "year")
    history = read_table(frame[frame["unique_id"] < 3])
    shifted = frame[frame["unique_id"] < 3].assign(ds=lambda rows: rows["ds"] + pd.Timedelta(YEAR / 2, "s"))
    first, same, later = (
        model.forecast(table, "120d", "30d")["tsde"].to_numpy(float)
        for model, table in ((predictor, history), (again, history), (again, read_table(shifted)))
    )
    assert np.array_equal(first, same)
    assert np.abs(first - later).max() > 0.1  # half a year later the season is another one


def test_numbers_have_no_calendar() -> None:
    frame = seasonal().assign(ds=lambda rows: rows["ds"].astype("int64") / 1e9)
    experiment = load_experiment(
        None, ["windows.calendar=true", "train.members=1"], horizon=120 * DAY, model={"family": "ridge"}
    )
    assert fit_predictor(read_table(frame), experiment).predictor.scaler.cycles == ()
