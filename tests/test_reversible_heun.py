"""Reversible Heun: gradients of the discretisation, from memory that does not grow with the number of steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from memory import Memory
from torch import Tensor, nn

from tsde.diffusion import Dynamics, Noise, Paths, Terms, reversible_heun
from tsde.flow import Rotation
from tsde.scans.pairs import to_complex, to_real

STEPS, BATCH, SIZE, H = 6, 3, 4, 0.1

Solve = Callable[..., Paths]


def plain_loop(
    dynamics: Dynamics,
    state: Tensor,
    rows: Tensor,
    noise: Noise,
    h: float,
    rotation: Rotation | None = None,
    inputs: Sequence[Tensor] = (),
) -> Paths:
    """The method as it is written down, for automatic differentiation to take apart."""

    def turned(x: Tensor) -> Tensor:
        return x if rotation is None else to_real(to_complex(x) * rotation.over(torch.tensor(h, dtype=x.dtype)))

    z = y = state
    here, states, rates = dynamics(rows[0], y), [z], []
    for i in range(len(rows) - 1):
        rates.append(here.rate)
        shock = h**0.5 * noise(i)
        middle = z + (here.drift * h + here.diffusion * shock) / 2
        y = turned(2 * middle - y)
        here = dynamics(rows[i + 1], y)
        z = turned(middle) + (here.drift * h + here.diffusion * shock) / 2
        states.append(z)
    rates.append(here.rate)
    return Paths(torch.stack(states), h * torch.stack([(a + b) / 2 for a, b in itertools.pairwise(rates)]).sum(0))


def noise(i: int) -> Tensor:
    return torch.randn(BATCH, SIZE, generator=torch.Generator().manual_seed(i), dtype=torch.float64)


class Problem:
    """A small nonlinear equation, everything of which wants a gradient."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.state, self.rows = torch.randn(BATCH, SIZE), torch.randn(STEPS + 1, BATCH, SIZE)
        self.inner, self.outer, self.spread = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE), torch.randn(SIZE)
        self.log_decay, self.frequency = torch.randn(SIZE // 2), 5 * torch.randn(SIZE // 2)
        for name, value in vars(self).items():
            setattr(self, name, value.double().requires_grad_())

    @property
    def sources(self) -> list[Tensor]:
        return list(vars(self).values())

    @property
    def weights(self) -> list[Tensor]:
        return [self.inner, self.outer, self.spread]

    @property
    def rotation(self) -> Rotation:
        return Rotation(self.log_decay.exp(), self.frequency)

    def dynamics(self, row: Tensor, z: Tensor) -> Terms:
        hidden = torch.tanh(z @ self.inner + row)
        rate = (hidden - z).square().sum(-1) * row.exp().mean(-1)
        return Terms(hidden @ self.outer, 0.3 * torch.sigmoid(z * self.spread), rate)

    def solved(self, solve: Solve, rotation: Rotation | None, inputs: Sequence[Tensor]) -> Paths:
        return solve(self.dynamics, self.state, self.rows, noise, H, rotation, inputs)


def of_states_and_cost(paths: Paths) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(paths.states.shape, generator=generator, dtype=torch.float64)
    return (weight * paths.states.sin()).sum() + (paths.cost * torch.tensor([1.0, -2.0, 0.5])).sum()


LOSSES: dict[str, Callable[[Paths], Tensor]] = {
    "states": lambda paths: of_states_and_cost(paths._replace(cost=torch.zeros(BATCH).double())),
    "cost": lambda paths: paths.cost.square().sum(),
    "end": lambda paths: paths.states[-1].square().sum(),
    "both": of_states_and_cost,
}


def close(found: Sequence[Tensor | None], expected: Sequence[Tensor | None], at_least: int) -> None:
    assert sum(x is not None and bool(x.abs().max() > 0) for x in expected) >= at_least
    for one, other in zip(found, expected, strict=True):
        zero = torch.zeros(())
        torch.testing.assert_close(
            zero if one is None else one, (torch.zeros_like(zero if one is None else one) if other is None else other),
            rtol=1e-9, atol=1e-9, check_dtype=False,
        )  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("linear", ["none", "leaf", "made from an input"])
def test_states_and_gradients_are_those_of_the_plain_loop(linear: str, loss: str) -> None:
    """Also of a rotation that is made from parameters which are named among the inputs, as a module's are."""
    problem = Problem()
    inputs = [*problem.weights, problem.inner]
    if linear == "made from an input":
        inputs += [problem.log_decay, problem.frequency]

    def rotation() -> Rotation | None:
        if linear == "none":
            return None
        return Rotation(problem.log_decay, problem.frequency) if linear == "leaf" else problem.rotation

    found, expected = (problem.solved(solve, rotation(), inputs) for solve in (reversible_heun, plain_loop))
    torch.testing.assert_close(found.states, expected.states, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.cost, expected.cost, rtol=1e-12, atol=1e-12)
    both = (torch.autograd.grad(LOSSES[loss](x), problem.sources, allow_unused=True) for x in (found, expected))
    close(*both, at_least=5 + 2 * (linear != "none"))


def test_gradients_agree_with_finite_differences() -> None:
    problem = Problem()

    def run(state: Tensor, rows: Tensor, log_decay: Tensor, frequency: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
        def dynamics(row: Tensor, z: Tensor) -> Terms:
            return Terms(torch.tanh(z @ inner + row), torch.sigmoid(z), (row * z).sum(-1))

        return reversible_heun(dynamics, state, rows, noise, H, Rotation(log_decay.exp(), frequency), (inner,))

    given = problem.state, problem.rows, problem.log_decay, problem.frequency, problem.inner
    assert torch.autograd.gradcheck(run, given, atol=1e-7)


def test_only_what_wants_a_gradient_gets_one() -> None:
    """Rows may be data, even whole numbers, and terms may be constant in everything."""
    problem = Problem()
    rows = torch.arange(STEPS + 1)

    def brownian(row: Tensor, z: Tensor) -> Terms:
        return Terms(torch.zeros_like(z) + row, torch.ones_like(z), z.new_zeros(()))

    paths = reversible_heun(brownian, problem.state, rows, noise, H)
    (gradient,) = torch.autograd.grad(paths.states.sum(), problem.state)
    assert torch.equal(gradient, torch.full_like(gradient, STEPS + 1))
    assert not reversible_heun(brownian, problem.state.detach(), rows, noise, H).states.requires_grad

    for fixed in ("state", "rows", "inner", "frequency"):
        problem = Problem()
        getattr(problem, fixed).requires_grad_(False)
        sources = [x for x in problem.sources if x.requires_grad]
        both = (
            torch.autograd.grad(of_states_and_cost(problem.solved(solve, problem.rotation, problem.weights)), sources)
            for solve in (reversible_heun, plain_loop)
        )
        close(*both, at_least=len(sources))


def test_the_dynamics_of_a_module_train_like_any_other() -> None:
    """Backward fills the gradients of parameters that the dynamics reach through a closure, in both ways alike."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(SIZE, 8), nn.SiLU(), nn.Linear(8, SIZE)).double()
    log_decay = nn.Parameter(torch.zeros(SIZE // 2).double())
    found = []
    for solve in (reversible_heun, plain_loop):
        for parameter in (*net.parameters(), log_decay):
            parameter.grad = None
        paths = solve(
            lambda row, z: Terms(net(z + row), torch.full_like(z, 0.2), net(z).square().sum(-1)),
            torch.ones(BATCH, SIZE).double(), torch.zeros(STEPS + 1, SIZE).double(), noise, H,
            Rotation(log_decay.exp(), torch.ones(SIZE // 2).double()), (*net.parameters(), log_decay),
        )  # fmt: skip
        of_states_and_cost(paths).backward()
        found.append([p.grad for p in (*net.parameters(), log_decay)])
    close(*found, at_least=5)


WIDE = 256


def peak_beyond_states(solve: Solve, steps: int) -> tuple[int, int]:
    """Bytes kept after the forward pass but for the states, and the peak of both passes, of a wide field."""
    torch.manual_seed(0)
    state, rows = torch.randn(2, 1), torch.zeros(steps + 1)
    inner, outer = torch.randn(1, WIDE).requires_grad_(), (torch.randn(WIDE, 1) / WIDE).requires_grad_()

    def dynamics(row: Tensor, z: Tensor) -> Terms:
        return Terms(torch.tanh(z @ inner) @ outer, torch.ones_like(z), z.square().sum(-1))

    def drawn(i: int) -> Tensor:
        return torch.randn(2, 1, generator=torch.Generator().manual_seed(i))

    with Memory(state, rows, inner, outer) as memory:
        states, cost = solve(dynamics, state, rows, drawn, 1 / steps, None, (inner, outer))
        kept = memory.now - states.nbytes
        (states[-1].sum() + cost.sum()).backward()
    return kept, memory.peak


def test_memory_does_not_grow_with_the_steps() -> None:
    """But for the states themselves, which are wanted: three times, while they are stacked and in their gradient."""
    (few, peak), (many, high) = (peak_beyond_states(reversible_heun, steps) for steps in (16, 128))
    assert many == few
    states = 2 * 4 * (128 - 16)
    assert high - peak <= 3 * states
    (few, peak), (many, high) = (peak_beyond_states(plain_loop, steps) for steps in (16, 128))
    assert many - few > 2 * WIDE * 4 * (128 - 16) and high - peak > 2 * WIDE * 4 * (128 - 16)


def test_the_path_is_rebuilt_backwards_up_to_rounding() -> None:
    """In single precision over a hundred steps, with modes that decay by e^-3 on the way."""
    torch.manual_seed(0)
    steps, decay = 100, torch.tensor([0.5, 3.0])
    matrix = torch.randn(SIZE, SIZE)

    def gradient(solve: Solve, dtype: torch.dtype) -> Tensor:
        weight = matrix.to(dtype).requires_grad_()

        def dynamics(row: Tensor, z: Tensor) -> Terms:
            return Terms(torch.tanh(z @ weight), torch.full_like(z, 0.3), z.square().sum(-1))

        turn = Rotation(decay.to(dtype), torch.tensor([4.0, -9.0], dtype=dtype))
        start, rows = torch.ones(BATCH, SIZE, dtype=dtype), torch.zeros(steps + 1, dtype=dtype)
        paths = solve(dynamics, start, rows, lambda i: noise(i).to(dtype), 1 / steps, turn, (weight,))
        return torch.autograd.grad(paths.states.square().mean() + paths.cost.sum(), weight)[0]

    found, exact = gradient(reversible_heun, torch.float32), gradient(plain_loop, torch.float64)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-4 * float(exact.abs().max()))


@pytest.mark.parametrize("decay", [0.0, 2.0, 50.0])
def test_a_linear_part_is_exact_at_any_step(decay: float) -> None:
    """Also where |lambda h| is far above one, at which the method without a turning frame explodes."""
    turn = Rotation(torch.tensor([decay]).double(), torch.tensor([40.0]).double())
    start = torch.tensor([[1.0, 0.5]]).double()

    def still(row: Tensor, z: Tensor) -> Terms:
        return Terms(torch.zeros_like(z), torch.zeros_like(z), z.new_zeros(()))

    found = reversible_heun(still, start, torch.zeros(13), lambda i: start, 1 / 12, turn).states
    expected = to_complex(start) * turn.over(torch.arange(13).double()[:, None] / 12)
    torch.testing.assert_close(to_complex(found), expected, rtol=1e-11, atol=1e-13)
