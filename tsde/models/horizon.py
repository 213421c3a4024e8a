"""The future as a latent ODE from the forecast origin on, whose first modes are the channels themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from tsde.flow import DenseSolution, semilinear
from tsde.models.parts import FASTEST, Modes
from tsde.models.recent import last_and_slope
from tsde.scans.pairs import to_complex, to_real
from tsde.windows import Query

_SLOW = -4.0  # logarithm of the decay per horizon at which the channels' own modes start
_SMALL = 0.1  # part of the usual initial weights


class Horizon(nn.Module):
    """One mode per channel and `modes` free ones, solved once per origin; queries read the dense solution.

        z' = lambda z + g(z, theta),    z(0) = [x + i v, 0] + W e,    theta = V e

    with x each channel's last value, v the slope that led there and e the encoder's state. Lambda is diagonal and
    complex, with decays and frequencies spread over the horizon for free modes, and nearly zero for the channels'
    own; g is a small network. Re z_c is where the channel c itself would go: a law of motion learnt on the series' own
    scale needs fewer examples than one on states that an encoder has to find first. Through e each series has dynamics
    of its own, and W corrects x for noise and age. In training parts of e are dropped, so that few series are not known
    by heart.
    """

    def __init__(
        self, encoded: int, channels: int, modes: int, width: int, steps: int, tolerance: float | None, dropout: float
    ):
        super().__init__()
        count = channels + modes + (channels + modes) % 2  # products round by a row's place if the size is no four's
        self.steps, self.tolerance, self.size = steps, tolerance, 2 * count
        self.modes = Modes(count, FASTEST / 2)
        self.dropout = nn.Dropout(dropout)
        self.start = nn.Linear(encoded, self.size)
        self.theta = nn.Linear(encoded, width)
        self.inner = nn.Linear(self.size, width, bias=False)
        self.outer = nn.Linear(width, self.size)
        with torch.no_grad():
            self.modes.log_decay[:channels] = _SLOW
            self.modes.frequency[:channels] = 0
            self.start.weight[: 2 * channels] *= _SMALL
            self.start.bias[: 2 * channels] = 0
            self.outer.weight.mul_(0.3)

    def forward(self, encoded: Tensor, query: Query) -> Tensor:
        """The encoder's state at the origins `(..., B, K, E)` -> states at the query times, `(..., B, K, H, size)`."""
        shape = (*encoded.shape[:-1], query.times.shape[-1])
        last, slope = last_and_slope(query)
        known = torch.complex(last, slope).expand(*shape[:-1], -1).flatten(0, -2)
        lead = query.lead.expand(shape).flatten(0, -2)
        solution = self.solve(self.dropout(encoded).flatten(0, -2), known, lead)
        return to_real(solution.at(lead)).reshape(*shape, -1)

    def solve(self, encoded: Tensor, known: Tensor, until: Tensor) -> DenseSolution:
        """The solution from `encoded (N, E)` and x + i v `(N, C)` that covers all leads in `until`."""
        theta = self.theta(encoded)
        start, inner = to_complex(self.start(encoded)), self.inner.weight.t()
        start = start + pad(known, (0, start.shape[-1] - known.shape[-1]))

        def field(z: Tensor) -> Tensor:
            return to_complex(self.outer(silu(torch.addmm(theta, to_real(z), inner))))

        return semilinear(self.modes(), field, start, until, self.steps, self.tolerance)
