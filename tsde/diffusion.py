"""Stochastic differential equations with diagonal noise: where they are solved.

    dz = (lambda z + f(t, z)) dt + g(t, z) dW,    and beside it a running cost    J = int rate(t, z) dt

of which a path's Kullback-Leibler divergence is the one in use. Steps are fixed; noise is a function of the step, so
that it can be drawn again instead of being kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, pad, silu, softplus

from tsde import adaptive
from tsde.flow import Rotation, steps_until
from tsde.scans.pairs import to_complex, to_real
from tsde.scans.steered import SteeredWeights, steered_scan
from tsde.solving import wanted


class Terms(NamedTuple):
    """The equation at one time: drift f and diffusion g of the state's shape, and the rate of the cost `(...)`."""

    drift: Tensor
    diffusion: Tensor
    rate: Tensor


class Dynamics(Protocol):
    """The terms at a grid point, from what is known there (a row of `rows`) and states `(..., D)`."""

    def __call__(self, row: Tensor, z: Tensor, /) -> Terms: ...


class SteeredField(NamedTuple):
    """Dynamics by two-layer networks that share their input, the drift steered through the diffusion:

        prior:      f(s, z) and g(z)
        posterior:  f(s, z) + g(z) u(s, z) and g(z), at the rate |u|^2 / 2

    by Girsanov's theorem the rate at which their paths' Kullback-Leibler divergence grows. g = softplus(d); for the
    weights see `scans/steered.py`. A row is what shifts the hidden units of f, and behind it of u.
    """

    weights: SteeredWeights

    def __call__(self, row: Tensor, z: Tensor) -> Terms:
        inner, inner_bias, outer, outer_bias = self.weights
        width = outer.shape[-1]
        spread, drift, *steer = linear(z, inner, inner_bias).split(width, -1)
        diffusion = softplus(linear(silu(spread), outer[0], outer_bias[0]))
        free = linear(silu(drift + row[..., :width]), outer[1], outer_bias[1])
        if not steer:
            return Terms(free, diffusion, z.new_zeros(z.shape[:-1]))
        control = linear(silu(steer[0] + row[..., width:]), outer[2], outer_bias[2])
        return Terms(torch.addcmul(free, diffusion, control), diffusion, 0.5 * control.square().sum(-1))


Noise = Callable[[int], Tensor]
"""Standard normal numbers of the state's shape for the i-th step, the same whenever asked."""

Method = Literal["euler", "reversible_heun"]


class Paths(NamedTuple):
    """States at all grid points `(n + 1, ..., D)` and the cost over the whole `(...)`."""

    states: Tensor
    cost: Tensor


def diffuse(
    how: tuple[Method, float | None],
    dynamics: Dynamics,
    state: Tensor,
    rows: Tensor,
    noise: Noise,
    h: float,
    rotation: Rotation | None = None,
    inputs: Sequence[Tensor] = (),
) -> Paths:
    """Paths by the method of that name, or by adaptive steps of that tolerance; else the methods' arguments below."""
    method, tolerance = how
    if tolerance is not None:
        full = _with_linear(dynamics)
        return _adaptive(lambda row, z: full(row, z, *(rotation or ())), state, rows, noise, h, tolerance)
    if method == "euler" and isinstance(dynamics, SteeredField) and rotation is not None and wanted() is None:
        return _steered(dynamics, state, rows, noise, h, rotation)
    if method == "euler":
        return euler_maruyama(dynamics, state, rows, noise, h, rotation)
    return reversible_heun(dynamics, state, rows, noise, h, rotation, inputs)


def _steered(field: SteeredField, state: Tensor, rows: Tensor, noise: Noise, h: float, rotation: Rotation) -> Paths:
    """`euler_maruyama` as one operation."""
    shape = state.shape
    steps = len(rows) - 1
    drawn = torch.stack([noise(i) for i in range(steps)])
    samples, size = shape[0], shape[-1]
    states, cost = steered_scan(
        state.reshape(samples, -1, size),
        rotation.over(state.new_tensor(h)),
        rows[:-1].flatten(1, -2),
        drawn.reshape(steps, samples, -1, size),
        h,
        field.weights,
    )
    return Paths(states.reshape(-1, *shape), cost.reshape(shape[:-1]))


def _adaptive(dynamics: Dynamics, state: Tensor, rows: Tensor, noise: Noise, h: float, tolerance: float) -> Paths:
    """Steps as long as their error allows, in Ito's sense, between the same grid points; a row holds until the next.

    The cost is one more component of the state, without noise. The first number of the first step's noise seeds the
    Brownian motion.
    """
    shape, steps = state.shape, len(rows) - 1
    flat = state.reshape(-1, shape[-1])

    def terms(t: float, z: Tensor) -> Terms:
        return dynamics(rows[min(int(t / h), steps - 1)], z[:, :-1].contiguous().reshape(shape))

    def drift(t: float, z: Tensor) -> Tensor:
        here = terms(t, z)
        rate = here.rate.expand(shape[:-1])
        return torch.cat([here.drift, rate[..., None]], -1).reshape(len(flat), -1)

    def diffusion(t: float, z: Tensor) -> Tensor:
        return pad(terms(t, z).diffusion, (0, 1)).reshape(len(flat), -1)

    entropy = abs(int(noise(0).double().flatten()[:1].view(torch.int64)))
    times = torch.arange(steps + 1, dtype=state.dtype) * h
    solved = adaptive.solve_stochastic(drift, diffusion, pad(flat, (0, 1)), times, tolerance, entropy)
    states, cost = solved[..., :-1].reshape(-1, *shape), solved[-1, :, -1].reshape(shape[:-1])
    return Paths(states, cost)


def euler_maruyama(
    dynamics: Dynamics, state: Tensor, rows: Tensor, noise: Noise, h: float, rotation: Rotation | None = None
) -> Paths:
    """Ito's sense, with the linear part split off:

        z_{i+1} = e^{lambda h} (z_i + h f(t_i, z_i) + sqrt(h) g(t_i, z_i) xi_i)

    Lie-Trotter splitting: strong order 1/2 and weak order 1 as without it, exact in the linear part at any h
    (Kloeden and Platen 1992, sections 10.2 and 14.1).

    Args:
        state: z_0, `(..., D)`.
        rows: what the dynamics know at each of the n + 1 grid points, `(n + 1, ...)`.
        rotation: lambda, on consecutive pairs of the state as complex modes; none means zero.
    """
    turn = None if rotation is None else rotation.over(state.new_tensor(h))
    estimates = wanted()
    states, cost, before = [state], state.new_zeros(()), None
    for i, row in enumerate(rows[:-1].unbind(0)):
        terms = dynamics(row, state)
        if estimates is not None and before is not None:  # what Heun's method would add to the last step
            change = terms.drift - before.drift
            estimates.note(h / 2 * change, state, change, state - states[-2])
        cost = cost + h * terms.rate
        state = torch.addcmul(state + h * terms.drift, terms.diffusion, noise(i), value=h**0.5)
        state = state if turn is None else to_real(to_complex(state) * turn)
        states.append(state)
        before = terms
    return Paths(torch.stack(states), cost)


def reversible_heun(
    dynamics: Dynamics,
    state: Tensor,
    rows: Tensor,
    noise: Noise,
    h: float,
    rotation: Rotation | None = None,
    inputs: Sequence[Tensor] = (),
) -> Paths:
    """Stratonovich's sense, with memory for gradients that is constant in the number of steps:

        y_{i+1} = 2 z_i - y_i + f_i h + g_i dW_i,          f_{i+1}, g_{i+1} at (t_{i+1}, y_{i+1})
        z_{i+1} = z_i + (f_i + f_{i+1}) h / 2 + (g_i + g_{i+1}) dW_i / 2

    The step can be undone in closed form, so the backward pass rebuilds every state instead of keeping it, and its
    gradients are those of the discretisation up to rounding (Kidger et al. 2021, "Efficient and accurate gradients
    for neural SDEs"). One evaluation per step; strong order 1/2, and 1 for additive noise. The linear part is not
    split off but belongs to f. Rounding grows with what the flow contracts, by e^{decay} per unit of time.

    Args:
        inputs: what else the dynamics depend on and that may want gradients: parameters. None of them may be made from
            another one.
    """
    linear = tuple(rotation or ())
    # once each, or a parameter that is named twice would get its gradient twice
    wants = [x for x in dict.fromkeys(inputs) if x.requires_grad]
    return Paths(*_Reversible.apply(_with_linear(dynamics), noise, h, len(linear), state, rows, *linear, *wants))


def _with_linear(dynamics: Dynamics) -> Callable[..., Terms]:
    """The terms by row, state and, where there is a linear part, the two tensors of its rotation."""

    def full(row: Tensor, z: Tensor, *rotation: Tensor) -> Terms:
        terms = dynamics(row, z)
        if not rotation:
            return terms
        return terms._replace(drift=terms.drift + to_real(Rotation(*rotation).rate * to_complex(z)))

    return full


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, full: Callable[..., Terms], noise: Noise, h: float, linear: int,
        state: Tensor, rows: Tensor, *inputs: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        z = y = state
        steps, rotation = len(rows) - 1, inputs[:linear]
        terms = full(rows[0], y, *rotation)
        states, cost = [z], _share(0, steps, h) * terms.rate
        for i in range(steps):
            increment = h**0.5 * noise(i)
            y = 2 * z - y + terms.drift * h + terms.diffusion * increment
            after = full(rows[i + 1], y, *rotation)
            z = z + h / 2 * (terms.drift + after.drift) + increment / 2 * (terms.diffusion + after.diffusion)
            cost = cost + _share(i + 1, steps, h) * after.rate
            states.append(z)
            terms = after
        ctx.full, ctx.noise, ctx.h, ctx.linear = full, noise, h, linear
        ctx.save_for_backward(z, y, rows, *inputs)
        return torch.stack(states), cost

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_cost: Tensor) -> tuple[Tensor | None, ...]:
        z, y, rows, *inputs = ctx.saved_tensors
        steps, h, rotation = len(rows) - 1, ctx.h, inputs[: ctx.linear]
        grad_rows = torch.zeros_like(rows) if ctx.needs_input_grad[5] else None
        sums = [torch.zeros_like(x) for x in inputs]

        def traced(i: int, y: Tensor) -> _Traced:
            return _Traced(ctx.full, (rows[i], y, *rotation), inputs[ctx.linear :])

        def pulled(here: _Traced, i: int, to_drift: Tensor, to_diffusion: Tensor) -> Tensor:
            row, point, *found = here.pulled((to_drift, to_diffusion, _share(i, steps, h) * grad_cost))
            for total, part in zip(sums, found, strict=True):
                if part is not None:
                    total.add_(part)
            if grad_rows is not None and row is not None:
                grad_rows[i] = row
            return torch.zeros_like(z) if point is None else point

        grad_z, grad_y = grad[steps], torch.zeros_like(y)
        to_drift, to_diffusion = torch.zeros_like(y), torch.zeros_like(y)  # from the steps after this one
        here = traced(steps, y)
        for i in reversed(range(steps)):
            increment = h**0.5 * ctx.noise(i)
            half = grad_z / 2
            grad_y = grad_y + pulled(here, i + 1, to_drift + h * half, to_diffusion + increment * half)
            y = 2 * z - y - here.drift * h - here.diffusion * increment
            before = traced(i, y)
            z = z - h / 2 * (before.drift + here.drift) - increment / 2 * (before.diffusion + here.diffusion)
            to_drift, to_diffusion = h * (grad_y + half), increment * (grad_y + half)
            grad_z, grad_y = grad_z + 2 * grad_y + grad[i], -grad_y
            here = before
        grad_y = grad_y + pulled(here, 0, to_drift, to_diffusion)
        return (None, None, None, None, grad_z + grad_y, grad_rows, *sums)


def _share(i: int, steps: int, h: float) -> float:
    """Weight of the i-th grid point in the trapezoidal rule."""
    return h / 2 * ((i > 0) + (i < steps))


class _Traced:
    """The terms at some arguments, evaluated so that gradients can be pulled back through them."""

    def __init__(self, full: Callable[..., Terms], arguments: Sequence[Tensor], inputs: Sequence[Tensor]):
        # copies, so that gradients end at them: what the arguments were made from gets its share outside
        copies = [x.detach().requires_grad_(x.is_floating_point()) for x in arguments]
        with torch.enable_grad():
            self._terms = full(*copies)
        self._sources = (*copies, *inputs)
        self.drift, self.diffusion = self._terms.drift.detach(), self._terms.diffusion.detach()

    def pulled(self, grads: Sequence[Tensor]) -> list[Tensor | None]:
        """Gradients of the arguments and of the inputs from those of the terms, `None` where there is none."""
        pairs = [(x, grad.expand_as(x)) for x, grad in zip(self._terms, grads, strict=True) if x.requires_grad]
        if not pairs:
            return [None] * len(self._sources)
        terms, outer = zip(*pairs, strict=True)
        sources = [x for x in self._sources if x.requires_grad]
        found = iter(torch.autograd.grad(terms, sources, outer, allow_unused=True))
        return [next(found) if x.requires_grad else None for x in self._sources]


def interpolate(states: Tensor, position: Tensor, h: float = 1.0, rotation: Rotation | None = None) -> Tensor:
    """Between grid points `h` apart: `(n + 1, S, B, K, D)` -> `(S, B, K, H, D)` at `position (B, K, H)`, in steps.

    Linear in the frame that turns with the linear flow, so exact for z' = lambda z:
    z(t_i + s) = (1 - s/h) e^{lambda s} z_i + s/h e^{-lambda (h - s)} z_{i+1}.
    """
    left = steps_until(position, 1.0) - 1
    grid = states.movedim(0, -2)  # (S, B, K, n + 1, D)
    index = left[..., None].expand(grid.shape[0], *left.shape, grid.shape[-1])
    before, after = grid.gather(-2, index), grid.gather(-2, index + 1)
    weight = position - left
    if rotation is not None:
        before = to_real(to_complex(before) * rotation.over(weight * h))
        after = to_real(to_complex(after) * rotation.over((weight - 1) * h))
    return torch.lerp(before, after, weight[..., None])
