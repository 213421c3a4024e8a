"""Adaptive steps for those who ask, through torchdiffeq and torchsde, which are imported only then.

The rows of a batch share their steps, which follow the largest error among them. A model with adaptive steps is
therefore asked for one series at a time (`Forecaster.adaptive`), else a forecast would depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

MAX_STEPS = 5000
_FIRST = 0.25  # of the span is tried first: the usual guess costs an evaluation and is too careful
_SHORTEST = 1e-4  # of a horizon: steps of a stochastic solver never get shorter, whatever its error

TimeField = Callable[[float, Tensor], Tensor]


def solve(field: TimeField, state: Tensor, times: Tensor, tolerance: float) -> Tensor:
    """z' = field(t, z) by the pair of Dormand and Prince, orders 5 and 4: `(N, D)` -> `(T, N, D)` at `times (T,)`.

    The first step tried is a quarter of the span. A solution that needs more than `MAX_STEPS` steps, or steps too short
    for its arithmetic, becomes not a number. Gradients are those of the steps that were taken.
    """
    import torchdiffeq

    def worst_row(error: Tensor) -> Tensor:
        # detached, or gradients would also go through the length of the first step, and be nan where a row is zero
        return error.detach().square().mean(-1).sqrt().max()

    try:
        return torchdiffeq.odeint(
            lambda t, z: field(float(t.detach()), z),
            state,
            times,
            rtol=tolerance,
            atol=tolerance,
            method="dopri5",
            options={"max_num_steps": MAX_STEPS, "norm": worst_row, "first_step": _FIRST * float(times[-1] - times[0])},
        )
    except AssertionError:
        return _lost(state, times)


def _lost(state: Tensor, times: Tensor) -> Tensor:
    """What a divergent solution becomes; a loss of it still has a gradient, which is not a number either."""
    return (state * torch.nan).expand(len(times), *state.shape)


class _Equation(nn.Module):
    """What torchsde wants to be given."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, drift: TimeField, diffusion: TimeField):
        super().__init__()
        self._drift, self._diffusion = drift, diffusion

    def f(self, t: Tensor, z: Tensor) -> Tensor:
        return self._drift(float(t.detach()), z)

    def g(self, t: Tensor, z: Tensor) -> Tensor:
        return self._diffusion(float(t.detach()), z)


def solve_stochastic(
    drift: TimeField, diffusion: TimeField, state: Tensor, times: Tensor, tolerance: float, entropy: int
) -> Tensor:
    """dz = f dt + g dW, Ito, g diagonal: `(N, D)` -> `(T, N, D)` at `times (T,)`, which are equally spaced.

    Roessler's strong order 1.5 Runge-Kutta method with steps halved until two half steps agree with a whole one. A
    solution that overflows becomes not a number.

    Args:
        entropy: seeds the Brownian motion; where it ends does not depend on the steps, what it does on the way may.
    """
    import torchsde

    span, spacing = float(times[-1]), float(times[1])
    size = (len(state), state.shape[-1])
    # the area between a path and its chord, which the method needs, comes with the increments
    motion = torchsde.BrownianInterval(
        0.0, span, size=size, dtype=state.dtype, entropy=entropy, dt=spacing, levy_area_approximation="space-time"
    )
    try:
        return torchsde.sdeint(
            _Equation(drift, diffusion),
            state,
            times,
            bm=motion,
            method="srk",
            dt=spacing,
            adaptive=True,
            rtol=tolerance,
            atol=tolerance,
            dt_min=_SHORTEST,
        )
    except AssertionError:
        return _lost(state, times)
