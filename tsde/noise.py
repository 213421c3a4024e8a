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
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def uniform(key: Tensor, shape: tuple[int, ...], stream: int = 0) -> Tensor:
    """Uniform numbers in (0, 1), float64: `(B,)` keys -> `(B, *shape)`; each stream is independent of the others."""
    counter = torch.arange(1, math.prod(shape) + 1, device=key.device)
    start = _mix(_mix(key + torch.tensor(stream + 1, device=key.device) * _GOLDEN))  # wraps, as a counter should
    bits = _mix(start[:, None] + counter * _GOLDEN)
    return ((_shift_right(bits, 12).double() + 0.5) * 2.0**-52).reshape(-1, *shape)


def standard_normal(key: Tensor, shape: tuple[int, ...], stream: int = 0) -> Tensor:
    """Standard normal numbers, float32, by the inverse distribution function: `(B,)` keys -> `(B, *shape)`."""
    return torch.special.ndtri(uniform(key, shape, stream)).float()


def series_keys(ids: Iterable[str], seed: int) -> Tensor:
    """`(N,)` int64 keys from series names and a seed, the same on every machine and in every row order."""
    digests = (hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest() for name in ids)
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests], dtype=torch.int64)
