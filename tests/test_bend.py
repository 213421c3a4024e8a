"""Heavy-tailed channels are bent, others are not, and what comes back is in the table's own scale."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from tsde import metrics
from tsde.config import load_experiment
from tsde.distribution import Quantiles, summarise
from tsde.fitting import fit_predictor
from tsde.heads import HUBER, score
from tsde.models import MODELS, build
from tsde.models.bend import Bend, Bent
from tsde.models.ridge import RidgeConfig
from tsde.series import SeriesBatch
from tsde.table import read_table
from tsde.windows import Query, Window


def windows(values: Tensor, mask: Tensor | None = None) -> list[Window]:
    """One window of `values (B, L, C)` in rows a tenth of a horizon apart; each but the last asks about the next."""
    batch, length, channels = values.shape
    times = torch.arange(1 - length, 1).float().div(10).expand(batch, -1)
    seen = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    context = SeriesBatch(times, values, seen, torch.arange(batch), torch.zeros(batch, 0))
    query = Query(context, times[:, :-1], times[:, 1:, None])
    return [Window(query, values[:, 1:, None], seen[:, 1:, None], torch.arange(batch))]


def walk(seed: int = 0, batch: int = 200, length: int = 20) -> Tensor:
    """Series of unlike levels that wander, `(B, L)`."""
    generator = torch.Generator().manual_seed(seed)
    level = 3 * torch.randn(batch, 1, generator=generator)
    return level + 0.15 * torch.randn(batch, length, generator=generator).cumsum(1)


def kinds() -> Tensor:
    """A plain channel, one of the same logarithm, its mirror image, noise with two heavy tails around levels."""
    x = walk()
    heavy = torch.sinh(1.5 * x)
    found = torch.stack([x, x.exp(), -x.exp(), heavy], -1)
    return (found - found.mean((0, 1))) / found.std((0, 1))


def fitted(values: Tensor, mask: Tensor | None = None) -> Bend:
    bend = Bend(values.shape[-1])
    bend.fit(windows(values, mask))
    return bend


def test_heavy_tails_on_either_side_are_bent_and_a_plain_channel_is_not() -> None:
    values = kinds()
    bend = fitted(values)
    assert (bend.width > 0).tolist() == [False, True, True, True]
    middle = values.flatten(0, 1).median(0).values
    assert bend.xi[1] < middle[1] and bend.xi[2] > middle[2]
    assert float((bend.xi[3] - middle[3]).abs()) < 0.05
    seen = bend.bent(values)
    torch.testing.assert_close(seen.mean((0, 1))[1:], torch.zeros(3), rtol=0, atol=0.05)
    torch.testing.assert_close(seen.std((0, 1))[1:], torch.ones(3), rtol=0, atol=0.05)
    assert seen.abs().max() < 6 < values[..., 1:].abs().amax((0, 1)).min(), "what is far away must come near"


def test_a_bend_undoes_itself_and_grows() -> None:
    values = kinds()
    bend = fitted(values)
    torch.testing.assert_close(bend.straight(bend.bent(values), torch.arange(4)), values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bend.bent(values)[..., 0], values[..., 0], rtol=0, atol=0)
    rising = torch.linspace(-3, 3, 200)[:, None].expand(-1, 4)
    assert (bend.bent(rising).diff(dim=0) > 0).all()


def test_bends_follow_a_channels_scale() -> None:
    values = kinds()
    one, other = fitted(values), fitted(1.3 * values)
    torch.testing.assert_close(other.width, 1.3 * one.width)
    torch.testing.assert_close(other.bent(1.3 * values)[..., 1:], one.bent(values)[..., 1:], rtol=0, atol=1e-3)


def test_noise_that_is_the_same_everywhere_is_not_bent() -> None:
    """Most values lie near zero, but a forecast is no better near zero than far from it."""
    generator = torch.Generator().manual_seed(3)
    levels = torch.randn(60, 1, generator=generator).exp()
    values = levels + 0.5 * torch.randn(60, 30, generator=generator)
    assert fitted(values[..., None]).width.tolist() == [0.0]


@pytest.mark.parametrize(("keeps", "bent"), [(0.98, True), (0.5, False)])
def test_less_must_be_saved_where_levels_stay(keeps: float, bent: bool) -> None:
    """The logarithm has deviation 1.5 in both: from row to row it keeps nearly all of its level, or half of it."""
    generator = torch.Generator().manual_seed(7)
    steps = torch.randn(30, 60, generator=generator)
    x = [steps[0]]
    for step in steps[1:]:
        x.append(keeps * x[-1] + (1 - keeps**2) ** 0.5 * step)
    values = (1.5 * torch.stack(x, 1)).exp()
    assert bool(fitted(((values - values.mean()) / values.std())[..., None]).width > 0) is bent


@pytest.mark.parametrize("values", [torch.zeros(20, 9, 1), (torch.arange(180.0) % 40 == 0).reshape(20, 9, 1)])
def test_what_hardly_changes_is_not_bent(values: Tensor) -> None:
    assert fitted(values.float()).width.tolist() == [0.0]


def test_only_what_was_observed_counts() -> None:
    values = kinds()
    mask = torch.rand(values.shape, generator=torch.Generator().manual_seed(1)) < 0.6
    hidden = torch.where(mask, values, math.nan)
    found, expected = fitted(hidden, mask), fitted(torch.where(mask, values, 0.0), mask)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)


def test_what_is_forecast_from_is_the_last_value_whatever_its_age() -> None:
    """Every other row is hidden: what is left are the same pairs as in a table without those rows."""
    values = kinds()
    spread = values.repeat_interleave(2, 1)
    mask = (torch.arange(spread.shape[1]) % 2 == 0)[None, :, None].expand(spread.shape)
    torch.testing.assert_close(fitted(spread, mask).state_dict(), fitted(values).state_dict())


def test_nothing_is_straightened_beyond_ten_times_what_was_seen() -> None:
    values = kinds()
    bend = fitted(values)
    far = bend.straight(torch.full((4,), 1e6), torch.arange(4)) - bend.xi
    most = (values - bend.xi).abs().amax((0, 1))
    assert (far[1:] <= 10.5 * most[1:]).all() and (far[1:] > 5 * most[1:]).all()


def test_a_forecast_of_a_bent_family_is_straightened_level_by_level() -> None:
    values = kinds()
    torch.manual_seed(0)
    model = build(MODELS["filter"].config(width=8, modes=8), 4).eval()  # type: ignore[arg-type]
    assert isinstance(model, Bent)
    model.prepare(windows(values))
    query = windows(values)[0].query
    with torch.no_grad():
        law, own = model(query), summarise(model.family(model.seen(query)))
    channel = torch.arange(4)
    torch.testing.assert_close(law.values[..., 10], model.bend.straight(own.values[..., 10], channel))
    torch.testing.assert_close(law.mean, model.bend.straight(own.mean, channel))
    torch.testing.assert_close(law.values[..., 0, :], own.values[..., 0, :], rtol=0, atol=0)


def test_means_are_scored_straight_and_quantiles_bent() -> None:
    values = kinds()
    bend = fitted(values).double()
    plain = windows(values.double())[0]
    bent = replace(plain, values=bend.bent(plain.values), straight=bend.straight)
    target = bent.values[bent.mask]
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    law = Quantiles(target + 0.2, target[:, None] + torch.tensor([-1.0, 0.1, 1.0]), levels)
    found = score(law, target, bent.scaled)
    channel = bent.mask.nonzero()[:, -1]
    error = (bend.straight(law.mean, channel) - plain.values[plain.mask]).abs()
    huber = torch.where(error < HUBER, error.square() / 2, HUBER * (error - HUBER / 2))
    torch.testing.assert_close(found, huber + 2 * metrics.pinball(law.values, levels, target).mean(-1))


def test_closed_forms_are_not_bent() -> None:
    assert not isinstance(build(RidgeConfig(), 2), Bent)


def lognormal(series: int = 40, rows: int = 40) -> pd.DataFrame:
    """Levels over four orders of magnitude, and a course of a seventh around each."""
    generator = np.random.default_rng(5)
    time = np.sort(generator.uniform(0, 100, (series, rows)), 1)
    level = generator.normal(0, 2, (series, 1))
    course = 0.5 * np.sin(2 * np.pi * time / 40 + generator.uniform(0, 6, (series, 1)))
    values = np.exp(level + course + 0.1 * generator.normal(size=time.shape))
    names = np.repeat([f"s{i}" for i in range(series)], rows)
    return pd.DataFrame({"unique_id": names, "ds": time.ravel(), "y": values.ravel()})


def test_over_orders_of_magnitude_a_bend_saves_a_tenth_of_the_crps(monkeypatch: pytest.MonkeyPatch) -> None:
    table = read_table(lognormal())
    small = ["model.width=32", "model.modes=16", "train.steps=200", "train.members=1", "windows.held_out=200"]
    experiment = load_experiment(None, small, horizon=15.0)

    def crps() -> tuple[float, float]:
        fitted = fit_predictor(table, experiment)
        found = fitted.predictor.residuals(fitted.test)
        law = found.forecast
        return (
            float(metrics.crps_quantiles(law.values, law.levels, found.value).mean()),
            float(metrics.mse(law.mean, found.value).mean()),
        )

    bent = crps()
    monkeypatch.setattr(Bend, "fit", lambda self, windows: None)
    straight = crps()
    assert bent[0] < 0.9 * straight[0] and bent[1] < straight[1]
