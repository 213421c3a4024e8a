"""Ridge regression and the law of what it leaves: the baseline's forecast, and a route of every neural readout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tsde.distribution import GRID, Quantiles
from tsde.models.cycle import Cycle
from tsde.models.parts import line_sums, nonnegative_line
from tsde.models.regression import Regression, Regressors
from tsde.windows import Query, Window

_PENALTIES = (1e3, 1e2, 1e1, 1.0, 1e-1, 1e-2, 1e-3)  # the strongest first: it is taken where folds tell nothing
_STRONGER = (1e5, 1e4)  # near the last value only: near zero a context would be read no more
_OF_SPREAD = (1e12, 1e4, 1e3, 1e2, 1e1)  # of the first nothing is left
_OFFSETS = (3.0, 12.0)  # per horizon: how fast the distance from a cycle is forgotten
_LARGEST = 10.0  # deviations of an error, for the sake of its spread
_RATIOS = (0.2, 5.0)  # of a spread to the usual one, at least and at most
_EDGES = (0.03, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97)  # of bins of means, each with a law of errors
_BINS = len(_EDGES) + 1
_FEW = 25  # errors per bin


class LinearRoute(nn.Module):
    """x_c(t) = w_c . phi_c + s_c e, by one ridge regression per channel for the mean and one for the spread.

    phi is that of `tsde.models.regression`, and, with `harmonics`, where a cycle of the series' own (`Cycle`) takes the
    channel and the distance from it at the origin, fading. Penalised is |w_c - u_c|^2, where u_c . phi_c is the
    channel's last value, or |w_c|^2, whichever folds prefer: small weights lead back to the mean of training, where
    prices and populations never go.

    The errors of each fold under weights from the others tell the rest. Their squares follow a_c + b_c lead with a,
    b >= 0, by least squares; in units of that root their absolute values are regressed on phi (Glejser 1969), and s is
    the root times that, in units of its average, between a fifth and five. What is left, e, has a law by the mean: in
    each of eight bins of means, fine at both ends, its quantiles, linear in between (in the spirit of Walz et al. 2024,
    "Easy uncertainty quantification"). Rain is skewed where little is forecast, and nearly symmetric where much is.
    """

    variance: Tensor
    knots: Tensor
    shape: Tensor

    def __init__(self, channels: int, summary: int, harmonics: int | None = None):
        """
        Args:
            summary: numbers per channel in a summary of its recent past.
            harmonics: of a cycle that series share; None for none.
        """
        super().__init__()
        self.cycle = Cycle(channels, harmonics) if harmonics else None
        further = 1 + len(_OFFSETS) if harmonics else 0
        self.level = Regression(channels, summary, further)
        self.spread = Regression(channels, summary, further)
        self.register_buffer("variance", torch.tensor([[1.0], [0.0]]).repeat(1, channels))  # (2, C): a, b
        self.register_buffer("knots", torch.zeros(channels, _BINS))
        self.register_buffer("shape", torch.special.ndtri(torch.tensor(GRID)).repeat(channels, _BINS, 1))

    def forward(self, summary: Tensor, query: Query) -> Tensor:
        """`summary (B, K, C, F)` as `RecentValues` gives it -> means `(B, K, H, C)`; in training mode by weights, and
        a cycle, that have not seen the row's fold."""
        return self.level(self._regressors(summary, query, self.training))

    def law(self, summary: Tensor, query: Query) -> Quantiles:
        """The law around the means of `forward`, on `tsde.distribution.GRID`."""
        phi = self._regressors(summary, query, self.training)
        mean, unit = self.level(phi), _ratio(self.spread(phi)) * self.deviation(query.lead)
        left = (mean[..., None] > self.knots[:, 1:-1]).sum(-1)  # the bin below, (B, K, H, C)
        place = left + _BINS * torch.arange(len(self.knots), device=left.device)
        start, end = (self.knots.flatten()[at] for at in (place, place + 1))
        share = ((mean - start) / (end - start).clamp(min=1e-9)).clamp(0, 1)[..., None]
        shape = self.shape.flatten(0, 1)
        shape = torch.lerp(shape[place], shape[place + 1], share)
        return Quantiles(mean, torch.addcmul(mean[..., None], unit[..., None], shape), mean.new_tensor(GRID))

    def deviation(self, lead: Tensor) -> Tensor:
        """Standard deviation of errors at `lead (...)`, whatever else is known: `(..., C)`."""
        level, slope = self.variance
        return (level + slope * lead[..., None]).clamp(min=1e-6).sqrt()

    def fit(self, summaries: Sequence[Tensor], windows: Sequence[Window]) -> None:
        """All of it from the windows' observed targets, clipped at ten standard deviations."""
        if self.cycle is not None:
            self.cycle.fit(windows)
        examples = [(self._regressors(s, w.query, apart=True), w) for s, w in zip(summaries, windows, strict=True)]
        self.level.fit(examples, [w.values.clamp(-10, 10) for w in windows], _PENALTIES, _PENALTIES + _STRONGER)
        means = [self.level.apart(phi) for phi, _ in examples]
        errors = [w.values - mean for w, mean in zip(windows, means, strict=True)]
        sums = torch.zeros(5, len(self.knots), dtype=torch.float64)
        for w, error in zip(windows, errors, strict=True):
            sums += line_sums(w.query.lead[..., None].expand_as(error), error.square(), w.mask)
        self.variance[:] = nonnegative_line(sums).float()
        usual = [self.deviation(w.query.lead) for w in windows]
        sizes = [(e / s).abs().clamp(max=_LARGEST) for e, s in zip(errors, usual, strict=True)]
        count = torch.stack([w.mask.sum((0, 1, 2)) for w in windows]).sum(0)
        summed = [torch.where(w.mask, size, 0.0).sum((0, 1, 2)) for size, w in zip(sizes, windows, strict=True)]
        total = torch.stack(summed).sum(0)
        average = torch.where(total > 0, total / count, 1.0)
        self.spread.fit(examples, [size / average - 1 for size in sizes], _OF_SPREAD)
        ratios = [_ratio(self.spread.apart(phi)) for phi, _ in examples]
        for channel in range(len(self.knots)):
            observed = [w.mask[..., channel] for w in windows]
            mean, error, s, ratio = (
                torch.cat([x[..., channel][mask] for x, mask in zip(parts, observed, strict=True)])
                for parts in (means, errors, usual, ratios)
            )
            if len(mean) >= _BINS * _FEW:
                self.knots[channel], self.shape[channel] = _binned(mean, error / (s * ratio))

    def _regressors(self, summary: Tensor, query: Query, apart: bool) -> Regressors:
        """phi, with what a cycle gives of it, `(B, K, H, C, 3)`; `apart` as in `Cycle`."""
        if self.cycle is None:
            return Regressors(summary, query)
        ahead, now = self.cycle.expected(query, apart)
        last, known = summary[..., 0], summary[..., 1]
        offset = (known * (last - now))[:, :, None, :, None]
        fades = torch.exp(-query.lead[..., None] * query.lead.new_tensor(_OFFSETS))[..., None, :]
        return Regressors(summary, query, torch.cat([ahead[..., None], offset * fades], -1))


def _ratio(spread: Tensor) -> Tensor:
    """Of a spread to the usual one."""
    return (1 + spread).clamp(*_RATIOS)


def _binned(mean: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Bins of means, with as many errors each where these are few, both `(N,)`: mean of each, `(bins,)`, and quantiles
    of its errors, `(bins, Q)`."""
    grid, bounds = torch.tensor(GRID), [round(len(mean) * edge) for edge in _EDGES]
    parts = mean.argsort(stable=True).tensor_split(bounds if bounds[0] >= _FEW else _BINS)
    return torch.stack([mean[part].mean() for part in parts]), torch.stack([error[p].quantile(grid) for p in parts])
