"""Random numbers that belong to a series.

A sampled forecast must not change with the row order, the batch or the number of workers, so noise is a pure
function of (key of the series, position): a counter-based generator, here the finaliser of SplitMix64
(Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators") applied to key + position, which
vectorises over series where one generator object per series would not.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

import torch
from torch import Tensor

_GOLDEN, _MIX_1, _MIX_2 = -7046029254386353131, -4658895280553007687, -7723592293110705685  # as signed 64-bit


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch shifts signed integers arithmetically."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """Mixed in place."""
    x.bitwise_xor_(_shift_right(x, 30)).mul_(_MIX_1)
    x.bitwise_xor_(_shift_right(x, 27)).mul_(_MIX_2)
    return x.bitwise_xor_(_shift_right(x, 31))


def _bits(key: Tensor, shape: tuple[int, ...], stream: int) -> Tensor:
    """64 random bits each: `(B,)` keys -> `(B, *shape)` int64."""
    counter = torch.arange(1, math.prod(shape) + 1, device=key.device) * _GOLDEN  # wraps, as a counter should
    start = _mix(_mix(key + torch.tensor(stream + 1, device=key.device) * _GOLDEN))
    return _mix(start[:, None] + counter).reshape(-1, *shape)


def uniform(key: Tensor, shape: tuple[int, ...], stream: int = 0) -> Tensor:
    """Uniform numbers in (0, 1), float64: `(B,)` keys -> `(B, *shape)`; each stream is independent of the others."""
    return (_shift_right(_bits(key, shape, stream), 12).double() + 0.5) * 2.0**-52


def standard_normal(key: Tensor, shape: tuple[int, ...], stream: int = 0) -> Tensor:
    """Standard normal numbers, float32: `(B,)` keys -> `(B, *shape)`.

    Two of each 64 bits (Box and Muller 1958): with u in (0, 1) from 31 of them and an angle a from 32 others,
    sqrt(-2 log u) cos a and sqrt(-2 log u) sin a. The last dimension holds first the ones, then the others.
    """
    *outer, size = shape
    halves = _bits(key, (*outer, -(-size // 2)), stream).view(torch.int32).unflatten(-1, (-1, 2))
    u = (halves[..., 0] & (2**31 - 1)).float().add_(0.5).mul_(2.0**-31)
    angle = halves[..., 1].float().mul_(math.pi * 2.0**-31)
    radius = u.log_().mul_(-2).sqrt_()
    return torch.cat([radius * angle.cos(), radius * angle.sin()], -1)[..., :size]


def series_keys(ids: Iterable[str], seed: int) -> Tensor:
    """`(N,)` int64 keys from series names and a seed, the same on every machine and in every row order."""
    digests = (hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest() for name in ids)
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests], dtype=torch.int64)
