"""Pieces that three or more families use: small networks, encoders, variational states, noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import softplus

from tsde import heads
from tsde.flow import Rotation
from tsde.model import Loss
from tsde.noise import standard_normal
from tsde.scans.gated import gated_scan
from tsde.series import SeriesBatch
from tsde.solving import in_chunks
from tsde.windows import Query, Window

FASTEST = 40.0
"""Radians per horizon of the fastest modes at the start of training."""

INPUT_LIMIT = 6.0
"""Context values enter a network clipped at this many standard deviations; targets never are."""


def clip_values(values: Tensor) -> Tensor:
    """Scaled values as network inputs."""
    return values.clamp(-INPUT_LIMIT, INPUT_LIMIT)


def clipped(context: SeriesBatch) -> Tensor:
    """Context values as network inputs, `(B, L, C)`: clipped, zero where unobserved."""
    return torch.where(context.mask, clip_values(context.values), 0.0)


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with SiLU between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def mean_loss(forecast: Distribution, window: Window, kl: Tensor | None = None) -> Loss:
    """The head's score averaged over samples and observed targets; a `kl` `(B, K)` is put per observed target.

    `forecast` covers the observed targets only, batch shape `(..., M)`, as `Readout` gives them for `window.mask`.
    """
    score = heads.score(forecast, window.values[window.mask], window.scaled)
    observed = max(score.shape[-1], 1)
    average = score.sum() / (observed * max(score.numel() // observed, 1))
    return Loss(average, average.new_zeros(()) if kl is None else kl.sum() / observed)


def closed_form_loss(forecast: Distribution, window: Window) -> Loss:
    """The same score for a forecast of all cells, batch shape `(B, K, H, C)`."""
    score = heads.score(forecast, window.values)[window.mask]
    return Loss(score.sum() / max(len(score), 1), score.new_zeros(()))


def at_origins(states: Tensor, query: Query) -> Tensor:
    """States after each row, `(B, n, D)`, the last of which stays, as seen from each origin, `(B, K, D)`."""
    row = query.context.last_row(query.origins).clamp(max=states.shape[1] - 1)
    return states.gather(1, row[..., None].expand(-1, -1, states.shape[-1]))


class Modes(nn.Module):
    """Learned complex modes of a linear flow: decays from far longer than a horizon to a small part of one.

    Frequencies start at `fastest * u^1.5` radians per horizon, u uniform: many slow modes, some fast.
    """

    def __init__(self, count: int, fastest: float):
        super().__init__()
        self.log_decay = nn.Parameter(torch.linspace(-5.0, 2.0, count)[torch.randperm(count)])
        self.frequency = nn.Parameter(fastest * torch.rand(count).pow(1.5))

    def forward(self) -> Rotation:
        """The flow of the present parameters."""
        return Rotation(self.log_decay.exp(), self.frequency)

    def prepare(self, windows: Sequence[Window]) -> None:
        """Slow all modes down so that none starts above what the sampling shows: pi radians per mean gap between rows.

        Faster ones could only be fitted to chance on a sparse table, and make forecasts wiggle between observations.
        """
        contexts = [window.query.context for window in windows]
        gaps = sum(int(context.observed.sum()) - len(context.times) for context in contexts)
        span = sum(float((context.times[:, -1] - context.times[:, 0]).sum()) for context in contexts)
        if gaps > 0 and span > 0:
            self.frequency.data.mul_(min(1.0, math.pi * gaps / span / FASTEST))


class RecurrentEncoder(nn.Module):
    """A gated recurrent unit whose state flows between observations.

        h(t_l-) = exp(lambda gap_l) h(t_{l-1}+),    h(t_l+) = GRUCell([x_l, m_l, log gap_l], h(t_l-))

    An ODE-RNN (Rubanova et al. 2019) with the linear field h' = lambda h on complex modes, solved exactly at any gap.
    Rows that observe nothing, padding included, leave the state to its flow.
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.inputs = nn.Linear(2 * channels + 1, 3 * hidden)
        self.state = nn.Linear(hidden, 3 * hidden, bias=False)
        self.hidden = hidden
        self.modes = Modes(hidden // 2, FASTEST)

    def forward(self, context: SeriesBatch) -> Tensor:
        """The state after each row, `(B, n, hidden)`."""
        return over_rows(self._scan, context.values.new_zeros(len(context.values), self.hidden), context)

    def _scan(self, start: Tensor, gaps: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        features = torch.cat([values, mask.float(), torch.log1p(10 * gaps)[..., None]], -1)
        seen = mask.any(-1, keepdim=True).float()
        return gated_scan(start, self.modes().over(gaps), self.inputs(features), seen, self.state.weight)


def over_rows(scan: Callable[..., Tensor], start: Tensor, context: SeriesBatch) -> Tensor:
    """The states of a scan over a context, `(B, n, D)`; after row n, all is padding and the last state stays.

    `scan(start, gaps, values, mask)` takes time first and values as network inputs. A row that observes nothing after
    no time leaves its state as it is, bit for bit, so that the answer is the one that all L rows would give.
    """
    rows = context.gaps, clipped(context), context.mask
    counts = (context.observed | (rows[0] > 0)).any(0) * torch.arange(1, rows[0].shape[1] + 1, device=start.device)
    used = max(1, int(counts.max()))
    return in_chunks(scan, start, *(row[:, :used].transpose(0, 1).contiguous() for row in rows)).transpose(0, 1)


class LatentGaussian(nn.Module):
    """A variational state z ~ N(mu(e), diag sigma(e)^2) with prior N(0, 1), from an encoded context e."""

    def __init__(self, encoded: int, latent: int):
        super().__init__()
        self.moments = nn.Linear(encoded, 2 * latent)

    def forward(self, encoded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(..., E)` -> mean, deviation `(..., D)`, and KL(q || prior) = (mu^2 + sigma^2 - 1)/2 - log sigma `(...)`."""
        mean, raw = self.moments(encoded).chunk(2, -1)
        deviation = softplus(raw - 1) + 1e-4
        kl = 0.5 * (mean.square() + deviation.square() - 1) - deviation.log()
        return mean, deviation, kl.sum(-1)


def noise_like(query: Query, samples: int, size: int, stream: int, training: bool) -> Tensor:
    """Standard normal `(S, B, K, size)`: torch's generator in training, else a function of each series' key alone."""
    batch, origins = query.origins.shape
    if training:
        return torch.randn(samples, batch, origins, size, device=query.origins.device)
    drawn = standard_normal(query.context.key, (samples, size), stream)  # (B, S, size)
    return drawn.transpose(0, 1)[:, :, None].expand(-1, -1, origins, -1)


def step_noise(query: Query, samples: int, size: int, training: bool) -> Callable[[int], Tensor]:
    """Standard normal `(S, B, K, size)` for each step of a path, the same whenever a step is asked for."""
    if not training:
        return lambda i: noise_like(query, samples, size, 1 + i, training)
    seed = int(torch.randint(2**62, ()))

    def drawn(i: int) -> Tensor:
        return torch.randn(samples, *query.origins.shape, size, generator=torch.Generator().manual_seed(seed + i))

    return drawn


def line_sums(x: Tensor, square: Tensor, seen: Tensor) -> Tensor:
    """What `nonnegative_line` needs of squared errors at `x`, clipped at ten deviations: `(..., C)` -> `(5, C)`."""
    one = seen.double()
    x, square = torch.where(seen, x, 0.0).double(), square.clamp(max=100.0).double()
    return torch.stack([(part * one).flatten(0, -2).sum(0) for part in (one, x, x * x, square, x * square)])


def nonnegative_line(sums: Tensor) -> Tensor:
    """Least squares a + b x with a, b >= 0 from the sums of 1, x, x^2, y and x y: `(5, C)` -> `(2, C)`.

    Where nothing was summed it is 1, the variance of a channel of which nothing is known.
    """
    known, x, xx, y, xy = sums
    count = known.clamp(min=1)
    slope = ((xy - x * y / count) / (xx - x.square() / count).clamp(min=1e-9)).clamp(min=0)
    level = (y - slope * x) / count
    through_zero = xy / xx.clamp(min=1e-9)
    line = torch.stack([level.clamp(min=0), torch.where(level > 0, slope, through_zero)])
    return torch.where(known > 0, line, torch.eye(2, 1, dtype=line.dtype))
