"""Scans with hand-written gradients against plain loops that automatic differentiation takes apart."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tsde.flow import ControlledField, Rotation, Solver, controlled
from tsde.path import ControlPath
from tsde.scans.controlled import controlled_scan
from tsde.scans.gated import gated_scan
from tsde.scans.innovation import innovation_scan
from tsde.scans.pairs import to_complex, to_real
from tsde.scans.steered import SteeredWeights, steered_scan
from tsde.solving import estimating
from tsde.tableau import TABLEAUS

LENGTH, BATCH, MODES, CHANNELS, WIDTH = 5, 3, 2, 3, 4
STEP = 0.2
REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}


def plain_innovation(start, turns, values, mask, drive, seen, read, bias, innovate, gain) -> Tensor:  # type: ignore[no-untyped-def]
    """The equations of `tsde/scans/innovation.py`, line by line."""
    state, states = start, []
    for t, x, m, d, s in zip(turns, values, mask, drive, seen, strict=True):
        state = state * t
        prediction, share = (to_real(state) @ read.t() + bias).split([x.shape[-1], d.shape[-1]], -1)
        gate, move = (share + (x - m * prediction) @ innovate.t() + d).chunk(2, -1)
        state = state + to_complex((s * torch.sigmoid(gate) * torch.tanh(move)) @ gain.t())
        states.append(state)
    return torch.stack(states)


def plain_gated(start: Tensor, turns: Tensor, drive: Tensor, seen: Tensor, weight: Tensor) -> Tensor:
    """The equations of `tsde/scans/gated.py`, line by line."""
    state, states = start, []
    for t, x, s in zip(turns, drive, seen, strict=True):
        state = to_real(to_complex(state) * t)
        (p, q, c), (reset, update, new) = (state @ weight.t()).chunk(3, -1), x.chunk(3, -1)
        proposed = torch.tanh(new + torch.sigmoid(reset + p) * c)
        state = state + s * torch.sigmoid(update + q) * (proposed - state)
        states.append(state)
    return torch.stack(states)


def plain_controlled(start, turns, drive, inner, inner_bias, outer, outer_bias, tableau) -> Tensor:  # type: ignore[no-untyped-def]
    """The equations of `tsde/scans/controlled.py`, line by line."""
    states, every = [start], len(drive) // len(turns)
    for r, increments in enumerate(drive):
        first = to_real(to_complex(states[-1]) * turns[r // every]) if r % every == 0 else states[-1]
        slopes: list[Tensor] = []
        for row, dx in zip(tableau.alpha, increments, strict=True):
            y = first + sum(a * k for a, k in zip(row, slopes, strict=True))
            hidden = torch.nn.functional.silu(y @ inner.t() + inner_bias)
            matrix = torch.tanh(hidden @ outer.t() + outer_bias).unflatten(-1, (dx.shape[-1], -1))
            slopes.append(torch.einsum("bpd,bp->bd", matrix, dx))
        states.append(first + sum(b * k for b, k in zip(tableau.beta, slopes, strict=True)))
    return torch.stack(states)


def plain_steered(start, turn, shifts, noise, inner, inner_bias, outer, outer_bias) -> Tensor:  # type: ignore[no-untyped-def]
    """The equations of `tsde/scans/steered.py`, line by line; states and, behind them as one more, the cost."""
    width, states, cost = outer.shape[-1], [start], 0.0
    for s, xi in zip(shifts, noise, strict=True):
        z = states[-1]
        a = z @ inner.t() + inner_bias
        a = torch.nn.functional.silu(torch.cat([a[..., :width], a[..., width:] + s], -1)).split(width, -1)
        d, f, *u = (hidden @ matrix.t() + bias for hidden, matrix, bias in zip(a, outer, outer_bias, strict=True))
        steer = u[0] if u else torch.zeros_like(f)
        spread = torch.log(1 + d.exp())
        y = z + STEP * (f + spread * steer) + STEP**0.5 * spread * xi
        states.append(to_real(to_complex(y) * turn))
        cost = cost + STEP / 2 * steer.square().sum(-1)
    return torch.stack([*states, (torch.zeros_like(start) + cost[..., None])])


def joined_steered(start, turn, shifts, noise, *weights) -> Tensor:  # type: ignore[no-untyped-def]
    """States, and the cost behind them as one more."""
    states, cost = steered_scan(start, turn, shifts, noise, STEP, SteeredWeights(*weights))
    return torch.cat([states, (torch.zeros_like(states[0]) + cost[..., None])[None]])


class Case(NamedTuple):
    """A scan and its twin, and inputs by number of rows and precision: those that run with time, and the others."""

    scan: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    inputs: Callable[[int, torch.dtype], list[Tensor]]


def drawn(*shape: int, dtype: torch.dtype) -> Tensor:
    return (0.7 * torch.randn(*shape, dtype=dtype)).requires_grad_()


def drawn_turns(length: int, batch: int, modes: int, dtype: torch.dtype) -> Tensor:
    decay, angle = torch.rand(2, length, batch, modes, dtype=dtype)
    return torch.polar(decay, 6 * angle).requires_grad_()


def innovation_inputs(batch: int, dtype: torch.dtype) -> list[Tensor]:
    mask = (torch.rand(LENGTH, batch, CHANNELS) < 0.6).to(dtype)
    start = torch.complex(*torch.randn(2, batch, MODES, dtype=dtype)).requires_grad_()
    values, seen = torch.randn(LENGTH, batch, CHANNELS, dtype=dtype) * mask, mask.amax(-1, keepdim=True)
    both = CHANNELS + 2 * WIDTH
    shapes = (both, 2 * MODES), (both,), (2 * WIDTH, CHANNELS), (2 * MODES, WIDTH)
    drive, weights = drawn(LENGTH, batch, 2 * WIDTH, dtype=dtype), [drawn(*shape, dtype=dtype) for shape in shapes]
    return [start, drawn_turns(LENGTH, batch, MODES, dtype), values, mask, drive, seen, *weights]


def gated_inputs(batch: int, dtype: torch.dtype) -> list[Tensor]:
    size = 2 * MODES
    start, drive = drawn(batch, size, dtype=dtype), drawn(LENGTH, batch, 3 * size, dtype=dtype)
    seen = (torch.rand(LENGTH, batch, 1) < 0.7).to(dtype)
    return [start, drawn_turns(LENGTH, batch, MODES, dtype), drive, seen, drawn(3 * size, size, dtype=dtype)]


def controlled_inputs(batch: int, dtype: torch.dtype) -> list[Tensor]:
    """Two steps per interval, four increments per step."""
    size = 2 * MODES
    start, drive = drawn(batch, size, dtype=dtype), drawn(4, 4, batch, CHANNELS, dtype=dtype)
    shapes = (WIDTH, size), (WIDTH,), (CHANNELS * size, WIDTH), (CHANNELS * size,)
    return [start, drawn_turns(2, batch, MODES, dtype), drive, *(drawn(*shape, dtype=dtype) for shape in shapes)]


def steered_inputs(parts: int, batch: int, dtype: torch.dtype) -> list[Tensor]:
    """Two samples; `parts` is 3 with steering, 2 without."""
    size, samples, steps = 2 * MODES, 2, 3
    start, noise = drawn(samples, batch, size, dtype=dtype), torch.randn(steps, samples, batch, size, dtype=dtype)
    turn = drawn_turns(1, 1, MODES, dtype).detach()[0, 0].requires_grad_()
    shifts = drawn(steps, batch, (parts - 1) * WIDTH, dtype=dtype)
    shapes = (parts * WIDTH, size), (parts * WIDTH,), (parts, size, WIDTH), (parts, size)
    return [start, turn, shifts, noise, *(drawn(*shape, dtype=dtype) for shape in shapes)]


CASES = {
    "innovation": Case(innovation_scan, plain_innovation, innovation_inputs),
    "gated": Case(gated_scan, plain_gated, gated_inputs),
    "controlled": Case(
        partial(controlled_scan, tableau=TABLEAUS["rk4"]),
        partial(plain_controlled, tableau=TABLEAUS["rk4"]),
        controlled_inputs,
    ),
    "steered": Case(joined_steered, plain_steered, partial(steered_inputs, 3)),
    "unsteered": Case(joined_steered, plain_steered, partial(steered_inputs, 2)),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    return CASES[request.param]


def weight_like(states: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(states.shape, generator=generator, dtype=torch.float64).to(states.dtype)


def wanting(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [x for x in tensors if x.requires_grad]


def gradients(scan: Callable[..., Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    states = scan(*inputs)
    return torch.autograd.grad(states, wanting(inputs), weight_like(states))


def close(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-11) -> None:
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_states_equal_the_plain_loop(case: Case) -> None:
    inputs = case.inputs(BATCH, torch.float64)
    close([case.scan(*inputs)], [case.plain(*inputs)], 1e-13)


def test_gradients_equal_the_plain_loop(case: Case) -> None:
    inputs = case.inputs(BATCH, torch.float64)
    assert all(x.requires_grad for x in (inputs[0], inputs[1], inputs[-1]))
    close(gradients(case.scan, inputs), gradients(case.plain, inputs))


def test_gradients_agree_with_finite_differences(case: Case) -> None:
    inputs = case.inputs(2, torch.float64)
    assert torch.autograd.gradcheck(case.scan, inputs, atol=1e-7, rtol=1e-5)


def test_an_input_that_wants_no_gradient_changes_no_other(case: Case) -> None:
    inputs = case.inputs(BATCH, torch.float64)
    expected = dict(zip(map(id, wanting(inputs)), gradients(case.scan, inputs), strict=True))
    for fixed in wanting(inputs):
        fixed.requires_grad_(False)
        found = gradients(case.scan, inputs)
        fixed.requires_grad_(True)
        close(found, [g for key, g in expected.items() if key != id(fixed)], 1e-14)


def test_two_graphs_may_live_at_once(case: Case) -> None:
    first, second = case.inputs(BATCH, torch.float64), case.inputs(BATCH, torch.float64)
    expected = gradients(case.plain, first), gradients(case.plain, second)
    one, two = case.scan(*first), case.scan(*second)
    for _ in range(2):  # and a graph that is kept may be used again
        close(torch.autograd.grad(two, wanting(second), weight_like(two), retain_graph=True), expected[1])
        close(torch.autograd.grad(one, wanting(first), weight_like(one), retain_graph=True), expected[0])


def test_nothing_that_was_given_is_written_to(case: Case) -> None:
    inputs = case.inputs(BATCH, torch.float64)
    states = case.scan(*inputs)
    touched = [*inputs, states, weight_like(states)]
    before = [x.detach().clone() for x in touched]
    case.scan(*inputs)
    torch.autograd.grad(states, wanting(inputs), touched[-1])
    assert all(torch.equal(x, y) for x, y in zip(touched, before, strict=True))


def test_memory_layout_does_not_matter(case: Case) -> None:
    """Of the start and of the gradient that comes in, as views and reductions leave them."""
    inputs = case.inputs(BATCH, torch.float64)
    expected = gradients(case.scan, inputs)
    turned = inputs[0].detach().mT.contiguous().mT.requires_grad_()
    assert not turned.is_contiguous()
    states = case.scan(turned, *inputs[1:])
    weight = weight_like(states).mT.contiguous().mT
    close(torch.autograd.grad(states, wanting([turned, *inputs[1:]]), weight), expected, 1e-14)
    (start,) = torch.autograd.grad(case.scan(*inputs).real.sum(), inputs[0])  # a gradient of stride zero
    close([start], torch.autograd.grad(case.plain(*inputs).real.sum(), inputs[0]))


def test_single_precision_is_near_double(case: Case) -> None:
    inputs = case.inputs(BATCH, torch.float64)
    rounded = [
        x.detach().to(torch.complex64 if x.is_complex() else torch.float32).requires_grad_(x.requires_grad)
        for x in inputs
    ]
    exact = [x.detach().to(y.dtype).requires_grad_(y.requires_grad) for x, y in zip(rounded, inputs, strict=True)]
    states = case.scan(*rounded)
    assert REAL.get(states.dtype, states.dtype) == torch.float32
    for one, other in zip(
        [states, *gradients(case.scan, rounded)], [case.plain(*exact), *gradients(case.plain, exact)], strict=True
    ):
        torch.testing.assert_close(one.to(other.dtype), other, rtol=0, atol=3e-6 * float(other.detach().abs().max()))


@pytest.mark.parametrize("series", range(1, 10))
def test_a_series_does_not_depend_on_its_neighbours_nor_on_its_place(case: Case, series: int) -> None:
    """Bit for bit, in single precision, in a batch that is filled up to a fixed number of rows as forecasts are."""
    rows = 16
    inputs = case.inputs(rows, torch.float32)
    timed = [x for x in inputs if rows in x.shape]

    def scan(order: Tensor) -> Tensor:
        """The batch whose i-th row is row `order[i]`."""
        taken = {id(x): x.index_select(x.shape.index(rows), order) for x in timed}
        return case.scan(*(taken.get(id(x), x) for x in inputs)).detach()

    own = torch.arange(series)
    together = scan(torch.cat([own, own[:1].expand(rows - series)]))
    for i in range(series):
        alone = scan(torch.full((rows,), i))
        assert torch.equal(together.select(-2, i), alone.select(-2, 0)), f"series {i}"
        place = torch.arange(rows).roll(i + 5)
        assert torch.equal(scan(place).select(-2, int((place == i).nonzero())), alone.select(-2, 0)), f"series {i}"


def test_second_derivatives_are_refused(case: Case) -> None:
    inputs = case.inputs(BATCH, torch.float64)
    (first,) = torch.autograd.grad(case.scan(*inputs).abs().sum(), inputs[-1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


# The controlled scan as `flow.controlled` calls it; its twin is the loop that is run where estimates are asked for


def drawn_path(kind: str, wants: bool) -> ControlPath:
    intervals = 3
    parts = [drawn(BATCH, intervals, CHANNELS, dtype=torch.float64).requires_grad_(wants) for _ in range(3)]
    quadratic, cubic = parts[1:] if kind == "hermite" else (None, None)
    elapsed = torch.rand(BATCH, intervals, dtype=torch.float64)
    elapsed[1, -1] = 0.0
    knot = torch.arange(intervals + 1).expand(BATCH, -1)
    return ControlPath(drawn(BATCH, CHANNELS, dtype=torch.float64), parts[0], quadratic, cubic, knot, elapsed)


def drawn_field() -> ControlledField:
    size = 2 * MODES
    shapes = (WIDTH, size), (WIDTH,), (CHANNELS * size, WIDTH), (CHANNELS * size,)
    return ControlledField(*(drawn(*shape, dtype=torch.float64) for shape in shapes))


def eagerly(*arguments) -> Tensor:  # type: ignore[no-untyped-def]
    with estimating():
        return controlled(*arguments)


OPTIONS = list(itertools.product(("euler", "midpoint", "heun", "rk4"), (1, 2, 3), ("linear", "hermite")))


@pytest.mark.parametrize(("method", "substeps", "kind"), OPTIONS)
@pytest.mark.parametrize("rotates", [False, True])
@pytest.mark.parametrize("wants", [False, True])
def test_controlled_equals_its_eager_twin(method: str, substeps: int, kind: str, rotates: bool, wants: bool) -> None:
    torch.manual_seed(0)
    path, field, solver = drawn_path(kind, wants), drawn_field(), Solver(method=method, substeps=substeps)
    start = drawn(BATCH, 2 * MODES, dtype=torch.float64)
    decay, frequency = torch.rand(2, MODES, dtype=torch.float64)
    rotation = Rotation(decay.requires_grad_(), (5 * frequency).requires_grad_()) if rotates else None
    sources = wanting([start, *field, *(rotation or ()), path.linear])
    if (
        path.quadratic is not None and path.cubic is not None and (method, substeps) != ("euler", 1)
    ):  # sees the slope only
        sources += wanting([path.quadratic, path.cubic])

    found, expected = (solve(field, path, start, solver, rotation) for solve in (controlled, eagerly))
    assert found.shape == (path.intervals + 1, BATCH, 2 * MODES)
    close([found], [expected], 1e-13)
    weight = weight_like(found)
    close(torch.autograd.grad(found, sources, weight), torch.autograd.grad(expected, sources, weight))


@pytest.mark.parametrize("solve", [controlled, eagerly])
def test_a_path_without_intervals_leaves_the_start(solve: Callable[..., Tensor]) -> None:
    knot = torch.zeros(2, 1, dtype=torch.int64)
    path = ControlPath(torch.ones(2, 3), torch.ones(2, 0, 3), None, None, knot, torch.ones(2, 0))
    start = torch.randn(2, 4)
    field = ControlledField(torch.ones(4, 4), torch.ones(4), torch.ones(12, 4), torch.ones(12))
    for rotation in (None, Rotation(torch.ones(2), torch.ones(2))):
        assert torch.equal(solve(field, path, start, Solver(), rotation), start[None])
