"""`family: auto` and the linear route: what validation decides, and what it must not depend on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from tsde.choosing import choose_family
from tsde.config import Experiment, load_experiment
from tsde.distribution import GRID, Quantiles, blend, summarise
from tsde.errors import ConfigError, DivergedError
from tsde.fitting import Parts, fit_predictor, prepare
from tsde.heads import LEVELS
from tsde.members import training_windows
from tsde.metrics import crps_quantiles, mse
from tsde.model import Forecaster, Loss
from tsde.models import MODELS
from tsde.models.filter import Filter, FilterConfig
from tsde.models.linear import LinearRoute
from tsde.models.parts import closed_form_loss
from tsde.models.readout import Readout
from tsde.models.recent import RecentValues
from tsde.synthetic import ornstein_uhlenbeck
from tsde.table import read_table
from tsde.training import Progress
from tsde.trust import choose_trust
from tsde.windows import Query, Window, eligible_origins

TABLE = read_table(ornstein_uhlenbeck(24, 14, rate=0.5, level=3.0, seed=0))


def experiment(*overrides: str) -> Experiment:
    short = ["train.steps=20", "train.batch=4", "train.members=2", "train.workers=1", "windows.held_out=20"]
    return load_experiment(None, ["split.by=series", *short, *overrides], horizon=1.5, model={"family": "auto"})


def chosen(wanted: Experiment, folder: Path | None = None, seen: list[Progress] | None = None) -> tuple:
    parts: Parts = prepare(TABLE, wanted)
    report = [].append if seen is None else seen.append
    return choose_family(parts.series, parts.split.folds, wanted, report, folder)


def test_the_lowest_validation_crps_wins_and_gets_what_is_left_of_the_time() -> None:
    seen: list[Progress] = []
    wanted = experiment("model.candidates=[mean, filter, last]", "train.max_time=50", "model.trial=0.2")
    found, trials = chosen(wanted, seen=seen)
    assert list(trials) == ["mean", "filter", "last"]
    assert found.model.family == min(trials, key=lambda name: trials[name])
    assert found.train.steps == 20 and found.train.max_time == pytest.approx(40)
    assert {progress.trial for progress in seen} == {"filter"}
    assert {progress.step for progress in seen} == {4}
    # less trust in what was learnt may do better, and is hardly worse where it is taken for its simplicity
    assert trials["filter"] <= 1.1 * max(p.best for p in seen)


def test_a_named_family_is_left_alone() -> None:
    wanted = experiment("model={family: last}")
    assert chosen(wanted) == (wanted, {})


def test_the_chosen_family_is_what_is_trained_saved_and_said(tmp_path: Path) -> None:
    fitted = fit_predictor(TABLE, experiment("model.candidates=[ridge, mean]"))
    assert fitted.trials.keys() == {"ridge", "mean"}
    assert fitted.predictor.experiment.model.family == min(fitted.trials, key=lambda name: fitted.trials[name])
    fitted.predictor.save(tmp_path / "model")
    assert "family: auto" not in (tmp_path / "model" / "experiment.yaml").read_text()


def test_finished_trials_are_not_run_again(tmp_path: Path) -> None:
    wanted = experiment("model.candidates=[filter, mean]")
    first = chosen(wanted, tmp_path)
    seen: list[Progress] = []
    assert chosen(wanted, tmp_path, seen) == first
    assert not seen


def test_a_family_that_diverges_is_out_unless_all_do() -> None:
    rate = "train.learning_rate=1e30"
    found, trials = chosen(experiment("model.candidates=[filter, last]", "train.clip=1e30", rate))
    assert trials["filter"] == float("inf") and found.model.family == "last"
    with pytest.raises(DivergedError, match="each of filter, latent_ode diverged"):
        chosen(experiment("model.candidates=[filter, latent_ode]", "train.clip=1e30", rate))


def test_candidates_are_families() -> None:
    with pytest.raises(ConfigError, match="no family 'lstm'"):
        experiment("model.candidates=[filter, lstm]")
    with pytest.raises(ConfigError, match=r"did you mean .model\.candidates."):
        experiment("model.candidate=[filter]")


def test_trials_are_in_the_card(tmp_path: Path) -> None:
    from pipelines.card import Card
    from pipelines.data import load
    from pipelines.train import run, start

    table = tmp_path / "table.csv"
    ornstein_uhlenbeck(24, 14, rate=0.5, level=3.0, seed=0).to_csv(table, index=False)
    (tmp_path / "experiment.yaml").write_text(experiment("model.candidates=[ridge, last]").to_yaml())
    data = load(table, tmp_path / "experiment.yaml")
    trained = run(data, tmp_path / "model", start(data, tmp_path / "model"), quiet=True)
    assert trained.card.trials.keys() == {"ridge", "last"}
    saved = json.loads((tmp_path / "model" / "card.json").read_text())
    assert Card.model_validate(saved).trials == trained.card.trials


def windows(seed: int = 0) -> list[Window]:
    table = read_table(ornstein_uhlenbeck(24, 14, rate=0.5, level=3.0, seed=seed))
    parts = prepare(table, experiment())
    return training_windows(eligible_origins(parts.series, parts.split.train), experiment().windows)


def line(query: Query) -> Tensor:
    """A function of the context and the lead that the route can be."""
    summary = RecentValues()(query)[0]
    return 0.5 + 0.3 * summary[:, :, None, :, 0] * query.lead[..., None] - 0.2 * summary[:, :, None, :, 8]


def test_the_linear_route_finds_what_is_linear() -> None:
    known = windows()
    answered = [Window(w.query, line(w.query), torch.ones_like(w.mask), w.series) for w in known]
    route = fitted(answered)
    worst = max(float((answers(route, w.query) - w.values).abs().max()) for w in answered)
    assert worst < 0.02


def noisy(size: float, seed: int = 0) -> list[Window]:
    """A line's answers and noise whose variance grows from `size^2` by three times that per horizon."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for w in windows(seed):
        spread = size * (1 + 3 * w.query.lead[..., None]).sqrt()
        mean = line(w.query)
        values = mean + spread * torch.randn(mean.shape, generator=generator)
        found.append(Window(w.query, values, torch.ones_like(w.mask), w.series))
    return found


def fitted(known: list[Window]) -> LinearRoute:
    route, recent = LinearRoute(len(TABLE.channels), RecentValues.size), RecentValues()
    route.fit([recent(w.query)[0] for w in known], known)
    return route.eval()


def answers(route: LinearRoute, query: Query) -> Tensor:
    """Its means."""
    return route(RecentValues()(query)[0], query)


def test_the_linear_route_knows_how_far_off_it_is_on_other_series() -> None:
    route = fitted(noisy(0.1))
    misses, expected = [], []
    for w in noisy(0.1, seed=1):
        misses.append((answers(route, w.query) - w.values).square().mean())
        expected.append(route.deviation(w.query.lead).square().mean())
    assert float((sum(expected) / sum(misses)).sqrt()) == pytest.approx(1, abs=0.15)


def test_the_linear_route_of_a_random_walk_is_its_last_value() -> None:
    def walked(size: float) -> list[Window]:
        lasts = [RecentValues()(w.query)[0][:, :, None, :, 0].expand_as(w.values) for w in windows()]
        noise = torch.Generator().manual_seed(1)
        moved = [last + size * torch.randn(last.shape, generator=noise) for last in lasts]
        return [
            Window(w.query, values, torch.ones_like(w.mask), w.series)
            for w, values in zip(windows(), moved, strict=True)
        ]

    route = fitted(walked(1.0))
    off = torch.cat([(answers(route, w.query) - w.values).flatten() for w in walked(0.0)])
    assert float(off.square().mean().sqrt()) < 0.02


def test_in_training_the_linear_route_answers_by_weights_that_have_not_seen_the_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tsde.models.linear._PENALTIES", (1.0,))  # all answers choose the penalty
    monkeypatch.setattr("tsde.models.linear._STRONGER", ())
    known = noisy(0.1)
    own = [w.query.fold == known[0].query.fold[0, 0] for w in known]
    other = [replace(w, values=w.values + 5.0 * mine[..., None, None]) for w, mine in zip(known, own, strict=True)]
    first, second = (fitted(each).train() for each in (known, other))
    moved = [(answers(first, w.query) - answers(second, w.query)).abs().amax((-1, -2)) for w in known]
    change, mine = torch.cat(moved).flatten(), torch.cat(own).flatten()
    assert change[mine].max() == 0 and change[~mine].max() > 0.5
    assert not torch.equal(answers(first, known[0].query), answers(first.eval(), known[0].query))


@pytest.mark.parametrize("size", [0.02, 0.2])
def test_a_readout_starts_as_sure_as_the_ridge_regression(size: float) -> None:
    torch.manual_seed(0)
    readout = Readout(4, len(TABLE.channels), "quantile", 16, 0.0).eval()
    known = noisy(size)
    readout.prepare(known)
    query = known[0].query
    law = summarise(readout(query, torch.zeros(*query.times.shape, 4)))
    width = law.at(torch.tensor([0.1, 0.9])).diff(dim=-1)[..., 0] / 2.56
    ratio = (width / readout.linear.deviation(query.lead)).detach()
    assert float(ratio.min()) > 0.6 and float(ratio.max()) < 1.6


def test_the_linear_route_goes_no_further_than_two_horizons() -> None:
    query = windows()[0].query
    route, summary = LinearRoute(len(TABLE.channels), RecentValues.size).eval(), RecentValues()(query)[0]
    route.level.weight.normal_(generator=torch.Generator().manual_seed(0))
    leads = (torch.full_like(query.times, lead) + query.origins[..., None] for lead in (1.0, 2.0, 1e6))
    nearer, near, far = (route(summary, replace(query, times=times)) for times in leads)
    assert torch.equal(near, far)
    assert not torch.equal(near, nearer)


def untrained(shaken: float) -> tuple[Filter, list[Window]]:
    """A filter that has learnt nothing but its ridge regression, and windows of other series to validate it on."""
    torch.manual_seed(0)
    model = Filter(FilterConfig(modes=4, width=8, horizon_modes=4), len(TABLE.channels))
    model.prepare(noisy(0.1))
    with torch.no_grad():
        model.readout.out.weight.add_(shaken * torch.randn_like(model.readout.out.weight))
    return model, noisy(0.1, seed=1)


def trusted(model: Filter, validation: list[Window]) -> list[float]:
    """The trust of a member alone: in means, in quantile functions."""
    choose_trust([model.eval()], [validation])
    return model.readout.trust.tolist()


TRUSTS = [round(0.1 * step, 1) for step in range(11)]


def totals(model: Filter, validation: list[Window], trust: float) -> Tensor:
    """Squared errors and CRPS, summed over each series, `(2, series)`, at a trust in both."""
    model.readout.trust.fill_(trust)
    series = torch.cat([window.series for window in validation]).unique()
    found = torch.zeros(2, len(series), dtype=torch.float64)
    with torch.no_grad():
        for window in validation:
            law = summarise(model(window.query))
            both = torch.stack([mse(law.mean, window.values), crps_quantiles(law.values, law.levels, window.values)])
            place = torch.searchsorted(series, window.series)
            found.index_add_(1, place, torch.where(window.mask, both, 0.0).sum((2, 3, 4)).double())
    return found


def test_where_what_was_learnt_is_worthless_the_ridge_regression_answers() -> None:
    model, validation = untrained(shaken=3.0)
    taken = trusted(model, validation)
    assert max(taken) < 0.2
    for place, trust in enumerate(taken):
        chosen = totals(model, validation, trust)[place].sum()
        for other in (0.0, 0.5, 1.0):
            assert chosen <= 1.0001 * totals(model, validation, other)[place].sum()


def test_what_is_right_is_trusted() -> None:
    model, validation = untrained(shaken=0.0)
    model.readout.linear.level.weight.add_(1.0)  # the regression is off, and the gate gives it no weight
    with torch.no_grad():
        model.readout.out.bias[model.readout.recent.routes] = -50.0
    assert trusted(model, validation) == [1.0, 1.0]


@pytest.mark.parametrize("off", [0.03, 0.1])
def test_the_trust_whose_logarithms_of_scores_are_lowest_is_taken(off: float) -> None:
    model, validation = untrained(shaken=0.0)
    model.readout.linear.level.weight.add_(off)
    with torch.no_grad():
        model.readout.out.bias[model.readout.recent.routes] = -50.0
    taken = trusted(model, validation)
    every = torch.stack([totals(model, validation, trust) for trust in TRUSTS], 1)  # (2, trusts, series)
    count = sum(torch.bincount(w.series, w.mask.sum((1, 2, 3)), len(TABLE.ids)) for w in validation).double()
    count = count[count > 0]
    for trust, scores in zip(taken, every, strict=True):
        logs = (scores / count + 0.01 * scores.sum(1, keepdim=True) / count.sum()).log()
        assert trust == pytest.approx(TRUSTS[int((count * logs).sum(1).argmin())])
        assert 0 < trust < 1, "a choice of nothing or all is not tested"


class Told(Forecaster):
    """Series stay at one, a wild one at thirty. What was learnt says nine tenths of it (or what it is told to say),
    three fifths of the wild one's, and what is simple says half of it."""

    trust: Tensor

    def __init__(self, wild: int, spread: float = 0.1, usual: float = 0.9):
        super().__init__()
        self.wild, self.spread, self.usual = wild, spread, usual
        self.register_buffer("trust", torch.ones(2))

    def level(self, query: Query, usual: float, wild: float) -> Tensor:
        chosen = torch.where(query.context.key == self.wild, wild, usual)
        return chosen[:, None, None, None].expand(*query.times.shape, len(TABLE.channels))

    def learnt(self, query: Query) -> Normal:
        return Normal(self.level(query, self.usual, 18.0), self.spread)

    def forward(self, query: Query) -> Quantiles:
        return blend(self.learnt(query), Normal(self.level(query, 0.5, 15.0), 0.1), self.trust)

    def loss(self, window: Window) -> Loss:
        return closed_form_loss(self(window.query), window)


def test_a_wild_series_does_not_make_all_trusts_alike() -> None:
    _, validation = untrained(shaken=0.0)
    model = Told(int(validation[0].query.context.key[0]))
    known = [replace(w, values=model.level(w.query, 1.0, 30.0)) for w in validation]
    choose_trust([model], [known])
    assert model.trust.tolist() == [1.0, 1.0]


def test_members_have_one_trust_which_the_series_of_all_of_them_tell() -> None:
    """Two of three members are right where they were validated, and the third is not."""
    _, validation = untrained(shaken=0.0)
    members = [Told(wild=0) for _ in range(3)]
    right, wrong = (
        [replace(w, values=members[0].level(w.query, level, level)) for w in validation] for level in (1.0, 0.45)
    )
    choose_trust(members, [right, wrong, right])
    together = [member.trust.tolist() for member in members]
    choose_trust(members[1:2], [wrong])
    assert members[1].trust[0] < 0.2 and together == [together[0]] * 3 and together[0][0] > 0.5


def test_a_fold_that_two_members_share_counts_once() -> None:
    _, validation = untrained(shaken=0.0)
    members = [Told(wild=0) for _ in range(3)]
    known = [[replace(w, values=members[0].level(w.query, level, level)) for w in validation] for level in (0.8, 0.6)]
    choose_trust(members, known)  # the first and the third on the first
    shared = members[0].trust.clone()
    choose_trust(members[:2], known)
    assert torch.equal(members[0].trust, shared)


def test_windows_that_nobody_has_seen_have_a_say() -> None:
    _, validation = untrained(shaken=0.0)
    model = Told(wild=0)
    seen, unseen = (
        [replace(w, values=model.level(w.query, level, level)) for w in validation] for level in (0.8, 0.45)
    )
    choose_trust([model], [seen])
    flattered = model.trust.clone()
    choose_trust([model], [seen], unseen)
    assert bool((model.trust < flattered).all()) and bool((model.trust > 0).all())


def test_windows_that_nobody_has_seen_judge_the_average_of_the_members() -> None:
    """Two members miss by more than what is simple does, each to its own side."""
    _, validation = untrained(shaken=0.0)
    members = [Told(wild=0, usual=level) for level in (0.4, 1.6)]
    truth = [replace(w, values=members[0].level(w.query, 1.0, 1.0)) for w in validation]
    choose_trust(members, [], truth)
    assert [member.trust.tolist() for member in members] == [[1.0, 1.0]] * 2
    choose_trust(members[:1], [], truth)
    assert members[0].trust.tolist() == [0.0, 0.0]


def test_means_and_quantiles_are_trusted_apart() -> None:
    _, validation = untrained(shaken=0.0)
    model = Told(wild=0, spread=5.0)
    choose_trust([model], [[replace(w, values=model.level(w.query, 1.0, 1.0)) for w in validation]])
    assert model.trust[0] == 1.0 and model.trust[1] < 0.2


def test_a_single_group_tells_no_error_so_the_best_trust_is_taken() -> None:
    model, validation = untrained(shaken=1.0)
    alone = [replace(w, query=replace(w.query, group=torch.zeros_like(w.query.groups))) for w in validation]
    taken = trusted(model, alone)
    found = torch.stack([totals(model, alone, trust).sum(1) for trust in TRUSTS], 1)  # (2, trusts)
    assert taken == pytest.approx([TRUSTS[int(scores.argmin())] for scores in found])


def test_a_trust_in_between_averages_means_and_quantiles() -> None:
    model, validation = untrained(shaken=0.5)
    model.eval()
    laws = []
    for trust in ([0.0, 0.0], [0.25, 0.75], [1.0, 1.0]):
        model.readout.trust.copy_(torch.tensor(trust))
        laws.append(summarise(model(validation[0].query)))
    simple, between, learnt = laws
    torch.testing.assert_close(between.mean, 0.75 * simple.mean + 0.25 * learnt.mean)
    torch.testing.assert_close(between.values, 0.25 * simple.values + 0.75 * learnt.values)


@pytest.mark.parametrize("family", ["filter", "latent_ode"])
def test_without_trust_a_model_is_its_ridge_regression(family: str) -> None:
    torch.manual_seed(0)
    model = MODELS[family].model(MODELS[family].config(width=8), len(TABLE.channels)).eval()
    model.prepare(noisy(0.1))
    model.readout.trust.fill_(0.0)
    query = noisy(0.1)[0].query
    law, simple = summarise(model(query)), model.readout.linear.law(RecentValues()(query)[0], query)
    shared = torch.tensor([level in LEVELS for level in GRID])  # in between, and farther out, quantiles follow
    torch.testing.assert_close(law.mean, simple.mean)
    torch.testing.assert_close(law.values[..., shared], simple.values[..., shared])
