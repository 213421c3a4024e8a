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

u_l is zero or sigma, so that s_l is not needed there. All factors but h_l' are formed for all rows at once, and the
gradient of U is one product at the end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tsde.scans.pairs import kept_rows, to_complex


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
        reset_in, update_in, candidate_in = drive.split(size, -1)
        gates_in = torch.cat([reset_in, update_in.masked_fill(seen == 0, -torch.inf)], -1)  # sigma(-inf) is zero
        candidate_in = 2 * candidate_in  # tanh(x) = 2 sigma(2x) - 1, nine times cheaper on a CPU
        gates_t = weight[: 2 * size].t().contiguous()
        candidate_t = (2 * weight[2 * size :]).t().contiguous()
        state = start.contiguous()
        resets, updates = opened[..., :size], opened[..., size:]
        rows = (turns, gates_in, candidate_in, before, opened, resets, updates, shared, candidate, states)
        for turn, xg, xn, h, gate, r, u, c, n, after in zip(*(x.unbind(0) for x in rows), strict=True):
            torch.mul(to_complex(state), turn, out=to_complex(h))
            torch.addmm(xg, h, gates_t, out=gate).sigmoid_()
            torch.mm(h, candidate_t, out=c)
            torch.addcmul(xn, r, c, out=n).sigmoid_().mul_(2).sub_(1)
            torch.lerp(h, n, u, out=after)
            state = after
        ctx.save_for_backward(start, turns, weight, before, states, opened, shared, candidate)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        start, turns, weight, before, states, opened, shared, candidate = ctx.saved_tensors
        size = weight.shape[1]
        reset, update = opened[..., :size], opened[..., size:]
        to_update = (candidate - before) * update * (1 - update)
        to_candidate = update * (1 - candidate.square())
        to_reset = shared * reset * (1 - reset) / 2  # 2 c is what was kept
        keep = 1 - update
        raw = opened.new_empty(*opened.shape[:2], 3 * size)  # [p', q', c']
        grad_candidate, grad_before = torch.empty_like(before), torch.empty_like(before)
        flows = turns.conj().resolve_conj()
        carried = start.new_zeros(start.shape)
        rows = (grad, flows, to_update, to_candidate, to_reset, reset, keep, raw, *raw.split(size, -1))
        rows = (*rows, grad_candidate, grad_before)
        loop = list(zip(*(x.unbind(0) for x in rows), strict=True))
        for given, flow, a_u, a_n, a_r, r, k, out, to_p, to_q, to_c, w, h in reversed(loop):
            after = carried.add_(given)
            torch.mul(after, a_n, out=w)
            torch.mul(w, a_r, out=to_p)
            torch.mul(after, a_u, out=to_q)
            torch.mul(w, r, out=to_c)
            torch.addmm(after.mul_(k), out, weight, out=h)
            torch.mul(to_complex(h), flow, out=to_complex(carried))
        previous = to_complex(torch.cat([start[None], states[:-1]]))
        grad_drive = torch.cat([raw[..., : 2 * size], grad_candidate], -1)
        grad_weight = raw.flatten(0, 1).t() @ before.flatten(0, 1)
        return None, carried, to_complex(grad_before) * previous.conj(), grad_drive, None, grad_weight
