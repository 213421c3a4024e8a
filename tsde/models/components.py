"""Principal components: what many channels that move together do, in few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from tsde.models.parts import clipped
from tsde.windows import Query, Window


class Components(nn.Module):
    """The first r principal components about zero, in units of the first one's deviation s.

        y = P^T x / s,    x ~ s P y

    with P `(C, r)` the leading eigenvectors of E x x^T over the training contexts. Unobserved channels count as zero,
    their mean, so this is for channels that are observed together.
    """

    directions: Tensor
    deviation: Tensor

    def __init__(self, channels: int, rank: int):
        super().__init__()
        self.register_buffer("directions", torch.eye(channels)[:, :rank].clone())
        self.register_buffer("deviation", torch.ones(()))

    def prepare(self, windows: Sequence[Window]) -> None:
        """Take the directions from the contexts."""
        contexts = [window.query.context for window in windows]
        rows = torch.cat([clipped(context)[context.observed] for context in contexts]).double()
        variances, vectors = torch.linalg.eigh(rows.T @ rows / max(len(rows), 1))
        leading = vectors.flip(-1)[:, : self.directions.shape[1]]
        largest = leading.gather(0, leading.abs().argmax(0)[None])
        self.directions.copy_(leading * largest.sign())  # a sign is the solver's choice
        self.deviation.copy_(variances[-1].clamp(min=1e-12).sqrt())

    def of(self, query: Query) -> Query:
        """The same question of the components; a row observes all of them if it observes any channel."""
        context = query.context
        # a matrix product may round by a row's place; a sum does not
        values = (clipped(context)[..., None] * (self.directions / self.deviation)).sum(-2)
        mask = context.observed[..., None].expand(values.shape)
        return replace(query, context=replace(context, values=values, mask=mask))

    def spread_size(self, size: int) -> int:
        """How many numbers `spread` makes of states of `size`."""
        channels, rank = self.directions.shape
        spread = size + 2 * (channels - rank)
        return spread + -spread % 4  # products round by a row's place if the size is no four's

    def spread(self, states: Tensor) -> Tensor:
        """States whose first modes are the components, real pairs, to ones whose first modes are the channels."""
        rank = self.directions.shape[1]
        own = states[..., : 2 * rank].unflatten(-1, (1, rank, 2))
        channels = (own * (self.directions * self.deviation)[..., None]).sum(-2).flatten(-2)
        spread = torch.cat([channels, states[..., 2 * rank :]], -1)
        return pad(spread, (0, self.spread_size(states.shape[-1]) - spread.shape[-1]))
