"""The usual stack, as its documentation shows it: what `speed.py` measures against.

Neural CDEs through torchcde, latent SDEs through torchsde, ODE-RNN and latent ODE on the union of all observation
times of a batch through torchdiffeq (Rubanova et al. 2019). Networks and sizes are those of the measured models.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
import torchcde
import torchdiffeq
import torchsde
from torch import Tensor, nn
from torch.nn.functional import silu


class CDEField(nn.Module):
    """F(z) = tanh(B silu(A z + a) + b), as `flow.ControlledField`, for torchcde: `(B, D)` -> `(B, D, P)`."""

    def __init__(self, hidden: int, width: int, control: int):
        super().__init__()
        self.control = control
        self.inner, self.outer = nn.Linear(hidden, width), nn.Linear(width, control * hidden)
        self.evaluations = 0

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        self.evaluations += 1
        matrix = torch.tanh(self.outer(silu(self.inner(z))))
        return matrix.unflatten(-1, (self.control, -1)).transpose(-1, -2)


def cde(field: CDEField, rows: Tensor, start: Tensor, method: str | None) -> Tensor:
    """The terminal state; `None` is torchcde's default: adaptive steps and the adjoint equation."""
    path = torchcde.LinearInterpolation(rows)
    if method is None:
        return torchcde.cdeint(path, field, start, t=path.interval)[:, -1]
    options = {"step_size": 1.0, "perturb": True}
    return torchcde.cdeint(path, field, start, t=path.interval, adjoint=False, method=method, options=options)[:, -1]


class SDE(nn.Module):
    """Posterior drift f, prior drift h and diffusion g: two-layer networks of their own, as in torchsde's examples."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, size: int, width: int, context: Tensor):
        super().__init__()
        self.context = context
        self.posterior = nn.Sequential(nn.Linear(size + context.shape[-1], width), nn.SiLU(), nn.Linear(width, size))
        self.prior = nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, size))
        self.spread = nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, size), nn.Softplus())

    def f(self, t: Tensor, z: Tensor) -> Tensor:
        return self.posterior(torch.cat([z, self.context], -1))

    def h(self, t: Tensor, z: Tensor) -> Tensor:
        return self.prior(z)

    def g(self, t: Tensor, z: Tensor) -> Tensor:
        return self.spread(z) + 1e-3


def sde(model: SDE, start: Tensor, steps: int, adjoint: bool) -> tuple[Tensor, Tensor]:
    """The terminal state and the path's Kullback-Leibler divergence, by Euler's method with a Brownian interval."""
    size = (len(start), start.shape[-1] + 1)  # the divergence is one more component
    motion = torchsde.BrownianInterval(0.0, 1.0, size=size, dt=1 / steps)
    solve = torchsde.sdeint_adjoint if adjoint else torchsde.sdeint
    times = torch.tensor([0.0, 1.0])
    states, divergence = solve(model, start, times, bm=motion, method="euler", dt=1 / steps, logqp=True)
    return states[-1], divergence[-1]


def sample(model: SDE, start: Tensor, steps: int) -> Tensor:
    """Sampled paths of the prior drift on a grid, `(steps + 1, N, D)`, by Euler's method."""
    motion = torchsde.BrownianInterval(0.0, 1.0, size=tuple(start.shape), dt=1 / steps)
    grid = torch.linspace(0, 1, steps + 1)
    names = {"drift": "h"}
    with torch.no_grad():
        return torchsde.sdeint(model, start, grid, bm=motion, method="euler", dt=1 / steps, names=names)


def forecast_table(source: Path, target: Path, paths: int, steps: int, size: int = 16, batch: int = 200) -> None:
    """A table of series of equal length to a table of sampled forecasts: mean, median and an 80 % interval."""
    frame = pd.read_csv(source)
    ids = frame["unique_id"].unique()
    values = torch.tensor(frame["y"].to_numpy().reshape(len(ids), -1), dtype=torch.float32)
    times = torch.tensor(frame["ds"].to_numpy().reshape(len(ids), -1), dtype=torch.float32)
    torch.manual_seed(0)
    encoder, out = nn.GRU(2, size, batch_first=True), nn.Linear(size, 1)
    model = SDE(size, 64, torch.zeros(1, 1))
    tables = []
    for chosen in torch.arange(len(ids)).split(batch):
        gaps = times[chosen].diff(dim=1, prepend=times[chosen, :1])
        with torch.no_grad():
            state = encoder(torch.stack([values[chosen], gaps], -1))[1][0]
            sampled = out(sample(model, state.repeat_interleave(paths, 0), steps)[1:]).reshape(steps, -1, paths)
        quantiles = sampled.quantile(torch.tensor([0.1, 0.5, 0.9]), dim=-1).permute(0, 2, 1).reshape(3, -1)
        columns = {
            "mean": sampled.mean(-1).T.reshape(-1),
            "lo": quantiles[0],
            "median": quantiles[1],
            "hi": quantiles[2],
        }
        ahead = times[chosen, -1:] + torch.arange(1, steps + 1) / steps
        keys = {"unique_id": ids[chosen.numpy()].repeat(steps), "ds": ahead.reshape(-1).numpy()}
        tables.append(pd.DataFrame(keys | {name: column.numpy() for name, column in columns.items()}))
    pd.concat(tables).to_csv(target, index=False)


class ODERNN(nn.Module):
    """h' = g(h) between the times of the union of all series' observations, a GRU cell at them where a row observes."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.hidden = hidden
        self.field = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.cell = nn.GRUCell(2 * channels, hidden)

    def forward(self, union: Tensor, values: Tensor, mask: Tensor, method: str) -> Tensor:
        """`union (T,)`, `values` and `mask (B, T, C)` on it -> the last state `(B, hidden)`."""
        state = values.new_zeros(len(values), self.hidden)
        gaps = union.diff(prepend=union[:1])
        for i, gap in enumerate(gaps):
            if gap > 0:
                times = torch.stack([torch.zeros_like(gap), gap])
                state = torchdiffeq.odeint(lambda t, h: self.field(h), state, times, method=method)[-1]
            seen = mask[:, i].any(-1, keepdim=True)
            after = self.cell(torch.cat([values[:, i], mask[:, i].float()], -1), state)
            state = torch.where(seen, after, state)
        return state


class LatentODE(nn.Module):
    """An ODE-RNN encoder, and a decoder that solves from the origin to the union of all query times."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.encoder = ODERNN(channels, hidden)
        self.field = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.out = nn.Linear(hidden, channels)

    def forward(self, union: Tensor, values: Tensor, mask: Tensor, queries: Tensor, method: str) -> Tensor:
        """`queries (T',)`, the union of the query times, from the origin 0 -> `(T', B, C)`."""
        state = self.encoder(union, values, mask, "euler")
        times = torch.cat([queries.new_zeros(1), queries])
        return self.out(torchdiffeq.odeint(lambda t, z: self.field(z), state, times, method=method)[1:])


def on_union(times: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Series with clocks of their own, `(B, L)` and `(B, L, C)`, on the union of all their times."""
    union, place = torch.unique(times, return_inverse=True)
    index = place[..., None].expand_as(values)
    shape = len(values), len(union), values.shape[-1]
    spread = values.new_zeros(shape).scatter(1, index, values)
    return union, spread, torch.zeros(shape, dtype=torch.bool).scatter(1, index, mask)


def hermite(times: Tensor, values: Tensor) -> Tensor:
    """Coefficients of torchcde's backward Hermite splines through values with NaN, on one shared clock."""
    return torchcde.hermite_cubic_coefficients_with_backward_differences(values, times)
