"""The one training loop: every family that learns by gradient steps goes through `fit`."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from torch import Tensor, nn

from tsde.artifact import read_files, write_files
from tsde.clock import Clock
from tsde.errors import ArtifactError, DivergedError, UsageError
from tsde.model import Forecaster
from tsde.solving import Estimates, estimating, recomputing
from tsde.validating import validation_crps
from tsde.windows import Origins, Window, WindowConfig, draw_windows

_FIRST = 25  # steps to the first validation


def _seconds(value: object) -> object:
    """Text with a unit, such as 300s or 5min, as seconds."""
    try:
        return (
            Clock(kind="datetime").parse_duration(value) if isinstance(value, str) and value[-1:].isalpha() else value
        )
    except UsageError as error:
        raise ValueError("expected seconds, or a number and a unit, such as 300s or 5min") from error


WallTime = Annotated[float, BeforeValidator(_seconds)]


class Regularise(BaseModel):
    """Weights of what the solver says about its own work, so that learned dynamics become cheaper to solve.

    Global, over all steps (Pal et al. 2021, "Opening the Blackbox"), or at one time drawn at random in every training
    step, which is as good on average (Pal et al. 2023, "Locally Regularized Neural Differential Equations").
    Deviation: steps are fixed, so the estimates are those of the fixed steps.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    error: float = Field(0.0, ge=0, allow_inf_nan=False, description="weight of the local error estimate")
    stiffness: float = Field(0.0, ge=0, allow_inf_nan=False, description="weight of the stiffness estimate")
    times: Literal["all", "random"] = Field("all", description="steps that count")

    @property
    def active(self) -> bool:
        """Whether anything is asked for."""
        return self.error > 0 or self.stiffness > 0

    def penalty(self, estimates: Estimates) -> Tensor:
        """The weighted mean of the estimates over the steps that count.

        Raises:
            UsageError: no equation was solved.
        """
        if not estimates.error:
            raise UsageError("train.regularise expects a family that solves an equation over steps; leave it out here")
        error, stiffness = torch.stack(estimates.error), torch.stack(estimates.stiffness)
        if self.times == "random":
            chosen = torch.randint(len(error), (1,))
            error, stiffness = error[chosen], stiffness[chosen]
        return self.error * error.mean() + self.stiffness * stiffness.mean()


class TrainConfig(BaseModel):
    """How a model is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: int = Field(2000, ge=1, description="optimiser steps per member")
    batch: int = Field(32, ge=1, description="series per step")
    learning_rate: float = Field(5e-3, gt=0)
    warmup: int = Field(100, ge=0, description="steps of linear learning-rate warm-up, before the cosine")
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    average: float = Field(
        0.995, ge=0, lt=1, description="decay of the running average of the weights that is validated"
    )
    kl_warmup: float = Field(
        0.3, ge=0, le=1, description="share of training over which the KL weight rises to kl_weight"
    )
    kl_weight: float = Field(0.01, ge=0, description="weight of KL terms: scores are not in nats")
    regularise: Regularise = Regularise()
    recompute: int | None = Field(
        None, ge=1, description="rows between the states of a context kept for gradients: less memory, more time"
    )
    validate_every: int = Field(
        100, ge=1, description="steps between validations, at most: early ones follow faster; a checkpoint follows each"
    )
    patience: int = Field(10, ge=1, description="times validate_every steps without improvement before stopping")
    members: int = Field(4, ge=1, description="models trained from different seeds and averaged into one forecast")
    workers: int | None = Field(None, ge=1, description="members trained at once; one per core by default")
    max_time: WallTime | None = Field(
        None, gt=0, description="budget of all training, start-up included, such as 300s; scoring comes on top"
    )


@dataclass(frozen=True)
class Progress:
    """What a callback sees after each validation."""

    member: int
    step: int
    steps: int
    elapsed: float
    train_score: float
    kl: float
    validation_crps: float
    best: float
    share: float
    """Part of this member's schedule that is done, by steps or by the clock, whichever is further."""
    trial: str | None = None
    """The family that is on trial, where a family is being chosen."""

    def record(self) -> dict[str, float]:
        """The numbers, as the history of a training keeps them."""
        return {key: float(value) for key, value in asdict(self).items() if key != "trial"}


@dataclass
class _State:
    """Everything that changes while a member trains, so that a resumed run repeats an undisturbed one."""

    seed: int
    step: int = 0
    elapsed: float = 0.0
    best: float = math.inf
    best_step: int = 0
    diverged: str | None = None
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Divergence:
    """What ended a training before its time, and whether a validation came before it whose weights can be kept."""

    reason: str
    validated: bool


def divergence(checkpoint: Path) -> Divergence | None:
    """The divergence that a checkpoint remembers; None for a training that can go on, or has not begun.

    Raises:
        ArtifactError: the checkpoint is damaged.
    """
    if not checkpoint.exists():
        return None
    state = _read_state(checkpoint, read_files(checkpoint)[0])
    return Divergence(state.diverged, bool(state.history)) if state.diverged else None


def fit(
    model: Forecaster,
    origins: Origins,
    validation: Sequence[Window],
    windows: WindowConfig,
    config: TrainConfig,
    seed: int,
    member: int = 0,
    budget: float | None = None,
    checkpoint: Path | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> list[dict[str, float]]:
    """Train `model` in place and leave it with the weights of its best validation; returns the validation history.

    AdamW, linear warm-up then cosine, clipped gradients, an exponential average of the weights that is what gets
    validated and kept. The schedule's position is the larger of steps done and budget spent, so a run that the
    clock cuts short still anneals; without a binding clock the result depends on the seed alone.

    Args:
        budget: seconds this member may take.
        checkpoint: directory that receives the state after every validation, and from which it is taken up again. A
            divergence is kept there too: the next call ends with the weights of the best validation before it.

    Raises:
        DivergedError: if the loss or its gradient is not finite; names the step and the part.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _Loop(model, origins, windows, config, seed, checkpoint).run(validation, member, budget, report)


class _Loop:
    """The state of one member's training and the steps that change it."""

    def __init__(
        self,
        model: Forecaster,
        origins: Origins,
        windows: WindowConfig,
        config: TrainConfig,
        seed: int,
        folder: Path | None,
    ):
        self.model, self.origins, self.windows, self.config, self.folder = model, origins, windows, config, folder
        self.generator = torch.Generator().manual_seed(seed)
        self.optimiser = torch.optim.AdamW(_decay_groups(model, config.weight_decay), lr=config.learning_rate)
        self.averaged = copy.deepcopy(model).eval().requires_grad_(False)
        self.kept = copy.deepcopy(self.averaged.state_dict())
        self.state = _State(seed)

    def run(
        self, validation: Sequence[Window], member: int, budget: float | None, report: Callable[[Progress], None]
    ) -> list[dict[str, float]]:
        if self.folder is not None and self.folder.exists():
            self._restore(self.folder)
        if self.state.diverged is None:
            try:
                self._train(validation, member, budget, report)
            except DivergedError as error:
                self.state.diverged = str(error)
                if self.folder is not None:
                    self._save(self.folder)
                raise
        elif not self.state.history:
            raise DivergedError(self.state.diverged)
        self.model.load_state_dict(self.kept)
        self.model.eval()
        return self.state.history

    def _train(
        self, validation: Sequence[Window], member: int, budget: float | None, report: Callable[[Progress], None]
    ) -> None:
        config, state = self.config, self.state
        started = time.monotonic() - state.elapsed
        share = self._share(budget)
        while share < 1 and state.step - state.best_step < config.patience * config.validate_every:
            scores: list[tuple[float, float]] = []
            # small tables are learnt by heart after a few hundred steps: the best ones may be over early
            until = min(config.validate_every, max(_FIRST, state.step // 4))
            while len(scores) < until and share < 1:
                scores.append(self._step(share))
                state.elapsed = time.monotonic() - started
                share = self._share(budget)
            score, kl = torch.tensor(scores).mean(0).tolist()
            crps = validation_crps(self.averaged, validation)
            if not math.isfinite(crps):
                raise DivergedError(f"validation CRPS is {crps} after step {state.step}; lower train.learning_rate")
            if crps < state.best:
                state.best, state.best_step = crps, state.step
                self.kept = copy.deepcopy(self.averaged.state_dict())
            state.elapsed = time.monotonic() - started
            progress = Progress(
                member,
                state.step,
                config.steps,
                state.elapsed,
                score,
                kl,
                crps,
                state.best,
                min(1.0, self._share(budget)),
            )
            state.history.append(progress.record())
            if self.folder is not None:
                self._save(self.folder)
            report(progress)

    def _share(self, budget: float | None) -> float:
        return max(self.state.step / self.config.steps, self.state.elapsed / budget if budget else 0.0)

    def _step(self, share: float) -> tuple[float, float]:
        config, model = self.config, self.model
        warm = min(1.0, (self.state.step + 1) / max(config.warmup, 1))
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * min(share, 1.0)))
        window = draw_windows(self.origins, self.windows, config.batch, self.generator)
        model.train()
        with estimating(config.regularise.active) as estimates, recomputing(config.recompute):
            loss = model.loss(window if model.causal else window.per_origin())
        penalty = config.regularise.penalty(estimates) if config.regularise.active else 0.0
        weight = config.kl_weight * min(1.0, share / config.kl_warmup if config.kl_warmup else 1.0)
        self.optimiser.zero_grad()
        (loss.score + weight * loss.kl + penalty).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        self._check(loss.score, loss.kl, norm)
        self.optimiser.step()
        self.state.step += 1
        decay = min(config.average, self.state.step / (self.state.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(model.parameters()), 1 - decay)
        return loss.score.item(), loss.kl.item()

    def _check(self, score: Tensor, kl: Tensor, norm: Tensor) -> None:
        for name, value in (("training score", score), ("KL term", kl), ("gradient norm", norm)):
            if not torch.isfinite(value):
                raise DivergedError(
                    f"training diverged at step {self.state.step + 1}: the {name} is {value.item()}, expected a finite "
                    "number. Lower train.learning_rate or train.clip, or look for extreme values with `tsde validate`."
                )

    def _save(self, folder: Path) -> None:
        tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"averaged/{k}": v for k, v in self.averaged.state_dict().items()}
        tensors |= {f"kept/{k}": v for k, v in self.kept.items()}
        for index, slots in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{index}/{name}": value for name, value in slots.items()}
        tensors["generator"], tensors["global"] = self.generator.get_state(), torch.get_rng_state()
        write_files(folder, {"state.json": json.dumps(asdict(self.state)).encode()}, {"state.safetensors": tensors})

    def _restore(self, folder: Path) -> None:
        files, tensors = read_files(folder)
        state = _read_state(folder, files)
        if state.seed != self.state.seed:
            raise ArtifactError(f"{folder} was left by a run with seed {state.seed}, not {self.state.seed}: remove it")
        self.state = state
        saved: dict[str, dict[str, Tensor]] = {"model": {}, "averaged": {}, "kept": {}, "optimiser": {}}
        for name, tensor in tensors["state.safetensors"].items():
            part, _, rest = name.partition("/")
            if rest:
                saved[part][rest] = tensor
        self.model.load_state_dict(saved["model"])
        self.averaged.load_state_dict(saved["averaged"])
        self.kept = saved["kept"]
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in saved["optimiser"].items():
            index, slot = name.split("/")
            slots.setdefault(int(index), {})[slot] = tensor
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": slots})
        self.generator.set_state(tensors["state.safetensors"]["generator"])
        torch.set_rng_state(tensors["state.safetensors"]["global"])


def _read_state(folder: Path, files: Mapping[str, bytes]) -> _State:
    try:
        return _State(**json.loads(files["state.json"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder} is no checkpoint of this version of tsde: remove it to start afresh") from error


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay on matrices only: zero is no natural value for a rate, a frequency, a bias or a norm."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
