"""Laws of the control path: agreement with torchcde, Chen's identity, padding, causality, masks."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torchcde
from pydantic import ValidationError
from torch import Tensor

from tsde.path import (
    GAP_RATIO,
    ControlPath,
    PathConfig,
    control_path,
    control_size,
    fill_forward,
    fill_linear,
    is_causal,
)
from tsde.series import SeriesBatch

CONFIGS = [
    PathConfig(),
    PathConfig(fill="linear"),
    PathConfig(time=False, counts=False),
    PathConfig(kind="hermite"),
    PathConfig(kind="hermite", fill="linear"),
    PathConfig(kind="rectilinear"),
    PathConfig(kind="rectilinear", counts=False),
    PathConfig(kind="logsignature", depth=1, window=3),
    PathConfig(kind="logsignature", window=3),
    PathConfig(kind="logsignature", window=4, fill="linear"),
]
CAUSAL = [config for config in CONFIGS if is_causal(config)]


def name(config: PathConfig) -> str:
    return "-".join(map(str, config.model_dump().values()))


def batch(times: Tensor, values: Tensor, mask: Tensor) -> SeriesBatch:
    size = len(times)
    return SeriesBatch(times, values, mask, key=torch.arange(size), static=torch.zeros(size, 0))


def random_batch(size: int = 3, length: int = 11, channels: int = 2, seed: int = 0) -> SeriesBatch:
    """Gaps within a factor of five of each other, 60 % observed, NaN where not; float64 for tight comparisons."""
    generator = torch.Generator().manual_seed(seed)
    times = (torch.rand(size, length, generator=generator, dtype=torch.float64) + 0.25).cumsum(1)
    values = torch.randn(size, length, channels, generator=generator, dtype=torch.float64)
    mask = torch.rand(size, length, channels, generator=generator) < 0.6
    return batch(times, values.where(mask, math.nan), mask)


def padded(context: SeriesBatch, rows: int) -> SeriesBatch:
    return replace(
        context,
        times=torch.cat((context.times, context.times[:, -1:].expand(-1, rows)), 1),
        values=torch.nn.functional.pad(context.values, (0, 0, 0, rows), value=7.0),
        mask=torch.nn.functional.pad(context.mask, (0, 0, 0, rows)),
    )


def increments(path: ControlPath) -> Tensor:
    """`X(i + 1) - X(i)`, the integral of the derivative over each interval."""
    if path.quadratic is None or path.cubic is None:
        return path.linear
    return path.linear + path.quadratic / 2 + path.cubic / 3


def coefficients(path: ControlPath) -> Tensor:
    return torch.cat([part for part in (path.linear, path.quadratic, path.cubic) if part is not None], -1)


def assert_same(path: ControlPath, other: ControlPath) -> None:
    torch.testing.assert_close(path.initial, other.initial)
    torch.testing.assert_close(coefficients(path), coefficients(other))
    assert torch.equal(path.knot, other.knot)


def with_nan(context: SeriesBatch) -> Tensor:
    """The channels of the path before filling, as torchcde expects them."""
    times = context.times - context.times[:, :1]
    counts = torch.log1p(context.mask.cumsum(1).double())
    return torch.cat((times.unsqueeze(-1), context.values, counts), -1)


def area(points: Tensor) -> Tensor:
    """The Levy area of a polygon `(L, 2)` in one window, through the public door."""
    config = PathConfig(kind="logsignature", window=len(points), time=False, counts=False)
    polygon = batch(torch.zeros(1, len(points)).double(), points[None], torch.ones(1, *points.shape).bool())
    return control_path(polygon, config).linear[0, 0, -1]


# ---- fills


def test_fills_by_hand() -> None:
    nan = math.nan
    values = torch.tensor([[[nan, 1.0], [2.0, nan], [nan, nan], [nan, nan], [8.0, nan], [nan, nan]]])
    values = torch.cat((values, torch.full((1, 6, 1), nan)), -1)
    mask, times = ~values.isnan(), torch.tensor([[0.0, 1.0, 2.0, 5.0, 7.0, 7.5]])
    forward = torch.tensor([[0.0, 2, 2, 2, 8, 8], [1.0, 1, 1, 1, 1, 1], [0.0] * 6]).T
    linear = torch.tensor([[2.0, 2, 3, 6, 8, 8], [1.0, 1, 1, 1, 1, 1], [0.0] * 6]).T
    assert torch.equal(fill_forward(values, mask)[0], forward)
    torch.testing.assert_close(fill_linear(times, values, mask)[0], linear)


def test_linear_fill_between_simultaneous_rows_is_finite() -> None:
    values, mask = torch.tensor([[[1.0], [math.nan], [3.0]]]), torch.tensor([[[True], [False], [True]]])
    assert fill_linear(torch.zeros(1, 3), values, mask)[0, 1] == 1.0


# ---- agreement with torchcde


def test_linear_path_agrees_with_torchcde() -> None:
    context = random_batch()
    path = control_path(context, PathConfig(fill="linear"))
    for member in range(3):
        knots = torchcde.linear_interpolation_coeffs(with_nan(context)[member], context.times[member])
        reference = torchcde.LinearInterpolation(knots)
        torch.testing.assert_close(path.initial[member], reference.evaluate(0.0))
        for i in range(path.intervals):
            torch.testing.assert_close(path.derivative(i, 0.3)[member], reference.derivative(i + 0.3))


def test_hermite_path_agrees_with_torchcde() -> None:
    context = random_batch()
    path = control_path(context, PathConfig(kind="hermite", fill="linear"))
    for member, times in enumerate(context.times):
        spline = torchcde.hermite_cubic_coefficients_with_backward_differences(with_nan(context)[member], times)
        reference = torchcde.CubicSpline(spline, times)
        for i, gap in enumerate(times.diff()):
            for s in (0.1, 0.5, 0.9):
                # the chain rule: torchcde differentiates by time, an index grid by the fraction of the gap
                expected = gap * reference.derivative(times[i] + s * gap)
                torch.testing.assert_close(path.derivative(i, s)[member], expected)


def test_rectilinear_path_agrees_with_torchcde() -> None:
    context = random_batch()
    mask = context.mask.clone()
    mask[:, 0] = True  # torchcde looks ahead for a first value that is missing, which is not causal
    context = batch(context.times, context.values.where(context.values.isfinite() | ~mask, 0.5), mask)
    path = control_path(context, PathConfig(kind="rectilinear"))
    reference = torchcde.LinearInterpolation(torchcde.linear_interpolation_coeffs(with_nan(context), rectilinear=0))
    assert path.intervals == 2 * (context.times.shape[1] - 1)
    for i in range(path.intervals):
        torch.testing.assert_close(path.derivative(i, 0.5), reference.derivative(i + 0.5))


# ---- shape of single paths


def test_linear_channels_by_hand() -> None:
    values = torch.tensor([[[5.0], [9.0], [6.0]]])
    mask = torch.tensor([[[True], [False], [True]]])
    path = control_path(batch(torch.tensor([[3.0, 4.0, 6.0]]), values, mask), PathConfig())
    torch.testing.assert_close(path.initial, torch.tensor([[0.0, 5.0, math.log(2)]]))
    torch.testing.assert_close(path.linear, torch.tensor([[[1.0, 0.0, 0.0], [2.0, 1.0, math.log(1.5)]]]))


def test_hermite_interpolates_the_rows_and_is_smooth_in_time() -> None:
    context = random_batch()
    path = control_path(context, PathConfig(kind="hermite"))
    torch.testing.assert_close(increments(path), control_path(context, PathConfig()).linear)
    gaps = context.gaps[:, 1:, None]
    ends = torch.stack([path.derivative(i, 1.0) for i in range(path.intervals)], 1) / gaps
    torch.testing.assert_close((path.linear / gaps)[:, 1:], ends[:, :-1])


def test_hermite_stays_near_the_data_after_nearly_simultaneous_rows() -> None:
    times = torch.tensor([[0.0, 1.0, 1.0 + 1e-6, 2.0, 2.0, 3.0]], dtype=torch.float64)
    values = torch.tensor([[[0.0], [0.0], [1.0], [1.0], [2.0], [2.0]]], dtype=torch.float64)
    path = control_path(batch(times, values, torch.ones(1, 6, 1).bool()), PathConfig(kind="hermite", counts=False))
    assert coefficients(path).isfinite().all()
    assert path.linear[0, :, 1].abs().max() == GAP_RATIO
    s = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    assert path.quadratic is not None and path.cubic is not None
    moved = path.linear[0] * s[:, None] + path.quadratic[0] * s[:, None] ** 2 / 2 + path.cubic[0] * s[:, None] ** 3 / 3
    assert moved[..., 1].abs().max() <= 1.0 + 1e-9


def test_rectilinear_is_refused_where_it_could_not_be_causal() -> None:
    with pytest.raises(ValidationError, match="fill='linear'"):
        PathConfig(kind="rectilinear", fill="linear")
    with pytest.raises(ValidationError, match="time=false"):
        PathConfig(kind="rectilinear", time=False)


# ---- log-signatures


def test_log_signature_agrees_with_iterated_sums() -> None:
    context, window = random_batch(), 4
    path = control_path(context, PathConfig(kind="logsignature", window=window))
    steps = control_path(context, PathConfig()).linear
    size = steps.shape[-1]
    assert path.linear.shape == (3, math.ceil(10 / window), control_size(2, PathConfig(kind="logsignature")))
    for n in range(path.intervals):
        part = steps[:, n * window : (n + 1) * window]
        signature = torch.zeros(3, size, size, dtype=torch.float64)
        for k in range(part.shape[1]):
            signature += part[:, k, :, None] * part[:, k, None] / 2
            for m in range(k):
                signature += part[:, m, :, None] * part[:, k, None]
        # the logarithm of (1, x, S) is (x, S - x x / 2), and Chen's shuffle makes it antisymmetric
        log = signature - part.sum(1)[:, :, None] * part.sum(1)[:, None] / 2
        i, j = torch.triu_indices(size, size, 1)
        torch.testing.assert_close(path.linear[:, n], torch.cat((part.sum(1), log[:, i, j]), -1))


def test_chen_joins_windows() -> None:
    context = random_batch(length=9)
    halves = control_path(context, PathConfig(kind="logsignature", window=4)).linear
    whole = control_path(context, PathConfig(kind="logsignature", window=8)).linear[:, 0]
    size = control_size(2, PathConfig())
    first, second = halves[:, 0], halves[:, 1]
    # Baker-Campbell-Hausdorff to depth two: log(exp a exp b) = a + b + [a, b] / 2
    bracket = first[:, :size, None] * second[:, None, :size]
    i, j = torch.triu_indices(size, size, 1)
    joined = first + second
    joined[:, size:] += (bracket - bracket.mT)[:, i, j] / 2
    torch.testing.assert_close(whole, joined)


def test_log_signature_ignores_the_speed_along_the_path() -> None:
    corners = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = torch.tensor([0.1, 0.15, 0.7, 1.0], dtype=torch.float64)[:, None]
    dense = torch.cat([corners[:1], *(corners[k] + weights * (corners[k + 1] - corners[k]) for k in range(4))])
    torch.testing.assert_close(area(dense), area(corners))


def test_area_of_known_shapes() -> None:
    triangle = torch.tensor([[0.0, 0], [2, 0], [0, 3], [0, 0]], dtype=torch.float64)
    torch.testing.assert_close(area(triangle), torch.tensor(3.0, dtype=torch.float64))
    torch.testing.assert_close(area(triangle.flip(0)), torch.tensor(-3.0, dtype=torch.float64))
    angle = torch.linspace(0, 2 * math.pi, 1001, dtype=torch.float64)
    circle = torch.stack((angle.cos(), angle.sin()), -1)
    torch.testing.assert_close(area(circle), torch.tensor(math.pi, dtype=torch.float64), rtol=1e-4, atol=0)


def test_log_signature_of_depth_one_is_the_linear_path_with_fewer_knots() -> None:
    context = random_batch(length=10)
    short = control_path(context, PathConfig(kind="logsignature", depth=1, window=3)).linear
    torch.testing.assert_close(short, control_path(context, PathConfig()).linear.unflatten(1, (3, 3)).sum(2))


# ---- laws of every path


@pytest.mark.parametrize("config", CONFIGS, ids=name)
@pytest.mark.parametrize("length", [1, 2, 11])
def test_sizes(config: PathConfig, length: int) -> None:
    path, size = control_path(random_batch(length=length), config), control_size(2, config)
    assert path.initial.shape == (3, size)
    assert path.linear.shape == (3, path.intervals, size)
    assert path.knot.shape == (3, length) and path.knot.dtype == torch.int64
    assert (path.knot[:, 0] == 0).all() and (path.knot[:, -1] == path.intervals).all()
    assert torch.cat((path.initial, increments(path).sum(1))).isfinite().all()


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_padding_stands_still(config: PathConfig) -> None:
    context = random_batch()
    path, longer = control_path(context, config), control_path(padded(context, 9), config)
    n = path.intervals
    torch.testing.assert_close(longer.initial, path.initial)
    torch.testing.assert_close(coefficients(longer)[:, :n], coefficients(path))
    assert torch.equal(longer.knot[:, : path.knot.shape[1]], path.knot)
    assert longer.intervals > n
    assert (coefficients(longer)[:, n:] == 0).all()


@pytest.mark.parametrize("config", CAUSAL, ids=name)
@pytest.mark.parametrize("last", [0, 1, 4, 9])
def test_causal_paths_never_look_ahead(config: PathConfig, last: int) -> None:
    context, other = random_batch(), random_batch(seed=1)
    later = torch.arange(11) > last
    changed = batch(
        torch.where(later, context.times[:, last, None] + other.times, context.times),
        torch.where(later[:, None], other.values, context.values),
        torch.where(later[:, None], other.mask, context.mask),
    )
    path, perturbed = control_path(context, config), control_path(changed, config)
    knot = int(path.knot[0, last])
    assert torch.equal(path.initial, perturbed.initial)
    assert torch.equal(coefficients(path)[:, :knot], coefficients(perturbed)[:, :knot])
    assert not torch.equal(coefficients(path), coefficients(perturbed))


@pytest.mark.parametrize("config", [config for config in CONFIGS if not is_causal(config)], ids=name)
def test_the_other_paths_look_ahead(config: PathConfig) -> None:
    context = random_batch()
    values = context.values.clone().requires_grad_()
    path = control_path(replace(context, values=values), config)
    last = 5  # inside a window, and unobserved in some series
    seen = path.initial.sum() + coefficients(path)[:, : int(path.knot[0, last])].square().sum()
    assert torch.autograd.grad(seen, values)[0][:, last + 1 :].any()


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_values_under_a_false_mask_never_matter(config: PathConfig) -> None:
    context = random_batch()
    junk = replace(context, values=context.values.where(context.mask, 1e9))
    assert_same(control_path(context, config), control_path(junk, config))


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_a_batch_equals_its_members_whatever_their_clocks(config: PathConfig) -> None:
    context = random_batch()
    together = control_path(context, config)
    for k in range(3):
        one = slice(k, k + 1)
        alone = control_path(batch(context.times[one] + 40.0, context.values[one], context.mask[one]), config)
        torch.testing.assert_close(alone.initial, together.initial[one])
        torch.testing.assert_close(coefficients(alone), coefficients(together)[one])


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_gradients_reach_observed_values_only(config: PathConfig) -> None:
    context = padded(random_batch(), 2)
    times, values = context.times.clone(), context.values.clone().requires_grad_()
    times[:, 4] = times[:, 3]  # two simultaneous rows
    path = control_path(replace(context, times=times, values=values), config)
    (path.initial.square().sum() + coefficients(path).square().sum()).backward()
    assert values.grad is not None and values.grad.isfinite().all()
    assert (values.grad[~context.mask] == 0).all()
    assert values.grad.any(1).all()  # in every series and channel


@pytest.mark.parametrize("config", CONFIGS, ids=name)
@pytest.mark.parametrize("length", [1, 6])
def test_an_empty_channel_is_a_path_of_zeros(config: PathConfig, length: int) -> None:
    context = random_batch(length=length)
    empty = batch(context.times, context.values, torch.zeros_like(context.mask))
    path = control_path(empty, config)
    values = slice(int(config.time), config.time + 2)
    assert (path.initial == 0).all()
    assert (coefficients(path)[..., values] == 0).all()


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValidationError, match="windows"):
        PathConfig.model_validate({"windows": 4})
    with pytest.raises(ValidationError, match="window"):
        PathConfig(window=0)
