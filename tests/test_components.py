"""Principal components in place of channels: what they are, and forecasts by them."""

from __future__ import annotations

import torch

from tsde.models.components import Components
from tsde.models.filter import Filter, FilterConfig
from tsde.series import SeriesBatch
from tsde.windows import Query, Window


def windows(batch: int, channels: int = 7, rank: int = 2, noise: float = 0.0) -> list[Window]:
    """Channels that are mixtures of `rank` random walks."""
    generator = torch.Generator().manual_seed(0)
    walks = 0.1 * torch.randn(batch, 20, rank, generator=generator).cumsum(1)
    values = walks @ torch.randn(rank, channels, generator=generator)
    values += noise * torch.randn(values.shape, generator=generator)
    times = torch.linspace(-2.0, 0.0, 20).repeat(batch, 1)
    context = SeriesBatch(
        times, values, torch.ones_like(values, dtype=torch.bool), torch.arange(batch), torch.zeros(batch, 0)
    )
    query = Query(context, torch.zeros(batch, 1), torch.tensor([0.25, 0.5, 1.0]).expand(batch, 1, 3))
    targets = values[:, None, -3:]
    return [Window(query, targets, torch.ones_like(targets, dtype=torch.bool), torch.arange(batch))]


def test_components_hold_all_of_channels_that_they_span() -> None:
    found = windows(16)
    components = Components(7, 2)
    components.prepare(found)
    directions = components.directions
    torch.testing.assert_close(directions.T @ directions, torch.eye(2), atol=1e-5, rtol=0)
    seen = components.of(found[0].query)
    assert seen.context.values.shape == (16, 20, 2) and seen.context.mask.all()
    torch.testing.assert_close(seen.context.values[..., 0].square().mean(), torch.tensor(1.0))
    pairs = torch.stack([seen.context.values, -seen.context.values], -1).flatten(-2)
    rest = torch.randn(16, 20, 4)
    states = components.spread(torch.cat([pairs, rest], -1))
    assert states.shape[-1] == 20  # 14 and 4 made a multiple of four
    back = states[..., :14].unflatten(-1, (7, 2))
    values = found[0].query.context.values.clamp(-6, 6)
    torch.testing.assert_close(back[..., 0], values, atol=1e-4, rtol=0)
    torch.testing.assert_close(back[..., 1], -values, atol=1e-4, rtol=0)
    assert torch.equal(states[..., 14:18], rest) and not states[..., 18:].any()


def test_rows_that_observe_nothing_stay_so_and_hidden_numbers_are_not_read() -> None:
    (window,) = windows(4)
    context = window.query.context
    mask = context.mask.clone()
    mask[:, 3], mask[:, 5, :6] = False, False
    components = Components(7, 2)
    components.prepare([window])

    def seen(filler: float) -> SeriesBatch:
        values = torch.where(mask, context.values, filler)
        hidden = SeriesBatch(context.times, values, mask, context.key, context.static)
        return components.of(Query(hidden, window.query.origins, window.query.times)).context

    assert torch.equal(seen(0.0).values, seen(9.0).values)
    assert torch.equal(seen(0.0).observed, mask.any(-1)) and not seen(0.0).observed[:, 3].any()


def test_a_filter_of_few_components_learns_and_answers_all_channels() -> None:
    (window,) = windows(32, noise=0.05)
    torch.manual_seed(0)
    model = Filter(FilterConfig(rank=2, modes=8, width=8, horizon_modes=4, dropout=0.0), 7)
    model.prepare([window])
    assert model.read.out_features == 2 + 16
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    first = last = model.loss(window).score.item()
    for _ in range(40):
        optimiser.zero_grad()
        loss = model.loss(window).score
        loss.backward()
        optimiser.step()
        last = loss.item()
    assert last < 0.7 * first
    with torch.no_grad():
        assert model.eval()(window.query).mean.shape == (32, 1, 3, 7)


def test_as_many_components_as_channels_are_the_channels() -> None:
    torch.manual_seed(0)
    plain = Filter(FilterConfig(modes=8, width=8), 3)
    torch.manual_seed(0)
    ranked = Filter(FilterConfig(modes=8, width=8, rank=3), 3)
    assert ranked.components is None
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), ranked.parameters(), strict=True))
