"""Scores of a predictor against the same scores by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tsde.calibration import Calibrator
from tsde.clock import Clock
from tsde.config import Experiment
from tsde.distribution import GRID, Quantiles, level_weights
from tsde.errors import DataError, UsageError
from tsde.evaluation import Losses, Scores, Skill, compare, evaluate, evaluate_both
from tsde.metrics import clustered_mean
from tsde.models.mean import Mean, MeanConfig
from tsde.predictor import Predictor
from tsde.scaling import Scaler
from tsde.series import SeriesBatch
from tsde.windows import Query, Window

LEVELS = torch.tensor(GRID)
STANDARD = torch.special.ndtri(LEVELS)
AVERAGE = torch.tensor([0.3, -0.2])


def predictor(width: float = 1.0) -> Predictor:
    """Always N(average, width^2), whatever the context."""
    member = Mean(MeanConfig(), 2)
    member.average[:] = AVERAGE
    member.values[:] = AVERAGE[:, None] + width * STANDARD
    law = Quantiles(member.average, member.values, LEVELS)
    scaler = Scaler.unit(("heart", "lung"), 1.0)
    clock = Clock(kind="number")
    return Predictor(Experiment(horizon=1), clock, scaler, [member], Calibrator.identity(2, len(GRID)), law)


def windows(seed: int = 0, sizes: tuple[int, ...] = (40, 25)) -> list[Window]:
    """Answers N(0, 1), two thirds observed, leads uniform on (0, 1]; each series in several windows."""
    random = torch.Generator().manual_seed(seed)
    found = []
    for size in sizes:
        context = SeriesBatch(
            torch.zeros(size, 1),
            torch.zeros(size, 1, 2),
            torch.ones(size, 1, 2, dtype=torch.bool),
            torch.arange(size),
            torch.zeros(size, 0),
        )
        lead = 1 - torch.rand(size, 1, 6, generator=random)
        values = torch.randn(size, 1, 6, 2, generator=random)
        mask = torch.rand(values.shape, generator=random) < 2 / 3
        query = Query(context, torch.zeros(size, 1), lead)
        found.append(Window(query, torch.where(mask, values, 1e6), mask, torch.arange(size) % 7))
    return found


def flat(part: str) -> Tensor:
    """Observed entries of all windows: y, lead, channel or series."""
    pieces = []
    for window in windows():
        shape = window.mask.shape
        everything = {
            "y": window.values,
            "lead": window.query.lead[..., None].expand(shape),
            "channel": torch.arange(2).expand(shape),
            "series": window.series[:, None, None, None].expand(shape),
        }
        pieces.append(everything[part][window.mask])
    return torch.cat(pieces)


def by_hand(chosen: Tensor, width: float = 1.0) -> Scores:
    y, centre, series = flat("y")[chosen], AVERAGE[flat("channel")[chosen]], flat("series")[chosen]
    error = (y - centre)[:, None] - width * STANDARD
    pinball = torch.where(error >= 0, LEVELS * error, (LEVELS - 1) * error)
    coverage = {}
    for level, half in ((50, 0.6744898), (80, 1.2815516), (95, 1.959964)):
        inside = ((y - centre).abs() <= width * half).double()
        share = float(inside.mean())
        without = torch.stack([inside[series != s].mean() for s in series.unique()])
        clusters = len(without)
        error_ = float(((without - share).square().sum() * (clusters - 1) / clusters).sqrt())
        coverage[level] = (share, error_)
    law = Quantiles(centre, centre[:, None] + width * STANDARD, LEVELS)
    return Scores(
        count=len(y),
        mse=float((y - centre).square().mean()),
        mae=float((y - centre).abs().mean()),
        crps=float(2 * (pinball * level_weights(LEVELS)).sum(1).mean()),
        nll=float(-law.log_prob(y).mean()),
        width_80=width * 2 * 1.2815516,
        coverage=coverage,
    )


def alike(found: Scores, expected: Scores) -> None:
    assert found.count == expected.count
    for name in ("mse", "mae", "crps", "nll", "width_80"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-4), name
    for level, pair in expected.coverage.items():
        assert found.coverage[level] == pytest.approx(pair, rel=1e-4), level


def test_overall_scores_against_sums_by_hand() -> None:
    everything = torch.ones(len(flat("y")), dtype=torch.bool)
    alike(evaluate(predictor(), windows()).overall, by_hand(everything))


def test_scores_have_the_values_of_a_known_law() -> None:
    """N(average, 1) for answers N(0, 1), nearly: CRPS 0.56, 80 % covered, log density -1.4."""
    found = evaluate(predictor(), windows(sizes=(2000,))).overall
    assert found.crps == pytest.approx(0.585, abs=0.02) and found.nll == pytest.approx(1.48, abs=0.1)
    assert found.coverage[80][0] == pytest.approx(0.79, abs=0.015)
    assert found.mse == pytest.approx(1.065, abs=0.05)


def test_by_channel() -> None:
    found = evaluate(predictor(), windows()).by_channel
    assert [each.name for each in found] == ["heart", "lung"]
    for number, each in enumerate(found):
        assert each.lead is None
        alike(each.scores, by_hand(flat("channel") == number))


def test_by_lead_the_entries_are_shared_out() -> None:
    found, lead = evaluate(predictor(), windows(), lead_bins=3), flat("lead")
    assert sum(each.scores.count for each in found.by_lead) == found.overall.count
    assert len(found.by_lead) == 3
    for number, each in enumerate(found.by_lead):
        assert each.lead is not None
        low, high = each.lead
        chosen = (lead > low) & (lead <= high)
        alike(each.scores, by_hand(chosen))
        assert each.scores.count == pytest.approx(len(lead) / 3, abs=2)
        assert each.name == f"{low:.2f}-{high:.2f}" and (low == 0.0) == (number == 0)
    assert found.by_lead[-1].lead is not None and found.by_lead[-1].lead[1] == float(lead.max())


def test_equal_leads_make_one_bin() -> None:
    same = [
        replace(window, query=replace(window.query, times=torch.ones_like(window.query.times))) for window in windows()
    ]
    found = evaluate(predictor(), same)
    assert [each.scores.count for each in found.by_lead] == [found.overall.count]


def test_frequencies_are_shares_below_each_quantile() -> None:
    found, y, centre = evaluate(predictor(2.0), windows()), flat("y"), AVERAGE[flat("channel")]
    expected = [float((y - centre <= 2 * z).float().mean()) for z in STANDARD.tolist()]
    assert found.frequency == pytest.approx(expected, abs=2 / len(y))
    assert found.levels == pytest.approx(list(GRID)) and found.frequency == sorted(found.frequency)


def test_the_error_of_a_frequency_is_that_of_a_share() -> None:
    found, y, centre = evaluate(predictor(), windows()), flat("y"), AVERAGE[flat("channel")]
    for place in (0, 12, 24):
        below = (y - centre <= STANDARD[place]).double()
        _, error = clustered_mean(below, torch.ones(len(y), dtype=torch.bool), flat("series"))
        assert found.frequency_error[place] == pytest.approx(error, rel=1e-4)


def test_raw_and_calibrated_forecasts_are_told_apart() -> None:
    one = predictor()
    one.calibrator = Calibrator(torch.zeros(0), torch.linspace(-0.4, 0.4, len(GRID) + 1).expand(1, 2, -1))
    raw, corrected = evaluate(one, windows(), calibrated=False), evaluate(one, windows())
    assert evaluate_both(one, windows())[:2] == (raw, corrected)
    assert raw == evaluate(predictor(), windows())
    assert corrected.overall.width_80 > raw.overall.width_80
    assert corrected.overall.mse != raw.overall.mse


def test_what_was_not_observed_does_not_count() -> None:
    other = [replace(window, values=torch.where(window.mask, window.values, -3.0)) for window in windows()]
    assert evaluate(predictor(), other) == evaluate(predictor(), windows())


def test_windows_may_be_cut_anyhow() -> None:
    pieces = []
    for window in windows():
        context = window.query.context
        for rows in torch.arange(len(window.series)).split(9):
            part = SeriesBatch(
                context.times[rows], context.values[rows], context.mask[rows], context.key[rows], context.static[rows]
            )
            query = Query(part, window.query.origins[rows], window.query.times[rows])
            pieces.append(Window(query, window.values[rows], window.mask[rows], window.series[rows]))
    whole, cut = evaluate(predictor(), windows()), evaluate(predictor(), pieces)
    assert cut.frequency == pytest.approx(whole.frequency)
    alike(cut.overall, whole.overall)


def test_a_better_forecast_has_better_scores() -> None:
    right, wide, narrow = (evaluate(predictor(width), windows(sizes=(500,))).overall for width in (1.0, 3.0, 0.3))
    assert right.crps < min(wide.crps, narrow.crps) and right.nll < min(wide.nll, narrow.nll)
    assert narrow.coverage[80][0] < 0.5 < 0.75 < right.coverage[80][0] < 0.85 < 0.99 < wide.coverage[80][0]
    assert right.mse == wide.mse == narrow.mse
    assert np.isfinite([right.coverage[level][1] for level in (50, 80, 95)]).all()


def test_nothing_to_score_is_refused() -> None:
    (blank, *_) = windows()
    unseen = replace(blank, mask=torch.zeros_like(blank.mask))
    for found in ([], [unseen], [unseen, unseen]):
        for score in (evaluate, evaluate_both):
            with pytest.raises(DataError, match="nothing to score"):
                score(predictor(), found)
    assert evaluate(predictor(), [unseen, blank]).overall == evaluate(predictor(), [blank]).overall


def losses(width: float, **changed: Tensor) -> Losses:
    return replace(evaluate_both(predictor(width), windows()).losses, **changed)


def test_skill_against_sums_by_hand() -> None:
    ours, theirs = losses(1.0), losses(2.0)
    found, series, channel, lead = (
        compare(ours, theirs, ("heart", "lung")),
        flat("series"),
        flat("channel"),
        flat("lead"),
    )

    def alike_(got: Skill, chosen: Tensor) -> None:
        a, b, g = ours.crps[chosen].double(), theirs.crps[chosen].double(), series[chosen]
        assert got.value == pytest.approx(float(1 - a.sum() / b.sum()))
        without = torch.stack([1 - a[g != s].sum() / b[g != s].sum() for s in g.unique()])
        assert got.error == pytest.approx(float((6 / 7 * (without - got.value).square().sum()).sqrt()), rel=1e-5)
        assert 6 < got.series <= 7

    alike_(found.overall.crps, torch.ones(len(lead), dtype=torch.bool))
    for number, got in enumerate(found.by_channel):
        alike_(got.crps, channel == number)
        assert (got.mse.value, got.mse.error, got.series) == (0.0, 0.0, 7)  # they differ in their widths alone
    slices = evaluate(predictor(), windows()).by_lead
    assert len(found.by_lead) == len(slices) == 4
    for part, got in zip(slices, found.by_lead, strict=True):
        assert part.lead is not None
        alike_(got.crps, (lead > part.lead[0]) & (lead <= part.lead[1]))


def test_skill_is_one_less_the_ratio_of_the_printed_scores() -> None:
    (_, ours, mine), (_, theirs, others) = (evaluate_both(predictor(width), windows()) for width in (1.0, 3.0))
    found = compare(mine, others, ("heart", "lung"))
    assert found.overall.crps.value == pytest.approx(1 - ours.overall.crps / theirs.overall.crps)
    for got, one, other in zip(found.by_channel, ours.by_channel, theirs.by_channel, strict=True):
        assert got.crps.value == pytest.approx(1 - one.scores.crps / other.scores.crps)
    assert found.overall.crps.verdict() == 1
    assert compare(others, mine, ("heart", "lung")).overall.crps.verdict() == -1


def test_a_predictor_has_no_skill_against_itself() -> None:
    found = compare(losses(1.0), losses(1.0), ("heart", "lung"))
    for each in (found.overall, *found.by_lead, *found.by_channel):
        for skill in (each.crps, each.mse):
            assert (skill.value, skill.error, skill.verdict()) == (0.0, 0.0, 0)


def test_skill_of_other_observations_is_refused() -> None:
    ours = losses(1.0)
    shorter = Losses(*(getattr(ours, name)[:-1] for name in ("crps", "mse", "lead", "channel", "series")))
    for theirs in (shorter, losses(1.0, series=ours.series.flip(0))):
        with pytest.raises(UsageError, match="same windows"):
            compare(ours, theirs, ("heart", "lung"))


@pytest.mark.parametrize(("series", "power"), [(6, 0.1), (25, 0.65)])
def test_the_interval_holds_the_true_skill_as_often_as_it_says(series: int, power: float) -> None:
    """Series of unequal length and difficulty, whose difficulty both forecasts share; the true skill is 0.2."""
    random, repeats, held, clear = np.random.default_rng(series), 600, 0, 0
    for _ in range(repeats):
        owner = np.repeat(np.arange(series), random.integers(2, 12, series))
        hard = np.exp(random.normal(size=series))[owner]
        pair = [torch.from_numpy(share * hard * random.gamma(4, 0.25, len(owner))) for share in (0.8, 1.0)]
        nowhere = torch.zeros(len(owner))
        ours, theirs = (Losses(one, nowhere, nowhere, nowhere, torch.from_numpy(owner)) for one in pair)
        found = compare(ours, theirs, ("only",)).overall.crps
        low, high = found.interval()
        held, clear = held + (low < 0.2 < high), clear + (low > 0)
        assert found.verdict() == int(low > 0) - int(high < 0)
    assert 0.93 < held / repeats < 0.99  # with the linearised error and the normal quantile 0.76 and 0.89
    assert clear / repeats > power


def test_of_one_series_or_a_perfect_reference_nothing_is_claimed() -> None:
    alone = Skill(0.9, float("inf"), 1.0)
    assert alone.interval() == (-float("inf"), float("inf")) and alone.verdict() == 0
    ours, perfect = losses(1.0), losses(1.0, crps=torch.zeros(len(flat("y"))))
    found = compare(ours, perfect, ("heart", "lung")).overall.crps
    assert np.isnan(found.value) and np.isnan(found.error) and found.verdict() == 0
