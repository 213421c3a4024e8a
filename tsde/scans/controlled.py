"""A neural CDE with a two-layer field, solved by an explicit Runge-Kutta method, as one differentiable operation.

The field is F(y) = tanh(B silu(A y + a) + b) in R^{P x D}, the control enters as increments dX_{r,s} in R^P (the
derivative of the path at stage s of step r, times the step). With the tableau's alpha_{sj} and beta_s, step r is

    z_r- = t_r * z_r                              the exact linear flow, complex, once per interval
    y_s = z_r- + sum_{j<s} alpha_{sj} k_j,   p_s = A y_s + a,   h_s = silu(p_s),
    m_s = sigma(2 (B h_s + b)),              k_s = 2 m_s^T dX_s - 1^T dX_s          (tanh(x) = 2 sigma(2x) - 1)
    z_{r+1} = z_r- + sum_s beta_s k_s

Backward, with x' for the gradient of x, from the last step down and within a step from the last stage down:

    k_s' = beta_s z_{r+1}' + sum_{j>s} alpha_{js} y_j'
    (B h_s + b)' = 4 m_s (1 - m_s) * (dX_s k_s'^T),   dX_s' = 2 m_s k_s' - sum(k_s')
    p_s' = silu'(p_s) * (B^T (B h_s + b)'),   y_s' = A^T p_s'
    (z_r-)' = z_{r+1}' + sum_s y_s',   t_r' = (z_r-)' conj(z_r),   z_r' = (z_r-)' conj(t_r) + given gradient of output r

The gradients of A and a are one product over all stages at the end; those of B are added up step by step, since
keeping (B h + b)' of all stages would cost more memory traffic than it saves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tsde.scans.pairs import kept_rows, to_complex, to_real
from tsde.tableau import Tableau

_aten = torch.ops.aten


def controlled_scan(
    start: Tensor, turns: Tensor | None, drive: Tensor,
    inner: Tensor, inner_bias: Tensor, outer: Tensor, outer_bias: Tensor, tableau: Tableau,
) -> Tensor:  # fmt: skip
    """All states z_r of the equations above, the start included: `(R + 1, B, D)`.

    Args:
        start: z_0, `(B, D)`.
        turns: t, complex `(n, B, D / 2)`; an interval is `R / n` steps and turns before its first. None: t = 1.
        drive: dX, `(R, S, B, P)`; S is 1 where all stages of a step see the same increment.
        inner, inner_bias: A `(W, D)`, a `(W,)`. outer, outer_bias: B `(P D, W)`, b `(P D,)`, control first.
    """
    return _ControlledScan.apply(
        torch.is_grad_enabled(), start, turns, drive, inner, inner_bias, outer, outer_bias, tableau
    )


class _ControlledScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, keep: bool, start: Tensor, turns: Tensor | None, drive: Tensor,
        inner: Tensor, inner_bias: Tensor, outer: Tensor, outer_bias: Tensor, tableau: Tableau,
    ) -> Tensor:  # fmt: skip
        (steps, kinds, batch, controls), size, stages = drive.shape, start.shape[1], len(tableau.beta)
        every = 1 if turns is None else steps // len(turns)
        states = start.new_empty(steps + 1, batch, size)
        points = kept_rows(keep, start, steps, stages, batch, size)  # y
        before = kept_rows(keep, start, steps, stages, batch, len(inner))  # p
        squashed = kept_rows(keep, start, steps, stages, batch, len(outer))  # m
        inner_t, outer_t, bias = inner.t().contiguous(), (2 * outer).t().contiguous(), 2 * outer_bias
        products = start.new_empty(batch, controls, size)
        hidden, inputs = start.new_empty(batch, len(inner)), start.new_empty(batch, len(outer))
        slopes = start.new_empty(stages, batch, size).unbind(0)
        drives, sums = _unbound(2 * drive[..., None]), _unbound(drive.sum(-1, keepdim=True))
        rows = (points, before, squashed, squashed.unflatten(-1, (controls, size)))
        all_rows = zip(*(_unbound(x) for x in rows), drives, sums, strict=True)
        states[0] = start
        at = states.unbind(0)
        for r, (ys, ps, ms, matrices, dxs, totals) in enumerate(all_rows):
            first = ys[0]
            if turns is None or r % every:
                first.copy_(at[r])
            else:
                torch.mul(to_complex(at[r]), turns[r // every], out=to_complex(first))
            for s, (y, p, m, matrix) in enumerate(zip(ys, ps, ms, matrices, strict=True)):
                _combine(first, tableau.alpha[s], slopes, y)
                torch.addmm(inner_bias, y, inner_t, out=p)
                _aten.silu.out(p, out=hidden)
                # into memory that stays in the cache; what is kept is written once
                torch.addmm(bias, hidden, outer_t, out=inputs)
                torch.sigmoid(inputs, out=m)
                which = s if kinds > 1 else 0
                torch.mul(matrix, dxs[which], out=products)
                # a batched matrix product may round by a row's place in the batch; a sum does not
                torch.sum(products, 1, out=slopes[s]).sub_(totals[which])
            _combine(first, tableau.beta, slopes, at[r + 1])
        ctx.save_for_backward(turns, drive, inner, outer, states, points, before, squashed)
        ctx.tableau = tableau
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        turns, drive, inner, outer, states, points, before, squashed = ctx.saved_tensors
        tableau: Tableau = ctx.tableau
        (steps, kinds, batch, controls), size, stages = drive.shape, states.shape[-1], len(tableau.beta)
        every = 1 if turns is None else steps // len(turns)
        wants_drive = ctx.needs_input_grad[3]
        grad_before, grad_drive = torch.empty_like(before), torch.zeros_like(drive)
        grad_turns = None if turns is None else torch.empty_like(turns)
        grad_outer, grad_outer_bias = torch.zeros_like(outer), outer.new_zeros(len(outer))
        slopes = grad.new_empty(stages, batch, size)  # k'
        hidden, passed = before.new_empty(stages, batch, len(inner)), before.new_empty(batch, len(inner))
        raw = squashed.new_empty(stages, batch, len(outer))  # (B h + b)'
        back = grad.new_empty(batch, size)  # y'
        beta, ones = grad.new_tensor(tableau.beta)[:, None, None], grad.new_ones(stages * batch)
        all_raw, all_hidden = raw.flatten(0, 1).t(), hidden.flatten(0, 1)
        slope, hiddens, raws = slopes.unbind(0), hidden.unbind(0), raw.unbind(0)
        raw_matrices = raw.unflatten(-1, (controls, size)).unbind(0)
        rows = (before, squashed, squashed.unflatten(-1, (controls, size)), grad_before)
        all_rows = list(zip(*(_unbound(x) for x in rows), _unbound(4 * drive[..., None]), strict=True))
        given = grad.unbind(0)
        state = given[steps].clone(memory_format=torch.contiguous_format)  # z'
        for r in reversed(range(steps)):
            ps, ms, matrices, out, dxs = all_rows[r]
            torch.mul(state, beta, out=slopes)
            for s in reversed(range(stages)):
                which = s if kinds > 1 else 0
                torch.mul(dxs[which], slope[s][:, None], out=raw_matrices[s])
                _aten.sigmoid_backward.grad_input(raws[s], ms[s], grad_input=raws[s])
                _aten.silu.out(ps[s], out=hiddens[s])
                torch.mm(raws[s], outer, out=passed)
                _aten.silu_backward.grad_input(passed, ps[s], grad_input=out[s])
                torch.mm(out[s], inner, out=back)
                state.add_(back)
                for j, weight in enumerate(tableau.alpha[s]):
                    if weight:
                        slope[j].add_(back, alpha=weight)
                if wants_drive:
                    total = slope[s].sum(-1, keepdim=True)
                    product = torch.bmm(matrices[s], slope[s][..., None]).squeeze(-1)
                    grad_drive[r, which].add_(product, alpha=2).sub_(total)
            grad_outer.addmm_(all_raw, all_hidden)
            grad_outer_bias.addmv_(all_raw, ones)
            if turns is not None and grad_turns is not None and r % every == 0:
                turned = to_complex(state)
                grad_turns[r // every] = turned * to_complex(states[r]).conj()
                state = to_real(turned * turns[r // every].conj())
            state = state.add_(given[r])
        flat = grad_before.flatten(0, 2)
        return (
            None, state, grad_turns, grad_drive if wants_drive else None,
            flat.t() @ points.flatten(0, 2), flat.sum(0), grad_outer, grad_outer_bias, None,
        )  # fmt: skip


def _unbound(x: Tensor) -> list[tuple[Tensor, ...]]:
    """Views of `(R, S, ...)` by step and stage; indexing inside a loop costs as much as a small operation."""
    return [step.unbind(0) for step in x.unbind(0)]


def _combine(base: Tensor, weights: tuple[float, ...], slopes: tuple[Tensor, ...], out: Tensor) -> None:
    """out = base + sum_j weight_j slope_j; `out` may be `base` where there is nothing to add."""
    for weight, slope in zip(weights, slopes, strict=False):
        if weight:
            torch.add(base, slope, alpha=weight, out=out)
            base = out
