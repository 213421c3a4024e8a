"""Latent SDE: a stochastic differential equation over the horizon, with a posterior that has seen the answer."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import huber_loss

from tsde.diffusion import Method, SteeredField, diffuse, interpolate
from tsde.distribution import pool
from tsde.flow import steps_until
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
    mean_loss,
    mlp,
    noise_like,
    step_noise,
)
from tsde.models.readout import Readout
from tsde.scans.steered import SteeredWeights
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
    method: Method = Field("euler", description="reversible_heun: memory that does not grow with the steps")
    tolerance: float | None = Field(None, gt=0, description="of adaptive steps over the horizon; else they are fixed")
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
        self.config, self.adaptive = config, config.tolerance is not None
        size, width = 2 * config.modes, config.width
        self.encoder = RecurrentEncoder(channels, config.hidden)
        self.initial = LatentGaussian(config.hidden, size)
        self.modes = Modes(config.modes, FASTEST / 2)
        self.inner = nn.Linear(size, 3 * width)  # of g, f and u
        self.theta, self.future = nn.Linear(config.hidden, width), nn.Linear(2 * channels * len(self.RATES), width)
        self.diffusion, self.drift, self.control = (mlp(width, size) for _ in range(3))
        self.readout = Readout(size, channels, config.head, width, config.dropout)

    def _field(self, parts: int) -> SteeredField:
        """g and f, and u where there are three parts."""
        rows = parts * self.config.width
        layers = (part.parameters() for part in (self.diffusion, self.drift, self.control)[:parts])
        outer, bias = (torch.stack(both) for both in zip(*layers, strict=True))
        little_noise = bias.new_tensor([-2.0, 0.0, 0.0])[:parts, None]  # to begin with
        return SteeredField(
            SteeredWeights(self.inner.weight[:rows], self.inner.bias[:rows], outer, bias + little_noise)
        )

    def _solve(
        self, query: Query, encoded: Tensor, samples: int, window: Window | None = None
    ) -> tuple[Tensor, Tensor]:
        """States at the query times `(S, B, K, H, D)` of the prior, or of a window's posterior; KL `(S, B, K)`."""
        h = 1 / self.config.steps
        mean, deviation, kl = self.initial(encoded)
        start = mean + deviation * noise_like(query, samples, mean.shape[-1], 0, self.training)
        rotation, count = self.modes(), int(steps_until(query.lead, h).max())
        shift = self.theta(encoded).expand(count + 1, -1, -1, -1)
        if window is not None:
            shift = torch.cat([shift, self._future(window, count)], -1)
        noise = step_noise(query, samples, mean.shape[-1], self.training)
        field = self._field(2 if window is None else 3)
        method, tolerance = self.config.method, self.config.tolerance
        paths = diffuse(method, field, start, shift, noise, h, rotation, field.weights, tolerance)
        return interpolate(paths.states, query.lead / h, h, rotation), kl + paths.cost

    def _future(self, window: Window, count: int) -> Tensor:
        """c(t) at each grid point: kernel-weighted targets at or after t, `(count + 1, B, K, width)`."""
        lead = window.query.lead
        ahead = lead - torch.arange(count + 1)[:, None, None, None] / self.config.steps  # (n + 1, B, K, H)
        rates = lead.new_tensor(self.RATES)[:, None]
        weight = torch.exp(-rates * ahead.clamp(min=0)[..., None, :]) * (ahead >= 0)[..., None, :]  # (n, B, K, J, H)
        mask = window.mask.float()
        seen = torch.cat([clip_values(window.values) * mask, mask], -1)  # (B, K, H, 2C)
        return self.future((weight @ seen).flatten(-2))

    def forward(self, query: Query) -> Distribution:
        encoded = at_origins(self.encoder(query.context), query)
        return pool(self.readout(query, self._solve(query, encoded, self.config.samples)[0]))

    def loss(self, window: Window) -> Loss:
        encoded = at_origins(self.encoder(window.query.context), window.query)  # of posterior and prior
        states, kl = self._solve(window.query, encoded, 1, window)
        elbo = mean_loss(self.readout(window.query, states, window.mask), window, kl[0])
        ahead, _ = self._solve(window.query, encoded, self.config.train_samples)
        forecast = pool(self.readout(window.query, ahead, window.mask), 4)
        target = window.values[window.mask]
        error = huber_loss(forecast.mean, target, reduction="sum", delta=HUBER)
        prior = (error + crps_samples(forecast.samples, target).sum()) / max(len(target), 1)
        return Loss(elbo.score + prior, elbo.kl)
