"""Euler and Maruyama's method for a diffusion with a steered drift, as one differentiable operation.

With two-layer networks that share their input, steps i = 0..n-1 of length h, noise xi_i and known shifts s_i,

    [q, p, r] = A z_i + a + [0, s_i],   d = D silu(q) + d_0,   f = F silu(p) + f_0,   u = U silu(r) + u_0
    g = softplus(d),   w = h u + sqrt(h) xi_i,   y = z_i + h f + g w,   z_{i+1} = t y,   t = exp(lambda h)

and the cost J = h/2 sum_i |u|^2. Without steering there is no r, u is zero, and so is J.

Backward, with x' for the gradient of x, from i = n - 1 down:

    y' = z_{i+1}' conj(t),   f' = h y',   d' = y' w (1 - e^{-g}),   u' = h (y' g + u J')
    [q, p, r]' = silu'([q, p, r]) [D^T d', F^T f', U^T u'],   s_i' = [p', r']
    z_i' = y' + A^T [q', p', r'] + given gradient of output i

The gradients of the matrices are one product each over all steps at the end.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tsde.scans.pairs import kept_rows, to_complex

_aten = torch.ops.aten


class SteeredWeights(NamedTuple):
    """A `(P W, D)`, a `(P W,)`, and D, F, U stacked, `(P, D, W)` and `(P, D)`; P is 3, or 2 without steering."""

    inner: Tensor
    inner_bias: Tensor
    outer: Tensor
    outer_bias: Tensor


def steered_scan(
    start: Tensor, turn: Tensor, shifts: Tensor, noise: Tensor, h: float, weights: SteeredWeights
) -> tuple[Tensor, Tensor]:
    """All states of the equations above, `(n + 1, S, N, D)`, and the cost `(S, N)`.

    Args:
        start: z_0, `(S, N, D)`.
        turn: t, complex `(D / 2,)`.
        shifts: s, `(n, N, (P - 1) W)`, the same for all S.
        noise: xi, `(n, S, N, D)`; it is data and gets no gradient.
    """
    return _SteeredScan.apply(torch.is_grad_enabled(), start, turn, shifts, noise, h, *weights)


class _SteeredScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, keep: bool, start: Tensor, turn: Tensor, shifts: Tensor, noise: Tensor, h: float,
        inner: Tensor, inner_bias: Tensor, outer: Tensor, outer_bias: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        steps, samples, rows, size = noise.shape
        parts, width, many = len(outer), outer.shape[-1], samples * rows
        states = start.new_empty(steps + 1, many, size)
        before, hidden = (kept_rows(keep, start, steps, many, parts * width) for _ in range(2))
        spread, turned = (kept_rows(keep, start, steps, many, size) for _ in range(2))  # g and y
        moved = start.new_empty(steps, many, size)  # w
        steer = start.new_empty(steps if parts == 3 else 0, many, size)  # u
        inner_t, outers = inner.t().contiguous(), [x.t().contiguous() for x in outer]
        torch.mul(noise.flatten(1, 2), h**0.5, out=moved)
        states[0] = start.flatten(0, 1)
        at = states.unbind(0)
        loop = zip(*(x.unbind(0) for x in (before, hidden, shifts, spread, moved, turned)), strict=True)
        for i, (a, b, shift, g, w, y) in enumerate(loop):
            torch.addmm(inner_bias, at[i], inner_t, out=a)
            a.view(samples, rows, -1)[..., width:].add_(shift)
            _aten.silu.out(a, out=b)
            torch.addmm(outer_bias[0], b[:, :width], outers[0], out=g)
            _aten.softplus.out(g, out=g)
            drift = torch.addmm(outer_bias[1], b[:, width : 2 * width], outers[1])
            if parts == 3:
                torch.addmm(outer_bias[2], b[:, 2 * width :], outers[2], out=steer[i])
                w.add_(steer[i], alpha=h)
            torch.addcmul(drift.mul_(h).add_(at[i]), g, w, out=y)
            torch.mul(to_complex(y), turn, out=to_complex(at[i + 1]))
        ctx.save_for_backward(turn, inner, outer, states, before, hidden, spread, moved, turned, steer)
        ctx.h, ctx.samples = h, samples
        cost = steer.square().sum((0, -1)).mul_(h / 2)
        return states.unflatten(1, (samples, rows)), cost.unflatten(0, (samples, rows))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_cost: Tensor) -> tuple[Tensor | None, ...]:
        turn, inner, outer, states, before, hidden, spread, moved, turned, steer = ctx.saved_tensors
        h, samples, (parts, _, width) = ctx.h, ctx.samples, outer.shape
        grad_before = torch.empty_like(before)
        raw, part = torch.empty_like(before[0]), torch.empty_like(spread[0])  # gradients behind silu and softplus
        grad_out = spread.new_empty(len(spread), parts, *spread.shape[1:])  # d', f', u'
        grad_after = torch.empty_like(states)  # z'; its last row goes first
        cost = (h * grad_cost.flatten())[:, None]
        back = turn.conj().resolve_conj()
        given = grad.flatten(1, 2).unbind(0)
        after = grad_after.unbind(0)
        after[-1].copy_(given[-1])
        state = torch.empty_like(after[0])  # y'
        pieces_of_raw = raw.split(width, -1)
        rows = (grad_out, before, grad_before, spread, moved)
        loop = list(enumerate(zip(*(x.unbind(0) for x in rows), strict=True)))
        for i, (out, a, ga, g, w) in reversed(loop):
            torch.mul(to_complex(after[i + 1]), back, out=to_complex(state))
            torch.neg(g, out=part).expm1_().mul_(w)  # -(1 - e^{-g}) w
            torch.mul(state, part, out=out[0]).neg_()
            torch.mul(state, h, out=out[1])
            if parts == 3:
                torch.mul(steer[i], cost, out=out[2]).addcmul_(state, g, value=h)
            for to_part, to_output, matrix in zip(pieces_of_raw, out, outer, strict=True):
                torch.mm(to_output, matrix, out=to_part)
            _aten.silu_backward.grad_input(raw, a, grad_input=ga)
            torch.addmm(state, ga, inner, out=after[i]).add_(given[i])
        grad_turn = (to_complex(grad_after[1:]) * to_complex(turned).conj()).sum((0, 1))
        flat_out, flat_hidden = grad_out.transpose(0, 1).flatten(1, 2), hidden.flatten(0, 1)
        pieces = [flat_out[p].t() @ flat_hidden[:, p * width : (p + 1) * width] for p in range(parts)]
        flat = grad_before.flatten(0, 1)
        grad_shifts = grad_before.unflatten(1, (samples, -1))[..., width:].sum(1)
        return (
            None, grad_after[0].unflatten(0, (samples, -1)), grad_turn, grad_shifts, None, None,
            flat.t() @ states[:-1].flatten(0, 1), flat.sum(0), torch.stack(pieces), flat_out.sum(1),
        )  # fmt: skip
