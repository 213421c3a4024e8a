"""What regularised dynamics buy: evaluations of the field per forecast at equal error, with and without.

The same family is trained twice on the same series of a stochastic Lorenz system, plainly and with the solver's
estimates of its error and of stiffness in its objective, from the same seed for the same number of steps. Then its
latent ODE over the horizon is solved for the same held-out forecasts with Dormand and Prince's adaptive pair at a
sweep of tolerances, and with the family's own fixed steps at a sweep of numbers. Error is the root mean square distance
of the latent states' forecasts from those of a far finer solution, in standard deviations of the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from tsde.config import Experiment
from tsde.fitting import fit_predictor
from tsde.metrics import crps_quantiles
from tsde.model import Forecaster
from tsde.models.horizon import Horizon
from tsde.predictor import Predictor
from tsde.synthetic import stochastic_lorenz
from tsde.table import read_table
from tsde.windows import Window

ERROR = 1e-3
"""The error at which costs are compared, in standard deviations of a channel."""

TOLERANCES = tuple(10.0**-k for k in np.arange(1.0, 7.01, 0.5))
STEPS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48)


@dataclass(frozen=True)
class Outcome:
    """One training: its skill on held-out series, and what a forecast then costs."""

    crps: float
    evaluations: float
    fixed_steps: float


WEIGHTS = {"error": 3.0, "stiffness": 0.01}
"""Chosen from a few on these series, where they leave the CRPS as it is."""


def compare(family: str = "filter", steps: int = 1200, series: int = 120) -> tuple[Outcome, Outcome]:
    """Plain and regularised training."""
    return run(family, steps, series), run(family, steps, series, **WEIGHTS)


def run(family: str, steps: int, series: int, **weights: object) -> Outcome:
    frame = stochastic_lorenz(series, 60, seed=0)
    experiment = Experiment.model_validate(
        {
            "horizon": 0.5,
            "model": {"family": family},
            "train": {"steps": steps, "members": 1, "patience": 10**6, "regularise": weights},
        }
    )
    fitted = fit_predictor(read_table(frame), experiment)
    model = fitted.predictor.members[0]
    return Outcome(_crps(fitted.predictor, fitted.test), *costs(model, fitted.test))


def _crps(predictor: Predictor, windows: list[Window]) -> float:
    total = count = 0.0
    for window in windows:
        law = predictor.law(window.query)
        total += float(crps_quantiles(law.values, law.levels, window.values)[window.mask].sum())
        count += int(window.mask.sum())
    return total / count


def costs(model: Forecaster, windows: list[Window]) -> tuple[float, float]:
    """Evaluations per adaptive solve, and fixed steps per horizon, at the common error."""
    horizon = next(part for part in model.modules() if isinstance(part, Horizon))
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    horizon.outer.register_forward_hook(count)

    def means(tolerance: float | None, steps: int) -> list[torch.Tensor]:
        horizon.tolerance, horizon.steps = tolerance, steps
        with torch.no_grad():
            return [model(window.query).mean[window.mask] for window in windows]

    usual = horizon.steps
    reference = means(None, 512)

    def error(found: list[torch.Tensor]) -> float:
        difference = torch.cat(found) - torch.cat(reference)
        return max(float(difference.square().mean().sqrt()), 1e-12)

    evaluations, adaptive, fixed = [], [], []
    for tolerance in TOLERANCES:
        calls = 0
        adaptive.append(error(means(tolerance, usual)))
        evaluations.append(calls / len(windows))
    for steps in STEPS:
        fixed.append(error(means(None, steps)))
    horizon.tolerance, horizon.steps = None, usual
    return _at_error(evaluations, adaptive), _at_error(STEPS, fixed)


def _at_error(cost: object, error: list[float]) -> float:
    """The cost at which the error falls to the common one, interpolated in logarithms."""
    logs = np.minimum.accumulate(np.log(error))[::-1]
    return math.exp(np.interp(math.log(ERROR), logs, np.log(np.asarray(cost, float))[::-1]))
