"""Latent ODE: a variational state at the origin, carried into the future by a differential equation."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.distributions import Distribution

from tsde.heads import HeadName
from tsde.model import Forecaster, Loss
from tsde.models.horizon import Horizon
from tsde.models.parts import (
    LatentGaussian,
    RecurrentEncoder,
    at_origins,
    mean_loss,
    noise_like,
)
from tsde.models.readout import Readout
from tsde.windows import Query, Window


class LatentODEConfig(BaseModel):
    """Latent ODE with a recurrent encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["latent_ode"] = "latent_ode"
    hidden: int = Field(64, ge=2, multiple_of=2, description="size of the encoder's state, two numbers per mode")
    latent: int = Field(32, ge=1, description="size of the variational state z")
    samples: int = Field(8, ge=1, description="states drawn per forecast")
    width: int = Field(64, ge=4, multiple_of=4, description="hidden units of horizon and readout")
    horizon_modes: int = Field(32, ge=1, description="complex modes of the latent ODE, beside the channels' own")
    steps: int = Field(12, ge=1, description="solver steps per horizon")
    tolerance: float | None = Field(None, gt=0, description="of adaptive steps over the horizon; else they are fixed")
    dropout: float = Field(0.1, ge=0, lt=1)
    head: HeadName = "quantile"


class LatentODE(Forecaster):
    """With h the encoder's state, which decays between observations and is updated at them,

        z ~ q(z | h) = N(mu(h), diag sigma(h)^2),    y(0) = A z,    y' = lambda y + g(y, z),    x(t) ~ p(x | y(t))

    trained on E_q[log p] - KL(q || N(0, 1)) (Rubanova, Chen and Duvenaud 2019). Deviations: the variational state sits
    at the forecast origin instead of the first observation, so the encoder runs forward and one pass serves all
    origins; between observations the encoder's ODE is linear and solved exactly; log p may be a quantile score.
    """

    def __init__(self, config: LatentODEConfig, channels: int):
        super().__init__()
        self.samples, self.adaptive = config.samples, config.tolerance is not None
        self.encoder = RecurrentEncoder(channels, config.hidden)
        self.posterior = LatentGaussian(config.hidden, config.latent)
        horizon = config.horizon_modes, config.width, config.steps, config.tolerance, config.dropout
        self.horizon = Horizon(config.latent, channels, *horizon)
        self.readout = Readout(self.horizon.size, channels, config.head, config.width, config.dropout, anchored=True)

    def _states(self, query: Query, samples: int) -> tuple[Tensor, Tensor]:
        """States at the query times per sampled z, `(S, B, K, H, D)`, and the KL `(B, K)`."""
        mean, deviation, kl = self.posterior(at_origins(self.encoder(query.context), query))
        z = mean + deviation * noise_like(query, samples, mean.shape[-1], 0, self.training)
        return self.horizon(z, query), kl

    def forward(self, query: Query) -> Distribution:
        return self.readout.mixture(query, self._states(query, self.samples)[0])

    def loss(self, window: Window) -> Loss:
        states, kl = self._states(window.query, 1)
        return mean_loss(self.readout(window.query, states, window.mask), window, kl)
