"""Latent SDE: a stochastic differential equation over the horizon, with a posterior that has seen the answer."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import huber_loss, linear, silu, softplus

from tsde.diffusion import Dynamics, Method, SteeredField, Terms, diffuse, interpolate
from tsde.distribution import pool, summarise
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
from tsde.models.readout import LEAD_FEATURES, Readout, lead_features
from tsde.noise import uniform
from tsde.scans.steered import SteeredWeights
from tsde.windows import Query, Window

_LITTLE_NOISE = -2.0
"""Before softplus, to begin with."""


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
    noise: Literal["free", "linear"] = Field("free", description="g(z) by a network, or linear in z: sigma(t) z")
    method: Method = Field("euler", description="reversible_heun: memory that does not grow with the steps")
    tolerance: float | None = Field(None, gt=0, description="of adaptive steps over the horizon; else they are fixed")
    dropout: float = Field(0.1, ge=0, lt=1)
    head: HeadName = "quantile"

    @model_validator(mode="after")
    def _linear_noise_needs_euler(self) -> LatentSDEConfig:
        if self.noise == "linear" and self.method != "euler":
            raise ValueError(f"noise: linear is solved by method: euler, got {self.method}, which it makes unstable")
        return self


class LinearNoise(NamedTuple):
    """As `SteeredField`, but with g = sigma(t) z. A row is sigma(t), and behind it what shifts the hidden units of f,
    and of u where the posterior is steered."""

    weights: SteeredWeights

    def __call__(self, row: Tensor, z: Tensor) -> Terms:
        inner, inner_bias, outer, outer_bias = self.weights
        size, width = outer.shape[-2:]
        hidden = silu(linear(z, inner, inner_bias) + row[..., size:])
        parts = zip(hidden.split(width, -1), outer, outer_bias, strict=True)
        free, *control = [linear(*part) for part in parts]
        diffusion = row[..., :size] * z
        if not control:
            return Terms(free, diffusion, z.new_zeros(z.shape[:-1]))
        return Terms(torch.addcmul(free, diffusion, control[0]), diffusion, 0.5 * control[0].square().sum(-1))


class LatentSDE(Forecaster):
    """Prior and posterior share the diffusion, so that the divergence of their paths is finite:

        prior:      dz = (lambda z + f(z, theta)) dt + g(z) dW
        posterior:  dz = (lambda z + f(z, theta) + g(z) u(z, c(t))) dt + g(z) dW,    KL = E 1/2 int |u|^2 dt

    (Girsanov) with z(0) ~ N(mu(h), sigma(h)^2) and theta from the encoder's state h at the origin, and c(t) a summary
    of the observations still to come at t. Trained on the ELBO of the posterior (Li et al. 2020, "Scalable gradients
    for stochastic differential equations") and, our deviation, on the CRPS of forecasts sampled from the prior: the KL
    alone asks the prior to be near the posterior, not to forecast well. The equation covers the horizon, since what
    lies before the origin is summed up in h. The paths it draws are coherent
    over time; a forecast is the marginal law at each query, and `joint` keeps what a path couples.

    With `noise: linear`, g(t, z) = sigma(t) z for a network sigma >= 0 of time, the diffusion of the linear noise SDE
    of Oh, Lim and Kim (2024, "Stable neural stochastic differential equations in analyzing irregular time series
    data"). Deviation: theirs has no posterior and is driven by the context's control path, here summed up in theta.
    """

    RATES = (2.0, 8.0, 32.0)  # of the kernels through which the posterior sees what is to come

    def __init__(self, config: LatentSDEConfig, channels: int):
        super().__init__()
        self.config, self.adaptive = config, config.tolerance is not None
        size, width = 2 * config.modes, config.width
        self.encoder = RecurrentEncoder(channels, config.hidden)
        self.initial = LatentGaussian(config.hidden, size)
        self.modes = Modes(config.modes, FASTEST / 2)
        self.free = config.noise == "free"
        self.inner = nn.Linear(size, (3 if self.free else 2) * width)  # of g where it is free, f and u
        self.theta, self.future = nn.Linear(config.hidden, width), nn.Linear(2 * channels * len(self.RATES), width)
        self.diffusion = mlp(width, size) if self.free else mlp(LEAD_FEATURES, width, size)
        self.drift, self.control = mlp(width, size), mlp(width, size)
        self.readout = Readout(size, channels, config.head, width, config.dropout)

    def _field(self, steered: bool) -> tuple[Dynamics, SteeredWeights]:
        """g and f, and u where the posterior is steered, with their weights."""
        parts = [self.diffusion] * self.free + [self.drift] + [self.control] * steered
        rows = len(parts) * self.config.width
        outer, bias = (torch.stack(both) for both in zip(*(part.parameters() for part in parts), strict=True))
        if self.free:
            bias = torch.cat([bias[:1] + _LITTLE_NOISE, bias[1:]])
        weights = SteeredWeights(self.inner.weight[:rows], self.inner.bias[:rows], outer, bias)
        return SteeredField(weights) if self.free else LinearNoise(weights), weights

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
        if not self.free:
            sigma = softplus(self.diffusion(lead_features(torch.arange(count + 1) * h)) + _LITTLE_NOISE)
            shift = torch.cat([sigma[:, None, None].expand(*shift.shape[:-1], -1), shift], -1)
        noise = step_noise(query, samples, mean.shape[-1], self.training)
        field, weights = self._field(steered=window is not None)
        method, tolerance = self.config.method, self.config.tolerance
        paths = diffuse(method, field, start, shift, noise, h, rotation, weights, tolerance)
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
        return self.readout.mixture(query, self._solve(query, encoded, self.config.samples)[0])

    def joint(self, query: Query, count: int) -> Tensor:
        """Draws of all channels at the queries, `(count, B, K, H, C)`, coupled over channels and times by their paths.

        Given its path, every value is drawn by itself from the readout's law, whatever the trust in it.
        """
        encoded = at_origins(self.encoder(query.context), query)
        law = summarise(self.readout.learnt(query, self._solve(query, encoded, count)[0]))
        _, _, horizon, channels = law.mean.shape[1:]
        level = uniform(query.context.key, (count, horizon, channels), stream=-1).transpose(0, 1)[:, :, None, ..., None]
        return law.at(level.float().clamp(1e-6, 1 - 1e-6).expand(*law.mean.shape, 1))[..., 0]

    def loss(self, window: Window) -> Loss:
        encoded = at_origins(self.encoder(window.query.context), window.query)  # of posterior and prior
        states, kl = self._solve(window.query, encoded, 1, window)
        elbo = mean_loss(self.readout(window.query, states, window.mask), window, kl[0])
        ahead, _ = self._solve(window.query, encoded, self.config.train_samples)
        forecast = pool(self.readout(window.query, ahead, window.mask), 4)
        target = window.values[window.mask]
        error = huber_loss(window.scaled(forecast.mean), window.scaled(target), reduction="sum", delta=HUBER)
        prior = (error + crps_samples(forecast.samples, target).sum()) / max(len(target), 1)
        return Loss(elbo.score + prior, elbo.kl)
