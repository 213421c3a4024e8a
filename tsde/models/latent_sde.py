"""Latent SDE: a stochastic differential equation over the horizon, with a posterior that has seen the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import huber_loss, silu, softplus

from tsde.distribution import pool
from tsde.flow import brownian_path, interpolate, steps_until
from tsde.heads import HUBER, HeadName
from tsde.metrics import crps_samples
from tsde.model import Forecaster, Loss
from tsde.models.parts import (
    FASTEST,
    LatentGaussian,
    Modes,
    RecurrentEncoder,
    at_origins,
    clip_values,
    limit_frequencies,
    mean_loss,
    mlp,
    noise_like,
)
from tsde.models.readout import Readout
from tsde.windows import Query, Window


class LatentSDEConfig(BaseModel):
    """Latent SDE with a recurrent encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["latent_sde"] = "latent_sde"
    hidden: int = Field(64, ge=2, multiple_of=2, description="size of the encoder's state, two numbers per mode")
    modes: int = Field(24, ge=1, description="complex modes of the stochastic state z")
    samples: int = Field(16, ge=2, description="paths drawn per forecast")
    train_samples: int = Field(4, ge=2, description="paths of the prior drawn per training step")
    width: int = Field(64, ge=4, multiple_of=4, description="hidden units of drifts, diffusion and readout")
    steps: int = Field(12, ge=1, description="solver steps per horizon")
    dropout: float = Field(0.1, ge=0, lt=1)
    head: HeadName = "quantile"


class LatentSDE(Forecaster):
    """Prior and posterior share the diffusion, so that the divergence of their paths is finite:

        prior:      dz = (lambda z + f(z, theta)) dt + g(z) dW
        posterior:  dz = (lambda z + f(z, theta) + g(z) u(z, c(t))) dt + g(z) dW,    KL = E 1/2 int |u|^2 dt

    (Girsanov) with z(0) ~ N(mu(h), sigma(h)^2) and theta from the encoder's state h at the origin, and c(t) a summary
    of the observations still to come at t. Trained on the ELBO of the posterior (Li et al. 2020, "Scalable gradients
    for stochastic differential equations") and, our deviation, on the CRPS of forecasts sampled from the prior: the KL
    alone asks the prior to be near the posterior, not to forecast well. The equation covers the horizon, since what
    lies before the origin is summed up in h. The paths it draws are coherent
    over time; a forecast is the marginal law at each query.
    """

    RATES = (2.0, 8.0, 32.0)  # of the kernels through which the posterior sees what is to come

    def __init__(self, config: LatentSDEConfig, channels: int):
        super().__init__()
        self.config = config
        modes, size, width = config.modes, 2 * config.modes, config.width
        self.encoder = RecurrentEncoder(channels, config.hidden)
        self.initial = LatentGaussian(config.hidden, size)
        self.theta = nn.Linear(config.hidden, width)
        self.modes = Modes(modes, FASTEST / 2)
        self.inner, self.outer = nn.Linear(size, width, bias=False), nn.Linear(width, size)
        self.diffusion = mlp(size, width, size)
        self.future = nn.Linear(2 * channels * len(self.RATES), width)
        self.control = mlp(size + width, width, size)
        self.readout = Readout(size, channels, config.head, width, config.dropout)

    def prepare(self, windows: Sequence[Window]) -> None:
        limit_frequencies(self, windows)

    def _drift(self, z: Tensor, theta: Tensor) -> Tensor:
        """f(z, theta), the linear part apart."""
        return self.outer(silu(self.inner(z) + theta))

    def _diffusion(self, z: Tensor) -> Tensor:
        return softplus(self.diffusion(z) - 2)

    def _solve(self, query: Query, samples: int, future: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """States at the query times `(S, B, K, H, D)`, KL of the initial state `(B, K)` and of the path `(S, B, K)`."""
        steps = self.config.steps
        encoded = at_origins(self.encoder(query.context), query)
        mean, deviation, kl = self.initial(encoded)
        theta = self.theta(encoded)
        start = mean + deviation * noise_like(query, samples, mean.shape[-1], 0, self.training)
        count = int(steps_until(query.lead * steps, 1.0).max())
        noise = [noise_like(query, samples, mean.shape[-1], 1 + i, self.training) for i in range(count)]

        def drift(i: int, z: Tensor) -> Tensor:
            free = self._drift(z, theta)
            return free if future is None else free + self._diffusion(z) * self._steer(z, future[i])

        rotation = self.modes()
        states = brownian_path(drift, lambda i, z: self._diffusion(z), start, noise, 1 / steps, rotation)
        path_kl = mean.new_zeros(1)
        if future is not None:
            path_kl = 0.5 / steps * self._steer(states[:-1], future[:, None]).square().sum((0, -1))
        return interpolate(states, query.lead * steps, 1 / steps, rotation), kl, path_kl

    def _steer(self, z: Tensor, future: Tensor) -> Tensor:
        """u(z, c(t))."""
        return self.control(torch.cat([z, future.expand(*z.shape[:-1], -1)], -1))

    def _future(self, window: Window) -> Tensor:
        """c(t) at each step: kernel-weighted targets at or after t, `(n, B, K, width)`."""
        lead, steps = window.query.lead, self.config.steps
        count = int(steps_until(lead * steps, 1.0).max())
        ahead = lead - torch.arange(count)[:, None, None, None] / steps  # (n, B, K, H)
        rates = lead.new_tensor(self.RATES)[:, None]
        weight = torch.exp(-rates * ahead.clamp(min=0)[..., None, :]) * (ahead >= 0)[..., None, :]  # (n, B, K, J, H)
        mask = window.mask.float()
        seen = torch.cat([clip_values(window.values) * mask, mask], -1)  # (B, K, H, 2C)
        return self.future((weight @ seen).flatten(-2))

    def forward(self, query: Query) -> Distribution:
        states, _, _ = self._solve(query, self.config.samples, None)
        return pool(self.readout(query, states))

    def loss(self, window: Window) -> Loss:
        states, start_kl, path_kl = self._solve(window.query, 1, self._future(window))
        elbo = mean_loss(self.readout(window.query, states, window.mask), window, start_kl + path_kl[0])
        ahead, _, _ = self._solve(window.query, self.config.train_samples, None)
        forecast = pool(self.readout(window.query, ahead, window.mask), 4)
        target = window.values[window.mask]
        error = huber_loss(forecast.mean, target, reduction="sum", delta=HUBER)
        prior = (error + crps_samples(forecast.samples, target).sum()) / max(len(target), 1)
        return Loss(elbo.score + prior, elbo.kl)
