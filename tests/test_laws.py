"""The laws that every family passes, and that everything around a family keeps.

A family is tested from the moment it stands in `MODELS`. Fields of its configuration that are called as in `SIZES` are
made small; settings that take another road through its code get a line in `VARIANTS`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from tsde.config import Experiment, load_experiment
from tsde.distribution import quantiles, summarise
from tsde.fitting import Fitted, fit_predictor
from tsde.model import Cautious, Forecaster
from tsde.models import MODELS, build
from tsde.models.bend import Bend
from tsde.models.latent_sde import LatentSDE
from tsde.noise import series_keys
from tsde.predictor import Forecasts, Predictor
from tsde.series import SeriesBatch, SeriesSet
from tsde.synthetic import ornstein_uhlenbeck, spirals
from tsde.table import Queries, Table, read_table
from tsde.training import TrainConfig, fit
from tsde.validating import validation_crps
from tsde.windows import Origins, Query, Region, Window, WindowConfig, eligible_origins, fixed_windows

SIZES = {"modes": 6, "width": 8, "hidden": 8, "latent": 4, "control": 4, "horizon_modes": 4, "steps": 6}
SIZES |= {"samples": 3, "train_samples": 2, "blocks": 1, "trees": 20, "smallest_leaf": 4}
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "filter-gaussian": ("filter", {"head": "gaussian"}),
    "filter-harmonics": ("filter", {"harmonics": 2}),
    "ridge-harmonics": ("ridge", {"harmonics": 2}),
    "latent_ode-student_t": ("latent_ode", {"head": "student_t"}),
    "latent_sde-reversible_heun": ("latent_sde", {"method": "reversible_heun"}),
    "latent_sde-linear_noise": ("latent_sde", {"noise": "linear"}),
    "neural_cde-linear_fill": ("neural_cde", {"path": {"fill": "linear"}}),
    "neural_cde-hermite": ("neural_cde", {"path": {"kind": "hermite"}}),
    "neural_cde-rectilinear": ("neural_cde", {"path": {"kind": "rectilinear"}, "solver": {"method": "heun"}}),
    "neural_cde-logsignature_1": ("neural_cde", {"path": {"kind": "logsignature", "depth": 1, "window": 3}}),
    "neural_cde-logsignature_2": ("neural_cde", {"path": {"kind": "logsignature", "depth": 2, "window": 3}}),
}


def settings_of(case: str) -> dict[str, object]:
    """The model section of a configuration, with the family's name."""
    family, changes = VARIANTS.get(case, (case, {}))
    fields = MODELS[family].config.model_fields  # type: ignore[attr-defined]
    return {"family": family} | {name: size for name, size in SIZES.items() if name in fields} | changes


def build_case(case: str) -> Forecaster:
    settings = settings_of(case)
    return build(MODELS[str(settings["family"])].config.model_validate(settings), CHANNELS)  # type: ignore[attr-defined]


CASES = [*MODELS, *VARIANTS]
CHANNELS = 3


# A family by itself


def window(seed: int = 0, sizes: tuple[int, ...] = (9, 5, 12, 7, 10)) -> Window:
    """Contexts of unlike lengths, 60 % observed; three origins each, with rows after the first two of them."""
    generator = torch.Generator().manual_seed(seed)
    batch, length = len(sizes), max(sizes)
    real = torch.arange(length) < torch.tensor(sizes)[:, None]
    gaps = torch.empty(batch, length).exponential_(4.0, generator=generator).clamp(min=0.01) * real
    times = gaps.cumsum(1)
    times = times - times[:, -1:]
    values = torch.randn(batch, length, CHANNELS, generator=generator)
    mask = (torch.rand(values.shape, generator=generator) < 0.6) & real[..., None]
    context = SeriesBatch(
        times, values * mask, mask, series_keys([f"{seed}-{i}" for i in range(batch)], 0), torch.zeros(batch, 0)
    )
    rows = torch.tensor([[size // 2 - 1, size - 2, size - 1] for size in sizes])
    origins = times.gather(1, rows)
    lead = 1.4 * torch.rand(batch, 3, 4, generator=generator) + 0.01
    answers = torch.randn(batch, 3, 4, CHANNELS, generator=generator)
    seen = torch.rand(answers.shape, generator=generator) < 0.7
    return Window(Query(context, origins, origins[..., None] + lead), answers * seen, seen, torch.arange(batch))


def model_of(case: str) -> Forecaster:
    """A prepared model in eval mode; its weights are shaken, so that nothing is hidden by an initial zero or one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_case(case)
        model.prepare([window(seed).per_origin() for seed in range(10, 18)])
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn_like(parameter))
            for part in model.modules():
                if isinstance(part, Cautious):
                    part.trust.copy_(torch.tensor([0.4, 0.7]))
                if isinstance(part, Bend):
                    part.xi[1], part.width[1], part.mu[1], part.sigma[1], part.reach[1] = 0.5, 0.8, -0.4, 0.9, 6.0
    return model.eval()


@pytest.fixture(scope="module", params=CASES)
def model(request: pytest.FixtureRequest) -> Forecaster:
    return model_of(request.param)


def law(model: Forecaster, query: Query) -> Tensor:
    """Mean and quantiles, `(B, K, H, C, 1 + Q)`, as the loop and the predictor ask for them."""
    with torch.no_grad():
        found = summarise(model(query if model.causal else query.per_origin()))
    numbers = torch.cat([found.mean[..., None], found.values], -1)
    return numbers.reshape(*query.times.shape, CHANNELS, -1)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def with_context(query: Query, **changes: Tensor) -> Query:
    return replace(query, context=replace(query.context, **changes))


def rows_of(query: Query, batch: Tensor | slice) -> Query:
    context = query.context
    return Query(
        SeriesBatch(
            context.times[batch], context.values[batch], context.mask[batch], context.key[batch], context.static[batch]
        ),
        query.origins[batch],
        query.times[batch],
    )


def truncated(query: Query, length: int) -> Query:
    context = query.context
    return with_context(
        query, times=context.times[:, :length], values=context.values[:, :length], mask=context.mask[:, :length]
    )


def padded(query: Query, rows: int) -> Query:
    context = query.context
    return with_context(
        query,
        times=torch.cat([context.times, context.times[:, -1:].expand(-1, rows)], 1),
        values=torch.cat([context.values, context.values.new_zeros(len(context.values), rows, CHANNELS)], 1),
        mask=torch.cat([context.mask, context.mask.new_zeros(len(context.mask), rows, CHANNELS)], 1),
    )


def total(model: Forecaster, asked: Window) -> Tensor:
    loss = model.loss(asked if model.causal else asked.per_origin())
    return loss.score + loss.kl


def test_shape(model: Forecaster) -> None:
    query = window().query
    for each in [query, query.per_origin()] if model.causal else [query.per_origin()]:
        found = model(each)
        assert found.batch_shape == (*each.times.shape, CHANNELS)
        assert found.mean.shape == found.batch_shape


def test_loss_is_finite_and_its_gradient_reaches_every_parameter(model: Forecaster) -> None:
    model.zero_grad()
    model.train()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            loss = total(model, window(sizes=(9, 5, 12, 7, 10, 20, 3, 14)))
        assert loss.shape == () and torch.isfinite(loss)
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if trainable:
            loss.backward()
        assert not [name for name, p in trainable.items() if p.grad is None], "not reached"
        assert not [name for name, p in trainable.items() if not torch.isfinite(p.grad).all()], "not finite"
        assert not [name for name, p in trainable.items() if not p.grad.any()], "all zero"
    finally:
        model.zero_grad()
        model.eval()


def test_loss_has_parts_per_observed_target(model: Forecaster) -> None:
    """Twice the same batch is the same loss: parts are means, not sums."""
    asked = window()
    context = asked.query.context
    double = Window(
        Query(
            SeriesBatch(
                *(torch.cat([x, x]) for x in (context.times, context.values, context.mask, context.key, context.static))
            ),
            torch.cat([asked.query.origins] * 2),
            torch.cat([asked.query.times] * 2),
        ),
        torch.cat([asked.values] * 2),
        torch.cat([asked.mask] * 2),
        torch.cat([asked.series] * 2),
    )
    with torch.no_grad():
        close(total(model, double), total(model, asked))


@pytest.mark.parametrize("rows", [1, 5])
def test_padding_changes_nothing(model: Forecaster, rows: int) -> None:
    query = window().query
    close(law(model, padded(query, rows)), law(model, query))


@pytest.mark.parametrize("junk", [1e3, -1e30, math.nan, math.inf])
def test_junk_under_a_false_mask_changes_nothing(model: Forecaster, junk: float) -> None:
    asked = window()
    context = asked.query.context
    query = with_context(asked.query, values=torch.where(context.mask, context.values, junk))
    close(law(model, query), law(model, asked.query))


def test_junk_beside_the_answers_changes_neither_loss_nor_gradient(model: Forecaster) -> None:
    asked = window()
    context = asked.query.context
    spoilt = Window(
        with_context(asked.query, values=torch.where(context.mask, context.values, math.nan)),
        torch.where(asked.mask, asked.values, 1e3),
        asked.mask,
        asked.series,
    )
    trainable = [p for p in model.parameters() if p.requires_grad]
    gradients = []
    for each in (asked, spoilt):
        loss = total(model, each)
        gradients.append([loss.detach(), *(torch.autograd.grad(loss, trainable) if trainable else ())])
    for found, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_batch_equals_its_members_one_by_one(model: Forecaster) -> None:
    """Each with its own clock, and without the padding that the others brought."""
    sizes = (9, 5, 12, 7, 10)
    query = window(sizes=sizes).query
    whole = law(model, query)
    for number, size in enumerate(sizes):
        alone = truncated(rows_of(query, slice(number, number + 1)), size)
        close(law(model, alone), whole[number : number + 1])


def test_origins_together_equal_each_alone(model: Forecaster) -> None:
    query = window().query
    together, apart = law(model, query), law(model, query.per_origin())
    close(apart.reshape(together.shape), together)
    for k in range(query.origins.shape[1]):
        alone = Query(query.context, query.origins[:, k : k + 1], query.times[:, k : k + 1])
        close(law(model, alone), together[:, k : k + 1])


def test_no_origin_sees_the_rows_after_it(model: Forecaster) -> None:
    """Rows after an origin are removed, or replaced by others at other times: nothing moves."""
    query = window().query
    whole, context = law(model, query), query.context
    for k in range(2):
        asked = Query(context, query.origins[:, k : k + 1], query.times[:, k : k + 1])
        later = context.times > asked.origins
        assert later.any(1).all()
        other = with_context(
            asked,
            times=torch.where(later, asked.origins + 3 * (context.times - asked.origins), context.times),
            values=torch.where(later[..., None], 5 - 3 * context.values, context.values),
            mask=torch.where(later[..., None], ~context.mask, context.mask),
        )
        close(law(model, other), whole[:, k : k + 1])
        for number in range(len(later)):
            length = int((~later[number]).sum())
            alone = truncated(rows_of(asked, slice(number, number + 1)), length)
            close(law(model, alone), whole[number : number + 1, k : k + 1])


def test_the_past_matters(model: Forecaster, request: pytest.FixtureRequest) -> None:
    """The laws above would hold for a model that reads nothing."""
    if request.node.callspec.params["model"] == "mean":
        return
    query = window().query
    moved = with_context(query, values=query.context.values + 0.5)
    change = (law(model, moved) - law(model, query)).abs().amax((2, 3, 4))
    assert (change > 1e-3).all()


def test_some_of_the_query_times_give_some_of_the_marginals(model: Forecaster) -> None:
    query = window().query
    whole = law(model, query)
    for chosen in ([2], [3, 0], [1, 1, 2]):
        close(law(model, replace(query, times=query.times[:, :, chosen])), whole[:, :, chosen])
    beside = torch.cat([query.times, query.origins[..., None] + 3.3], 2)
    close(law(model, replace(query, times=beside))[:, :, :-1], whole)


def test_a_shift_of_the_clock_changes_nothing(model: Forecaster) -> None:
    query = window().query
    shifted = Query(replace(query.context, times=query.context.times + 4.0), query.origins + 4.0, query.times + 4.0)
    torch.testing.assert_close(law(model, shifted), law(model, query), rtol=1e-4, atol=1e-4)


def test_quantiles_are_monotone_and_finite(model: Forecaster) -> None:
    query = window().query
    with torch.no_grad():
        found = model(query if model.causal else query.per_origin())
    q = quantiles(found, torch.tensor([1e-6, 1e-3, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1 - 1e-6]))
    assert torch.isfinite(q).all() and torch.isfinite(found.mean).all()
    assert (q.diff(dim=-1) >= 0).all() and (q[..., -1] > q[..., 0]).all()


def sound(model: Forecaster, asked: Window) -> None:
    """Finite forecasts, loss and gradient."""
    assert torch.isfinite(law(model, asked.query)).all()
    loss = total(model, asked)
    assert torch.isfinite(loss)
    trainable = [p for p in model.parameters() if p.requires_grad]
    if trainable:
        gradient = torch.autograd.grad(loss, trainable, allow_unused=True)
        assert all(torch.isfinite(g).all() for g in gradient if g is not None)


@pytest.mark.parametrize("what", ["channel", "row", "series", "everything"])
def test_what_was_never_observed_is_no_obstacle(model: Forecaster, what: str) -> None:
    asked = window()
    mask = asked.query.context.mask.clone()
    if what == "channel":
        mask[:, :, 1] = False
    elif what == "row":
        mask[:, 2] = False
    elif what == "series":
        mask[3] = False
    else:
        mask[:] = False
    context = replace(asked.query.context, mask=mask, values=asked.query.context.values * mask)
    sound(model, replace(asked, query=replace(asked.query, context=context)))


def test_a_single_observation_is_enough(model: Forecaster) -> None:
    """One row, one value; also a batch without a single observed answer, and one answered at once or far ahead."""
    asked = window(sizes=(9, 5))
    context = asked.query.context
    values, mask = torch.zeros(2, 1, CHANNELS), torch.zeros(2, 1, CHANNELS, dtype=torch.bool)
    values[:, 0, 1], mask[:, 0, 1] = 1.5, True
    one = SeriesBatch(torch.zeros(2, 1), values, mask, context.key, context.static)
    lead = torch.tensor([[[0.0, 1e-6, 1.0, 4.0]]]).expand(2, 1, 4)
    single = Window(Query(one, torch.zeros(2, 1), lead), asked.values[:, :1], asked.mask[:, :1], asked.series)
    sound(model, single)
    sound(model, replace(single, mask=torch.zeros_like(single.mask)))


@pytest.mark.parametrize("size", [1e2, 1e6])
def test_wild_values_are_survived(model: Forecaster, size: float) -> None:
    asked = window()
    sound(model, replace(asked, query=with_context(asked.query, values=asked.query.context.values * size)))


def test_times_may_be_close_or_far_apart(model: Forecaster) -> None:
    asked = window()
    for factor in (1e-6, 1e3):
        context = asked.query.context
        origins = asked.query.origins * factor
        query = Query(replace(context, times=context.times * factor), origins, origins[..., None] + asked.query.lead)
        sound(model, replace(asked, query=query))


def test_evaluation_is_a_function(model: Forecaster) -> None:
    """No hidden draw: the same question has the same answer, whatever the global generator."""
    query = window().query
    torch.manual_seed(1)
    first = law(model, query)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(law(model, query), first)
    assert torch.equal(torch.get_rng_state(), state)


def series_of(times: np.ndarray, values: np.ndarray, seed: int) -> SeriesSet:
    """Times `(N, L)` and values `(N, L, C)`, a fifth of them lost."""
    count, length, channels = values.shape
    found = torch.from_numpy(values.copy()).float().flatten(0, 1)
    mask = torch.rand(found.shape, generator=torch.Generator().manual_seed(seed)) < 0.8
    keys = series_keys([f"{seed}-{i}" for i in range(count)], 0)
    offsets = torch.arange(count + 1) * length
    return SeriesSet(offsets, torch.from_numpy(times.flatten()), found * mask, mask, keys)


def random_walks(count: int, seed: int) -> SeriesSet:
    """Ornstein-Uhlenbeck processes of deviation one; two channels follow one another, the third is its own."""
    frames = [ornstein_uhlenbeck(count, 20, rate=0.3, noise=math.sqrt(0.6), seed=seed + s) for s in (0, 7)]
    times = frames[0]["ds"].to_numpy().reshape(count, 20)
    first, second = (frame["y"].to_numpy().reshape(count, 20) for frame in frames)
    return series_of(times, np.stack([first, 0.9 * first, second], -1), seed)


def oscillations(count: int, seed: int) -> SeriesSet:
    """Half a turn per horizon, at which neither the last value nor the mean is of use."""
    random = np.random.default_rng(seed)
    times = random.exponential(0.25, (count, 20)).cumsum(1)
    phase = random.uniform(0, 2 * np.pi, (count, 1, CHANNELS))
    return series_of(times, 1.4 * np.sin(np.pi * times[..., None] + phase), seed)


def origins_of(series: SeriesSet) -> Origins:
    infinity = torch.full((len(series),), math.inf, dtype=torch.float64)
    return eligible_origins(series, Region(-infinity, infinity))


@pytest.mark.parametrize("case", CASES)
def test_learning_helps(case: str) -> None:
    """Twenty steps lower the loss on series not trained on; what is fitted in closed form beats the mean at once."""
    learns = any(p.requires_grad for p in build_case(case).parameters())
    data, settings = oscillations if learns else random_walks, WindowConfig(origins=3, targets=4, held_out=40)
    train, held = origins_of(data(24, 0)), fixed_windows(origins_of(data(12, 100)), settings)
    prepared = fixed_windows(train, settings.model_copy(update={"held_out": 200}))

    def fresh(name: str) -> Forecaster:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            made = build_case(name)
        made.prepare(prepared)
        return made.eval()

    def score(each: Forecaster) -> float:
        with torch.no_grad():
            return float(torch.stack([total(each, w) for w in held]).mean())

    pupil = fresh(case)
    before = score(pupil)
    if learns:
        config = TrainConfig(steps=20, batch=8, warmup=0, average=0.0, kl_warmup=0.0, validate_every=20)
        fit(pupil, train, held, settings, config, seed=0)
        assert score(pupil) < before
    elif case != "mean":
        assert validation_crps(pupil, held) < 0.9 * validation_crps(fresh("mean"), held)
    else:
        targets = torch.cat([w.values[w.mask] for w in prepared])
        assert float(pupil(held[0].query).mean.mean()) == pytest.approx(float(targets.mean()), abs=0.1)


# A family in service


STEPS = ["train.steps=5", "train.members=2", "train.workers=1", "train.validate_every=5", "train.batch=6"]
HORIZON = 0.5


def experiment_of(case: str) -> Experiment:
    held = ["windows.held_out=12", "windows.origins=3", "split.by=series", "calibration.shrinkage=2"]
    return load_experiment(None, [*STEPS, *held], horizon=HORIZON, seed=1, model=settings_of(case))


def history(count: int = 12) -> pd.DataFrame:
    """Spirals with a third channel, seldom seen, and a tenth of the values missing; 13 rows each."""
    frame = spirals(count, 13, seed=4, missing=0.1, noise=0.1)
    random = np.random.default_rng(2)
    frame["z"] = np.where(random.random(len(frame)) < 0.3, frame["x"].fillna(0) ** 2 + 3, np.nan)
    return frame


TABLE = read_table(history())


@pytest.fixture(scope="module", params=[*MODELS, "neural_cde-logsignature_2"])
def fitted(request: pytest.FixtureRequest) -> Fitted:
    return fit_predictor(TABLE, experiment_of(request.param))


@pytest.fixture(scope="module")
def predictor(fitted: Fitted) -> Predictor:
    return fitted.predictor


def ask(table: Table, leads: list[float]) -> Queries:
    """The same leads after the last row of every series."""
    last = table.times[table.offsets[1:] - 1]
    return questions(np.repeat(table.ids, len(leads)), (last[:, None] + np.array(leads)).ravel())


def questions(ids: np.ndarray, times: np.ndarray) -> Queries:
    return Queries(np.asarray(ids, object), np.asarray(times, float), np.array([str(t) for t in times], object))


def part(queries: Queries, chosen: np.ndarray) -> Queries:
    return Queries(queries.ids[chosen], queries.times[chosen], queries.labels[chosen])


def numbers(found: Forecasts) -> np.ndarray:
    """Mean, quantiles and samples of each query, `(M, C, ...)`."""
    law = np.concatenate([found.law.mean.numpy()[..., None], found.law.values.numpy()], -1)
    return law if found.samples is None else np.concatenate([law, np.moveaxis(found.samples, 0, -1)], -1)


LEADS = [0.03, 0.11, 0.21, 0.3, 0.42]


def test_forecasts_are_sound(predictor: Predictor) -> None:
    found = predictor.answer(TABLE, ask(TABLE, [*LEADS, HORIZON, 1.7 * HORIZON, 50 * HORIZON]), samples=3)
    assert np.isfinite(numbers(found)).all()
    assert (found.law.values.diff(dim=-1) >= 0).all()
    assert found.status.reshape(-1, 8).tolist() == [["ok"] * 6 + ["beyond_horizon"] * 2] * TABLE.n_series
    assert found.law.values.dtype == torch.float64 and found.samples is not None
    assert found.samples.shape == (3, len(found.status), 3)


def test_rows_may_come_in_any_order(predictor: Predictor) -> None:
    shuffled = read_table(history().sample(frac=1, random_state=3))
    queries = ask(TABLE, LEADS)
    expected = numbers(predictor.answer(TABLE, queries, samples=2))
    assert np.array_equal(numbers(predictor.answer(shuffled, queries, samples=2)), expected)
    turned = TABLE.select(np.arange(TABLE.n_series)[::-1])
    assert np.array_equal(numbers(predictor.answer(turned, queries, samples=2)), expected)


def test_queries_may_come_in_any_order(predictor: Predictor) -> None:
    queries = ask(TABLE, [*LEADS, HORIZON, HORIZON])
    expected = numbers(predictor.answer(TABLE, queries, samples=2))
    order = np.random.default_rng(0).permutation(len(queries.ids))
    assert np.array_equal(numbers(predictor.answer(TABLE, part(queries, order), samples=2)), expected[order])


def test_a_series_is_forecast_alike_beside_others_and_alone(predictor: Predictor) -> None:
    """Bit for bit: the table and the questions in two halves, and one series alone."""
    queries = ask(TABLE, LEADS)
    whole = numbers(predictor.answer(TABLE, queries, samples=2)).reshape(TABLE.n_series, len(LEADS), 3, -1)
    for chosen in (np.arange(5), np.arange(5, TABLE.n_series), np.array([7])):
        some = TABLE.select(chosen)
        found = numbers(predictor.answer(some, ask(some, LEADS), samples=2)).reshape(len(chosen), len(LEADS), 3, -1)
        assert np.array_equal(found, whole[chosen])


@pytest.mark.parametrize(("count", "cut"), [(6, 3), (12, 6), (40, 12)], ids=["6=3+3", "12=6+6", "40=12+28"])
def test_questions_of_a_series_may_be_asked_in_parts(predictor: Predictor, count: int, cut: int) -> None:
    """Bit for bit, whatever number of questions goes with the others."""
    leads = [HORIZON * (i + 0.37) / count for i in range(count)]
    queries = ask(TABLE, leads)
    whole = numbers(predictor.answer(TABLE, queries, samples=2))
    first = np.tile(np.arange(count) < cut, TABLE.n_series)
    for chosen in (first, ~first):
        assert np.array_equal(numbers(predictor.answer(TABLE, part(queries, chosen), samples=2)), whole[chosen])


@pytest.mark.parametrize("lead", [HORIZON, HORIZON * (1 + 1e-7), 2 * HORIZON, HORIZON / 6])
def test_a_question_further_ahead_changes_no_other_answer(predictor: Predictor, lead: float) -> None:
    """Bit for bit, also where the lead is a whole number of solver steps; asked of the same series or of another."""
    queries = ask(TABLE, [lead])
    expected = numbers(predictor.answer(TABLE, queries))
    last = TABLE.times[TABLE.offsets[1:] - 1]
    further = questions(np.append(queries.ids, TABLE.ids[0]), np.append(queries.times, last[0] + 3.3 * HORIZON))
    assert np.array_equal(numbers(predictor.answer(TABLE, further))[:-1], expected)


def test_long_histories_beside_short_ones_change_nothing(predictor: Predictor) -> None:
    """Series of 1, 9, 70 and 150 rows: a neighbour's length is not padding for the others."""
    frame = spirals(4, 150, seed=6, noise=0.1).assign(z=3.0)
    sizes = (1, 9, 70, 150)
    keep = np.concatenate([np.arange(150 - size, 150) + 150 * n for n, size in enumerate(sizes)])
    table = read_table(frame.iloc[keep])
    whole = numbers(predictor.answer(table, ask(table, LEADS))).reshape(4, len(LEADS), 3, -1)
    for number in range(4):
        alone = table.select(np.array([number]))
        assert np.array_equal(numbers(predictor.answer(alone, ask(alone, LEADS))), whole[number])


def test_histories_of_one_batch_end_where_they_like(predictor: Predictor) -> None:
    """Series of 17 to 31 rows, padded to as many as the longest beside them: bit for bit as alone."""
    sizes = (31, 17, 24, 20)
    frame = spirals(4, 40, seed=6, noise=0.1, missing=0.2).assign(z=3.0)
    table = read_table(frame.iloc[np.concatenate([np.arange(40 * n, 40 * n + size) for n, size in enumerate(sizes)])])
    whole = numbers(predictor.answer(table, ask(table, LEADS))).reshape(4, len(LEADS), 3, -1)
    for number in range(4):
        alone = table.select(np.array([number]))
        assert np.array_equal(numbers(predictor.answer(alone, ask(alone, LEADS))), whole[number])


def test_nothing_after_a_question_is_read(predictor: Predictor) -> None:
    """Between two rows: later rows may change, or be missing, and not a bit moves."""
    for row in (1, 6, 11):
        rows = TABLE.offsets[:-1] + row
        when = (TABLE.times[rows] + TABLE.times[rows - 1]) / 2
        queries = questions(TABLE.ids, when)
        expected = numbers(predictor.answer(TABLE, queries))
        later = TABLE.times >= when[TABLE.row_series]
        changed = replace(TABLE, values=np.where(later[:, None], 7.0 - TABLE.values, TABLE.values))
        assert np.array_equal(numbers(predictor.answer(changed, queries)), expected)
        cut = replace(
            TABLE,
            offsets=np.arange(TABLE.n_series + 1) * row,
            times=TABLE.times[~later],
            values=TABLE.values[~later],
        )
        assert np.array_equal(numbers(predictor.answer(cut, queries)), expected)


def test_a_question_for_the_time_of_a_row_does_not_read_that_row(predictor: Predictor) -> None:
    """A forecast for time t uses the rows before t, or a backtest would be told its answers."""
    for row in (1, 6, 12):
        rows = TABLE.offsets[:-1] + row
        queries = questions(TABLE.ids, TABLE.times[rows])
        found = predictor.answer(TABLE, queries)
        values = TABLE.values.copy()
        values[rows] = 7.0 - values[rows]
        assert np.array_equal(numbers(predictor.answer(replace(TABLE, values=values), queries)), numbers(found))
        assert (found.status == "past").all()


def test_a_shift_of_all_times_changes_nothing(predictor: Predictor) -> None:
    expected = numbers(predictor.answer(TABLE, ask(TABLE, LEADS), samples=0))
    for shift in (-12345.0, 1e6):
        moved = replace(TABLE, times=TABLE.times + shift)
        found = numbers(predictor.answer(moved, ask(moved, LEADS)))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_rescaled_channels_have_rescaled_forecasts(predictor: Predictor, request: pytest.FixtureRequest) -> None:
    """Fitted again on a table in other units, with other zeros."""
    unit, zero = np.array([1000.0, 0.01, 3e-6]), np.array([500.0, -3.0, 0.0])
    moved = replace(TABLE, values=TABLE.values * unit + zero)
    again = fit_predictor(moved, experiment_of(request.node.callspec.params["fitted"])).predictor
    expected = numbers(predictor.answer(TABLE, ask(TABLE, LEADS)))
    found = numbers(again.answer(moved, ask(moved, LEADS)))
    back = (found - zero[:, None]) / unit[:, None]
    np.testing.assert_allclose(back, expected, rtol=1e-3, atol=1e-3)


def test_saved_and_loaded_it_forecasts_the_same(predictor: Predictor, tmp_path: Path) -> None:
    queries = ask(TABLE, [*LEADS, HORIZON, 3.0])
    predictor.save(tmp_path / "model")
    loaded = Predictor.load(tmp_path / "model")
    assert np.array_equal(
        numbers(loaded.answer(TABLE, queries, seed=5, samples=2)),
        numbers(predictor.answer(TABLE, queries, seed=5, samples=2)),
    )
    pd.testing.assert_frame_equal(
        loaded.forecast(TABLE, HORIZON, HORIZON / 5, levels=[50, 95]),
        predictor.forecast(TABLE, HORIZON, HORIZON / 5, levels=[50, 95]),
    )
    assert loaded.experiment == predictor.experiment and set(loaded.baselines) == set(predictor.baselines)
    for name, baseline in predictor.baselines.items():
        assert np.array_equal(
            numbers(loaded.baselines[name].answer(TABLE, queries)), numbers(baseline.answer(TABLE, queries))
        )


def test_samples_follow_from_the_seed(predictor: Predictor) -> None:
    queries = ask(TABLE, LEADS)
    first, again, other = (predictor.answer(TABLE, queries, seed=seed, samples=20).samples for seed in (1, 1, 2))
    assert first is not None and again is not None and other is not None
    assert np.array_equal(first, again)
    assert (first != other).mean() > 0.9  # a law with ties may draw a value twice
    more = predictor.answer(TABLE, queries, seed=1, samples=30).samples
    assert more is not None and more.shape == (30, *first.shape[1:])


def test_samples_have_the_law_of_the_forecast(predictor: Predictor) -> None:
    """Also in the tails: one in 500 lies below the quantile of level 0.002."""
    some = TABLE.select(np.arange(4))
    count = 3000
    found = predictor.answer(some, ask(some, [0.11, 0.42]), samples=count)
    assert found.samples is not None
    for level in (0.002, 0.05, 0.5, 0.95, 0.998):
        bound = found.law.at(torch.tensor([level], dtype=torch.float64))[..., 0].numpy()
        error = 5 * math.sqrt(level * (1 - level) / (count * bound.size))
        assert (found.samples < bound).mean() - error < level < (found.samples <= bound).mean() + error


def test_the_same_seed_gives_the_same_predictor(predictor: Predictor, request: pytest.FixtureRequest) -> None:
    """Fitted again on the shuffled table, whatever the global generators say."""
    torch.manual_seed(99)
    np.random.seed(99)
    case = request.node.callspec.params["fitted"]
    again = fit_predictor(read_table(history().sample(frac=1, random_state=8)), experiment_of(case)).predictor
    queries = ask(TABLE, LEADS)
    assert np.array_equal(numbers(again.answer(TABLE, queries)), numbers(predictor.answer(TABLE, queries)))


def test_where_nothing_is_known_the_answer_is_the_marginal(predictor: Predictor) -> None:
    """Before the first row, for an unknown series, and after rows that observed nothing."""
    blank = TABLE.values.copy()
    blank[: TABLE.offsets[1]] = np.nan
    table = replace(TABLE, values=blank)
    times = [TABLE.times[0] + 1, TABLE.times[TABLE.offsets[1]] - 1, 5.0]
    found = predictor.answer(table, questions(np.array([TABLE.ids[0], TABLE.ids[1], "nobody"]), np.array(times)))
    assert found.status.tolist() == ["no_history"] * 3
    marginal = predictor.scaler.undo(predictor.marginal)
    for number in range(3):
        torch.testing.assert_close(found.law.values[number], marginal.values)
        torch.testing.assert_close(found.law.mean[number], marginal.mean)


# One family


def test_path_kl_of_the_latent_sde_is_its_integral() -> None:
    """A constant control u over the time T has 1/2 |u|^2 T, and a start N(m, 1) has 1/2 |m|^2, per observed target."""
    model = build_case("latent_sde").family.family
    assert isinstance(model, LatentSDE)
    asked = window()
    last, moments = model.control[-1], model.initial.moments
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.linspace(-1, 1, len(last.bias)))
        moments.weight.zero_()
        mean, raw = moments.bias.chunk(2)
        mean.fill_(0.3)
        raw.fill_(1 + math.log(math.expm1(1 - 1e-4)))  # softplus(raw - 1) + 1e-4 = 1
        loss = model.eval().loss(asked)
    steps = model.config.steps
    time = math.ceil(float(asked.query.lead.max()) * steps - 1e-4) / steps
    pairs, observed = asked.query.origins.numel(), int(asked.mask.sum())
    expected = 0.5 * float(last.bias.detach().square().sum()) * time + 0.5 * 0.3**2 * len(mean)
    assert float(loss.kl) == pytest.approx(expected * pairs / observed, rel=1e-4)
