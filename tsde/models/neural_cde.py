"""Neural controlled differential equation: the context as a path that drives a hidden state."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.distributions import Distribution

from tsde.flow import ControlledField, Solver, controlled
from tsde.heads import HeadName
from tsde.model import Forecaster, Loss
from tsde.models.horizon import Horizon
from tsde.models.parts import FASTEST, Modes, clipped, mean_loss, mlp
from tsde.models.readout import Readout
from tsde.path import ControlPath, PathConfig, control_path, control_size, is_causal
from tsde.series import SeriesBatch
from tsde.windows import Query, Window


class NeuralCDEConfig(BaseModel):
    """Neural CDE; with log-signature windows it is the log-ODE method."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["neural_cde"] = "neural_cde"
    path: PathConfig = PathConfig()
    solver: Solver = Solver()
    hidden: int = Field(64, ge=2, multiple_of=2, description="size of the hidden state z, two numbers per mode")
    control: int = Field(8, ge=1, description="the path is mapped linearly to this many channels")
    width: int = Field(64, ge=4, multiple_of=4, description="hidden units of field, horizon and readout")
    horizon_modes: int = Field(
        32, ge=1, description="complex modes of the latent ODE over the horizon, beside the channels' own"
    )
    steps: int = Field(12, ge=1, description="solver steps per horizon")
    tolerance: float | None = Field(None, gt=0, description="of adaptive steps over the horizon; else they are fixed")
    dropout: float = Field(0.1, ge=0, lt=1)
    head: HeadName = "quantile"


class NeuralCDE(Forecaster):
    """The response of a learned field to the data:

        z(0) = zeta(X(0)),    dz = lambda z dt + F(z) dX,    F(z) in R^{hidden x control}

    on the index grid of `path.py`, X the control path of the context (Kidger et al. 2020; log-ODE: Morrill et al.
    2021). Deviations: the linear part in time is diagonal on complex modes, split off and solved exactly on each
    interval, since a small field on a coarse grid does not learn to oscillate; X passes a learned linear map before it
    drives z, which keeps the cost of F independent of the number of channels; the state at the origin starts a latent
    ODE over the horizon.
    """

    def __init__(self, config: NeuralCDEConfig, channels: int):
        super().__init__()
        size = control_size(channels, config.path)
        self.config = config
        self.causal = is_causal(config.path)
        self.adaptive = config.solver.adaptive or config.tolerance is not None
        self.initial = mlp(size, config.width, config.hidden)
        self.control = nn.Linear(size, config.control, bias=False)
        self.modes = Modes(config.hidden // 2, FASTEST)
        self.inner = nn.Linear(config.hidden, config.width)
        self.outer = nn.Linear(config.width, config.hidden * config.control)
        self.encoded = nn.LayerNorm(config.hidden)
        horizon = config.horizon_modes, config.width, config.steps, config.tolerance, config.dropout
        self.horizon = Horizon(config.hidden, channels, *horizon)
        self.readout = Readout(self.horizon.size, channels, config.head, config.width, config.dropout, anchored=True)

    def encode(self, context: SeriesBatch) -> tuple[ControlPath, Tensor]:
        """The control path and the state at its knots, `(B, n + 1, hidden)`."""
        raw = control_path(context, self.config.path)
        path = raw.mapped(self.control.weight)
        field = ControlledField(self.inner.weight, self.inner.bias, self.outer.weight, self.outer.bias)
        states = controlled(field, path, self.initial(raw.initial), self.config.solver, self.modes())
        return path, states.transpose(0, 1)

    def _states(self, query: Query) -> Tensor:
        """Latent states at the query times, `(B, K, H, D)`."""
        context = query.context
        path, states = self.encode(replace(context, values=clipped(context)))
        knot = path.knot.gather(1, context.last_row(query.origins))  # (B, K)
        encoded = states.gather(1, knot[..., None].expand(-1, -1, states.shape[-1]))
        return self.horizon(self.encoded(encoded), query)

    def forward(self, query: Query) -> Distribution:
        return self.readout(query, self._states(query))

    def loss(self, window: Window) -> Loss:
        return mean_loss(self.readout(window.query, self._states(window.query), window.mask), window)
