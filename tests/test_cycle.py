"""A cycle at paces and phases of each series' own: found, followed, and left alone where there is none."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tsde.distribution import central_width, summarise
from tsde.model import Cautious
from tsde.models import harmonics
from tsde.models.cycle import Cycle
from tsde.models.filter import Filter, FilterConfig
from tsde.models.readout import Readout
from tsde.models.ridge import Ridge, RidgeConfig
from tsde.series import SeriesBatch
from tsde.windows import FOLDS, Query, Window

OMEGA = 11.0  # radians per horizon
LEADS = torch.linspace(0.1, 1.0, 7)


def template(channels: int = 3, count: int = 3) -> Tensor:
    """Random harmonics that fall off, `(C, J + 1)`, the first two well apart from zero."""
    generator = torch.Generator().manual_seed(1)
    found = torch.randn(channels, count + 1, dtype=torch.complex64, generator=generator)
    found[:, 0] = found[:, 0].real + 0j
    return found * 0.5 ** torch.arange(count + 1)


def series(template: Tensor, phase: Tensor, omega: Tensor, times: Tensor) -> Tensor:
    """Re sum_j A_j e^{i j phi} at `times (B, T)`, `(B, T, C)`."""
    angle = phase[:, None] + omega[:, None] * times
    return (harmonics.powers(template.shape[-1], angle) @ template.T).real


def windows(count: int = 40, noise: float = 0.05, rows: int = 60, seed: int = 2) -> list[Window]:
    """Series of one cycle at irregular times, a third of their values hidden."""
    generator = torch.Generator().manual_seed(seed)
    phase = 2 * math.pi * torch.rand(count, generator=generator)
    omega = OMEGA * torch.exp(0.06 * torch.randn(count, generator=generator))
    times = (-1.5 * torch.rand(count, rows, generator=generator)).sort(1).values
    times[:, -1] = 0.0
    values = series(template(), phase, omega, times)
    values = values + noise * torch.randn(values.shape, generator=generator)
    mask = torch.rand(values.shape, generator=generator) < 0.67
    context = SeriesBatch(times, torch.where(mask, values, 0.0), mask, torch.arange(count), torch.zeros(count, 0))
    query = Query(context, torch.zeros(count, 1), LEADS.expand(count, 1, -1))
    targets = series(template(), phase, omega, LEADS.expand(count, -1))[:, None]
    return [Window(query, targets, torch.ones_like(targets, dtype=torch.bool), torch.arange(count))]


def fitted(found: list[Window], count: int = 3) -> Cycle:
    cycle = Cycle(3, count)
    cycle.fit(found)
    return cycle


def test_the_square_of_a_template_has_twice_its_harmonics() -> None:
    angle = torch.linspace(0, 6, 50)
    values = (harmonics.powers(4, angle) @ template().T).real
    squares = (harmonics.powers(7, angle) @ harmonics.square(template()).T).real
    torch.testing.assert_close(squares, values.square(), atol=1e-5, rtol=1e-5)


def test_least_squares_give_a_template_back_from_what_was_observed() -> None:
    angle = 2 * math.pi * torch.rand(2, 200, generator=torch.Generator().manual_seed(0))
    values = (harmonics.powers(4, angle) @ template().T).real
    mask = torch.rand(values.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    sums = harmonics.moments(angle, torch.where(mask, values, 99.0), mask, 3)
    found, left = harmonics.fitted(sums)
    torch.testing.assert_close(found, template().expand(2, -1, -1), atol=0.02, rtol=0)
    assert left.max() < 1e-3 * mask.sum()


def test_the_misfit_is_the_sum_of_squares_written_out() -> None:
    (window,) = windows(count=3, rows=9)
    context = window.query.context
    cycle = Cycle(3, 3)
    cycle.omega.fill_(OMEGA)
    origins = torch.tensor([[-0.5, 0.0]]).expand(3, -1)
    known = template().expand(3, 2, -1, -1)
    misfit, count = cycle._misfit(context.times, context.values, context.mask, origins, known)
    paces, places = cycle._omegas(), 2 * math.pi * torch.arange(misfit.shape[-1]) / misfit.shape[-1]
    for row, k, pace, place in [(0, 0, 0, 5), (1, 1, 30, 100), (2, 0, 60, 64), (2, 1, 17, 0)]:
        seen = context.mask[row] & (context.times[row] <= origins[row, k])[:, None]
        elapsed = context.times[row, None] - origins[row, k]
        path = series(template(), places[place, None], paces[pace, None], elapsed)[0]
        values = context.values[row]
        wanted = torch.where(seen, (values - path).square() - values.square(), 0.0).sum()
        torch.testing.assert_close(misfit[row, k, pace, place], wanted, atol=1e-3, rtol=1e-4)
        assert count[row, k] == seen.sum()


def test_frequency_and_template_are_found_and_new_series_followed() -> None:
    cycle = fitted(windows())
    assert abs(math.log(float(cycle.omega) / OMEGA)) < 0.03
    assert float(cycle.noise) < 0.05
    (fresh,) = windows(seed=3)
    ahead, now = cycle.expected(fresh.query, apart=False)
    assert ahead.shape == fresh.values.shape and now.shape == (40, 1, 3)
    explained = 1 - (ahead - fresh.values).square().mean() / fresh.values.var()
    assert explained > 0.9


def test_a_short_past_is_met_with_the_paces_that_were_seen() -> None:
    """From two rows nothing is known of a pace, so the posterior mean falls back towards the level far ahead."""
    cycle = fitted(windows())
    (short,) = windows(rows=2, seed=4)
    ahead, _ = cycle.expected(short.query, apart=False)
    near, far = (ahead - short.values).square().mean((0, 1, 3))[[0, -1]]
    assert near < far < short.values.var()


def test_without_a_past_all_that_is_left_is_the_level() -> None:
    cycle = fitted(windows())
    (window,) = windows(count=2)
    context = window.query.context
    nothing = SeriesBatch(context.times, context.values, torch.zeros_like(context.mask), context.key, context.static)
    ahead, now = cycle.expected(Query(nothing, window.query.origins, window.query.times), apart=False)
    level = cycle.template[:, 0, 0]
    torch.testing.assert_close(now, level.expand_as(now), atol=1e-4, rtol=0)
    torch.testing.assert_close(ahead, level.expand_as(ahead), atol=1e-4, rtol=0)


def test_apart_each_row_is_answered_by_the_template_that_has_not_seen_its_fold() -> None:
    cycle = fitted(windows())
    for fold in range(FOLDS):
        cycle.others[fold] = 0
        cycle.others[fold, :, 0, 0] = fold
    (window,) = windows(count=7)
    ahead, _ = cycle.expected(window.query, apart=True)
    torch.testing.assert_close(ahead[:, 0, 0, 0], torch.arange(7.0) % FOLDS)


def test_ridge_regression_with_a_cycle_follows_it_and_without_one_does_not() -> None:
    found, (fresh,) = windows(), windows(seed=5)
    errors = []
    for count in (None, 3):
        model = Ridge(RidgeConfig(harmonics=count), 3)
        model.prepare(found)
        law = model.eval()(fresh.query)
        errors.append(float((law.mean - fresh.values).square().mean()))
        deviation = central_width(summarise(law)) / 2.563  # as if it were normal
        spread = float(((law.mean - fresh.values) / deviation).square().mean())
        assert 0.2 < spread < 5  # the regression knows how good it is
    assert errors[1] < 0.3 * errors[0]


def test_random_walks_have_no_cycle_that_would_spoil_the_regression() -> None:
    generator = torch.Generator().manual_seed(0)
    walks = 0.2 * torch.randn(80, 67, 3, generator=generator).cumsum(1)
    times = torch.linspace(-1.5, 0.0, 60).expand(80, -1)
    mask = torch.ones(80, 60, 3, dtype=torch.bool)

    def part(rows: slice) -> Window:
        context = SeriesBatch(times[rows], walks[rows, :60], mask[rows], torch.arange(80)[rows], torch.zeros(40, 0))
        query = Query(context, torch.zeros(40, 1), LEADS.expand(40, 1, -1))
        return Window(query, walks[rows, None, 60:], torch.ones(40, 1, 7, 3, dtype=torch.bool), torch.arange(40))

    errors = []
    for count in (None, 3):
        model = Ridge(RidgeConfig(harmonics=count), 3)
        model.prepare([part(slice(40))])
        window = part(slice(40, 80))
        errors.append(float((model.eval()(window.query).mean - window.values).square().mean()))
    assert errors[1] < 1.1 * errors[0]


def test_a_number_called_trust_makes_no_part_one_that_validation_may_change() -> None:
    model = Filter(FilterConfig(harmonics=2), 3)
    cycle = model.readout.linear.cycle
    assert cycle is not None
    cycle.register_buffer("trust", torch.ones(()))
    assert [type(part) for part in model.modules() if isinstance(part, Cautious)] == [Readout]
