"""What a training step asks of its solvers: estimates of error and stiffness, and less memory for more time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from memory import Memory
from test_laws import CHANNELS, SIZES, window
from torch import Tensor

from tsde.diffusion import Terms, euler_maruyama
from tsde.flow import ControlledField, Rotation, Solver, controlled, flow, semilinear
from tsde.models import MODELS
from tsde.path import ControlPath
from tsde.scans.gated import gated_scan
from tsde.solving import Estimates, estimating, in_chunks, recomputing, wanted
from tsde.tableau import TABLEAUS

METHODS = ("euler", "midpoint", "heun", "rk4")
SCALE = 1e6  # of the states, so that what keeps the estimates' roots and quotients finite is far below them


@pytest.mark.parametrize("method", METHODS)
def test_tableaus_satisfy_their_order_conditions(method: str) -> None:
    """Hairer, Norsett and Wanner, section II.2: all eight conditions up to order four."""
    nodes, alpha, beta, lower = TABLEAUS[method]
    stages = len(nodes)
    a, c = np.zeros((stages, stages)), np.array(nodes)
    for s, row in enumerate(alpha):
        assert len(row) == s
        a[s, :s] = row
    np.testing.assert_allclose(a.sum(1), c, atol=1e-15)

    def order(weights: np.ndarray) -> int:
        trees = [[(1, 1)], [(c, 2)], [(c * c, 3), (a @ c, 6)]]
        trees += [[(c**3, 4), (c * (a @ c), 8), (a @ c**2, 12), (a @ a @ c, 24)]]
        held = [all(abs(np.sum(weights * t) - 1 / n) < 1e-14 for t, n in level) for level in trees]
        return [*held, False].index(False)

    own = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}[method]
    assert order(np.array(beta)) == own
    assert (lower is None) if own == 1 else order(np.array(lower)) == own // 2


def swing(s: float, z: Tensor) -> Tensor:
    """z' = cos(3 s) B z; B commutes with itself, so z(s) = exp(B sin(3 s) / 3) z(0)."""
    return float(np.cos(3 * s)) * z @ torch.tensor([[0.3, 1.0], [-1.0, 0.1]], dtype=z.dtype).T


def exact_swing(s: float, start: Tensor) -> Tensor:
    matrix = torch.tensor([[0.3, 1.0], [-1.0, 0.1]], dtype=start.dtype)
    return start @ torch.linalg.matrix_exp(matrix * float(np.sin(3 * s) / 3)).T


@pytest.mark.parametrize("method", METHODS)
def test_the_error_estimate_is_the_local_error_of_the_lower_solution(method: str) -> None:
    start = SCALE * torch.tensor([[1.0, -0.5], [0.3, 2.0]], dtype=torch.float64)
    steps, found, actual = (8, 16, 32, 64), [], []
    for n in steps:
        with estimating() as estimates:
            after = flow(swing, start, Solver(method=method, substeps=n))  # type: ignore[arg-type]
        assert len(estimates.error) == n
        found.append(float(estimates.error[0]))
        slopes: list[Tensor] = []  # of the first step, for the embedded solution by hand
        tableau = TABLEAUS[method]
        for node, row in zip(tableau.nodes, tableau.alpha, strict=True):
            slopes.append(swing(node / n, start + sum(w / n * k for w, k in zip(row, slopes, strict=True))))
        lower = start + sum(w / n * k for w, k in zip(tableau.lower or tableau.beta, slopes, strict=True))
        error, size = (lower - exact_swing(1 / n, start)).norm(dim=-1), start.norm(dim=-1)
        actual.append(float((error / size).mean()))
        assert torch.isfinite(after).all()
    order = -np.polyfit(range(len(steps)), np.log2(found), 1)[0]
    assert order == pytest.approx(3 if method == "rk4" else 2, abs=0.2)
    np.testing.assert_allclose(found[-1], actual[-1], rtol=0.08)


@pytest.mark.parametrize("rate", [0.02, 3.0, 400.0])
@pytest.mark.parametrize("method", METHODS)
def test_the_stiffness_estimate_of_a_linear_field_is_its_rate(method: str, rate: float) -> None:
    """z' = rate J z, whose eigenvalues are +- i rate and whose every direction turns alike."""
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    start = SCALE * torch.tensor([[1.0, -0.5], [0.3, 2.0]], dtype=torch.float64)
    with estimating() as estimates:
        flow(lambda s, z: rate * z @ turn, start, Solver(method=method, substeps=3))  # type: ignore[arg-type]
    assert len(estimates.stiffness) == 3
    for found in estimates.stiffness:
        assert float(found) == pytest.approx(rate, rel=1e-6)


def semilinear_estimates(steps: int, rate: complex, push: complex) -> Estimates:
    start = SCALE * torch.tensor([[1.0 + 0.5j], [-2j]], dtype=torch.complex128)
    linear = torch.tensor([rate], dtype=torch.complex128)
    with estimating() as estimates:
        semilinear(Rotation(-linear.real, linear.imag), lambda z: push * z, start, torch.tensor(1.0), steps)
    return estimates


def test_the_stiffness_estimate_of_a_semilinear_field_is_that_in_the_turning_frame() -> None:
    estimates = semilinear_estimates(6, -3 + 20j, 1.5 - 0.5j)
    assert len(estimates.stiffness) == len(estimates.error) == 6
    for found in estimates.stiffness:
        assert float(found) == pytest.approx(abs(-1.5 - 0.5j), rel=1e-9)


def test_the_error_estimate_of_a_semilinear_field_is_that_of_eulers_method() -> None:
    """What a method would make that knows of the turning only: w + h F(w), off by h^2 F'F / 2."""
    whole, errors = -1.5 - 0.5j, []
    for steps in (16, 32, 64, 128):
        estimates = semilinear_estimates(steps, -3 + 4j, 1.5 - 0.5j)
        h = 1 / steps
        errors.append((float(estimates.error[0]), abs(1 + whole * h - np.exp(whole * h))))
    found, actual = np.array(errors).T
    assert -np.polyfit(range(4), np.log2(found), 1)[0] == pytest.approx(2, abs=0.1)
    np.testing.assert_allclose(found[-1], actual[-1], rtol=0.08)


def test_estimates_of_euler_maruyama_follow_the_drift() -> None:
    """Without noise z' = -4 z: the stiffness is four, and the error what Heun's method adds, h^2 4^2 / 2 of z."""
    start, steps = torch.full((3, 2), SCALE, dtype=torch.float64), 10
    rows = torch.zeros(steps + 1)

    def dynamics(row: Tensor, z: Tensor) -> Terms:
        return Terms(-4 * z, torch.zeros_like(z), z.new_zeros(()))

    with estimating() as estimates:
        paths = euler_maruyama(dynamics, start, rows, lambda i: torch.zeros_like(start), 0.01)
    assert [float(x) for x in estimates.stiffness] == pytest.approx([4.0] * (steps - 1), rel=1e-9)
    assert float(paths.states[1, 0, 0]) == pytest.approx(0.96 * SCALE)
    assert [float(x) for x in estimates.error] == pytest.approx([8e-4 / 0.96] * (steps - 1), rel=1e-9)


def test_nobody_estimates_unless_asked() -> None:
    assert wanted() is None
    with estimating(False) as estimates:
        assert wanted() is None
        flow(swing, torch.ones(1, 2).double(), Solver())
    assert estimates.error == [] and estimates.stiffness == []


def test_estimates_nest() -> None:
    """Each solution is counted where it was last asked for, and an error on the way changes nothing outside."""
    start = torch.ones(1, 2).double()
    with estimating() as outer:
        flow(swing, start, Solver(substeps=2))
        with estimating() as inner:
            flow(swing, start, Solver(substeps=5))
        with estimating(False):
            flow(swing, start, Solver(substeps=7))
        with pytest.raises(ZeroDivisionError), estimating():
            flow(lambda s, z: z / (1 // 0), start, Solver())
        flow(swing, start, Solver(substeps=1))
    assert (len(outer.error), len(inner.error)) == (3, 5)
    assert wanted() is None


@pytest.mark.parametrize("method", METHODS)
def test_asking_for_estimates_changes_no_solution(method: str) -> None:
    start = torch.tensor([[1.0, -0.5]]).double()
    plain = flow(swing, start, Solver(method=method, substeps=3))  # type: ignore[arg-type]
    with estimating():
        assert torch.equal(flow(swing, start, Solver(method=method, substeps=3)), plain)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["error", "stiffness"])
def test_estimates_have_gradients(method: str, kind: str) -> None:
    """Those of finite differences; finite also where nothing moves at all."""
    torch.manual_seed(0)
    matrix, start = torch.randn(2, 2).double().requires_grad_(), torch.randn(3, 2).double().requires_grad_()

    def total(weight: Tensor, z: Tensor) -> Tensor:
        with estimating() as estimates:
            flow(lambda s, x: torch.sin(x @ weight), z, Solver(method=method, substeps=2))  # type: ignore[arg-type]
        return torch.stack(getattr(estimates, kind)).sum()

    assert torch.autograd.gradcheck(total, (matrix, start), atol=1e-6)
    still = torch.zeros(3, 2).double().requires_grad_()
    found = torch.autograd.grad(total(matrix, still), [matrix, still])
    assert all(x.isfinite().all() for x in found)


# Recomputation


def encoded(family: str, **changes: object) -> Callable[[], tuple[Tensor, list[Tensor]]]:
    """The states of a family's encoder over a context, and what they depend on."""
    torch.manual_seed(0)
    config = MODELS[family].config
    fields = config.model_fields  # type: ignore[attr-defined]
    sizes = {name: size for name, size in SIZES.items() if name in fields}
    model = MODELS[family].model(config.model_validate(sizes | changes), CHANNELS)
    context = window(sizes=(40, 23, 31)).query.context

    def encode() -> tuple[Tensor, list[Tensor]]:
        states = model.encode(context) if family in ("filter", "neural_cde") else model.encoder(context)  # type: ignore[operator]
        states = states if isinstance(states, Tensor) else states[1]
        return states, [p for p in model.parameters()]

    return encode


ENCODERS: dict[str, tuple[str, dict[str, object]]] = {
    "filter": ("filter", {}),
    "latent_ode": ("latent_ode", {}),
    "latent_sde": ("latent_sde", {}),
    "neural_cde": ("neural_cde", {}),
    "neural_cde-substeps": ("neural_cde", {"solver": {"method": "rk4", "substeps": 3}}),
    "neural_cde-hermite": ("neural_cde", {"path": {"kind": "hermite"}, "solver": {"method": "heun"}}),
}


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("rows", [1, 6, 39, 1000])
def test_recomputing_changes_neither_states_nor_gradients(name: str, rows: int) -> None:
    family, changes = ENCODERS[name]
    encode = encoded(family, **changes)
    plain, sources = encode()
    with recomputing(rows):
        chunked, _ = encode()
    torch.testing.assert_close(chunked, plain)  # a matrix product of fewer rows may round its last bit otherwise
    weight = torch.randn(plain.shape)
    expected = torch.autograd.grad(plain, sources, weight, allow_unused=True)
    found = torch.autograd.grad(chunked, sources, weight, allow_unused=True)
    assert sum(x is not None for x in expected) >= 4
    for one, other in zip(found, expected, strict=True):
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))
        assert (one is None) == (other is None)


@pytest.mark.parametrize("name", ENCODERS)
def test_recomputing_keeps_less(name: str) -> None:
    family, changes = ENCODERS[name]
    encode = encoded(family, **changes)

    def kept(rows: int | None) -> int:
        with recomputing(rows), Memory() as memory:
            states, _ = encode()
        assert states.requires_grad
        return memory.now

    assert kept(6) < 0.9 * kept(None)  # not less: what goes into the scan is kept all the same


def test_a_recomputed_scan_keeps_its_states_and_the_start_of_each_chunk() -> None:
    """And nothing else of those it was given; the peak of its gradients grows by one chunk."""
    length, batch, size, chunk = 120, 4, 8, 10
    turns = torch.polar(torch.rand(length, batch, size // 2), torch.rand(length, batch, size // 2))
    drive, weight = torch.randn(length, batch, 3 * size), torch.randn(3 * size, size, requires_grad=True)
    seen, start = torch.ones(length, batch, 1), torch.zeros(batch, size)
    row = start.untyped_storage().nbytes()
    with recomputing(chunk), Memory(turns, drive, weight, seen, start) as memory:
        states = in_chunks(lambda z, *rows: gated_scan(z, *rows, weight), start, turns, drive, seen)
        kept = memory.now
        states.sum().backward()
    assert kept <= row * (length + length // chunk)
    assert memory.peak < kept + 60 * chunk * row


def test_nothing_is_recomputed_where_no_gradient_is_wanted() -> None:
    calls = []

    def scan(start: Tensor, rows: Tensor) -> Tensor:
        calls.append(len(rows))
        return start + rows.cumsum(0)

    with recomputing(3):
        with torch.no_grad():
            plain = in_chunks(scan, torch.zeros(2), torch.ones(7, 2))
        chunked = in_chunks(scan, torch.zeros(2), torch.ones(7, 2))
    assert calls == [7, 3, 3, 1]
    assert torch.equal(chunked, plain)
    assert torch.equal(in_chunks(scan, torch.zeros(2), torch.ones(7, 2)), plain) and calls[-1] == 7


def test_estimates_of_a_controlled_equation_cover_all_its_steps() -> None:
    torch.manual_seed(0)
    path = ControlPath(torch.randn(2, 3), torch.randn(2, 5, 3), None, None, torch.zeros(2, 6).long(), torch.rand(2, 5))
    field = ControlledField(*(torch.randn(*shape) for shape in ((4, 4), (4,), (12, 4), (12,))))
    with estimating() as estimates, recomputing(2):
        controlled(field, path, torch.randn(2, 4), Solver(method="heun", substeps=3))
    assert len(estimates.error) == len(estimates.stiffness) == 15
    assert all(x > 0 for x in estimates.stiffness)
