"""Series that stay beyond what a network sees are forecast from where they are; nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tsde.distribution import Quantiles, summarise
from tsde.models import MODELS, build
from tsde.models.nearer import Nearer, far
from tsde.series import SeriesBatch
from tsde.windows import Query, Window


def query(values: Tensor, mask: Tensor | None = None, origins: int = 1) -> Query:
    """`values (B, L, C)` in rows a tenth of a horizon apart, asked at the last rows."""
    batch, length, _ = values.shape
    times = torch.arange(1 - length, 1).float().div(10).expand(batch, -1)
    seen = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    context = SeriesBatch(times, values, seen, torch.arange(batch), torch.zeros(batch, 0))
    start = times[:, -origins:]
    return Query(context, start, start[..., None] + torch.tensor([0.3, 0.9]))


def panel(length: int = 20) -> Tensor:
    """Four series of two channels near zero, the second and third of which the tests move away."""
    generator = torch.Generator().manual_seed(0)
    return 0.3 * torch.randn(4, length, 2, generator=generator).cumsum(1)


def family(name: str, learnt: Window | None = None) -> Nearer:
    torch.manual_seed(1)
    model = Nearer(MODELS[name].model(MODELS[name].config(), 2)).eval()
    model.prepare([window(panel()) if learnt is None else learnt])
    return model


def window(values: Tensor, origins: int = 1) -> Window:
    asked = query(values, origins=origins)
    targets = values[:, -origins:, None].expand(-1, -1, 2, -1)
    return Window(asked, targets, torch.ones_like(targets, dtype=torch.bool), torch.arange(len(values)))


def law(model: Nearer, asked: Query) -> Quantiles:
    with torch.no_grad():
        return summarise(model(asked))


def test_far_is_what_stays_beyond_six_deviations_on_one_side() -> None:
    values = panel()
    assert far(query(values)) is None
    values[1, :, 0] += 30
    values[2, -8:, 1] = -torch.linspace(7, 14, 8)
    found = far(query(values))
    assert found is not None
    expected = torch.ones(4, 1, 2)
    expected[1, 0, 0] = values[1, -2:, 0].min() / 3
    expected[2, 0, 1] = 13 / 3  # the nearer of the last two, at three
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("last", [1, 2, 7])
def test_what_passes_is_not_far(last: int) -> None:
    values = panel()
    values[1, -last:, 0] = 30
    assert far(query(values)) is None
    values[1, -8:, 0] = torch.tensor([30.0, -30.0] * 4)
    assert far(query(values)) is None


def test_of_a_short_history_two_values_are_enough_and_one_is_not() -> None:
    values = panel()
    values[1, :, 0] += 30
    mask = torch.zeros_like(values, dtype=torch.bool)
    mask[:, -1] = True
    assert far(query(values, mask)) is None
    mask[1, -5, 0] = True
    hidden = torch.where(mask, values, torch.nan)
    found = far(query(hidden, mask))
    assert found is not None and found[1, 0, 0] > 9 and (found != 1).sum() == 1


def test_an_origin_knows_nothing_of_what_comes_later() -> None:
    values = panel()
    values[1, 6:, 0] = 30
    found = far(query(values, origins=20))
    assert found is not None
    assert (found[1, :, 0] != 1).tolist() == [row >= 13 for row in range(20)]
    assert (found[1, 13:, 0] == 10).all() and (found[[0, 2, 3]] == 1).all()


@pytest.mark.parametrize("name", ["ridge", "filter", "gru"])
def test_a_large_series_is_forecast_like_a_small_one(name: str) -> None:
    """Ten times as large and out of sight: mean and quantiles are ten times those of the series brought near."""
    model, values = family(name), panel()
    values[1, :, 0] += 3 - values[1, -2:, 0].min()
    near, large = values.clone(), values.clone()
    large[1, :, 0] *= 10
    small, big = law(model, query(near)), law(model, query(large))
    torch.testing.assert_close(big.mean[1, ..., 0], 10 * small.mean[1, ..., 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(big.values[1, ..., 0, :], 10 * small.values[1, ..., 0, :], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(big.mean[1, ..., 1], small.mean[1, ..., 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["ridge", "filter", "gru", "latent_sde"])
def test_series_that_are_near_are_answered_as_without_a_far_one(name: str) -> None:
    """Bit for bit where each is asked from one origin, as a predictor asks."""
    model, values = family(name), panel()
    moved = values.clone()
    moved[1, :, 0] += 30
    others = [0, 2, 3]
    for origins, tolerance in ((1, 0.0), (3, 1e-5)):
        alone, beside = (law(model, query(x, origins=origins)) for x in (values, moved))
        torch.testing.assert_close(alone.mean[others], beside.mean[others], rtol=0, atol=tolerance)
        torch.testing.assert_close(alone.values[others], beside.values[others], rtol=0, atol=tolerance)
        assert (beside.mean[1, ..., 0] > 20).all()


@pytest.mark.parametrize("name", ["ridge", "filter"])
def test_nothing_is_learnt_from_targets_that_are_far(name: str) -> None:
    values = panel()
    values[1, :, 0] += 30
    whole = window(values, origins=2)
    cut = replace(whole, mask=whole.mask.clone())
    cut.mask[1, :, :, 0] = False
    model = family(name, whole)
    torch.testing.assert_close(model.state_dict(), family(name, cut).state_dict())
    torch.testing.assert_close(model.loss(whole), model.family.loss(cut))


@pytest.mark.parametrize("name", ["last", "mean"])
def test_plain_baselines_need_no_help(name: str) -> None:
    assert not isinstance(build(MODELS[name].config(), 2), Nearer)  # type: ignore[arg-type]
