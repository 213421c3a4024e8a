"""Conformal correction: coverage on exchangeable data, by lead time and channel, and restraint where data are few."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tsde.calibration import CalibrationConfig, Calibrator, Residuals
from tsde.distribution import GRID, Quantiles

LEVELS = torch.tensor(GRID)
STANDARD = torch.special.ndtri(LEVELS)
EXACT = CalibrationConfig(lead_bins=1, shrinkage=0)
WIDE = list(GRID).index(0.1), list(GRID).index(0.9)


def residuals(
    size: int,
    width: float | Tensor = 1.0,
    bias: float | Tensor = 0.0,
    seed: int = 0,
    channels: int = 1,
    per_series: int = 1,
) -> Residuals:
    """Answers y ~ N(m, 1) to forecasts N(m + bias, width^2), m random; one or more entries per series."""
    random = torch.Generator().manual_seed(seed)
    mean = 3 * torch.randn(size, generator=random)
    y = mean + torch.randn(size, generator=random)
    width, bias = torch.as_tensor(width).expand(size), torch.as_tensor(bias).expand(size)
    values = (mean + bias)[:, None] + width[:, None] * STANDARD
    lead, channel = torch.rand(size, generator=random), torch.arange(size) % channels
    return Residuals(Quantiles(mean + bias, values, LEVELS), y, lead, channel, torch.arange(size) // per_series)


def corrected(calibrator: Calibrator, test: Residuals) -> Quantiles:
    return calibrator(test.forecast, test.lead, test.channel)


def frequency(law: Quantiles, y: Tensor) -> Tensor:
    """Observed share of y <= q_p for each level p."""
    return (y[:, None] <= law.values).double().mean(0)


def covered(law: Quantiles, y: Tensor) -> float:
    low, high = (law.values[:, index] for index in WIDE)
    return float(((low <= y) & (y <= high)).double().mean())


@pytest.mark.parametrize("width", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("bias", [0.0, 1.5])
def test_a_wrong_forecast_becomes_right(width: float, bias: float) -> None:
    fit, test = residuals(20_000, width, bias, 1), residuals(20_000, width, bias, 2)
    law = corrected(Calibrator.fit(fit, 1, CalibrationConfig()), test)
    error = (frequency(law, test.value) - LEVELS).abs() / (LEVELS * (1 - LEVELS) * 2 / 20_000).sqrt()
    assert error.max() < 4.5
    if (width, bias) != (1.0, 0.0):
        assert (frequency(test.forecast, test.value) - LEVELS).abs().max() > 0.1


@pytest.mark.parametrize("size", [9, 19, 49])
def test_coverage_holds_on_average_over_small_samples(size: int) -> None:
    """Exchangeable data: an answer is below its corrected quantile with probability p, up to the sample's steps.

    Averaged over many calibration sets the error at level p is at most 1 / (size + 1), binomial error apart.
    """
    trials, draws = 400, 25
    total = torch.zeros(len(LEVELS), dtype=torch.float64)
    inside = 0.0
    for trial in range(trials):
        calibrator = Calibrator.fit(residuals(size, 0.5, 0.3, 2 * trial), 1, EXACT)
        test = residuals(draws, 0.5, 0.3, 2 * trial + 1)
        law = corrected(calibrator, test)
        total += frequency(law, test.value) / trials
        inside += covered(law, test.value) / trials
    sampling = 4 * (LEVELS * (1 - LEVELS) * (1 / (trials * draws) + 1 / (trials * size))).sqrt()
    reachable = LEVELS.clamp(0.5 / size, 1 - 0.5 / size)  # no order statistic lies further out
    assert ((total - reachable).abs() < 1 / (size + 1) + sampling).all()
    assert inside > 0.8 - 4 * math.sqrt(0.16 / (trials * draws) + 0.16 / (trials * size))
    assert inside < 0.8 + 2 / (size + 1) + 0.02


def test_correction_is_outward_for_small_samples() -> None:
    """Level p of M scores is further out than their plain quantile, whichever series they come from."""
    y = 1.01 * torch.special.ndtri((torch.arange(20) + 0.5) / 20)
    law, zeros = Quantiles(torch.zeros(20), STANDARD.expand(20, -1), LEVELS), torch.zeros(20)
    moved = []
    for series in (torch.arange(20), torch.arange(20) // 4):
        data = Residuals(law, y, zeros, zeros.long(), series)
        moved.append(corrected(Calibrator.fit(data, 1, EXACT), data).values[0])
    many, few = moved
    for p in (0.1, 0.2, 0.8, 0.9):
        index, sign = GRID.index(p), math.copysign(1, p - 0.5)
        assert sign * few[index] == sign * many[index] > sign * torch.quantile(y, p)


def test_disabled_or_without_data_nothing_changes() -> None:
    data = residuals(50, 0.5, 1.0)
    disabled = Calibrator.fit(data, 1, CalibrationConfig(enabled=False))
    empty = Calibrator.fit(residuals(0), 3, CalibrationConfig())
    for calibrator in (disabled, Calibrator.identity(1, len(LEVELS))):
        assert torch.equal(corrected(calibrator, data).values, data.forecast.values)
    law = empty(data.forecast, data.lead, torch.arange(50) % 3)
    assert torch.equal(law.values, data.forecast.values)


def test_a_mean_that_is_off_is_moved_back() -> None:
    data = residuals(2000, 1.0, 0.5)
    found = corrected(Calibrator.fit(data, 1, EXACT), data).mean
    assert float((data.forecast.mean - data.value).mean()) > 0.4
    assert float((found - data.value).mean()) == pytest.approx(0, abs=0.02)


def test_means_stay_if_only_quantiles_are_to_move() -> None:
    data = residuals(2000, 0.5, 0.5)
    found = corrected(Calibrator.fit(data, 1, EXACT, means=False), data)
    every = corrected(Calibrator.fit(data, 1, EXACT), data)
    assert torch.equal(found.mean, data.forecast.mean) and not torch.equal(every.mean, data.forecast.mean)
    assert torch.equal(found.values, every.values)


def test_a_mean_stays_where_its_error_may_be_chance() -> None:
    """Off by a fifth of a deviation is chance over four series, and none over four hundred."""
    moves = []
    for per_series in (500, 5):
        data = residuals(2000, 1.0, 0.2, per_series=per_series)
        moves.append(corrected(Calibrator.fit(data, 1, EXACT), data).mean - data.forecast.mean)
    assert torch.equal(moves[0], torch.zeros(2000))
    assert float(moves[1].mean()) == pytest.approx(-0.2, abs=0.05)


def test_a_few_wild_values_hardly_move_the_mean() -> None:
    data = residuals(2000)
    wild = torch.where(torch.arange(2000) % 100 == 0, 1e4, data.value)
    found = corrected(Calibrator.fit(replace(data, value=wild), 1, EXACT), data).mean
    assert float((found - data.forecast.mean).abs().max()) < 0.1


def size_of(calibrator: Calibrator) -> float:
    return float(calibrator.shift.abs().sum())


def test_shrinkage_goes_from_everything_to_nothing() -> None:
    data = residuals(100, 0.4, 0.5)
    sizes = [
        size_of(Calibrator.fit(data, 1, CalibrationConfig(lead_bins=1, shrinkage=s))) for s in (0, 10, 100, 1e3, 1e9)
    ]
    assert all(a > b for a, b in itertools.pairwise(sizes))
    assert sizes[-1] < 1e-4 * sizes[0]


def test_few_series_correct_little_however_many_windows_they_have() -> None:
    """2000 windows of two series are two series; of 1000 series they are plenty."""
    bias, middle, test = 1.0, GRID.index(0.5), residuals(50, 1.0, 1.0, seed=9)
    moved = []
    for per_series in (1000, 2):
        data = residuals(2000, 1.0, bias, per_series=per_series)
        law = corrected(Calibrator.fit(data, 1, CalibrationConfig()), test)
        moved.append((law.values - test.forecast.values)[:, middle])
    few, many = moved
    assert torch.allclose(many, torch.tensor(-bias), atol=0.15)
    trust = CalibrationConfig().shrinkage
    share = 1 - (1 - 2 / (2 + trust)) * (1 - 2 / (2 + 6 * trust)) ** 2  # overall, then what bin and channel add
    data = residuals(2000, 1.0, bias, per_series=1000)
    full = corrected(Calibrator.fit(data, 1, CalibrationConfig(shrinkage=0)), test)
    assert torch.allclose(few, share * (full.values - test.forecast.values)[:, middle], atol=0.03)


def test_a_series_counts_for_as_many_as_its_pieces() -> None:
    """Two series of 500 pieces each move a forecast as far as 1000 series of one piece."""
    test, middle = residuals(50, 1.0, 1.0, seed=9), GRID.index(0.5)

    def moved(per_series: int, pieces: Tensor | None) -> Tensor:
        calibrator = Calibrator.fit(residuals(2000, 1.0, 1.0, per_series=per_series), 1, CalibrationConfig(), pieces)
        return (corrected(calibrator, test).values - test.forecast.values)[:, middle]

    few = moved(1000, torch.full((2,), 500.0))
    torch.testing.assert_close(few, moved(2, None), rtol=0, atol=0.01)  # not all series are in every bin of leads
    assert (few < moved(1000, None) - 0.1).all()


def test_an_atom_stays_inside_its_interval() -> None:
    """Half of one channel's answers are exactly zero, and so are its lower quantiles: they stay there."""
    plain = residuals(4000, channels=2)
    rain = plain.channel == 0
    values = torch.where(rain[:, None], STANDARD.clamp(min=0), plain.forecast.mean[:, None] + 1 + STANDARD)
    noise = plain.value - plain.forecast.mean
    y = torch.where(rain, (1.2 * noise).clamp(min=0), plain.value)  # the other channel's forecasts are too high
    data = Residuals(Quantiles(plain.forecast.mean, values, LEVELS), y, plain.lead, plain.channel, plain.series)
    law = corrected(Calibrator.fit(data, 2, CalibrationConfig()), data)
    below = LEVELS < 0.45
    assert (law.values[rain][:, below] == 0).all()
    assert float((law.values[~rain] - values[~rain]).mean()) == pytest.approx(-1, abs=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_corrected_quantiles_never_cross(seed: int) -> None:
    """Tiny ragged samples give shifts in any order."""
    data = residuals(7, 0.2, 0.0, seed, channels=2)
    calibrator = Calibrator.fit(data, 2, CalibrationConfig(shrinkage=0))
    test = residuals(200, 1.0, seed=99, channels=2)
    values = corrected(calibrator, test).values
    assert (values.diff(dim=-1) >= 0).all() and torch.isfinite(values).all()


def test_monotone_even_for_shifts_that_cross() -> None:
    shift = torch.linspace(5, -5, len(LEVELS) + 1)[None, None]
    law = Calibrator(torch.zeros(0), shift)(residuals(10).forecast, torch.zeros(10), torch.zeros(10, dtype=torch.long))
    assert (law.values.diff(dim=-1) >= 0).all()


def test_miscalibration_by_lead_time_is_removed() -> None:
    """Forecasts too wide at short leads and too narrow at long ones are right overall only."""

    def data(seed: int) -> Residuals:
        plain = residuals(8000, seed=seed)
        width = torch.where(plain.lead < 0.5, 2.5, 0.4)
        values = plain.forecast.mean[:, None] + width[:, None] * STANDARD
        law = Quantiles(plain.forecast.mean, values, LEVELS)
        return Residuals(law, plain.value, plain.lead, plain.channel, plain.series)

    test = data(2)
    law = corrected(Calibrator.fit(data(1), 1, CalibrationConfig(lead_bins=2)), test)
    pooled = corrected(Calibrator.fit(data(1), 1, CalibrationConfig(lead_bins=1)), test)
    for half in (test.lead < 0.48, test.lead > 0.52):
        chosen = Quantiles(law.mean[half], law.values[half], LEVELS)
        alike = Quantiles(pooled.mean[half], pooled.values[half], LEVELS)
        assert covered(chosen, test.value[half]) == pytest.approx(0.8, abs=0.03)
        assert abs(covered(alike, test.value[half]) - 0.8) > 0.08


def test_miscalibration_by_channel_is_removed() -> None:
    widths = torch.tensor([0.4, 1.0, 2.5])

    def data(seed: int) -> Residuals:
        return residuals(12_000, widths[torch.arange(12_000) % 3], seed=seed, channels=3)

    test = data(2)
    law = corrected(Calibrator.fit(data(1), 3, CalibrationConfig(lead_bins=1)), test)
    for channel in range(3):
        chosen = test.channel == channel
        own = Quantiles(law.mean[chosen], law.values[chosen], LEVELS)
        assert covered(own, test.value[chosen]) == pytest.approx(0.8, abs=0.03)


def test_a_channel_without_data_takes_the_correction_of_the_others() -> None:
    data = residuals(2000, 0.5, 0.0)
    calibrator = Calibrator.fit(data, 2, CalibrationConfig(lead_bins=1, shrinkage=0))
    assert torch.isfinite(calibrator.shift).all()
    torch.testing.assert_close(calibrator.shift[0, 1], calibrator.shift[0, 0], rtol=0, atol=0.02)


def test_constants_say_nothing_of_other_channels() -> None:
    alone = residuals(200, 0.5)
    sure = alone.forecast.mean * 0 + 3, torch.full_like(alone.forecast.values, 3.0)
    constant = replace(alone, forecast=Quantiles(*sure, LEVELS), value=sure[0], channel=alone.channel + 1)
    together = Calibrator.fit(Residuals.concatenate([alone, constant]), 2, CalibrationConfig())
    by_itself = Calibrator.fit(alone, 1, CalibrationConfig())
    torch.testing.assert_close(together.shift[:, 0], by_itself.shift[:, 0])
    assert (together.shift[:, 1] == 0).all()


def test_equal_leads_make_one_bin() -> None:
    data = residuals(300, 0.5)
    data = Residuals(data.forecast, data.value, torch.ones(300), data.channel, data.series)
    calibrator = Calibrator.fit(data, 1, CalibrationConfig(lead_bins=4, shrinkage=0))
    law = calibrator(data.forecast, torch.full((300,), 1.0), data.channel)
    assert covered(law, data.value) == pytest.approx(0.8, abs=0.02)
    assert torch.isfinite(calibrator(data.forecast, torch.full((300,), 5.0), data.channel).values).all()


def test_a_degenerate_forecast_is_corrected_without_dividing_by_zero() -> None:
    sure = Quantiles(torch.zeros(40), torch.zeros(40, len(LEVELS)), LEVELS)
    data = residuals(40)
    stuck = Residuals(sure, data.value, data.lead, data.channel, data.series)
    assert torch.isfinite(corrected(Calibrator.fit(stuck, 1, CalibrationConfig()), stuck).values).all()


def test_correction_does_not_depend_on_the_order_of_windows() -> None:
    data = residuals(300, 0.5, 0.2, channels=3, per_series=3)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    law = Quantiles(data.forecast.mean[order], data.forecast.values[order], LEVELS)
    mixed = Residuals(law, data.value[order], data.lead[order], data.channel[order], data.series[order])
    first, second = (Calibrator.fit(each, 3, CalibrationConfig()) for each in (data, mixed))
    assert torch.equal(first.shift, second.shift) and torch.equal(first.edges, second.edges)


def test_concatenate_keeps_every_entry() -> None:
    parts = [residuals(5, seed=1), residuals(0), residuals(3, seed=2, channels=2)]
    whole = Residuals.concatenate(parts)
    assert torch.equal(whole.value, torch.cat([part.value for part in parts]))
    assert torch.equal(whole.forecast.values[5:], parts[2].forecast.values)
    assert whole.channel.tolist() == [0, 0, 0, 0, 0, 0, 1, 0]


def test_broadcast_over_batch_shapes() -> None:
    calibrator = Calibrator.fit(residuals(500, 0.5, 0.5, channels=3), 3, CalibrationConfig())
    law = Quantiles(torch.zeros(2, 4, 3), STANDARD.expand(2, 4, 3, -1), LEVELS)
    lead = torch.rand(2, 4, 1).expand(2, 4, 3)
    whole = calibrator(law, lead, torch.arange(3).expand(2, 4, 3)).values
    one = calibrator(
        Quantiles(law.mean[1, 2, 1:2], law.values[1, 2, 1:2], LEVELS), lead[1, 2, 1:2], torch.tensor([1])
    ).values
    assert whole.shape == (2, 4, 3, len(LEVELS)) and torch.equal(whole[1, 2, 1:2], one)
