"""What all scans share: complex modes as pairs of real numbers, their rotation, and rows kept for the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


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


_ROWS = 256  # whose views exist at once: those of thousands keep Python's garbage collector busy


def row_by_row(*tensors: Tensor, backwards: bool = False) -> Iterator[tuple[Tensor, ...]]:
    """Views of each row of tensors `(L, ...)`, in order or from the last one down."""
    pieces = list(zip(*(x.split(_ROWS) for x in tensors), strict=True))
    for piece in reversed(pieces) if backwards else pieces:
        rows = list(zip(*(x.unbind(0) for x in piece), strict=True))
        yield from reversed(rows) if backwards else rows


def turns(decay: Tensor, frequency: Tensor, gap: Tensor) -> Tensor:
    """t = exp(lambda gap) with lambda = -decay + i frequency: `(M,)`, `(M,)` and `(...)` -> complex `(..., M)`.

    With t' the gradient of t and c = t' conj(t), those of decay and frequency are -sum gap Re c and sum gap Im c, one
    matrix product, where automatic differentiation of modulus and angle takes eight passes over all of t.
    """
    return _Turns.apply(decay, frequency, gap)


class _Turns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decay: Tensor, frequency: Tensor, gap: Tensor) -> Tensor:
        column = gap[..., None]
        modulus, angle = torch.exp(-decay * column), frequency * column
        turned = torch.complex(modulus * angle.cos(), modulus * angle.sin())  # a third of what torch.polar takes
        ctx.save_for_backward(decay, frequency, gap, turned)
        return turned

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        decay, frequency, gap, turned = ctx.saved_tensors
        product = torch.view_as_real(grad * turned.conj())  # (..., M, 2)
        real, imaginary = (gap.reshape(1, -1) @ product.reshape(gap.numel(), -1)).reshape(-1, 2).unbind(-1)
        rate = torch.stack([-decay, frequency], -1)
        grad_gap = (product * rate).sum((-1, -2)) if ctx.needs_input_grad[2] else None
        return -real, imaginary, grad_gap
