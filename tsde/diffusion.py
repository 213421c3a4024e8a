"""Stochastic differential equations with diagonal noise: where they are solved.

    dz = (lambda z + f(t, z)) dt + g(t, z) dW,    and beside it a running cost    J = int rate(t, z) dt

of which a path's Kullback-Leibler divergence is the one in use. Steps are fixed unless adaptive ones are asked for;
noise is a function of the step, so that it can be drawn again instead of being kept.
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
    method: Method,
    dynamics: Dynamics,
    state: Tensor,
    rows: Tensor,
    noise: Noise,
    h: float,
    rotation: Rotation | None = None,
    inputs: Sequence[Tensor] = (),
    tolerance: float | None = None,
) -> Paths:
    """Paths by the method of that name, or by adaptive steps of that tolerance; else the methods' arguments below."""
    if tolerance is not None:
        return _adaptive(_with_linear(dynamics, rotation), state, rows, noise, h, tolerance)
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


def _with_linear(dynamics: Dynamics, rotation: Rotation | None) -> Dynamics:
    if rotation is None:
        return dynamics

    def full(row: Tensor, z: Tensor) -> Terms:
        terms = dynamics(row, z)
        return terms._replace(drift=terms.drift + to_real(rotation.rate * to_complex(z)))

    return full


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

        a_i = z_i + (f_i h + g_i dW_i) / 2
        y_{i+1} = e^{lambda h} (2 a_i - y_i),                               f_{i+1}, g_{i+1} at (t_{i+1}, y_{i+1})
        z_{i+1} = e^{lambda h} a_i + (f_{i+1} h + g_{i+1} dW_i) / 2

    The step can be undone in closed form, so the backward pass rebuilds every state instead of keeping it, and its
    gradients are those of the discretisation up to rounding (Kidger et al. 2021, "Efficient and accurate gradients
    for neural SDEs"). One evaluation per step; strong order 1/2, and 1 for additive noise. Deviation: the method is
    applied in the frame that turns with the linear flow, which is exact at any h; as a part of f it would be stable for
    |lambda h| <= 1 without decay only. Rounding grows with what the flow contracts, by e^{decay} per unit of time.

    Args:
        inputs: what else the dynamics depend on and that may want gradients: parameters. None of them may be made from
            another one.
    """
    turn = None if rotation is None else rotation.over(state.new_tensor(h))
    # once each, or a parameter that is named twice would get its gradient twice
    wants = [x for x in dict.fromkeys(inputs) if x.requires_grad]
    return Paths(*_Reversible.apply(dynamics, noise, h, state, rows, turn, *wants))


def _turned(x: Tensor, turn: Tensor | None) -> Tensor:
    return x if turn is None else to_real(to_complex(x) * turn)


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, dynamics: Dynamics, noise: Noise, h: float,
        state: Tensor, rows: Tensor, turn: Tensor | None, *inputs: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        z = y = state.contiguous()
        steps = len(rows) - 1
        terms = dynamics(rows[0], y)
        states, cost = [z], _share(0, steps, h) * terms.rate
        for i in range(steps):
            half = h**0.5 / 2 * noise(i)
            middle = z + h / 2 * terms.drift + half * terms.diffusion
            y = _turned(2 * middle - y, turn)
            terms = dynamics(rows[i + 1], y)
            z = _turned(middle, turn) + h / 2 * terms.drift + half * terms.diffusion
            cost = cost + _share(i + 1, steps, h) * terms.rate
            states.append(z)
        ctx.dynamics, ctx.noise, ctx.h = dynamics, noise, h
        ctx.save_for_backward(z, y, rows, turn, *inputs)
        return torch.stack(states), cost

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_cost: Tensor) -> tuple[Tensor | None, ...]:
        z, y, rows, turn, *inputs = ctx.saved_tensors
        steps, h = len(rows) - 1, ctx.h
        grad_rows = torch.zeros_like(rows) if ctx.needs_input_grad[4] else None
        sums, grad_turn = [torch.zeros_like(x) for x in inputs], None
        back, forth = (None, None) if turn is None else (1 / turn, turn.conj())

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
        here = _Traced(ctx.dynamics, (rows[steps], y), inputs)
        for i in reversed(range(steps)):
            half = h**0.5 / 2 * ctx.noise(i)
            grad_y = grad_y + pulled(here, i + 1, to_drift + h / 2 * grad_z, to_diffusion + half * grad_z)
            middle = z - h / 2 * here.drift - half * here.diffusion  # behind the turn
            if turn is not None:
                share = (
                    to_complex(grad_y) * to_complex(y).conj()
                    + to_complex(grad_z.contiguous()) * to_complex(middle).conj()
                )
                grad_turn = share.flatten(0, -2).sum(0) + (0 if grad_turn is None else grad_turn)
            y = _turned(2 * middle - y, back)
            here = _Traced(ctx.dynamics, (rows[i], y), inputs)
            z = _turned(middle, back) - h / 2 * here.drift - half * here.diffusion
            to_middle, grad_y = _turned((grad_z + 2 * grad_y).contiguous(), forth), -_turned(grad_y, forth)
            to_drift, to_diffusion = h / 2 * to_middle, half * to_middle
            grad_z = to_middle + grad[i]
        grad_y = grad_y + pulled(here, 0, to_drift, to_diffusion)
        grad_turn = None if grad_turn is None else grad_turn / turn.conj()
        return (None, None, None, grad_z + grad_y, grad_rows, grad_turn, *sums)


def _share(i: int, steps: int, h: float) -> float:
    """Weight of the i-th grid point in the trapezoidal rule."""
    return h / 2 * ((i > 0) + (i < steps))


class _Traced:
    """The terms at some arguments, evaluated so that gradients can be pulled back through them."""

    def __init__(self, dynamics: Dynamics, arguments: Sequence[Tensor], inputs: Sequence[Tensor]):
        # copies, so that gradients end at them: what the arguments were made from gets its share outside
        copies = [x.detach().requires_grad_(x.is_floating_point()) for x in arguments]
        with torch.enable_grad():
            self._terms = dynamics(*copies)
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
    paths = torch.arange(states[0, ..., 0].numel(), device=states.device).reshape(*states.shape[1:-1], 1)
    place = left * paths.numel() + paths  # (S, B, K, H)
    found = (states.flatten(0, -2).index_select(0, at.flatten()) for at in (place, place + paths.numel()))
    before, after = (x.unflatten(0, place.shape) for x in found)
    share = position - left
    if rotation is None:
        return torch.lerp(before, after, share[..., None])
    first = rotation.over(share * h) * (1 - share[..., None])
    second = rotation.over((share - 1) * h) * share[..., None]
    return to_real(torch.addcmul(to_complex(before) * first, to_complex(after), second))
