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


def waves(times: torch.Tensor, length: float, count: int) -> torch.Tensor:
    angle = 2 * math.pi * times[..., None] / length * torch.arange(1, count + 1)
    return torch.cat([angle.sin(), angle.cos() - 1], -1).float()


def test_phases_say_where_times_and_origins_lie() -> None:
    times = torch.rand(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4 * YEAR
    origins = times[:, 0] - DAY / 3
    found = phases(times / 3600, origins / 3600, periods(("day", "week", "year"), unit=3600.0))
    assert found is not None and found.shape == (5, 3, PHASES) and found.dtype == torch.float32
    day, week, year, products, asked = found.split([8, 4, 4, 32, 4], -1)
    assert torch.allclose(day, waves(times, DAY, 4), atol=1e-4)
    assert torch.allclose(week, waves(times, 7 * DAY, 2), atol=1e-4)
    assert torch.allclose(year, waves(times, YEAR, 2), atol=1e-4)
    assert torch.allclose(products, (day[..., :, None] * week[..., None, :]).flatten(-2), atol=1e-6)
    assert torch.allclose(asked, waves(origins, DAY, 2)[:, None].expand(5, 3, 4), atol=1e-4)


def test_cycles_left_out_say_nothing() -> None:
    times, origins = torch.rand(5, 3, dtype=torch.float64) * YEAR, torch.zeros(5, dtype=torch.float64)
    found = phases(times, origins, periods(("day", "year"), 1.0))
    assert found is not None
    day, week, year, products, _ = found.split([8, 4, 4, 32, 4], -1)
    assert day.any() and year.any() and not week.any() and not products.any()
    assert phases(times, origins, periods((), 1.0)) is None


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


def working() -> pd.DataFrame:
    """Eight weeks at random times, of which only working days have a noon; levels change over some days."""
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 56 * DAY, (30, 300)), 1)
    level = np.stack([np.interp(row, np.arange(0, 60 * DAY, 4 * DAY), rng.normal(size=15)) for row in times])
    works = (times // DAY + 3) % 7 < 5  # 1970 began on a Thursday
    values = level + 2 * works * np.cos(2 * math.pi * times / DAY) + 0.1 * rng.normal(size=times.shape)
    stamps = pd.to_datetime(times.ravel(), unit="s").floor("s")
    return pd.DataFrame({"unique_id": np.repeat(np.arange(30), 300), "ds": stamps, "x": values.ravel()})


@pytest.mark.parametrize(("unknown", "factor"), [((16, 48), 2.5), ((48, 52), 1.1)], ids=["products", "origins"])
def test_each_part_of_the_phases_tells_of_working_days(
    unknown: tuple[int, int], factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blind(times: torch.Tensor, origins: torch.Tensor, periods: torch.Tensor) -> torch.Tensor:
        found = phases(times, origins, periods)
        assert found is not None
        found[..., slice(*unknown)] = 0
        return found

    experiment = load_experiment(None, ["train.members=1"], horizon="12h", model={"family": "ridge"})
    errors = []
    for seen in (phases, blind):
        monkeypatch.setattr("tsde.windows.phases", seen)
        fitted = fit_predictor(read_table(working()), experiment)
        residuals = fitted.predictor.residuals(fitted.test)
        errors.append(float((residuals.forecast.mean - residuals.value).square().mean()))
    assert errors[0] < 0.1 and errors[1] > factor * errors[0]


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
