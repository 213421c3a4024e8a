"""The one loop: repeatable, resumable, bounded, stopped early, and left with its best weights."""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal

from tsde import training
from tsde.artifact import write_files
from tsde.errors import ArtifactError, DivergedError
from tsde.model import Forecaster, Loss
from tsde.models import MODELS, build
from tsde.noise import series_keys
from tsde.series import SeriesSet
from tsde.training import Progress, TrainConfig, divergence, fit
from tsde.validating import validation_crps
from tsde.windows import Origins, Query, Region, Window, WindowConfig, eligible_origins, fixed_windows

WINDOWS = WindowConfig(origins=2, targets=4, thinning=0.3, held_out=16)
SIZES = {"modes": 4, "width": 8, "hidden": 8, "latent": 4, "control": 3, "horizon_modes": 3, "steps": 3}
SIZES |= {"samples": 2, "train_samples": 2}
TRAINED = [
    name
    for name, family in MODELS.items()
    if name != "boosting"  # which may not be installed, and takes no steps
    and any(parameter.requires_grad for parameter in family.model(family.config(), 1).parameters())
]


def walks(count: int, seed: int) -> SeriesSet:
    """Slow oscillations of two channels, seen 12 times over about 3 horizons, 70 % observed."""
    random = np.random.default_rng(seed)
    times = random.exponential(0.3, (count, 12)).cumsum(1)
    phase = random.uniform(0, 2 * np.pi, (count, 1, 2))
    values = torch.from_numpy(np.sin(2 * times[..., None] + phase)).float().flatten(0, 1)
    mask = torch.from_numpy(random.random((count * 12, 2)) < 0.7)
    offsets = torch.arange(count + 1) * 12
    keys = series_keys([f"{seed}-{i}" for i in range(count)], 0)
    return SeriesSet(offsets, torch.from_numpy(times.ravel()), torch.where(mask, values, 0.0), mask, keys)


def origins_of(series: SeriesSet) -> Origins:
    infinity = torch.full((len(series),), math.inf, dtype=torch.float64)
    return eligible_origins(series, Region(-infinity, infinity))


ORIGINS = origins_of(walks(16, 0))
VALIDATION = fixed_windows(origins_of(walks(6, 1)), WINDOWS)


def config(**changes: object) -> TrainConfig:
    default = {"steps": 12, "batch": 4, "validate_every": 4, "warmup": 2, "average": 0.8}
    return TrainConfig.model_validate(default | changes)


def fresh(family: str = "filter", seed: int = 0) -> Forecaster:
    config_type = MODELS[family].config
    sizes = {name: size for name, size in SIZES.items() if name in config_type.model_fields}  # type: ignore[attr-defined]
    torch.manual_seed(seed)
    return build(config_type(**sizes), 2)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def train(
    model: Forecaster,
    settings: TrainConfig,
    seed: int = 0,
    checkpoint: Path | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    budget: float | None = None,
) -> list[dict[str, float]]:
    return fit(model, ORIGINS, VALIDATION, WINDOWS, settings, seed, budget=budget, checkpoint=checkpoint, report=report)


def without_clock(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "elapsed"} for row in history]


class Interrupted(Exception):
    pass


def interrupt_after(count: int) -> Callable[[Progress], None]:
    seen: list[Progress] = []

    def report(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == count:
            raise Interrupted

    return report


class Scripted(Forecaster):
    """One weight; its loss in training is `script(step, weight)`, its forecast N(weight, 1)."""

    def __init__(self, script: Callable[[int, Tensor], Loss]):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.script, self.step = script, 0

    def forward(self, query: Query) -> Distribution:
        mean = self.weight.expand(*query.times.shape, 2)
        return Normal(mean, torch.ones_like(mean), validate_args=False)

    def loss(self, window: Window) -> Loss:
        self.step += 1
        return self.script(self.step, self.weight)


def pull(step: int, weight: Tensor) -> Loss:
    return Loss((weight - 5).square().sum(), weight.new_zeros(()))


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], list[dict[str, Tensor]]]:
    """Validation scores read from a list; returns the weights that were validated, in order."""

    def install(scores: list[float]) -> list[dict[str, Tensor]]:
        validated: list[dict[str, Tensor]] = []
        remaining: Iterator[float] = iter(scores)

        def score(model: Forecaster, windows: object) -> float:
            assert not model.training
            validated.append(weights(model))
            return next(remaining)

        monkeypatch.setattr(training, "validation_crps", score)
        return validated

    return install


Install = Callable[[list[float]], list[dict[str, Tensor]]]


@pytest.mark.parametrize("family", TRAINED)
def test_same_seed_same_weights(family: str) -> None:
    """Bit for bit, whatever was drawn from the global generator before; dropout and sampled states included."""
    first, second, other = fresh(family), fresh(family), fresh(family)
    torch.manual_seed(1)
    one = train(first, config(steps=4))
    torch.manual_seed(2)
    two = train(second, config(steps=4))
    train(other, config(steps=4), seed=1)
    assert same(weights(first), weights(second)) and without_clock(one) == without_clock(two)
    assert not same(weights(first), weights(other)) and not same(weights(first), weights(fresh(family)))


def test_training_leaves_the_global_generator_alone() -> None:
    """Also when it is interrupted."""
    for report in (interrupt_after(99), interrupt_after(1)):
        model = fresh()
        state = torch.get_rng_state()
        with suppress(Interrupted):
            train(model, config(steps=4), report=report)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("family", "after"), [*((family, 1) for family in TRAINED), ("filter", 2)])
def test_a_resumed_run_is_the_undisturbed_run(family: str, after: int, tmp_path: Path) -> None:
    whole, broken = fresh(family), fresh(family)
    history = train(whole, config(steps=9, validate_every=3))
    with pytest.raises(Interrupted):
        train(broken, config(steps=9, validate_every=3), checkpoint=tmp_path / "state", report=interrupt_after(after))
    resumed = fresh(family, seed=9)  # all of its weights come from the checkpoint
    torch.manual_seed(77)
    steps: list[int] = []
    found = train(
        resumed,
        config(steps=9, validate_every=3),
        checkpoint=tmp_path / "state",
        report=lambda progress: steps.append(progress.step),
    )
    assert same(weights(resumed), weights(whole))
    assert without_clock(found) == without_clock(history)
    assert steps == [3 * (after + 1 + i) for i in range(3 - after)]


def test_a_resumed_run_remembers_its_best_weights(scripted: Install, tmp_path: Path) -> None:
    """The best validation may lie before the interruption, and what was stale goes on being stale."""
    validated = scripted([1.0, 0.2, 0.6, 0.5, 0.4, 0.3])
    settings = config(steps=40, patience=4)
    with pytest.raises(Interrupted):
        train(Scripted(pull), settings, checkpoint=tmp_path / "state", report=interrupt_after(3))
    resumed = Scripted(pull)
    history = train(resumed, settings, checkpoint=tmp_path / "state")
    assert same(weights(resumed), validated[1])
    assert [row["best"] for row in history] == [1.0, 0.2, 0.2, 0.2, 0.2, 0.2]


def test_a_run_interrupted_twice_is_the_undisturbed_run(tmp_path: Path) -> None:
    whole = fresh()
    train(whole, config(steps=10, validate_every=3))
    for _ in range(2):
        with pytest.raises(Interrupted):
            train(fresh(), config(steps=10, validate_every=3), checkpoint=tmp_path / "state", report=interrupt_after(1))
    resumed = fresh()
    train(resumed, config(steps=10, validate_every=3), checkpoint=tmp_path / "state")
    assert same(weights(resumed), weights(whole))


def test_a_finished_run_resumes_to_its_result(tmp_path: Path) -> None:
    first, again = fresh(), fresh(seed=1)
    train(first, config(), checkpoint=tmp_path / "state")
    history = train(again, config(), checkpoint=tmp_path / "state", report=interrupt_after(1))
    assert same(weights(again), weights(first)) and len(history) == 3


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    train(fresh(), config(steps=4), checkpoint=tmp_path / "state")
    (tmp_path / "state" / "state.json").write_text(json.dumps({"step": 1}))
    with pytest.raises(ArtifactError, match="SHA-256"):
        train(fresh(), config(), checkpoint=tmp_path / "state")


def test_a_checkpoint_of_another_program_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path / "state", {"state.json": b'{"seed": 0, "epoch": 1}'}, {})
    with pytest.raises(ArtifactError, match="no checkpoint of this version"):
        train(fresh(), config(), checkpoint=tmp_path / "state")


def test_a_checkpoint_of_another_seed_is_not_taken_up_in_silence(tmp_path: Path) -> None:
    """A folder that was left behind must not turn the run of one seed into that of another."""
    train(fresh(), config(), seed=0, checkpoint=tmp_path / "state")
    asked, expected = fresh(), fresh()
    train(expected, config(), seed=1)
    try:
        train(asked, config(), seed=1, checkpoint=tmp_path / "state")
    except ArtifactError:
        return
    assert same(weights(asked), weights(expected))


def test_the_weights_of_the_best_validation_are_kept(scripted: Install) -> None:
    validated = scripted([1.0, 0.4, 0.6, 0.5, 0.45])
    model = Scripted(pull)
    history = train(model, config(steps=20))
    assert same(weights(model), validated[1]) and not same(weights(model), validated[4])
    assert [row["best"] for row in history] == [1.0, 0.4, 0.4, 0.4, 0.4]
    assert not model.training


EARLY = [25, 50, 75, 100, 125, 156, 195, 243, 303, 378, 472, 572]


def test_validations_follow_faster_at_first_and_patience_counts_steps(scripted: Install, tmp_path: Path) -> None:
    """Best after 156 steps; three times 100 steps later it is over. An interruption does not change when."""
    improving = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]
    settings = config(steps=2000, validate_every=100, patience=3)
    scripted([*improving, *[1.0] * 20])
    history = train(Scripted(pull), settings)
    assert [row["step"] for row in history] == EARLY[: EARLY.index(472) + 1]
    scripted([*improving, *[1.0] * 20])
    with pytest.raises(Interrupted):
        train(Scripted(pull), settings, checkpoint=tmp_path / "state", report=interrupt_after(4))
    resumed = train(Scripted(pull), settings, checkpoint=tmp_path / "state")
    assert [row["step"] for row in resumed] == [row["step"] for row in history]
    scripted([1.0 / (n + 1) for n in range(20)])
    assert [row["step"] for row in train(Scripted(pull), config(steps=600, validate_every=100))] == [*EARLY, 600]


def test_patience_stops_after_that_many_equal_stretches_without_improvement(scripted: Install) -> None:
    validated = scripted([1.0, 0.5, 0.6, 0.7, 0.4, 0.5, 0.4, 0.9, 0.1])
    model = Scripted(pull)
    history = train(model, config(steps=100, patience=3))
    assert len(history) == len(validated) == 8  # a tie is no improvement
    assert same(weights(model), validated[4])


def test_an_early_stop_is_remembered(scripted: Install, tmp_path: Path) -> None:
    scripted([1.0, 2.0, 3.0])
    first, again = Scripted(pull), Scripted(pull)
    train(first, config(steps=100, patience=2), checkpoint=tmp_path / "state")
    train(again, config(steps=100, patience=2), checkpoint=tmp_path / "state")
    assert again.step == 0 and same(weights(again), weights(first))


def test_what_is_validated_is_the_running_average(scripted: Install) -> None:
    validated = scripted([3.0, 2.0, 1.0])
    raw: list[float] = []

    def record(step: int, weight: Tensor) -> Loss:
        raw.append(float(weight.detach()))
        return pull(step, weight)

    train(Scripted(record), config(steps=12, average=0.9))
    raw.append(math.nan)  # the weight after the last step is not seen by the loss
    average = 0.0
    for step, weight in enumerate(raw[1:-1], 1):
        decay = min(0.9, step / (step + 10))
        average = decay * average + (1 - decay) * weight
        if step % 4 == 0:
            assert float(validated[step // 4 - 1]["weight"]) == pytest.approx(average, rel=1e-5)


def test_without_averaging_the_last_weights_are_validated(scripted: Install) -> None:
    validated = scripted([2.0, 1.0])
    model = Scripted(pull)
    train(model, config(steps=8, average=0.0))
    assert same(weights(model), validated[1])
    assert 0 < float(validated[0]["weight"]) < float(validated[1]["weight"])


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        (lambda w: Loss(w.sum() * math.nan, w.new_zeros(())), "training score"),
        (lambda w: Loss(w.sum() + math.inf, w.new_zeros(())), "training score"),
        (lambda w: Loss(w.sum(), w.sum() * math.nan), "KL term"),
        (lambda w: Loss((w * 0).sqrt().sum(), w.new_zeros(())), "gradient norm"),
    ],
    ids=["nan", "inf", "kl", "gradient"],
)
def test_divergence_names_the_step_and_the_part(
    bad: Callable[[Tensor], Loss], name: str, scripted: Install, tmp_path: Path
) -> None:
    validated = scripted([1.0, 0.5])
    model = Scripted(lambda step, w: bad(w) if step == 7 else pull(step, w))
    with pytest.raises(DivergedError, match=rf"step 7: the {name}"):
        train(model, config(steps=40), checkpoint=tmp_path / "state")
    assert torch.isfinite(model.weight).all()  # the step that diverged was not taken
    found = divergence(tmp_path / "state")
    assert found is not None and found.validated and f"step 7: the {name}" in found.reason
    resumed = Scripted(pull)
    history = train(resumed, config(steps=40), checkpoint=tmp_path / "state")
    assert resumed.step == 0 and same(weights(resumed), validated[0])
    assert [row["step"] for row in history] == [4]


def test_divergence_before_any_validation_leaves_nothing_to_end_with(tmp_path: Path) -> None:
    nothing = Scripted(lambda step, w: Loss(w.sum() * math.nan, w.new_zeros(())))
    for model in (nothing, Scripted(pull)):
        with pytest.raises(DivergedError, match="step 1: the training score is nan"):
            train(model, config(), checkpoint=tmp_path / "state")
    found = divergence(tmp_path / "state")
    assert found is not None and not found.validated


def test_a_training_that_goes_on_has_not_diverged(tmp_path: Path) -> None:
    assert divergence(tmp_path / "state") is None
    train(fresh(), config(steps=4), checkpoint=tmp_path / "state")
    assert divergence(tmp_path / "state") is None


def test_a_validation_that_is_not_finite_is_divergence(scripted: Install) -> None:
    scripted([1.0, math.nan])
    with pytest.raises(DivergedError, match=r"validation.*nan.*step 8"):
        train(Scripted(pull), config())


def test_a_learning_rate_out_of_bounds_diverges_by_name() -> None:
    with pytest.raises(DivergedError, match="learning_rate"):
        train(fresh(), config(learning_rate=1e30, clip=1e30, warmup=0, steps=50))


def test_a_budget_ends_training() -> None:
    model = fresh()
    started = time.monotonic()
    history = train(model, config(steps=10**6, validate_every=2, patience=10**6), budget=0.5)
    assert time.monotonic() - started < 10
    assert history[-1]["elapsed"] >= 0.5 and history[-1]["share"] == 1.0 and history[-1]["step"] < 10**6


def test_the_smallest_budget_still_takes_a_step(scripted: Install) -> None:
    scripted([1.0])
    history = train(Scripted(pull), config(), budget=1e-9)
    assert [row["step"] for row in history] == [1]


def test_a_budget_is_spent_once_over_all_resumed_runs(scripted: Install, tmp_path: Path) -> None:
    scripted([1.0 / n for n in range(1, 50)])

    def slow(step: int, weight: Tensor) -> Loss:
        time.sleep(0.02)
        return pull(step, weight)

    settings = config(steps=10**6, validate_every=2)
    with pytest.raises(Interrupted):
        train(Scripted(slow), settings, checkpoint=tmp_path / "state", budget=0.2, report=interrupt_after(2))
    history = train(Scripted(slow), settings, checkpoint=tmp_path / "state", budget=0.2)
    assert history[-1]["elapsed"] == pytest.approx(0.2, abs=0.1)
    assert [row["step"] for row in history] == sorted({row["step"] for row in history})


def test_without_a_binding_clock_the_budget_changes_nothing() -> None:
    free, bounded = fresh(), fresh()
    train(free, config(steps=4))
    train(bounded, config(steps=4), budget=1e4)
    assert same(weights(free), weights(bounded))


def test_progress_reports_each_validation(scripted: Install) -> None:
    scripted([3.0, 1.0, 2.0])
    seen: list[Progress] = []
    history = train(
        Scripted(lambda step, w: Loss(w.sum() * 0 + step, w.sum() * 0 + 7)), config(steps=10), report=seen.append
    )
    assert [p.step for p in seen] == [4, 8, 10]  # the last block is shorter
    assert [p.train_score for p in seen] == [2.5, 6.5, 9.5] and [p.kl for p in seen] == [7.0, 7.0, 7.0]
    assert [(p.validation_crps, p.best) for p in seen] == [(3.0, 3.0), (1.0, 1.0), (2.0, 1.0)]
    assert [p.share for p in seen] == [0.4, 0.8, 1.0]
    assert all(a.elapsed <= b.elapsed for a, b in itertools.pairwise(seen))
    assert [row["step"] for row in history] == [4, 8, 10]


def test_the_kl_weight_rises_with_the_schedule(scripted: Install) -> None:
    """With a score of zero, the gradient is the KL's times its weight."""
    scripted([1.0] * 10)
    rates: list[float] = []

    model = Scripted(lambda step, w: Loss(w.sum() * 0, w.sum()))
    model.weight.register_hook(lambda gradient: rates.append(float(gradient)))
    train(model, config(steps=10, kl_warmup=0.5, kl_weight=2.0))
    assert rates == pytest.approx([0.0, 0.4, 0.8, 1.2, 1.6, 2.0, 2.0, 2.0, 2.0, 2.0])


def test_learning_rate_warms_up_then_anneals(scripted: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted([1.0] * 10)
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *args: object) -> object:
        rates.append(self.param_groups[0]["lr"])
        return step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    train(Scripted(pull), config(steps=20, warmup=4, learning_rate=1e-2))
    expected = [1e-2 * min(1, (i + 1) / 4) * (0.5 + 0.5 * math.cos(math.pi * i / 20)) for i in range(20)]
    assert rates == pytest.approx(expected)


def test_gradients_are_clipped(scripted: Install) -> None:
    """Adam hides the size of a gradient, so the clipped gradient itself is looked at."""
    scripted([1.0])
    model = Scripted(lambda step, w: Loss(1e6 * w.sum(), w.new_zeros(())))
    train(model, config(steps=1, clip=0.5))
    assert model.weight.grad is not None and float(model.weight.grad.norm()) == pytest.approx(0.5, rel=1e-4)


def test_only_matrices_decay() -> None:
    model = nn.ModuleDict({"linear": nn.Linear(3, 2), "norm": nn.LayerNorm(2)})
    decayed, free = training._decay_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1 and free["weight_decay"] == 0.0
    assert [p.shape for p in decayed["params"]] == [(2, 3)]  # type: ignore[attr-defined]
    assert [p.shape for p in free["params"]] == [(2,), (2,), (2,)]  # type: ignore[attr-defined]


def test_validation_score_is_the_geometric_mean_over_groups_of_what_was_observed() -> None:
    """A forecast N(0, 1) has CRPS 0.2337 at 0 and 0.6022 at 1; what was not observed may be anything."""
    model = Scripted(pull)
    window = VALIDATION[0]
    odd = (window.query.groups.unique(return_inverse=True)[1] % 2).bool()[..., None, None].expand(window.mask.shape)
    values = torch.where(window.mask, odd.float(), 1e6)
    found = validation_crps(model, [Window(window.query, values, window.mask, window.series)])
    share = float((odd & window.mask).sum() / window.mask.sum())
    little = 0.01 * ((1 - share) * 0.2337 + share * 0.6022)
    expected = math.exp((1 - share) * math.log(0.2337 + little) + share * math.log(0.6022 + little))
    assert 0.1 < share < 0.9 and found == pytest.approx(expected, rel=0.01)


def test_checkpoints_replace_each_other(tmp_path: Path) -> None:
    train(fresh(), config(), checkpoint=tmp_path / "deep" / "state")
    assert os.listdir(tmp_path / "deep") == ["state"]
    assert sorted(os.listdir(tmp_path / "deep" / "state")) == ["manifest.json", "state.json", "state.safetensors"]
