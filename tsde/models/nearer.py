"""Series that stay where a network cannot see them: brought nearer, and their forecasts sent back."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.distributions import Distribution

from tsde.distribution import Quantiles, affine, summarise
from tsde.model import Wrapped
from tsde.models.parts import INPUT_LIMIT
from tsde.models.recent import seen_at
from tsde.windows import Query, Window

_LATEST = 8  # observations that tell where a channel is
_NEAR = INPUT_LIMIT / 2


class Nearer(Wrapped):
    """A family that sees values up to six deviations, and series beyond them too.

    A channel of a series is far if its latest observations, eight of them or as many as there are but two at least,
    all lie beyond six deviations on one side. To a family they would look like a constant six. So it is asked about
    the channel divided by f, and its law multiplied by f, where f takes the nearer of the last two values to three
    deviations: what is ten times as large is taken to change ten times as much, as sizes, counts and prices do. One
    wild value, or a few, are clipped as before.

    Nothing is learnt from targets that are far: their contexts say nothing about them.
    """

    def forward(self, query: Query) -> Distribution:
        factor = far(query)
        if factor is None:
            return self.family(query)
        alone, own = query.per_origin(), factor.flatten(0, 1)[:, None]  # each origin sees the series from its own place
        context = replace(alone.context, values=alone.context.values / own)
        law = affine(summarise(self.family(replace(alone, context=context))), torch.zeros(()), own[:, None])
        shape = *query.times.shape, own.shape[-1]
        return Quantiles(law.mean.reshape(shape), law.values.reshape(*shape, -1), law.levels)

    def taught(self, window: Window) -> Window:
        factor = far(window.query)
        return window if factor is None else replace(window, mask=window.mask & (factor == 1)[:, :, None])


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
