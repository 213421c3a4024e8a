"""The recurrence of an ODE-RNN with a linear flow and a gated recurrent unit, as one differentiable operation.

For rows l = 1..L, states h in R^D (D / 2 complex modes where they turn), s_l = 1 if row l observes anything:

    h_l- = t_l * h_{l-1}                              t_l = exp(lambda gap_l), the exact flow
    [p_l, q_l, c_l] = U h_l-
    r_l = sigma(x^r_l + p_l),   u_l = s_l sigma(x^u_l + q_l),   n_l = tanh(x^n_l + r_l c_l)
    h_l = h_l- + u_l (n_l - h_l-)

Backward, with y' for the gradient of y, from l = L down, h_l' starting from the gradient of output l:

    q' = h_l' (n_l - h_l-) u_l (1 - u_l),   w = h_l' u_l (1 - n_l^2),   c' = w r_l,   p' = w c_l r_l (1 - r_l)
    (h_l-)' = h_l' (1 - u_l) + U^T [p', q', c'],   x_l' = [p', q', w]
    t_l' = (h_l-)' conj(h_{l-1}),   h_{l-1}' += (h_l-)' conj(t_l)

u_l is zero or sigma, so that s_l is not needed there. A row of a batch fits into the cache and all rows do not, so
everything, the gradient of U included, is done row by row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tsde.scans.pairs import kept_rows, row_by_row, to_complex

_aten = torch.ops.aten


def gated_scan(start: Tensor, turns: Tensor, drive: Tensor, seen: Tensor, weight: Tensor) -> Tensor:
    """All states h_l of the scan above, time first: `(L, B, D)`.

    Args:
        start: h_0, `(B, D)`.
        turns: t, complex `(L, B, D / 2)`.
        drive: x = [x^r, x^u, x^n], `(L, B, 3D)`. seen: s, `(L, B, 1)`, zero or one; it is data and gets no gradient.
        weight: U, `(3D, D)`.
    """
    return _GatedScan.apply(torch.is_grad_enabled(), start, turns, drive, seen, weight)


class _GatedScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, keep: bool, start: Tensor, turns: Tensor, drive: Tensor, seen: Tensor, weight: Tensor
    ) -> Tensor:
        length, batch, size = *turns.shape[:2], weight.shape[1]
        states = start.new_empty(length, batch, size)
        before, shared, candidate = (kept_rows(keep, start, length, batch, size) for _ in range(3))
        opened = kept_rows(keep, start, length, batch, 2 * size)
        gates_t, candidate_t = weight[: 2 * size].t().contiguous(), weight[2 * size :].t().contiguous()
        start = start.contiguous()
        gates_in, candidate_in = drive.split([2 * size, size], -1)
        resets, updates = opened.split(size, -1)
        given = turns, gates_in, candidate_in, seen
        made = before, opened, resets, updates, shared, candidate, states, to_complex(before), to_complex(states)
        last = to_complex(start)
        for turn, xg, xn, s, h, gate, r, u, c, n, after, turned, modes in row_by_row(*given, *made):
            torch.mul(last, turn, out=turned)
            torch.addmm(xg, h, gates_t, out=gate).sigmoid_()
            u.mul_(s)
            torch.mm(h, candidate_t, out=c)
            # tanh(x) = 2 sigma(2x) - 1, nine times cheaper on a CPU
            torch.addcmul(xn, r, c, out=n).mul_(2).sigmoid_().mul_(2).sub_(1)
            torch.lerp(h, n, u, out=after)
            last = modes
        ctx.save_for_backward(start, turns, weight, before, states, opened, shared, candidate)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        start, turns, weight, before, states, opened, shared, candidate = ctx.saved_tensors
        size = weight.shape[1]
        grad_drive, grad_turns = states.new_empty(*states.shape[:2], 3 * size), torch.empty_like(turns)
        grad_weight = torch.zeros_like(weight)
        carried, back, part, w = (torch.zeros_like(states[0]) for _ in range(4))
        raw = torch.cat([carried] * 3, -1)  # [p', q', c']
        to_p, to_q, to_c = raw.split(size, -1)
        carried_modes, back_modes = to_complex(carried), to_complex(back)
        flows = turns.conj().resolve_conj()
        previous = to_complex(torch.cat([start[None], states[:-1]])).conj().resolve_conj()
        rows = (previous, grad, flows, before, *opened.split(size, -1), shared, candidate)
        rows = (*rows, *grad_drive.split([2 * size, size], -1), grad_turns)
        for last, given, flow, h, r, u, c, n, to_gates, to_candidate, to_turn in row_by_row(*rows, backwards=True):
            after = carried.add_(given)
            torch.sub(n, h, out=part).mul_(after)
            _aten.sigmoid_backward.grad_input(part, u, grad_input=to_q)
            torch.mul(after, u, out=part)
            _aten.tanh_backward.grad_input(part, n, grad_input=w)
            after.sub_(part)
            torch.mul(w, r, out=to_c)
            torch.mul(w, c, out=part)
            _aten.sigmoid_backward.grad_input(part, r, grad_input=to_p)
            to_gates.copy_(raw[:, : 2 * size])
            to_candidate.copy_(w)
            grad_weight.addmm_(raw.t(), h)
            torch.addmm(after, raw, weight, out=back)
            torch.mul(back_modes, last, out=to_turn)
            torch.mul(back_modes, flow, out=carried_modes)
        return None, carried, grad_turns, grad_drive, None, grad_weight
