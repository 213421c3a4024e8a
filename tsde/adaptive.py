"""Adaptive steps for those who ask, through torchdiffeq.

The rows of a batch share their steps, which follow the largest error among them. A model with adaptive steps is
therefore asked for one series at a time (`Forecaster.adaptive`), else a forecast would depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torchdiffeq
from torch import Tensor

MAX_STEPS = 5000


def solve(field: Callable[[float, Tensor], Tensor], state: Tensor, times: Tensor, tolerance: float) -> Tensor:
    """z' = field(t, z) by the pair of Dormand and Prince, orders 5 and 4: `(N, D)` -> `(T, N, D)` at `times (T,)`.

    A solution that needs more than `MAX_STEPS` steps, or steps too short for its arithmetic, becomes not a number.
    """

    def worst_row(error: Tensor) -> Tensor:
        return error.square().mean(-1).sqrt().max()

    try:
        return torchdiffeq.odeint(
            lambda t, z: field(float(t), z),
            state,
            times,
            rtol=tolerance,
            atol=tolerance,
            method="dopri5",
            options={"max_num_steps": MAX_STEPS, "norm": worst_row},
        )
    except AssertionError:
        return state.new_full((len(times), *state.shape), torch.nan)
