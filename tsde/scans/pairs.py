"""What all scans share: complex modes as pairs of real numbers, and rows of what the backward pass needs."""

from __future__ import annotations

import torch
from torch import Tensor


def to_complex(x: Tensor) -> Tensor:
    """`(..., 2M)` real pairs -> `(..., M)` complex, without a copy."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def to_real(z: Tensor) -> Tensor:
    """`(..., M)` complex -> `(..., 2M)` real pairs, without a copy."""
    return torch.view_as_real(z).flatten(-2)


def kept_rows(keep: bool, like: Tensor, length: int, *shape: int) -> Tensor:
    """Room for something at each of `length` rows, `(length, *shape)`, or the room of one row for all in turn."""
    if keep:
        return like.new_empty(length, *shape)
    return like.new_empty(1, *shape).expand(length, *(-1 for _ in shape))
