"""The latent ODE over the horizon: what it starts from, and where it goes if nothing was learnt."""

from __future__ import annotations

import math

import pytest
import torch

from tsde.models.horizon import Horizon
from tsde.models.parts import INPUT_LIMIT
from tsde.models.recent import last_and_slope
from tsde.series import SeriesBatch
from tsde.windows import Query

NAN = math.nan
ROWS = [[1.0, NAN, 3.0], [NAN, NAN, 100.0], [2.0, 5.0, NAN], [2.5, NAN, NAN]]
TIMES = [-1.0, -0.75, -0.5, 0.0]
SHORT = 1 / 32  # of a horizon, added to every distance in time


def question(origins: list[float], leads: list[float]) -> Query:
    values = torch.tensor([ROWS])
    mask = ~values.isnan()
    context = SeriesBatch(torch.tensor([TIMES]), values.nan_to_num(7.0), mask, torch.tensor([3]), torch.zeros(1, 0))
    start = torch.tensor([origins])
    return Query(context, start, start[..., None] + torch.tensor(leads))


def test_the_last_value_and_slope_of_each_channel_are_those_known_at_the_origin() -> None:
    last, slope = last_and_slope(question([-1.0, -0.75, -0.5, 0.0], [0.1]))
    assert last[0].tolist() == [[1, 0, 3], [1, 0, INPUT_LIMIT], [2, 5, INPUT_LIMIT], [2.5, 5, INPUT_LIMIT]]
    rise = pytest.approx((1.0 - 0.0) / (0.5 + SHORT))
    assert slope[0].tolist() == [
        [0, 0, 0],  # one value has no slope
        [0, 0, INPUT_LIMIT],  # a steep one is clipped
        [rise, 0, INPUT_LIMIT],
        [pytest.approx(0.5 / (0.5 + SHORT)), 0, INPUT_LIMIT],
    ]


@pytest.mark.parametrize("modes", [1, 2])  # four modes in all, and five made even
def test_where_nothing_is_learnt_channels_stay_near_their_last_value(modes: int) -> None:
    torch.manual_seed(0)
    horizon = Horizon(encoded=4, channels=3, modes=modes, width=8, steps=6, tolerance=None, dropout=0.0)
    torch.nn.init.zeros_(horizon.outer.weight)
    torch.nn.init.zeros_(horizon.outer.bias)
    torch.nn.init.zeros_(horizon.start.weight)
    query = question([-0.5, 0.0], [0.0, 0.4, 2.0])
    states = horizon(torch.randn(5, 1, 2, 4), query)
    assert states.shape == (5, 1, 2, 3, horizon.size) and horizon.size % 4 == 0
    own = states[..., :6].unflatten(-1, (3, 2))
    fade = torch.exp(-math.exp(-4) * query.lead)[..., None]
    last, slope = last_and_slope(query)
    torch.testing.assert_close(own[..., 0], (fade * last[:, :, None]).expand(5, -1, -1, -1, -1))
    torch.testing.assert_close(own[..., 1], (fade * slope[:, :, None]).expand(5, -1, -1, -1, -1))


def test_the_encoder_moves_the_start_and_the_law_of_motion() -> None:
    torch.manual_seed(0)
    horizon = Horizon(encoded=4, channels=3, modes=3, width=8, steps=6, tolerance=None, dropout=0.0)
    query = question([0.0], [0.0, 1.0])
    one, other = horizon(torch.randn(2, 1, 1, 4), query)
    assert (one[..., :6] - other[..., :6]).abs().amin((0, 1, 3)).min() > 1e-4
    torch.nn.init.zeros_(horizon.start.weight)
    one, other = horizon(torch.randn(2, 1, 1, 4), query)
    assert torch.equal(one[..., 0, :], other[..., 0, :])
    assert (one[..., 1, :] - other[..., 1, :]).abs().max() > 1e-4
