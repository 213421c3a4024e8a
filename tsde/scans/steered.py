"""Euler and Maruyama's method for a diffusion with a steered drift, as one differentiable operation.

With two-layer networks that share their input, steps i = 0..n-1 of length h, noise xi_i and known shifts s_i,

    [q, p, r] = A z_i + a + [0, s_i],   d = D silu(q) + d_0,   f = F silu(p) + f_0,   u = U silu(r) + u_0
    g = softplus(d),   w = h u + sqrt(h) xi_i,   y = z_i + h f + g w,   z_{i+1} = t y,   t = exp(lambda h)

and the cost J = h/2 sum_i |u|^2. Without steering there is no r, u is zero, and so is J.

Backward, with x' for the gradient of x, from i = n - 1 down:

    y' = z_{i+1}' conj(t),   f' = h y',   d' = y' w (1 - e^{-g}),   u' = h (y' g + u J')
    [q, p, r]' = silu'([q, p, r]) [D^T d', F^T f', U^T u'],   s_i' = [p', r']
    z_i' = y' + A^T [q', p', r'] + given gradient of output i

The gradients of the matrices are added up step by step, while what they are made of is in the cache.
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
        outputs = kept_rows(keep, start, steps, parts, many, size)  # g, f and u
        turned = kept_rows(keep, start, steps, many, size)  # y
        moved = noise.flatten(1, 2) * h**0.5  # becomes w
        squares = torch.zeros_like(moved[0])
        inner_t, outer_t, bias = inner.t().contiguous(), outer.mT.contiguous(), outer_bias[:, None]
        states[0] = start.flatten(0, 1)
        shifted = before.unflatten(1, (samples, rows))[..., width:]
        made = before, shifted, shifts, hidden, _by_part(hidden, parts), outputs, *outputs.unbind(1)[:2]
        rows_of = *made, outputs[:, -1], moved, turned, to_complex(turned), states[:-1], to_complex(states[1:])
        for a, a_shifted, shift, b, b_parts, out, g, drift, u, w, y, modes, z, after in zip(
            *(x.unbind(0) for x in rows_of), strict=True
        ):
            torch.addmm(inner_bias, z, inner_t, out=a)
            a_shifted.add_(shift)
            _aten.silu.out(a, out=b)
            torch.baddbmm(bias, b_parts, outer_t, out=out)
            _aten.softplus.out(g, out=g)
            if parts == 3:
                w.add_(u, alpha=h)
                squares.addcmul_(u, u)
            torch.addcmul(torch.add(z, drift, alpha=h, out=y), g, w, out=y)
            torch.mul(modes, turn, out=after)
        ctx.save_for_backward(turn, inner, outer, states, before, hidden, outputs, moved, turned)
        ctx.h, ctx.samples = h, samples
        cost = squares.sum(-1).mul_(h / 2)
        return states.unflatten(1, (samples, rows)), cost.unflatten(0, (samples, rows))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_cost: Tensor) -> tuple[Tensor | None, ...]:
        turn, inner, outer, states, before, hidden, outputs, moved, turned = ctx.saved_tensors
        h, samples, (parts, size, width), (steps, many, _) = ctx.h, ctx.samples, outer.shape, moved.shape
        wants_shifts = ctx.needs_input_grad[3]
        grad_shifts = states.new_empty(steps if wants_shifts else 0, many // samples, (parts - 1) * width)
        grad_inner, grad_outer = torch.zeros_like(inner), torch.zeros_like(outer)
        sum_inner, sum_outer = torch.zeros_like(before[0]), torch.zeros_like(outputs[0])  # of what biases get
        raw, passed = torch.empty_like(before[0]), torch.empty_like(before[0])  # gradients before and behind silu
        raw_shifted, passed_parts = raw.unflatten(0, (samples, -1))[..., width:], _by_part(passed[None], parts)[0]
        out, part, state = states.new_empty(parts, many, size), *(torch.empty_like(states[0]) for _ in range(2))
        to_spread, to_drift, to_steer, state_modes, out_t = out[0], out[1], out[-1], to_complex(state), out.mT
        grad_after = torch.empty_like(states)  # z'
        cost = (h * grad_cost.flatten())[:, None]
        back = turn.conj().resolve_conj()
        given = grad.flatten(1, 2)
        grad_after[-1] = given[-1]
        kept = before, _by_part(hidden, parts), outputs[:, 0], outputs[:, -1], moved, states[:-1]
        rows_of = *kept, given[:-1], grad_after[:-1], to_complex(grad_after[1:])
        loop = list(enumerate(zip(*(x.unbind(0) for x in rows_of), strict=True)))
        for i, (a, b_parts, g, u, w, z, more, after, following) in reversed(loop):
            torch.mul(following, back, out=state_modes)  # y'
            torch.neg(g, out=part).expm1_().mul_(w)  # -(1 - e^{-g}) w
            torch.mul(state, part, out=to_spread).neg_()
            torch.mul(state, h, out=to_drift)
            if parts == 3:
                torch.mul(u, cost, out=to_steer).addcmul_(state, g, value=h)
            grad_outer.baddbmm_(out_t, b_parts)
            sum_outer.add_(out)
            torch.bmm(out, outer, out=passed_parts)
            _aten.silu_backward.grad_input(passed, a, grad_input=raw)
            grad_inner.addmm_(raw.t(), z)
            sum_inner.add_(raw)
            if wants_shifts:
                torch.sum(raw_shifted, 0, out=grad_shifts[i])
            torch.addmm(state, raw, inner, out=after).add_(more)
        grad_turn = (to_complex(grad_after[1:]) * to_complex(turned).conj()).sum((0, 1))
        return (
            None, grad_after[0].unflatten(0, (samples, -1)), grad_turn, grad_shifts if wants_shifts else None, None,
            None, grad_inner, sum_inner.sum(0), grad_outer, sum_outer.sum(1),
        )  # fmt: skip


def _by_part(x: Tensor, parts: int) -> Tensor:
    """`(n, N, P W)` -> `(n, P, N, W)`, a view."""
    return x.unflatten(-1, (parts, -1)).transpose(1, 2)
