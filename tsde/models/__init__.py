"""The families, one per file, and the one table that names them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tsde import trees
from tsde.model import Forecaster
from tsde.models.bend import Bent
from tsde.models.boosting import Boosting, BoostingConfig
from tsde.models.filter import Filter, FilterConfig
from tsde.models.gru import GRU, GRUConfig
from tsde.models.last import Last, LastConfig
from tsde.models.latent_ode import LatentODE, LatentODEConfig
from tsde.models.latent_sde import LatentSDE, LatentSDEConfig
from tsde.models.mean import Mean, MeanConfig
from tsde.models.mixer import Mixer, MixerConfig
from tsde.models.nearer import Nearer
from tsde.models.neural_cde import NeuralCDE, NeuralCDEConfig
from tsde.models.ridge import Ridge, RidgeConfig


class AutoConfig(BaseModel):
    """The family is chosen by short trials: the one with the lowest validation CRPS is then trained in full."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    SUMMARY: ClassVar = "the one of several families with the lowest validation CRPS in short trials"

    family: Literal["auto"] = "auto"
    candidates: tuple[str, ...] = Field(("filter", "neural_cde", "latent_ode", "ridge"), min_length=1)
    trial: float = Field(0.1, gt=0, le=0.5, description="share of train.steps and train.max_time of each trial")

    @field_validator("candidates")
    @classmethod
    def _families(cls, candidates: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in candidates if name not in MODELS]:
            raise ValueError(f"there is no family {unknown[0]!r}; expected some of {', '.join(MODELS)}")
        if "boosting" in candidates and not trees.available():
            raise ValueError(trees.MISSING)
        return candidates


ModelConfig = Annotated[
    AutoConfig
    | FilterConfig
    | NeuralCDEConfig
    | LatentODEConfig
    | LatentSDEConfig
    | GRUConfig
    | MixerConfig
    | BoostingConfig
    | LastConfig
    | MeanConfig
    | RidgeConfig,
    Field(discriminator="family"),
]


class Family(NamedTuple):
    """A family's configuration, its class, and one line about it."""

    config: type[BaseModel]
    model: type[Forecaster]
    summary: str


MODELS: dict[str, Family] = {
    "filter": Family(FilterConfig, Filter, "continuous-discrete filter, latent ODE over the horizon (the default)"),
    "neural_cde": Family(NeuralCDEConfig, NeuralCDE, "neural controlled differential equation; log-ODE by path.kind"),
    "latent_ode": Family(LatentODEConfig, LatentODE, "latent ODE: recurrent encoder, variational state at the origin"),
    "latent_sde": Family(LatentSDEConfig, LatentSDE, "latent SDE: prior and posterior over the horizon, path KL"),
    "gru": Family(GRUConfig, GRU, "peer: gated recurrent unit with time gaps, decoder on the lead time"),
    "mixer": Family(MixerConfig, Mixer, "peer: mixer network over channels and features of irregular series"),
    "boosting": Family(BoostingConfig, Boosting, "peer: gradient boosting on hand-made features (extra `boosting`)"),
    "ridge": Family(RidgeConfig, Ridge, "baseline: ridge regression on summaries of the context"),
    "last": Family(LastConfig, Last, "baseline: last value, variance growing with the gap"),
    "mean": Family(MeanConfig, Mean, "baseline: training mean and quantiles"),
}

BASELINES = ("last", "mean", "ridge")
"""Shown beside every model, also where they win."""


def config_of(family: str) -> type[BaseModel]:
    """The settings of a family, or of the choice among families."""
    return AutoConfig if family == "auto" else MODELS[family].config


def build(config: ModelConfig, channels: int) -> Forecaster:
    """A fresh model of the configured family, brought nearer to what it does not see; one that learns by steps sees
    heavy-tailed channels bent."""
    model = MODELS[config.family].model(config, channels)
    if model.literal:  # it says the same however far away
        return model
    learns = any(parameter.requires_grad for parameter in model.parameters())
    return Bent(Nearer(model), channels) if learns else Nearer(model)
