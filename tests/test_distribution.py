"""Distributions against scipy, and the heads that make them: monotone, finite, trained by proper scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Cauchy, Distribution, Normal, StudentT

from tsde import heads
from tsde.distribution import GRID, Empirical, Quantiles, affine, average, coherent, pool, quantiles, summarise

LEVELS = torch.tensor(GRID, dtype=torch.float64)
MANY = torch.cat([torch.logspace(-12, -3, 19, dtype=torch.float64), torch.linspace(0.001, 0.999, 999).double()])
MANY = torch.cat([MANY, 1 - MANY.flip(0)]).unique()  # increasing, dense, far into both tails


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def gaussian_quantiles(mean: float = 0.5, sd: float = 2.0) -> Quantiles:
    mean_ = torch.tensor(mean, dtype=torch.float64)
    return Quantiles(mean_, mean_ + sd * torch.special.ndtri(LEVELS), LEVELS)


def random_quantiles(*shape: int, dtype: torch.dtype = torch.float64) -> Quantiles:
    steps = torch.rand(*shape, len(GRID), generator=generator(), dtype=torch.float64) + 0.05
    values = (steps.cumsum(-1) - 6).to(dtype)
    return Quantiles(values.mean(-1), values, LEVELS.to(dtype))


def members(dtype: torch.dtype = torch.float64) -> list[Distribution]:
    """One of each kind, batch shape `(4, 3)`."""
    mean = torch.randn(4, 3, generator=generator()).to(dtype)
    scale = (torch.rand(4, 3, generator=generator()) + 0.1).to(dtype)
    return [
        Normal(mean, scale, validate_args=False),
        StudentT(2.5 + 10 * scale, mean, scale, validate_args=False),
        random_quantiles(4, 3, dtype=dtype),
        Empirical(torch.randn(11, 4, 3, generator=generator()).to(dtype)),
    ]


KINDS = [type(member).__name__ for member in members()]


@pytest.mark.parametrize("member", members(), ids=KINDS)
def test_quantiles_are_finite_and_monotone_far_into_the_tails(member: Distribution) -> None:
    q = quantiles(member, MANY)
    assert q.shape == (4, 3, len(MANY))
    assert torch.isfinite(q).all()
    assert (q.diff(dim=-1) >= 0).all()
    assert (q[..., -1] > q[..., 0]).all()


@pytest.mark.parametrize("member", members(), ids=KINDS)
def test_each_level_is_answered_alone(member: Distribution) -> None:
    order = torch.randperm(len(MANY), generator=generator())
    assert torch.equal(quantiles(member, MANY[order]), quantiles(member, MANY)[..., order])


@pytest.mark.parametrize("member", members(torch.float32), ids=KINDS)
def test_summary_keeps_mean_and_quantiles(member: Distribution) -> None:
    summary = summarise(member)
    assert summary.batch_shape == (4, 3)
    assert torch.equal(summary.mean, member.mean)
    assert torch.equal(summary.values, quantiles(member, torch.tensor(GRID)))
    torch.testing.assert_close(summary.at(torch.tensor(GRID)), summary.values)


def test_normal_against_scipy() -> None:
    member = members()[0]
    expected = stats.norm.ppf(MANY.numpy(), member.mean[..., None].numpy(), member.stddev[..., None].numpy())
    np.testing.assert_allclose(quantiles(member, MANY).numpy(), expected, rtol=1e-9, atol=1e-9)


def test_student_t_against_scipy() -> None:
    member = members()[1]
    assert isinstance(member, StudentT)
    frozen = stats.t(member.df[..., None].numpy(), member.loc[..., None].numpy(), member.scale[..., None].numpy())
    np.testing.assert_allclose(quantiles(member, MANY).numpy(), frozen.ppf(MANY.numpy()), rtol=1e-7, atol=1e-9)


def test_empirical_against_numpy() -> None:
    member = members()[3]
    assert isinstance(member, Empirical)
    expected = np.quantile(member.samples.numpy(), MANY.numpy(), axis=0, method="hazen")
    np.testing.assert_allclose(quantiles(member, MANY).numpy(), np.moveaxis(expected, 0, -1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(member.mean, member.samples.mean(0))


def test_one_sample_is_every_quantile() -> None:
    assert (quantiles(Empirical(torch.full((1, 2), 3.0)), torch.tensor([0.01, 0.5, 0.99])) == 3.0).all()


def test_quantiles_interpolate_between_levels() -> None:
    law = random_quantiles(2)
    inner = torch.linspace(0.005, 0.995, 300, dtype=torch.float64)
    expected = [np.interp(inner.numpy(), LEVELS.numpy(), row) for row in law.values.numpy()]
    np.testing.assert_allclose(law.at(inner).numpy(), expected, rtol=1e-9)


def test_each_entry_may_have_levels_of_its_own() -> None:
    law = random_quantiles(3, 2)
    levels = torch.rand(3, 2, 7, generator=generator(), dtype=torch.float64)
    found = law.at(levels)
    for i, j in [(0, 0), (2, 1)]:
        torch.testing.assert_close(found[i, j], law.at(levels[i, j])[i, j])


def test_tails_are_exponential_and_join_smoothly() -> None:
    """Halving the tail probability moves the quantile by the same amount each time; the slope has no kink."""
    law = random_quantiles(3)
    halvings = 0.005 * 0.5 ** torch.arange(8, dtype=torch.float64)
    for levels in (halvings, 1 - halvings):
        steps = law.at(levels).diff(dim=-1)
        torch.testing.assert_close(steps, steps[..., :1].expand_as(steps), rtol=1e-6, atol=1e-9)
        assert (steps.abs() > 0).all()
    edge, h = 0.005, 1e-7
    near = torch.tensor([edge - h, edge, edge + h, 1 - edge - h, 1 - edge, 1 - edge + h], dtype=torch.float64)
    slope = law.at(near).diff(dim=-1) / h
    torch.testing.assert_close(slope[..., 0], slope[..., 1], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(slope[..., 3], slope[..., 4], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("law", [gaussian_quantiles(), gaussian_quantiles(0, 0.2), random_quantiles()])
def test_density_integrates_to_one(law: Quantiles) -> None:
    low, high = law.at(torch.tensor([1e-9, 1 - 1e-9], dtype=torch.float64))
    y = torch.linspace(float(low), float(high), 400_001, dtype=torch.float64)
    density = Quantiles(law.mean.expand(len(y)), law.values.expand(len(y), -1), law.levels).log_prob(y).exp()
    assert float(torch.trapezoid(density, y)) == pytest.approx(1, abs=1e-4)


def test_density_is_the_slope_of_the_distribution_function() -> None:
    law = random_quantiles()
    p = MANY[(MANY > 1e-5) & (MANY < 1 - 1e-5)]
    h = 1e-6 * torch.minimum(p, 1 - p)
    slope = 2 * h / (law.at(p + h) - law.at(p - h))
    kink = torch.isclose(p[:, None], LEVELS, atol=1e-6).any(1)
    y = law.at(p)
    density = Quantiles(law.mean.expand(len(y)), law.values.expand(len(y), -1), law.levels).log_prob(y).exp()
    torch.testing.assert_close(density[~kink], slope[~kink], rtol=1e-5, atol=1e-9)


def test_density_of_gaussian_quantiles_is_nearly_gaussian() -> None:
    law = gaussian_quantiles()
    y = torch.linspace(-2.5, 3.5, 50, dtype=torch.float64)
    density = Quantiles(law.mean.expand(50), law.values.expand(50, -1), LEVELS).log_prob(y)
    np.testing.assert_allclose(density, stats.norm.logpdf(y, 0.5, 2.0), atol=0.35)


def test_a_certain_forecast_has_a_bounded_density() -> None:
    law = Quantiles(torch.zeros(()), torch.zeros(len(GRID)), torch.tensor(GRID))
    for y in (0.0, 1e-9, -5.0, 5.0, 1e6):
        assert float(law.log_prob(torch.tensor(y))) < 10
        assert np.isfinite(float(law.log_prob(torch.tensor(y))))


def test_average_is_over_means_and_quantile_functions() -> None:
    parts = [gaussian_quantiles(0, 1), gaussian_quantiles(4, 3)]
    both = average(parts)
    torch.testing.assert_close(both.values, gaussian_quantiles(2, 2).values)  # Vincent: location and scale average
    assert float(both.mean) == 2.0
    torch.testing.assert_close(average(parts[::-1]).values, both.values)
    torch.testing.assert_close(average(parts[:1]).values, parts[0].values)


def test_affine_is_the_law_of_location_plus_scale_times_x() -> None:
    law = random_quantiles(5, 2)
    location, scale = torch.tensor([3.0, -1.0]).double(), torch.tensor([0.5, 1e6]).double()
    moved = affine(law, location, scale)
    torch.testing.assert_close(moved.mean, location + scale * law.mean)
    torch.testing.assert_close(moved.at(MANY), location[:, None] + scale[:, None] * law.at(MANY))


def test_pool_is_an_equal_mixture() -> None:
    """A mixture of N(-2, 1) and N(3, 0.5): mean exact, distribution function and spread nearly."""
    components = Normal(torch.tensor([-2.0, 3.0])[:, None], torch.tensor([1.0, 0.5])[:, None], validate_args=False)
    mixture = pool(components, 200)
    assert mixture.samples.shape == (400, 1)
    torch.testing.assert_close(mixture.mean, torch.tensor([0.5]))
    y = torch.linspace(-4, 4, 40)
    expected = (stats.norm.cdf(y, -2, 1) + stats.norm.cdf(y, 3, 0.5)) / 2
    np.testing.assert_allclose((mixture.samples <= y).double().mean(0), expected, atol=0.0051)


@pytest.mark.parametrize("copies", [1, 7])
def test_pool_of_equal_components_is_that_component_up_to_half_a_slice(copies: int) -> None:
    components = Normal(torch.ones(copies, 2), torch.full((copies, 2), 2.0), validate_args=False)
    one = Normal(torch.ones(2), torch.full((2,), 2.0), validate_args=False)
    inner, half = torch.linspace(0.05, 0.95, 19), 1 / 32
    pooled = quantiles(pool(components, 16), inner)
    assert (quantiles(one, inner - half) <= pooled + 1e-5).all()
    assert (pooled <= quantiles(one, inner + half) + 1e-5).all()


def test_levels_of_another_precision_are_answered() -> None:
    """A predictor's laws are in double precision on a single precision grid."""
    law = Quantiles(torch.zeros((), dtype=torch.float64), torch.special.ndtri(LEVELS), torch.tensor(GRID))
    for dtype in (torch.float32, torch.float64):
        expected = torch.special.ndtri(torch.tensor([0.1, 0.9], dtype=torch.float64))
        torch.testing.assert_close(law.at(torch.tensor([0.1, 0.9], dtype=dtype)).double(), expected, rtol=1e-5, atol=0)


def test_an_unknown_distribution_is_refused() -> None:
    with pytest.raises(TypeError, match="Cauchy"):
        quantiles(Cauchy(0.0, 1.0), torch.tensor([0.5]))


# Heads


HEADS: tuple[heads.HeadName, ...] = ("quantile", "gaussian", "student_t")


def raw_numbers(head: heads.HeadName, scale: float) -> Tensor:
    return scale * torch.randn(50, heads.head_size(head), generator=generator())


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_head_gives_monotone_finite_quantiles(head: heads.HeadName, scale: float) -> None:
    mean = torch.randn(50, generator=generator())
    law = heads.distribution(head, mean, raw_numbers(head, scale))
    assert law.batch_shape == (50,)
    torch.testing.assert_close(law.mean, mean)
    q = quantiles(law, torch.tensor(GRID))
    assert torch.isfinite(q).all() and (q.diff(dim=-1) >= 0).all() and (q[:, -1] > q[:, 0]).all()


@pytest.mark.parametrize("head", HEADS)
def test_head_starts_near_a_standard_normal(head: heads.HeadName) -> None:
    law = heads.distribution(head, torch.zeros(1), torch.zeros(1, heads.head_size(head)))
    low, high = quantiles(law, torch.tensor([0.1, 0.9]))[0]
    assert 0.5 < float(high - low) / 2.56 < 2


@pytest.mark.parametrize("head", HEADS)
def test_a_head_spreads_in_its_unit(head: heads.HeadName) -> None:
    mean, raw = torch.randn(50, generator=generator()), raw_numbers(head, 1.0)
    unit = torch.linspace(0.1, 1, 50)
    levels = torch.tensor(GRID)
    wide, own = (quantiles(heads.distribution(head, mean, raw, u), levels) - mean[:, None] for u in (None, unit))
    torch.testing.assert_close(own / unit[:, None], wide, rtol=1e-3, atol=0.1)  # every scale has a thousandth more


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("target", [0.0, 1e4, -1e4])
def test_score_and_its_gradient_are_finite(head: heads.HeadName, target: float) -> None:
    mean, raw = torch.zeros(50, requires_grad=True), raw_numbers(head, 5.0).requires_grad_()
    score = heads.score(heads.distribution(head, mean, raw), torch.tensor(target))
    assert score.shape == (50,) and torch.isfinite(score).all()
    score.sum().backward()
    assert mean.grad is not None and raw.grad is not None
    assert torch.isfinite(mean.grad).all() and torch.isfinite(raw.grad).all()
    assert (raw.grad != 0).any()


def located(head: heads.HeadName, location: float, scale: float, size: int) -> Distribution:
    """The law that a head gives for this location and scale, `size` times."""
    mean, spread = torch.full((size,), location).double(), torch.full((size,), scale).double()
    if head == "gaussian":
        return Normal(mean, spread, validate_args=False)
    if head == "student_t":
        return StudentT(torch.full((size,), 5.0).double(), mean, spread, validate_args=False)
    levels = torch.tensor(heads.LEVELS).double()
    return Quantiles(mean, mean[:, None] + spread[:, None] * torch.special.ndtri(levels), levels)


@pytest.mark.parametrize("head", HEADS)
def test_score_is_proper(head: heads.HeadName) -> None:
    """On a dense sample of the law itself no other location or scale scores better, and worse ones score worse."""
    exact = stats.t(5, 0.7, 1.3) if head == "student_t" else stats.norm(0.7, 1.3)
    y = torch.from_numpy(exact.ppf((np.arange(4000) + 0.5) / 4000))

    def expected(shift: float, stretch: float) -> float:
        return float(heads.score(located(head, 0.7 + shift, 1.3 * stretch, len(y)), y).mean())

    for shift, stretch in [(0.05, 1), (-0.05, 1), (0, 1.05), (0, 0.95), (0.1, 1.1)]:
        assert expected(shift, stretch) > expected(0, 1)
    assert expected(0.5, 1) > expected(0.2, 1)
    assert expected(0, 2) > expected(0, 1.5)


@pytest.mark.parametrize("head", ["gaussian", "student_t"])
def test_the_spread_cannot_explain_the_mean_away(head: heads.HeadName) -> None:
    """The mean's gradient is that of the squared error, whatever the scale."""
    target = torch.tensor([0.3, -0.5, 1.0])
    for width in (-5.0, 0.0, 5.0):
        mean = torch.zeros(3, requires_grad=True)
        raw = torch.full((3, heads.head_size(head)), width)
        heads.score(heads.distribution(head, mean, raw), target).sum().backward()
        torch.testing.assert_close(mean.grad, -target)


def test_quantile_head_moves_mean_and_median_apart() -> None:
    mean, raw = torch.zeros(1, requires_grad=True), torch.zeros(1, len(heads.LEVELS), requires_grad=True)
    law = heads.distribution("quantile", mean, raw)
    quantiles(law, torch.tensor([0.5])).sum().backward()
    assert mean.grad is None or float(mean.grad) == 0
    assert raw.grad is not None and raw.grad[0, len(heads.LEVELS) // 2] != 0


def test_score_broadcasts_over_samples() -> None:
    mean, raw = torch.randn(4, 5, generator=generator()), torch.zeros(4, 5, 1)
    y = torch.randn(5, generator=generator())
    score = heads.score(heads.distribution("gaussian", mean, raw), y)
    single = heads.score(heads.distribution("gaussian", mean[2], raw[2]), y)
    assert score.shape == (4, 5)
    torch.testing.assert_close(score[2], single)


def test_score_of_a_foreign_distribution_is_refused() -> None:
    with pytest.raises(TypeError, match="Cauchy"):
        heads.score(Cauchy(torch.zeros(3), torch.ones(3)), torch.zeros(3))


def test_a_mean_stays_near_that_of_the_quantiles() -> None:
    levels = torch.tensor(GRID)
    normal = summarise(Normal(torch.tensor([2.0, 2.0, 2.0]), torch.tensor(0.5)))
    law = Quantiles(torch.tensor([-1.0, 2.1, 9.0]), normal.values, levels)
    room = 0.125 * 2 * 1.2816 * 0.5
    torch.testing.assert_close(coherent(law).mean, torch.tensor([2 - room, 2.1, 2 + room]), rtol=0, atol=1e-3)
    assert torch.equal(coherent(law).values, law.values)
    skewed = Quantiles(torch.tensor(1.0), -torch.log1p(-levels), levels)  # exponential: the mean is not the median
    assert coherent(skewed).mean == 1.0
    rare = Quantiles(torch.tensor(0.5), (levels - 0.95).clamp(min=0), levels)  # mostly no rain
    assert 0 < coherent(rare).mean < 0.005
