"""Complex modes as pairs of real numbers: matrices act on these, flows turn those."""

from __future__ import annotations

import torch
from torch import Tensor


def to_complex(x: Tensor) -> Tensor:
    """`(..., 2M)` real pairs -> `(..., M)` complex, without a copy."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def to_real(z: Tensor) -> Tensor:
    """`(..., M)` complex -> `(..., 2M)` real pairs, without a copy."""
    return torch.view_as_real(z).flatten(-2)
