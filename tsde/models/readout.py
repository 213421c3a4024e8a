"""From latent states and each channel's own recent past to a distribution: how all neural families answer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import linear, silu

from tsde import heads
from tsde.distribution import Quantiles, blend, pool_pieces
from tsde.models.linear import LinearRoute
from tsde.models.parts import mlp
from tsde.models.recent import RecentValues
from tsde.windows import Query, Window

_NUMBERS = 2**21  # in the hidden units that are held at once; larger tensors are mapped and given back each time


class Readout(nn.Module):
    """Latent states at query times, and each channel's own recent past, to a distribution per channel.

        h = silu(W_y,c y(t) + phi(recent_c, e_c) + W_t lead);   mean = sum_r softmax(w)_r route_r + s_c(lead) delta

    with (w, delta, shape) from a second layer on h, and e_c an embedding of the channel. The gate over routes (last
    value, kernel means, training mean, ridge regression, and where a latent ODE takes the channel's own mode) is what a
    recurrent state does not learn by itself. delta and shape are in units of what the ridge regression leaves, s_c, or
    of one where that is more: a channel that is predicted to a hundredth of its deviation needs corrections and
    intervals of that size.

    After training, quantile functions are `trust` of this law's and `1 - trust` of the regression's own
    (`LinearRoute.law`), and so are means with a `trust` of their own. Held-out series choose both (`tsde.trust`): on
    small tables a part of the regression is worth more than all of what was learnt.
    """

    trust: Tensor

    def __init__(
        self,
        latent: int,
        channels: int,
        head: heads.HeadName,
        width: int,
        dropout: float,
        anchored: bool = False,
        harmonics: int | None = None,
    ):
        """
        Args:
            anchored: the states' first modes are the channels themselves (`tsde.models.horizon`).
            harmonics: of a cycle that series share, known to the ridge regression; None for none.
        """
        super().__init__()
        self.head, self.anchored = head, anchored
        self.recent = RecentValues()
        self.linear = LinearRoute(channels, RecentValues.size, harmonics)
        self.embedding = nn.Parameter(0.3 * torch.randn(channels, 8))
        self.local = mlp(RecentValues.size + 8, width, width)
        per_channel = max(8, min(width, 256 // channels))
        self.latent = nn.Linear(latent, channels * per_channel)
        self.mix = nn.Linear(per_channel, width, bias=False)
        self.lead = nn.Linear(LEAD_FEATURES, width)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("trust", torch.ones(2))  # of means, of quantile functions
        self.hidden = nn.Linear(width, width)
        routes = RecentValues.routes + 1 + anchored
        self.out = nn.Linear(width, routes + 1 + heads.head_size(head))
        with torch.no_grad():
            self.out.weight.mul_(0.1)

    def prepare(self, windows: Sequence[Window]) -> None:
        """Fit the linear route."""
        self.linear.fit([self.recent(window.query)[0] for window in windows], windows)

    def forward(self, query: Query, states: Tensor, cells: Tensor | None = None) -> Distribution:
        """`states (..., B, K, H, D)` at the query times -> batch shape `(..., B, K, H, C)`.

        With `cells (B, K, H, C)` only those M cells are computed, batch shape `(..., M)`: most are unobserved in
        training, and this layer costs more than all others.
        """
        simple, *known = self._known(query, cells)
        return self._cautious(self._answer(states, cells, *known), simple)

    def mixture(self, query: Query, states: Tensor) -> Distribution:
        """An equal mixture of the answers to S states `(S, B, K, H, D)`; a few at a time, to keep memory small."""
        simple, *known = self._known(query, None)
        some = max(1, _NUMBERS // known[0].numel())
        pooled = pool_pieces((self._answer(part, None, *known) for part in states.split(some)), len(states))
        return self._cautious(pooled, simple)

    def learnt(self, query: Query, states: Tensor) -> Distribution:
        """The answer, whatever the trust in it."""
        return self._answer(states, None, *self._known(query, None)[1:])

    def _cautious(self, law: Distribution, simple: Quantiles | None) -> Distribution:
        return law if simple is None else blend(law, simple, self.trust)

    def _known(self, query: Query, cells: Tensor | None) -> tuple[Quantiles | None, Tensor, Tensor, Tensor]:
        """What no state changes, in all cells or M of them: the regression's law where some of it is wanted, shifts of
        the hidden units, routes, and s."""
        features, routes = self.recent(query)
        embedded = self.embedding.expand(*features.shape[:2], -1, -1)
        bias = self.mix(self.latent.bias.unflatten(0, (len(self.embedding), -1)))  # of W_y,c, (C, W)
        local = self.local(torch.cat([features, embedded], -1)) + bias  # (B, K, C, W)
        lead = self.lead(lead_features(query.lead))  # (B, K, H, W)
        whole = self.training or bool((self.trust == 1).all())
        simple = None if whole else self.linear.law(features, query)
        straight = self.linear(features, query) if simple is None else simple.mean  # (B, K, H, C)
        unit = self.linear.deviation(query.lead).clamp(max=1.0)  # (B, K, H, C)
        if cells is None:
            every = routes[:, :, None].expand(*straight.shape, -1)
            shift = local[:, :, None] + lead[..., None, :]
            return simple, shift, torch.cat([every, straight[..., None]], -1), unit
        b, k, h, c = cells.nonzero(as_tuple=True)
        if simple is not None:
            simple = Quantiles(simple.mean[cells], simple.values[cells], simple.levels)
        known = torch.cat([routes[b, k, c], straight[b, k, h, c, None]], -1)
        return simple, local[b, k, c] + lead[b, k, h], known, unit[cells]

    def _answer(
        self, states: Tensor, cells: Tensor | None, shift: Tensor, routes: Tensor, unit: Tensor
    ) -> Distribution:
        if cells is None:
            mixed = self._mixed(states)
        else:
            latent = linear(states, self.latent.weight).unflatten(-1, (cells.shape[-1], -1))  # (..., B, K, H, C, R)
            mixed = self.mix(latent[..., *cells.nonzero(as_tuple=True), :])
        if self.anchored:
            own = states[..., : 2 * len(self.embedding) : 2]
            own = own[..., None] if cells is None else own[..., *cells.nonzero(as_tuple=True), None]
            routes = torch.cat([own, routes.expand(*own.shape[:-1], -1)], -1)
        spare = not torch.is_grad_enabled()  # large tensors are mapped and given back each time
        hidden = self.dropout(silu(mixed.add_(shift), inplace=spare))
        raw = self.out(silu(self.hidden(hidden), inplace=spare).add_(hidden))
        gate, delta, shape = raw.split([routes.shape[-1], 1, raw.shape[-1] - routes.shape[-1] - 1], -1)
        weight = (gate - gate.amax(-1, keepdim=True).detach()).exp()  # torch's softmax is slow over a few numbers
        base = (weight * routes).sum(-1) / weight.sum(-1)
        return heads.distribution(self.head, base + unit * delta[..., 0], shape, unit)

    def _mixed(self, states: Tensor) -> Tensor:
        """W_y,c y for all channels, `(..., D)` -> `(..., C, W)`: by its factors, or by their product if smaller."""
        factors = self.latent.weight.unflatten(0, (len(self.embedding), -1))  # (C, R, D)
        _, rank, size = factors.shape
        width = len(self.mix.weight)
        if rank * (size + width) < size * width:
            return self.mix(linear(states, self.latent.weight).unflatten(-1, (-1, rank)))
        return linear(states, (self.mix.weight @ factors).flatten(0, 1)).unflatten(-1, (-1, width))


LEAD_FEATURES = 8


def lead_features(lead: Tensor) -> Tensor:
    """A lead time in horizons as bounded features: near ones resolved finely, `(...)` -> `(..., 8)`."""
    rates = lead.new_tensor([1.0, 4.0, 16.0])
    decays = torch.exp(-rates * lead[..., None])
    angle = math.pi * lead[..., None].clamp(max=2) * lead.new_tensor([0.5, 1.0])
    return torch.cat([lead[..., None].clamp(max=4), decays, angle.sin(), angle.cos()], -1)
