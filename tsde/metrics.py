"""Scores of forecasts against what was observed, entry by entry, and the means that read them.

Every score keeps the shape of `y` and may be anything, NaN included, where nothing was observed; `masked_mean` and
`clustered_mean` then leave those entries out. All scores are negatively oriented (smaller is better) and in the unit
of the values, except `mse` (squared) and the frequencies.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tsde.distribution import level_weights
from tsde.errors import UsageError


def masked_mean(x: Tensor, mask: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """Mean of `x` where `mask` (broadcast to x) is on, over all entries or over `dim`; NaN if nothing was observed."""
    return torch.where(mask, x, 0.0).sum(dim) / mask.expand(x.shape).sum(dim)


def clustered_mean(x: Tensor, mask: Tensor, cluster: Tensor) -> tuple[float, float]:
    """Mean over observed entries and its standard error when entries of one cluster (a series) are dependent.

    The ratio of each cluster's total to its number of observed entries, as `clustered_ratio` treats it. Clusters of
    one entry give the usual `sd / sqrt(N)`.

    Args:
        x: `(*R, ...)` scores.
        mask: broadcastable to x, True where a value was observed.
        cluster: `(*R)` integer identity of each row; equal numbers may be anywhere in it.

    Returns:
        (mean, standard error); the error is inf for fewer than two clusters, which say nothing about their spread,
        and the mean is NaN if nothing was observed.
    """
    rows = cluster.numel()
    observed = mask.expand(x.shape).reshape(rows, -1)
    seen = torch.where(observed, x.reshape(rows, -1).double(), 0.0)
    totals, counts, some = seen.sum(1), observed.sum(1), observed.any(1)
    mean, error, _ = clustered_ratio(totals[some], counts[some], cluster.flatten()[some])
    return float(mean), float(error)


class Ratio(NamedTuple):
    """A ratio of totals over clusters, its standard error, and how many equal clusters would tell as much."""

    value: Tensor
    error: Tensor
    clusters: Tensor


def clustered_ratio(above: Tensor, below: Tensor, cluster: Tensor) -> Ratio:
    """Ratio of two totals and its standard error when rows of one cluster (a series) are dependent.

    With the totals `a_g` and `b_g` of G clusters, `A = sum_g a_g` and `B = sum_g b_g`,

        r = A / B,    se^2 = (G - 1) / G * sum_g (r - r_g)^2,    r - r_g = (a_g - r b_g) / (B - b_g),

    where r_g leaves out cluster g: the jackknife over clusters, in closed form. Rows of both totals belong together, so
    what is common to them within a cluster cancels. The linearised (Taylor) variance has B in place of `B - b_g`; it
    is the same for equal clusters, and too small where a few of them dominate. So many clusters count as

        G_e = B^2 / sum_g b_g^2,

    which is G for equal ones.

    Shapes: above `(M, ...)`, below broadcastable to it with M rows, cluster `(M,)` integer -> `(...)` each, float64.
    The ratio is NaN where B is zero. The error is inf where it hangs on one cluster: nothing is known of its spread.

    Source: Miller (1974), The jackknife: a review; MacKinnon, Nielsen and Webb (2023), Fast and reliable jackknife and
    bootstrap methods for cluster-robust inference, for clusters; Kish (1965), Survey Sampling, for G_e.
    """
    groups, index = torch.unique(cluster, return_inverse=True)
    totals, bases = (
        torch.zeros(len(groups), *x.shape[1:], dtype=torch.float64).index_add(0, index, x.double())
        for x in (above, below)
    )
    base = bases.sum(0)
    base = torch.where(base == 0, math.nan, base)
    ratio = totals.sum(0) / base
    rest = base - bases
    moves = torch.where(rest == 0, math.inf, (totals - ratio * bases) / rest)
    variance = moves.square().sum(0) * (len(groups) - 1) / max(len(groups), 1)
    error = variance.sqrt() if len(groups) > 1 else torch.full_like(ratio, math.inf)
    return Ratio(ratio, error, base.square() / bases.square().sum(0))


def log_means(score: Tensor, count: Tensor, cluster: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithm of each cluster's mean score, `(G, ...)`, and its number of observations, `(G,)`, where it has any.

        l_g = log(a_g / n_g + 0.01 a / n)

    with a_g and n_g the totals of cluster g, a and n those of all. Of a mean over all observations one wild series in
    six can be nine tenths; the mean of l_g, weighted by n_g, asks every series for the same part of its own score.
    The hundredth keeps those that are forecast almost exactly from deciding instead.

    Shapes: score `(M, ...)` totals of rows, count `(M,)` their observations, cluster `(M,)` integer.
    """
    groups, index = torch.unique(cluster, return_inverse=True)
    total = torch.zeros(len(groups), *score.shape[1:], dtype=torch.float64).index_add(0, index, score.double())
    number = torch.zeros(len(groups), dtype=torch.float64).index_add(0, index, count.double())
    total, number = total[number > 0], number[number > 0]
    shape = (-1,) + (1,) * (score.dim() - 1)
    return (total / number.reshape(shape) + 0.01 * total.sum(0) / number.sum()).log(), number


def mse(mean: Tensor, y: Tensor) -> Tensor:
    """Squared error of each entry; it asks for the mean of the law."""
    return (y - mean).square()


def mae(point: Tensor, y: Tensor) -> Tensor:
    """Absolute error of each entry; it asks for the median of the law."""
    return (y - point).abs()


def pinball(quantiles: Tensor, levels: Tensor, y: Tensor) -> Tensor:
    """Quantile loss `rho_a = max(a e, (a - 1) e)`, `e = y - q_a`.

    Shapes: quantiles `(..., Q)`, levels `(Q,)` in (0, 1), y `(...)` -> `(..., Q)`.
    """
    error = y.unsqueeze(-1) - quantiles
    return torch.maximum(levels * error, (levels - 1) * error)


def crps_quantiles(quantiles: Tensor, levels: Tensor, y: Tensor) -> Tensor:
    """Continuous ranked probability score from quantiles, `CRPS = 2 int_0^1 rho_a(q_a, y) da`.

    The integral is the sum with `level_weights`: inside the grid that is the trapezoidal rule on uneven levels, in
    the tails a constant. On a Gaussian the 25 levels .005 .01 .025 .05 .10 ... .95 .975 .99 .995 err by at most 0.9 %
    for any y and by -0.2 % on average, the nine deciles by +5 %: compare scores on one grid only. The median alone
    gives the absolute error.

    Shapes: quantiles `(..., Q)` non-decreasing, levels `(Q,)` increasing, y `(...)` -> `(...)`.

    Source: Gneiting and Ranjan (2011), Comparing density forecasts using threshold- and quantile-weighted rules.
    """
    return 2 * (pinball(quantiles, levels, y) * level_weights(levels)).sum(-1)


def crps_gaussian(mean: Tensor, sd: Tensor, y: Tensor) -> Tensor:
    """CRPS of a Gaussian: `d (2 Phi(z) - 1) + sd (2 phi(z) - 1 / sqrt(pi))`, `d = y - mean`, `z = d / sd`.

    A zero `sd` gives its limit, the absolute error.

    Source: Gneiting and Raftery (2007), Strictly proper scoring rules, section 4.2, multiplied out so that the limit
    exists in floating point.
    """
    error = y - mean
    z = error / sd.clamp(min=torch.finfo(sd.dtype).tiny)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return error * torch.erf(z / math.sqrt(2)) + sd * (2 * density - 1 / math.sqrt(math.pi))


def crps_samples(samples: Tensor, y: Tensor) -> Tensor:
    """Fair CRPS of samples: `mean_i |x_i - y| - sum_{i<j} |x_i - x_j| / (S (S - 1))`.

    Fair means unbiased for the law the samples were drawn from, whatever their number (the plain score of the
    empirical law divides the second term by `S^2` and punishes small S); single scores can be slightly negative.
    The pairs cost one sort: `sum_{i<j} |x_i - x_j| = sum_i (2 i - S - 1) x_(i)`.

    Shapes: samples `(S, ...)`, S >= 2, y `(...)` -> `(...)`.

    Source: Ferro (2014), Fair scores for ensemble forecasts; the sorted form is Jordan et al. (2019), scoringRules.
    """
    size = _ensemble_size(samples)
    error = (samples - y).sort(dim=0).values  # differences first: a large common offset would cancel badly
    rank = torch.arange(1 - size, size, 2, dtype=error.dtype, device=error.device)
    pairs: Tensor = torch.tensordot(rank, error, dims=1)
    return error.abs().mean(0) - pairs / (size * (size - 1))


def energy_score(samples: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """Fair energy score `mean_i ||x_i - y|| - sum_{i<j} ||x_i - x_j|| / (S (S - 1))`: the CRPS of vectors.

    With a mask the norm runs over the observed coordinates only, which scores their joint marginal law and is zero
    where nothing was observed. Quadratic in S in time, linear in memory.

    Shapes: samples `(S, ..., D)`, S >= 2, y and mask `(..., D)` -> `(...)`.

    Source: Gneiting and Raftery (2007), section 4.3, with beta = 1; fair as in `crps_samples`.
    """
    size = _ensemble_size(samples)
    observed = torch.ones_like(y, dtype=torch.bool) if mask is None else mask

    def distance(point: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(torch.where(observed, samples - point, 0.0), dim=-1)
        return norms.sum(0)

    pairs = torch.stack([distance(one) for one in samples]).sum(0) / 2
    return distance(y) / size - pairs / (size * (size - 1))


def coverage(lo: Tensor, hi: Tensor, y: Tensor) -> Tensor:
    """One where `lo <= y <= hi` and zero elsewhere, in the type of y."""
    return ((lo <= y) & (y <= hi)).to(y.dtype)


def interval_width(lo: Tensor, hi: Tensor) -> Tensor:
    """Width of each interval."""
    return hi - lo


def pit(quantiles: Tensor, levels: Tensor, y: Tensor) -> Tensor:
    """Probability integral transform `F(y)`, linear between quantiles; uniform on [0, 1] for a calibrated forecast.

    A y outside the quantiles gets the middle of its tail, and a y on tied quantiles the smallest of their levels, so
    `F(y) <= a` is the same as `y <= q_a` for every level of the grid.

    Shapes: quantiles `(..., Q)` non-decreasing, Q >= 2, levels `(Q,)` increasing, y `(...)` -> `(...)`.
    """
    y = y.unsqueeze(-1)
    above = torch.searchsorted(quantiles.contiguous(), y.contiguous())  # q[above - 1] < y <= q[above]
    right = above.clamp(1, len(levels) - 1)
    lo, hi = quantiles.gather(-1, right - 1), quantiles.gather(-1, right)
    inside = torch.lerp(levels[right - 1], levels[right], (y - lo) / (hi - lo))
    tail = torch.where(above == 0, levels[0] / 2, (1 + levels[-1]) / 2)
    return torch.where((above == 0) | (above == len(levels)), tail, inside).squeeze(-1)


def _ensemble_size(samples: Tensor) -> int:
    if len(samples) < 2:
        raise UsageError(f"a score of samples needs at least 2 of them, got {len(samples)}: draw more samples")
    return len(samples)
