import math

import pytest
import scoringrules
import torch
from torch import Tensor
from torch.testing import assert_close

from tsde import metrics
from tsde.distribution import level_weights
from tsde.errors import UsageError

LEVELS = torch.tensor([0.005, 0.01, 0.025, *(k / 20 for k in range(1, 20)), 0.975, 0.99, 0.995], dtype=torch.float64)
NORMAL = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
ZERO, ONE = NORMAL.mean, NORMAL.stddev


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def draw(*shape: int, random: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=random, dtype=torch.float64)


@pytest.mark.parametrize("junk", [math.nan, math.inf, 1e30])
def test_masked_mean_reads_nothing_under_the_mask(junk: float, random: torch.Generator) -> None:
    x, mask = draw(5, 4, 3, random=random), torch.rand(5, 4, 3, generator=random) < 0.7
    spoiled = torch.where(mask, x, junk).requires_grad_()
    assert_close(metrics.masked_mean(spoiled, mask), x[mask].mean())
    by_channel = torch.stack([x[..., c][mask[..., c]].mean() for c in range(3)])
    assert_close(metrics.masked_mean(spoiled, mask, dim=(0, 1)), by_channel)
    (gradient,) = torch.autograd.grad(metrics.masked_mean(spoiled, mask), spoiled)
    assert_close(gradient, mask / mask.sum().double())


def test_masked_mean_broadcasts_the_mask_and_knows_when_nothing_was_observed() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    assert_close(metrics.masked_mean(x, torch.tensor([True, False, True])), torch.tensor(2.5))
    assert metrics.masked_mean(x, torch.zeros(2, 3, dtype=torch.bool)).isnan()


def test_clustered_error_of_clusters_of_one_is_the_plain_one(random: torch.Generator) -> None:
    x = draw(50, random=random)
    mean, error = metrics.clustered_mean(x, torch.ones(50, dtype=torch.bool), torch.arange(50))
    assert mean == pytest.approx(x.mean().item()) and error == pytest.approx(x.std().item() / math.sqrt(50))


def test_clustered_error_does_not_shrink_when_data_are_copied(random: torch.Generator) -> None:
    x, mask, cluster = draw(20, 3, random=random), torch.rand(20, 3, generator=random) < 0.6, torch.arange(20) // 2
    once = metrics.clustered_mean(x, mask, cluster)
    assert metrics.clustered_mean(x.repeat(4, 1), mask.repeat(4, 1), cluster.repeat(4)) == pytest.approx(once)


def test_clustered_mean_ignores_junk_order_layout_and_clusters_without_data(random: torch.Generator) -> None:
    x, mask = draw(6, 2, 3, random=random), torch.rand(6, 2, 3, generator=random) < 0.6
    cluster = torch.tensor([[4, 4], [1, 1], [4, 2], [9, 9], [2, 1], [8, 8]])
    mask[5] = False
    plain = metrics.clustered_mean(x, mask, cluster)
    turned = torch.randperm(6, generator=random)
    spoiled = torch.where(mask, x, math.nan)
    assert metrics.clustered_mean(spoiled[turned], mask[turned], cluster[turned]) == pytest.approx(plain)
    assert metrics.clustered_mean(spoiled[:5].reshape(10, 3), mask[:5].reshape(10, 3), cluster[:5].flatten()) == (
        pytest.approx(plain)
    )


def test_clustered_error_is_the_spread_of_the_mean_over_repetitions(random: torch.Generator) -> None:
    repeats, series, rows = 300, 40, 6
    x = draw(repeats, series, 1, random=random) + 0.5 * draw(repeats, series, rows, random=random)
    mask = torch.rand(repeats, series, rows, generator=random) < torch.linspace(0.2, 1, series)[:, None]
    means, errors = torch.tensor(
        [metrics.clustered_mean(x[r], mask[r], torch.arange(series)) for r in range(repeats)]
    ).unbind(1)
    # The standard deviation of a standard deviation of n Gaussians is about sd / sqrt(2 n).
    assert abs(means.std() / errors.mean() - 1) < 4 / math.sqrt(2 * repeats)


def test_a_ratio_of_proportional_totals_is_exact(random: torch.Generator) -> None:
    below, cluster = draw(30, random=random).exp(), torch.arange(30) // 3
    found = metrics.clustered_ratio(torch.stack([0.7 * below, 3 * below], -1), below[:, None], cluster)
    assert_close(found.value, torch.tensor([0.7, 3.0], dtype=torch.float64))
    assert (found.error < 1e-14).all()


def test_the_error_of_a_ratio_is_the_jackknife_over_clusters(random: torch.Generator) -> None:
    cluster = torch.arange(30).repeat_interleave(torch.randint(1, 9, (30,), generator=random))
    below = draw(len(cluster), random=random).exp()
    above = 0.8 * below + 0.3 * draw(len(cluster), random=random) + 0.2 * draw(30, random=random)[cluster]
    found = metrics.clustered_ratio(above, below, cluster)
    left = torch.stack([above[cluster != g].sum() / below[cluster != g].sum() for g in range(30)])
    assert_close(found.value, above.sum() / below.sum())
    assert_close(found.error, (29 / 30 * (left - found.value).square().sum()).sqrt())
    bases = torch.stack([below[cluster == g].sum() for g in range(30)])
    assert_close(found.clusters, bases.sum() ** 2 / bases.square().sum())
    turned = torch.randperm(len(cluster), generator=random)
    assert_close(metrics.clustered_ratio(above[turned], below[turned], 7 * cluster[turned]), found)


def test_equal_clusters_all_count() -> None:
    found = metrics.clustered_ratio(torch.arange(6.0), torch.full((6,), 2.0), torch.arange(6) // 2)
    assert found.clusters == pytest.approx(3.0) and found.value == pytest.approx(15 / 12)
    spread = torch.tensor([1.0, 5.0, 9.0], dtype=torch.float64).std() / 4 / math.sqrt(3)
    assert found.error == pytest.approx(float(spread))  # for equal clusters the usual sd / sqrt(G)


def test_a_ratio_to_nothing_is_undefined_and_one_to_a_single_cluster_uncertain() -> None:
    found = metrics.clustered_ratio(torch.ones(4), torch.zeros(4), torch.arange(4))
    assert found.value.isnan() and found.error.isnan()
    for below in (torch.full((4,), 2.0), torch.tensor([0.0, 0.0, 0.0, 8.0])):
        found = metrics.clustered_ratio(torch.ones(4), below, torch.arange(4) if below[0] == 0 else torch.zeros(4))
        assert float(found.value) == 0.5 and found.error.isinf() and float(found.clusters) == 1


def test_one_cluster_says_nothing_about_its_spread() -> None:
    x = torch.tensor([1.0, 2.0, 6.0])
    assert metrics.clustered_mean(x, x < 5, torch.zeros(3, dtype=torch.int64)) == (1.5, math.inf)
    mean, error = metrics.clustered_mean(x, x > 9, torch.arange(3))
    assert math.isnan(mean) and error == math.inf


def test_log_means_are_those_of_each_cluster(random: torch.Generator) -> None:
    score, count = torch.rand(30, 2, generator=random), torch.randint(1, 5, (30,), generator=random)
    cluster = torch.randint(4, (30,), generator=random)
    score[cluster == 2], count[cluster == 2] = 0.0, 0  # nothing was observed of it
    logs, weight = metrics.log_means(score, count, 10 - cluster)
    assert logs.shape == (3, 2)
    overall = score.sum(0) / count.sum()
    for number, own, found in zip((3, 1, 0), weight, logs, strict=True):
        part = cluster == number
        assert own == count[part].sum()
        assert_close(found, (score[part].sum(0) / count[part].sum() + 0.01 * overall).log().double())


def test_a_cluster_that_is_forecast_exactly_does_not_decide() -> None:
    logs, weight = metrics.log_means(torch.tensor([1.0, 0.0]), torch.ones(2), torch.arange(2))
    assert (weight == 1).all() and logs[1] == pytest.approx(math.log(0.005))


def test_point_scores() -> None:
    y, point = torch.tensor([1.0, -2.0]), torch.tensor([3.0, -2.5])
    assert_close(metrics.mse(point, y), torch.tensor([4.0, 0.25]))
    assert_close(metrics.mae(point, y), torch.tensor([2.0, 0.5]))


def test_pinball_asks_for_the_quantile(random: torch.Generator) -> None:
    levels, y = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), draw(20_000, random=random)
    candidates = torch.linspace(-2, 2, 81, dtype=torch.float64)
    loss = torch.stack([metrics.pinball(c.expand(len(y), 3), levels, y).mean(0) for c in candidates])
    assert_close(candidates[loss.argmin(0)], NORMAL.icdf(levels), atol=0.06, rtol=0)
    assert_close(metrics.pinball(y[:, None] + 1, levels[1:2], y).squeeze(-1), torch.full_like(y, 0.5))


def test_level_weights_share_the_unit_interval() -> None:
    assert_close(level_weights(LEVELS).sum(), ONE)
    assert_close(level_weights(torch.tensor([0.1, 0.5, 0.9])), torch.tensor([0.3, 0.4, 0.3]))


@pytest.mark.parametrize("y", [-6.0, -2.1, -1.44, -0.3, 0.0, 0.03, 0.7, 1.5, 4.0])
def test_crps_of_gaussian_quantiles_is_the_gaussian_one(y: float) -> None:
    observed = torch.full((), 10 + 3 * y, dtype=torch.float64)
    score = metrics.crps_quantiles(10 + 3 * NORMAL.icdf(LEVELS), LEVELS, observed)
    assert_close(score, metrics.crps_gaussian(10 * ONE, 3 * ONE, observed), rtol=0.01, atol=0)


def test_crps_of_quantiles_on_an_even_grid_agrees_with_scoringrules(random: torch.Generator) -> None:
    levels = (torch.arange(9, dtype=torch.float64) + 0.5) / 9
    quantiles, y = draw(4, 5, 9, random=random).sort().values, draw(4, 5, random=random)
    expected = scoringrules.crps_quantile(y.numpy(), quantiles.numpy(), levels.numpy())
    assert_close(metrics.crps_quantiles(quantiles, levels, y), torch.from_numpy(expected))


def test_crps_of_the_median_alone_is_the_absolute_error(random: torch.Generator) -> None:
    median, y = draw(2, 30, random=random)
    assert_close(metrics.crps_quantiles(median[:, None], torch.tensor([0.5]), y), metrics.mae(median, y))


def test_crps_gaussian_agrees_with_scoringrules_and_has_its_limit(random: torch.Generator) -> None:
    mean, y = draw(2, 40, random=random)
    sd = draw(40, random=random).exp()
    expected = scoringrules.crps_normal(y.numpy(), mean.numpy(), sd.numpy())
    assert_close(metrics.crps_gaussian(mean, sd, y), torch.as_tensor(expected))
    assert_close(metrics.crps_gaussian(mean, 0 * sd, y), metrics.mae(mean, y))


def test_crps_of_samples_agrees_with_scoringrules(random: torch.Generator) -> None:
    samples, y = draw(11, 4, 3, random=random), draw(4, 3, random=random)
    expected = scoringrules.crps_ensemble(y.numpy(), samples.numpy(), m_axis=0, estimator="fair")
    assert_close(metrics.crps_samples(samples, y), torch.as_tensor(expected))


def test_crps_of_few_samples_is_unbiased(random: torch.Generator) -> None:
    samples, y = draw(3, 40_000, random=random), draw(40_000, random=random)
    excess = metrics.crps_samples(samples, y) - metrics.crps_gaussian(ZERO, ONE, y)
    assert abs(excess.mean()) < 4 * excess.std() / math.sqrt(len(y))


def test_crps_of_samples_survives_a_large_offset(random: torch.Generator) -> None:
    samples, y = torch.randint(0, 8, (200, 5), generator=random).float(), torch.arange(5.0)
    assert_close(metrics.crps_samples(samples + 1e6, y + 1e6), metrics.crps_samples(samples, y))


def test_energy_score_of_one_dimension_is_the_crps(random: torch.Generator) -> None:
    samples, y = draw(9, 4, 3, random=random), draw(4, 3, random=random)
    assert_close(metrics.energy_score(samples[..., None], y[..., None]), metrics.crps_samples(samples, y))


def test_energy_score_agrees_with_scoringrules(random: torch.Generator) -> None:
    samples, y = draw(9, 4, 3, random=random), draw(4, 3, random=random)
    expected = scoringrules.energy_score(y.numpy(), samples.numpy(), m_axis=0, estimator="fair")
    assert_close(metrics.energy_score(samples, y), torch.as_tensor(expected))


def test_energy_score_with_a_mask_is_that_of_the_observed_coordinates(random: torch.Generator) -> None:
    samples, y = draw(9, 4, 3, random=random), draw(4, 3, random=random)
    mask = torch.tensor([True, False, True]).repeat(4, 1)
    mask[3] = False
    score = metrics.energy_score(samples, torch.where(mask, y, math.nan), mask)
    assert_close(score[:3], metrics.energy_score(samples[:, :3, ::2], y[:3, ::2]))
    assert score[3] == 0


def test_scores_of_a_single_sample_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 2"):
        metrics.crps_samples(torch.zeros(1, 4), torch.zeros(4))
    with pytest.raises(UsageError, match="at least 2"):
        metrics.energy_score(torch.zeros(1, 4, 2), torch.zeros(4, 2))


def test_junk_where_nothing_was_observed_stays_there(random: torch.Generator) -> None:
    y, mask = draw(6, random=random), torch.arange(6) != 2
    spoiled = torch.where(mask, y, math.nan)
    quantiles, samples = NORMAL.icdf(LEVELS).expand(6, -1), draw(8, 6, random=random)
    for score in (
        lambda y: metrics.crps_quantiles(quantiles, LEVELS, y),
        lambda y: metrics.crps_gaussian(ZERO, ONE, y),
        lambda y: metrics.crps_samples(samples, y),
        lambda y: metrics.pit(quantiles, LEVELS, y),
        lambda y: metrics.coverage(-ONE, ONE, y),
    ):
        assert_close(metrics.masked_mean(score(spoiled), mask), score(y)[mask].mean())


def test_intervals() -> None:
    lo, hi, y = torch.tensor([0.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 2.0]), torch.tensor([1.0, 1.5, -0.1])
    assert_close(metrics.coverage(lo, hi, y), torch.tensor([1.0, 0.0, 0.0]))
    assert_close(metrics.interval_width(lo, hi), torch.tensor([1.0, 1.0, 2.0]))


def test_pit_is_the_distribution_function_and_the_middle_of_the_tails() -> None:
    quantiles = NORMAL.icdf(LEVELS)
    y = torch.cat([torch.linspace(-2.5, 2.5, 101, dtype=torch.float64), torch.tensor([-9.0, 9.0], dtype=torch.float64)])
    values = metrics.pit(quantiles.expand(len(y), -1), LEVELS, y)
    assert_close(values[:-2], NORMAL.cdf(y[:-2]), atol=0.004, rtol=0)
    assert_close(values[-2:], torch.tensor([0.0025, 0.9975], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pit_and_quantiles_order_observations_alike(dtype: torch.dtype, random: torch.Generator) -> None:
    levels = LEVELS.to(dtype)
    quantiles = draw(500, len(levels), random=random).to(dtype).mul(4).round().sort().values  # full of ties
    y = draw(500, random=random).to(dtype).mul(8).round() / 2
    below = y[:, None] <= quantiles
    assert torch.equal(metrics.pit(quantiles, levels, y)[:, None] <= levels, below)
