"""The filter's recurrence as one differentiable operation.

Forward, for rows l = 1..L, states z in C^M (real pairs where a matrix acts), masks m, s_l = 1 if row l observes:

    z_l- = t_l * z_{l-1}                          t_l = exp(lambda gap_l), the exact flow
    [p_l, a_l] = A z_l- + b                       prediction and the state's share of the gates, in one product
    e_l = x_l - m_l p_l                           innovation (x is zero where unobserved)
    [g_l, v_l] = a_l + E e_l + d_l                d_l: what depends on the mask alone, computed beforehand
    u_l = s_l sigma(g_l) tanh(v_l),   z_l = z_l- + G u_l

Backward, with y' for the gradient of y, from l = L down, z_l' starting from the gradient of output l:

    u' = s_l G^T z_l',   g' = u' tanh(v) sigma'(g),   v' = u' sigma(g) (1 - tanh(v)^2)
    e' = E^T [g', v'],   p' = -m_l e'
    (z_l-)' = z_l' + A^T [p', g', v'],   t_l' = (z_l-)' conj(z_{l-1}),   z_{l-1}' += (z_l-)' conj(t_l)

The gradients of A, E and G are sums of outer products over rows and series: one product each at the end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tsde.scans.pairs import kept_rows, row_by_row, to_real

_aten = torch.ops.aten


def innovation_scan(
    start: Tensor, turns: Tensor, values: Tensor, mask: Tensor, drive: Tensor, seen: Tensor,
    read: Tensor, bias: Tensor, innovate: Tensor, gain: Tensor,
) -> Tensor:  # fmt: skip
    """All states z_l of the scan above, time first: complex `(L, B, M)`.

    Gradients reach everything but `values`, `mask` and `seen`, which are data.

    Args:
        start: z_0, complex `(B, M)`.
        turns: t, complex `(L, B, M)`.
        values, mask: x and m, `(L, B, C)`, x zero where unobserved.
        drive: d, `(L, B, 2W)`. seen: s, `(L, B, 1)`, zero or one.
        read, bias: A `(C + 2W, 2M)` and b `(C + 2W,)`. innovate: E `(2W, C)`. gain: G `(2M, W)`.
    """
    return _InnovationScan.apply(
        torch.is_grad_enabled(), start, turns, values, mask, drive, seen, read, bias, innovate, gain
    )


class _InnovationScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, keep: bool, start: Tensor, turns: Tensor, values: Tensor, mask: Tensor, drive: Tensor, seen: Tensor,
        read: Tensor, bias: Tensor, innovate: Tensor, gain: Tensor,
    ) -> Tensor:  # fmt: skip
        length, batch, modes = turns.shape
        channels, width = values.shape[-1], gain.shape[1]
        states = torch.empty_like(turns)
        before = kept_rows(keep, turns, length, batch, modes)
        innovation = kept_rows(keep, values, length, batch, channels)
        gates, used = (kept_rows(keep, values, length, batch, size) for size in (2 * width, width))
        opened, moved = gates.split(width, -1)
        predicted = values.new_empty(batch, channels + 2 * width)
        prediction, share = predicted.split([channels, 2 * width], -1)
        read_t, innovate_t, gain_t = read.t().contiguous(), innovate.t().contiguous(), gain.t().contiguous()
        state = start
        given = turns, values, mask, drive, seen
        made = before, to_real(before), states, to_real(states), innovation, gates, opened, moved, used
        for turn, x, m, d, s, z, z_real, after, after_real, e, both, gate, move, u in row_by_row(*given, *made):
            torch.mul(state, turn, out=z)
            torch.addmm(bias, z_real, read_t, out=predicted)
            torch.addcmul(x, m, prediction, value=-1, out=e)
            torch.add(share, d, out=both).addmm_(e, innovate_t)
            move.mul_(2)  # tanh(v) = 2 sigma(2v) - 1, nine times cheaper on a CPU
            both.sigmoid_()
            move.mul_(2).sub_(1)
            torch.mul(gate, move, out=u).mul_(s)
            torch.addmm(z_real, u, gain_t, out=after_real)
            state = after
        ctx.save_for_backward(start, turns, mask, seen, read, innovate, gain, before, states, innovation, gates, used)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        start, turns, mask, seen, read, innovate, gain, before, states, innovation, gates, used = ctx.saved_tensors
        (length, batch, _), channels, width = states.shape, innovation.shape[-1], gain.shape[1]
        opened, moved = gates.split(width, -1)
        grad_read = innovation.new_empty(length, batch, channels + 2 * width)  # [p', g', v']
        grad_after, grad_turns = torch.empty_like(states), torch.empty_like(turns)
        carried, back = torch.zeros_like(states[0]), torch.empty_like(states[0])
        passed, part = (innovation.new_empty(batch, width) for _ in range(2))  # u'
        minus = -mask
        previous = torch.cat([start[None], states[:-1]])
        to_prediction, to_gates = grad_read[..., :channels], grad_read[..., channels:]
        given = grad, opened, moved, seen, minus, turns, previous
        made = grad_read, to_prediction, to_gates, grad_after, grad_turns
        for more, gate, move, s, m, turn, last, out, to_p, to_g, after, to_turn in row_by_row(
            *given, *made, backwards=True
        ):
            torch.add(carried, more, out=after)
            torch.mm(to_real(after), gain, out=passed).mul_(s)
            torch.mul(passed, move, out=part)
            _aten.sigmoid_backward.grad_input(part, gate, grad_input=to_g[:, :width])
            torch.mul(passed, gate, out=part)
            _aten.tanh_backward.grad_input(part, move, grad_input=to_g[:, width:])
            torch.mul(to_g @ innovate, m, out=to_p)
            torch.addmm(to_real(after), out, read, out=to_real(back))
            torch.mul(back, last.conj(), out=to_turn)
            torch.mul(back, turn.conj(), out=carried)
        return (
            None, carried, grad_turns, None, None, to_gates, None,
            _outer(grad_read, to_real(before)), grad_read.sum((0, 1)),
            _outer(to_gates, innovation), _outer(to_real(grad_after), used),
        )  # fmt: skip


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """Sum of outer products over rows and series: `(L, B, P)`, `(L, B, Q)` -> `(P, Q)`."""
    return left.flatten(0, 1).t() @ right.flatten(0, 1)
