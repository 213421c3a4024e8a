"""Series that stay where a network cannot see them: brought nearer, and their forecasts sent back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributions import Distribution

from tsde.distribution import Quantiles, summarise
from tsde.model import Forecaster, Loss
from tsde.models.parts import INPUT_LIMIT
from tsde.models.recent import seen_at
from tsde.windows import Query, Window

_LATEST = 8  # observations that tell where a channel is
_NEAR = INPUT_LIMIT / 2


class Nearer(Forecaster):
    """A family that sees values up to six deviations, and series beyond them too.

    A channel of a series is far if its latest observations, eight of them or as many as there are but two at least,
    all lie beyond six deviations on one side. To a family they would look like a constant six. So it is asked about
    the channel divided by f, and its law multiplied by f, where f takes the nearer of the last two values to three
    deviations: what is ten times as large is taken to change ten times as much, as sizes, counts and prices do. One
    wild value, or a few, are clipped as before.

    Nothing is learnt from targets that are far: their contexts say nothing about them.
    """

    def __init__(self, family: Forecaster):
        super().__init__()
        self.family = family
        self.causal, self.adaptive, self.examples = family.causal, family.adaptive, family.examples
        self.literal = family.literal

    def prepare(self, windows: Sequence[Window]) -> None:
        self.family.prepare([_learnt(window) for window in windows])

    def forward(self, query: Query) -> Distribution:
        law, factor = self.family(query), far(query)
        if factor is None:
            return law
        law = summarise(law)
        mean, values = law.mean.clone(), law.values.clone()
        for origin, own in enumerate(factor.unbind(1)):  # (B, C)
            rows = (own != 1).any(-1)
            if rows.any():
                # all rows, though few are far: in batches of other shapes products round otherwise
                context = replace(query.context, values=query.context.values / own[:, None])
                found = summarise(self.family(replace(query, context=context)))
                mean[rows, origin] = found.mean[rows, origin] * own[rows, None]
                values[rows, origin] = found.values[rows, origin] * own[rows, None, :, None]
        return Quantiles(mean, values, law.levels)

    def loss(self, window: Window) -> Loss:
        return self.family.loss(_learnt(window))


def far(query: Query) -> Tensor | None:
    """f of each channel at each origin, `(B, K, C)`, one where it is near; None where all are."""
    values, mask = query.context.values, query.context.mask
    if not (mask & (values.abs() > INPUT_LIMIT)).any():
        return None
    count = mask.cumsum(1)
    row = query.context.last_row(query.origins)[..., None].expand(-1, -1, values.shape[-1])
    seen = count.gather(1, row)
    last, before = (seen_at(query.context, index)[0].abs() for index in query.latest)
    factor = torch.ones_like(last)
    for side in (1, -1):
        ended = torch.where(mask & (side * values <= INPUT_LIMIT), count, 0).cummax(1).values.gather(1, row)
        enough = seen - ended >= seen.clamp(2, _LATEST)
        factor = torch.where(enough, torch.minimum(last, before) / _NEAR, factor)
    return None if (factor == 1).all() else factor


def _learnt(window: Window) -> Window:
    factor = far(window.query)
    return window if factor is None else replace(window, mask=window.mask & (factor == 1)[:, :, None])
