"""The filter's scan against the plain loop that automatic differentiation takes apart."""

from __future__ import annotations

import torch
from torch import Tensor

from tsde.scans.innovation import innovation_scan
from tsde.scans.pairs import to_complex, to_real

LENGTH, BATCH, MODES, CHANNELS, WIDTH = 7, 3, 4, 2, 5


def plain_scan(start, turns, values, mask, drive, seen, read, bias, innovate, gain) -> Tensor:
    """The equations of `tsde/scans/innovation.py`, line by line."""
    state, states = start, []
    for t, x, m, d, s in zip(turns, values, mask, drive, seen, strict=True):
        state = state * t
        prediction, share = (to_real(state) @ read.t() + bias).split([x.shape[-1], d.shape[-1]], -1)
        gate, move = (share + (x - m * prediction) @ innovate.t() + d).chunk(2, -1)
        state = state + to_complex((s * torch.sigmoid(gate) * torch.tanh(move)) @ gain.t())
        states.append(state)
    return torch.stack(states)


def inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    real = {torch.float64: torch.complex128, torch.float32: torch.complex64}[dtype]
    mask = (torch.rand(LENGTH, BATCH, CHANNELS) < 0.6).to(dtype)
    turns = torch.polar(torch.rand(LENGTH, BATCH, MODES), 6 * torch.rand(LENGTH, BATCH, MODES)).to(real)
    drawn = [
        torch.randn(*shape, dtype=dtype) * 0.5
        for shape in (
            (LENGTH, BATCH, 2 * WIDTH),
            (CHANNELS + 2 * WIDTH, 2 * MODES),
            (CHANNELS + 2 * WIDTH,),
            (2 * WIDTH, CHANNELS),
            (2 * MODES, WIDTH),
        )
    ]
    drive, read, bias, innovate, gain = (x.requires_grad_() for x in drawn)
    values = torch.randn(LENGTH, BATCH, CHANNELS, dtype=dtype) * mask
    seen = mask.amax(-1, keepdim=True)
    start = torch.randn(BATCH, MODES, dtype=real)
    return [start.requires_grad_(), turns.requires_grad_(), values, mask, drive, seen, read, bias, innovate, gain]


def test_states_equal_the_plain_loop() -> None:
    arguments = inputs()
    assert torch.allclose(innovation_scan(*arguments), plain_scan(*arguments), rtol=1e-12, atol=1e-12)


def test_gradients_equal_the_plain_loop() -> None:
    arguments = inputs()
    weight = torch.randn(LENGTH, BATCH, 2 * MODES, dtype=torch.float64)
    wanted = [x for x in arguments if x.requires_grad]
    found = torch.autograd.grad((to_real(innovation_scan(*arguments)) * weight).sum(), wanted)
    expected = torch.autograd.grad((to_real(plain_scan(*arguments)) * weight).sum(), wanted)
    for one, other in zip(found, expected, strict=True):
        assert one.abs().max() > 0
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-10)


def test_gradients_agree_with_finite_differences() -> None:
    arguments = inputs()
    assert torch.autograd.gradcheck(lambda *x: to_real(innovation_scan(*x)), arguments, atol=1e-6)


def test_two_graphs_may_live_at_once() -> None:
    first, second = inputs(), inputs()
    one, two = innovation_scan(*first), innovation_scan(*second)
    to_real(two).sum().backward()
    to_real(one).sum().backward()
    assert torch.equal(first[6].grad, second[6].grad)
