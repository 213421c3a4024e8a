"""The law around the ridge regression: as wide, and as skewed, as its errors on other series are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tsde.distribution import GRID, Quantiles
from tsde.models.linear import LinearRoute
from tsde.models.recent import RecentValues
from tsde.series import SeriesBatch
from tsde.windows import Query, Window

Noise = Callable[[Tensor, torch.Generator], Tensor]


def window(count: int, noise: Noise, seed: int = 0) -> Window:
    """Series of one channel whose next values are half of the last one, x, and noise that x governs."""
    generator = torch.Generator().manual_seed(seed)
    last = torch.randn(count, 1, 1, generator=generator).clamp(-2, 2)
    context = SeriesBatch(
        torch.zeros(count, 1), last, torch.ones_like(last).bool(), torch.arange(count), torch.zeros(count, 0)
    )
    lead = torch.rand(count, 1, 4, generator=generator)
    values = 0.5 * last + noise(last.expand_as(lead), generator)
    return Window(
        Query(context, torch.zeros(count, 1), lead), values[..., None], torch.ones(count, 1, 4, 1).bool(), context.key
    )


def law(of: Window, on: Window) -> Quantiles:
    """What a route that was fitted to one window says of another."""
    route, recent = LinearRoute(1, RecentValues.size), RecentValues()
    route.fit([recent(of.query)[0]], [of])
    return route.eval().law(recent(on.query)[0], on.query)


def at(law: Quantiles, *levels: float) -> list[Tensor]:
    return [law.values[..., 0, GRID.index(level)] for level in levels]


def spreading(last: Tensor, generator: torch.Generator) -> Tensor:
    return (0.3 + 0.12 * last) * torch.randn(last.shape, generator=generator)


def skewed_below(last: Tensor, generator: torch.Generator) -> Tensor:
    normal = torch.randn(last.shape, generator=generator)
    waiting = torch.empty(last.shape).exponential_(generator=generator) - 1
    return 0.3 * torch.where(last < 0, waiting, normal)


def test_the_law_is_as_wide_as_the_context_says() -> None:
    new = window(500, spreading, seed=1)
    low, high = at(law(window(2000, spreading), new), 0.1, 0.9)
    last = new.query.context.values
    ratio = (high - low) / 2.563 / (0.3 + 0.12 * last[..., 0])[..., None]
    middle = last.abs()[..., 0] < 1.5
    assert float(ratio[middle].min()) > 0.8 and float(ratio[middle].max()) < 1.25


def test_the_law_is_as_skewed_as_errors_are_about_such_a_mean() -> None:
    new = window(500, skewed_below, seed=1)
    low, middle, high = at(law(window(2000, skewed_below), new), 0.1, 0.5, 0.9)
    skew = ((high + low - 2 * middle) / (high - low)).flatten(1)  # of an exponential law .465
    last = new.query.context.values.flatten()
    assert float(skew[last < -0.5].mean()) == pytest.approx(0.465, abs=0.08)
    assert float(skew[last > 0.5].mean()) == pytest.approx(0, abs=0.08)


@pytest.mark.parametrize("noise", [spreading, skewed_below])
def test_the_law_covers_new_series_as_often_as_it_says(noise: Noise) -> None:
    new = window(2000, noise, seed=1)
    values, found = new.values[..., 0], law(window(1000, noise), new)
    for below, above in ((0.025, 0.975), (0.1, 0.9), (0.25, 0.75)):
        low, high = at(found, below, above)
        assert float(((low <= values) & (values <= high)).float().mean()) == pytest.approx(above - below, abs=0.03)


def test_a_few_errors_tell_no_shape() -> None:
    found = law(window(20, spreading), window(5, spreading, seed=1))
    width = (found.values - found.mean[..., None])[0, 0, 0, 0]
    normal = torch.special.ndtri(torch.tensor(GRID))
    torch.testing.assert_close(width / width[-1], normal / normal[-1])
