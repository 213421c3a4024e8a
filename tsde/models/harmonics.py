"""Harmonic series: templates `x(phi) = Re sum_j A_j exp(i j phi)`, their squares, and their least squares fits.

A template is a complex tensor `(..., J + 1)` with a real A_0. A fit works on joint second moments of the basis
(1, cos j phi, sin j phi), P = 2 J + 1 numbers, and the values.
"""

from __future__ import annotations

import torch
from torch import Tensor

_PENALTY = 1e-3  # of a weight, per observation


def powers(count: int, angle: Tensor) -> Tensor:
    """exp(i j angle) for j < count: `(...)` -> complex `(..., count)`."""
    angles = angle[..., None] * torch.arange(count)
    return torch.polar(torch.ones_like(angles), angles)


def square(template: Tensor) -> Tensor:
    """The harmonics of x(phi)^2, `(..., J + 1)` -> `(..., 2 J + 1)`: (Re u)^2 = (|u|^2 + Re u^2) / 2."""
    count = template.shape[-1]
    found = template.new_zeros(*template.shape[:-1], 2 * count - 1)
    for j in range(count):
        found[..., j : j + count] += 0.5 * template[..., j, None] * template
        lagged = (template[..., j:] * template[..., : count - j].conj()).sum(-1)
        found[..., j] += 0.5 * lagged if j == 0 else lagged
    return found


def moments(angle: Tensor, values: Tensor, mask: Tensor, harmonics: int) -> Tensor:
    """Joint second moments of basis and values, `(..., T)` and `(..., T, C)` -> `(..., C, P + 1, P + 1)` float64."""
    turn = powers(harmonics + 1, angle)
    basis = torch.cat([turn.real, turn.imag[..., 1:]], -1)  # (..., T, P)
    seen, values = mask.to(basis.dtype), torch.where(mask, values, 0.0)
    pairs = (basis[..., None] * basis[..., None, :]).flatten(-2)
    gram = (seen.mT @ pairs).unflatten(-1, (basis.shape[-1], -1)).double()
    cross = (values.mT @ basis)[..., None].double()
    total = values.square().sum(-2)[..., None, None].double()
    return torch.cat([torch.cat([gram, cross], -1), torch.cat([cross.mT, total], -1)], -2)


def fitted(sums: Tensor) -> tuple[Tensor, Tensor]:
    """The template of least squares from `moments`, `(..., C, J + 1)`, and the squares it leaves, `(..., C)`."""
    gram, cross, total = sums[..., :-1, :-1], sums[..., :-1, -1], sums[..., -1, -1]
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype)
    weight = torch.linalg.solve(gram + _PENALTY * (gram[..., :1, :1] + 1) * eye, cross)
    left = total - 2 * (weight * cross).sum(-1) + (weight * (gram @ weight[..., None])[..., 0]).sum(-1)
    real, sine = weight.float().tensor_split([weight.shape[-1] // 2 + 1], -1)
    return torch.complex(real, torch.cat([torch.zeros_like(real[..., :1]), -sine], -1)), left.clamp(min=0)
