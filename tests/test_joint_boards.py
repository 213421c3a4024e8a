"""Boards B3 and B4: the simulator, the estimators of joint scores, analog forecasts, and the protocols."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.spatial import cKDTree
from torch.distributions import Normal
from typer.testing import CliRunner

import analog
import boards
import joint
import lorenz
import mocap
import scoreboard
import tasks
from analog import Analog, Settings
from tsde.config import load_experiment
from tsde.distribution import Empirical, Quantiles, pool, quantiles, summarise
from tsde.errors import ConfigError, DataError
from tsde.models.latent_sde import LatentSDE, LatentSDEConfig
from tsde.models.parts import at_origins
from tsde.predictor import Predictor
from tsde.scaling import Scaler
from tsde.series import SeriesBatch
from tsde.windows import Query

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("TSDE_BOARDS", ROOT.parent / "shared" / "data"))
shared = pytest.mark.skipif(not (DATA / "boards" / "mocap35.mat").is_file(), reason="the boards' data is not here")


# The simulator


def decay(x: np.ndarray) -> np.ndarray:
    return -x


def test_without_noise_the_simulator_solves_the_lorenz_equation() -> None:
    start, times = np.array([-8.0, 7.0, 27.0]), np.array([0.3, 1.0])
    ours = lorenz.simulate(lorenz.drift, start, times, 0.0, np.random.default_rng(0))
    exact = solve_ivp(lambda t, x: lorenz.drift(x), (0, 1), start, t_eval=times, rtol=1e-11, atol=1e-11).y.T
    assert np.abs(ours - exact).max() < 1e-5
    coarse = lorenz.simulate(lorenz.drift, start, times, 0.0, np.random.default_rng(0), step=2 * lorenz.STEP)
    assert np.abs(coarse - exact).max() > 8 * np.abs(ours - exact).max()  # order four


def test_moments_of_a_linear_equation() -> None:
    times = np.array([0.5, 2.0])
    paths = lorenz.simulate(decay, np.full((1, 40_000), 2.0), times, 0.7, np.random.default_rng(1), step=0.05)[:, 0]
    variance = 0.7**2 / 2 * (1 - np.exp(-2 * times))
    assert paths.mean(1) == pytest.approx(2 * np.exp(-times), abs=4 * 0.5 / 200)
    assert paths.var(1) == pytest.approx(variance, rel=0.04)


def test_weak_order_two_in_the_step() -> None:
    exact = (1 - np.exp(-4)) / 2

    def error(step: float) -> float:
        paths = lorenz.simulate(decay, np.zeros((1, 400_000)), np.array([2.0]), 1.0, np.random.default_rng(2), step)
        return float(paths.var()) - exact

    assert 3 < error(1.0) / error(0.5) < 5.5


def test_equal_seeds_give_equal_tasks_and_the_series_are_the_protocols(tmp_path: Path) -> None:
    task, again, other = (lorenz.load(tmp_path, "regular", fold) for fold in (0, 0, 1))
    series = task.parts.series
    assert torch.equal(series.values, again.parts.series.values)
    assert not torch.equal(series.values, other.parts.series.values)
    assert len(series) == sum(lorenz.SIZES) and series.offsets.diff().unique().tolist() == [81]
    for windows, count in ((task.parts.calibration, 64), (task.parts.test, 128)):
        assert sum(len(window.series) for window in windows) == count
        for window in windows:
            assert window.query.context.times.shape[1] == 41 and window.mask.all()
            assert window.query.lead[0, 0].tolist() == pytest.approx([0.025 * i for i in range(1, 41)], abs=1e-5)
    assert float(series.values.mean()) == pytest.approx(0, abs=0.1)
    assert float(series.values.std()) == pytest.approx(1, abs=0.1)


def test_the_transition_law_starts_at_the_last_row() -> None:
    last = torch.tensor([[0.5, 0.4, 0.2], [-1.0, -0.8, 0.5]])
    drawn = lorenz.transition(last, torch.tensor([0.001, 0.5]), 300, seed=3)
    assert drawn.shape == (300, 2, 2, 3)
    moved = lorenz.drift(last.double().numpy().T * lorenz.SCALE[:, None] + lorenz.LOCATION[:, None]).T / lorenz.SCALE
    assert drawn[:, :, 0].mean(0).numpy() == pytest.approx(last.numpy() + 0.001 * moved, abs=2e-3)
    spread = drawn[:, :, 0].std(0).numpy()
    assert spread == pytest.approx(np.broadcast_to(0.15 * 0.001**0.5 / lorenz.SCALE, (2, 3)), rel=0.2)


# The estimators


@pytest.mark.parametrize(
    ("shift", "width", "tolerance"), [(0.0, 1.0, 0.06), (0.6, 1.0, 0.12), (0.0, 2.0, 0.15), (0.3, 3.0, 0.25)]
)
def test_divergence_of_gaussians(shift: float, width: float, tolerance: float) -> None:
    random = np.random.default_rng(4)
    mix = np.array([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.0, 0.0, 1e-3]])  # a thin law: the divergence is the same
    truth, model = random.normal(size=(1500, 3)), shift + width * random.normal(size=(1500, 3))
    exact = 3 * (np.log(width) + (1 + shift**2) / (2 * width**2) - 0.5)
    assert joint.divergence(truth @ mix.T, model @ mix.T) == pytest.approx(exact, abs=tolerance)


def test_divergence_sees_the_coupling_of_channels() -> None:
    random = np.random.default_rng(5)
    root = np.linalg.cholesky(np.array([[1.0, 0.9], [0.9, 1.0]]))
    truth, coupled, free = random.normal(size=(3, 1500, 2))
    assert joint.divergence(truth @ root.T, coupled @ root.T) == pytest.approx(0, abs=0.08)
    assert joint.divergence(truth @ root.T, free) == pytest.approx(-np.log(1 - 0.81) / 2, abs=0.15)


class _Fixed(torch.nn.Module):
    """A predictor's place: normal marginals, and members that may lend their ranks."""

    def __init__(self, member: torch.nn.Module):
        super().__init__()
        self.members = [member, member]

    def law(self, query: Query) -> object:
        shape = (*query.times.shape, 2)
        return summarise(Normal(torch.zeros(shape), torch.tensor([1.0, 3.0]).expand(shape)))


class _Mirrored(torch.nn.Module):
    """Draws of which the second channel is the first, mirrored."""

    def joint(self, query: Query, count: int) -> torch.Tensor:
        first = torch.randn(count, *query.times.shape, 1, generator=torch.Generator().manual_seed(0))
        return torch.cat([first, -first], -1)


def question(batch: int = 2, leads: int = 3) -> Query:
    context = SeriesBatch(
        torch.zeros(batch, 1), torch.zeros(batch, 1, 2), torch.ones(batch, 1, 2).bool(), torch.arange(batch) + 7,
        torch.zeros(batch, 0),
    )  # fmt: skip
    return Query(context, torch.zeros(batch, 1), torch.linspace(0.1, 1, leads).expand(batch, 1, leads))


@pytest.mark.parametrize(("member", "correlation"), [(_Mirrored(), -1.0), (torch.nn.Identity(), 0.0)])
def test_draws_keep_the_marginals_and_take_the_members_coupling(member: torch.nn.Module, correlation: float) -> None:
    drawn = joint.draws(_Fixed(member), question(), 801)  # type: ignore[arg-type]
    assert drawn.shape == (801, 2, 3, 2)
    assert drawn.std(0)[..., 0].mean() == pytest.approx(1, rel=0.05)
    assert drawn.std(0)[..., 1].mean() == pytest.approx(3, rel=0.05)
    found = np.corrcoef(drawn[:, 0, 1].T.numpy())[0, 1]
    assert found == pytest.approx(correlation, abs=0.1)


def test_neighbours_couple_channels_as_their_errors_went_together_where_forecasts_were_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(joint, "NEAREST", 1900)  # of 2,000 on each side: what is drawn below is nearly exact
    count, leads = 4000, 3
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, count, generator=generator)
    side = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)  # of the mean, where the sign turns
    scores = torch.stack([one, side * (0.8 * one + 0.6 * other)], -1)
    places = torch.stack([3 * side, torch.zeros(count), torch.full((count,), 0.5)], -1)
    neighbours = joint.Neighbours(cKDTree(places.numpy()), scores)
    level = torch.rand(5000, 2, 1, leads, 2, generator=generator).clamp(1e-6, 1 - 1e-6)
    mean = torch.tensor([[-2.9, 0.1], [3.1, 0.0]])[:, None, None].expand(-1, 1, leads, -1)
    law = Quantiles(mean, mean[..., None] + torch.arange(3.0), torch.tensor([0.1, 0.5, 0.9]))
    drawn = neighbours.couple(level, law, question(leads=leads))
    assert torch.equal(drawn[..., 0], torch.special.ndtr(torch.special.ndtri(level[..., 0])))
    assert drawn[..., 1].quantile(torch.tensor([0.1, 0.5, 0.9])).numpy() == pytest.approx([0.1, 0.5, 0.9], abs=0.01)
    z = torch.special.ndtri(drawn)
    found = [float(torch.corrcoef(z[:, b, 0, 0].T)[0, 1]) for b in range(2)]
    assert found == pytest.approx([-0.8, 0.8], abs=0.05)
    rare = neighbours.couple(torch.full((1, 2, 1, leads, 2), 1 - 1e-6), law, question(leads=leads))
    assert ((rare > 0) & (rare < 1)).all()  # quantiles at zero and one are infinite


def test_a_latent_sdes_joint_draws_have_its_marginals_and_one_path_for_all_channels() -> None:
    torch.manual_seed(1)
    model = LatentSDE(LatentSDEConfig(hidden=8, modes=6, width=8, samples=256), 2).eval()
    query = question()
    with torch.no_grad():
        model.readout.latent.weight.mul_(30)  # paths that matter
        model.readout.out.weight.mul_(10)
        drawn = model.joint(query, 4000)
        paths = model._solve(query, at_origins(model.encoder(query.context), query), 4000)[0]
        law = pool(model.readout(query, paths), 16)
    assert drawn.shape == (4000, 2, 1, 3, 2)
    levels = torch.tensor([0.1, 0.5, 0.9])
    apart = quantiles(Empirical(drawn), levels) - quantiles(law, levels)
    assert apart.abs().max() < 0.1 * float(drawn.std(0).max())
    assert abs(np.corrcoef(drawn[:, 0, 0, 0].T.numpy())[0, 1]) > 0.1  # a path moves both; by chance it is 0.016
    assert torch.equal(drawn, model.joint(query, 4000).detach())


def test_the_oracle_scores_near_the_floor_and_a_broad_forecast_does_not(tmp_path: Path) -> None:
    task = lorenz.load(tmp_path, "regular", 0)
    few = [replace_rows(task.parts.test[0], 4)]
    small = replace(task, parts=replace(task.parts, test=few))
    mean, _ = boards.train(task, load_experiment(None, ["model.family=mean"], horizon=1), print, tmp_path)
    raw = load_experiment(None, ["calibration.enabled=false"], horizon=1)
    oracle, _ = boards.train(task, raw, print, tmp_path, lambda task: lorenz.Oracle())
    oracle, mean = (joint.scores(small, predictor, lorenz.transition, [0.5]) for predictor in (oracle, mean))
    assert abs(oracle["kl_floor_0.5"]) < 0.1 and oracle["kl_0.5"] < 0.25
    assert mean["kl_0.5"] > 5 and mean["energy_0.5"] > 20 * oracle["energy_0.5"]
    assert (oracle["coupling"], mean["coupling"]) == ("paths", "neighbours")
    assert mean["ms_per_100"] > 0


def replace_rows(window: tasks.Window, count: int) -> tasks.Window:
    """The first rows of a window."""
    context, query = window.query.context, window.query
    cut = SeriesBatch(*(x[:count] for x in (context.times, context.values, context.mask, context.key, context.static)))
    return replace(
        window,
        query=Query(cut, query.origins[:count], query.times[:count]),
        values=window.values[:count],
        mask=window.mask[:count],
        series=window.series[:count],
    )


# Analog forecasts


def waves(count: int, length: int, pace: float, shift: float = 0.0) -> torch.Tensor:
    """Two phase-shifted periodic channels, `(count, length, 2)`."""
    phase = torch.linspace(0, 5, count)[:, None] + 2 * torch.pi * pace / 20 * torch.arange(length)
    return torch.stack([phase.sin(), (2 * phase).cos()], -1) + shift


def asked(known: torch.Tensor, leads: int) -> Query:
    batch, length = known.shape[:2]
    times = (torch.arange(length) - length + 1.0).expand(batch, -1) / leads
    context = SeriesBatch(
        times, known, torch.ones_like(known).bool(), torch.arange(batch), torch.zeros(batch, 0)
    )  # fmt: skip
    return Query(context, torch.zeros(batch, 1), (torch.arange(1, leads + 1) / leads).expand(batch, 1, leads))


@pytest.mark.parametrize(("pace", "speeds"), [(1.0, (1.0,)), (1.25, (0.8, 1.0, 1.25))])
def test_an_analog_continues_a_periodic_motion_at_its_own_pace(pace: float, speeds: tuple[float, ...]) -> None:
    model = Analog(waves(40, 120, 1.0), 1 / 30, torch.ones(2), Settings(15, speeds, 1, 0.0))
    motion = waves(3, 50, pace)
    forecast = model(asked(motion[:, :20], 30)).mean[:, 0]
    assert (forecast - motion[:, 20:]).abs().max() < 0.15
    wrong = Analog(waves(40, 120, 1.0), 1 / 30, torch.ones(2), Settings(15, (0.5,), 1, 0.0))
    assert (wrong(asked(motion[:, :20], 30)).mean[:, 0] - motion[:, 20:]).square().mean() > 0.1


def test_the_offset_at_the_origin_fades() -> None:
    motion = waves(2, 40, 1.0, shift=0.2)
    forecasts = [
        Analog(waves(40, 120, 1.0), 1 / 20, torch.ones(2), Settings(10, (1.0,), 1, fade))(
            asked(motion[:, :20], 20)
        ).mean
        for fade in (0.0, 5.0)
    ]
    gain = (forecasts[1] - forecasts[0])[:, 0]
    assert gain[:, 0].mean() == pytest.approx(0.2 * np.exp(-1 / 5), abs=0.03)
    assert gain[:, -1].abs().max() < 0.02


def test_an_analog_past_the_end_of_all_training_series_is_their_mean() -> None:
    library = waves(5, 30, 1.0)
    model = Analog(library, 1 / 60, torch.ones(2), Settings(5, (1.0,), 2, 5.0))
    forecast = model(asked(waves(1, 10, 1.0), 60)).mean[0, 0]
    assert torch.allclose(forecast[-1], library.mean((0, 1)))


def test_an_analog_refuses_gaps() -> None:
    query = asked(waves(1, 10, 1.0), 10)
    gappy = replace(query, context=replace(query.context, times=query.context.times * 1.3))
    with pytest.raises(DataError, match="one regular grid"):
        Analog(waves(5, 30, 1.0), 1 / 10, torch.ones(2), Settings(5, (1.0,), 2, 5.0))(gappy)


def test_the_analogs_settings_are_chosen_on_the_calibration_windows_alone() -> None:
    values = torch.cat([waves(12, 60, 1.0), waves(3, 60, 1.1)]).double().numpy()
    parted = tasks.Parted(np.arange(10), np.arange(10, 12), np.arange(12, 14), np.array([14]))
    table = tasks.table_from_grid(values, np.arange(60.0), ("a", "b"))
    task = tasks.assemble(table, parted, 29.0, horizon=30.0, seed=0)
    blind = replace(task, parts=replace(task.parts, test=[]))
    model, same = (analog.fitted(one, 1.0, [(1.0,), (0.9, 1.1)]) for one in (task, blind))
    assert model.library.shape == (10, 60, 2)
    assert model.settings == same.settings and model.settings.speeds == (0.9, 1.1)
    assert torch.equal(model.variance, same.variance)


# Rows and the report


def test_references_run_beside_families_and_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lorenz, "SIZES", (40, 6, 6, 4))
    monkeypatch.setattr(joint, "SAMPLES", 250)
    places = ["--rows", str(tmp_path / "rows"), "--work", str(tmp_path / "work")]
    command = ["run", "B3", "--fold", "0", *(x for f in ("mean", "analog", "oracle") for x in ("--family", f)), *places]
    assert CliRunner().invoke(boards.app, command, catch_exceptions=False).exit_code == 0
    rows = [json.loads(line) for line in (tmp_path / "rows" / "B3.jsonl").read_text().splitlines()]
    assert [row["family"] for row in rows] == ["mean", "analog", "oracle"]
    by_name = {row["family"]: row for row in rows}
    assert by_name["oracle"]["energy_1"] < by_name["analog"]["energy_1"] < by_name["mean"]["energy_1"]
    assert {f"{score}_{lead:g}" for score in ("crps", "energy", "kl", "kl_floor") for lead in lorenz.LEADS} <= set(
        by_name["mean"]
    )
    out = tmp_path / "BOARDS.md"
    told = CliRunner().invoke(boards.app, ["report", "--rows", str(tmp_path / "rows"), "--out", str(out)])
    assert told.exit_code == 0
    assert "energy score" in out.read_text() and "| regular | oracle | 1 | paths |" in out.read_text()


def test_a_reference_of_another_board_is_refused(tmp_path: Path) -> None:
    told = CliRunner().invoke(boards.app, ["run", "B4", "--family", "oracle", "--rows", str(tmp_path)])
    assert told.exit_code != 0 and "no family or reference of B4" in told.output + str(told.exception)


def test_only_boards_with_joint_scores_have_their_table() -> None:
    row = {"set": "1", "family": "mean", "fold": 0, "overrides": [], "mse": 3.0, "mse_sampled": 4.0}
    assert scoreboard._joint_table(mocap.BOARD, [row]) == []


# MoCap


def test_one_scale_for_all_channels_keeps_inputs_inside_the_limit() -> None:
    values = np.random.default_rng(0).normal(size=(4, 10, 3)) * [0.01, 1.0, 18.0]
    table = tasks.table_from_grid(values, np.arange(10.0), ("a", "b", "c"))
    scaler = mocap.common_scale(table, 5.0, np.arange(40) < 30)
    assert len(set(scaler.scale)) == 1 and set(scaler.location) == {0.0}
    assert np.abs(values[:3]).max() / scaler.scale[0] == pytest.approx(6.0)


def test_the_error_of_sampled_forecasts_is_that_of_the_mean_and_the_spread() -> None:
    values = np.random.default_rng(1).normal(size=(60, 12, 2)) * 5
    table = tasks.table_from_grid(values, np.arange(12.0), ("a", "b"))
    parted = tasks.Parted(np.arange(40), np.arange(40, 45), np.arange(45, 50), np.arange(50, 60))
    task = tasks.assemble(table, parted, 4.0, horizon=7.0, seed=0, scale=Scaler.fit)
    label = {"family": "mean", "fold": 0, "overrides": ["calibration.enabled=false"]}
    predictor, _ = boards.train(task, boards.experiment_of(task, label), lambda progress: None, Path("unused"))
    assert isinstance(predictor, Predictor)
    found = mocap.sampled_error(task, predictor)["mse_sampled"]
    assert found == pytest.approx(2 * 25, rel=0.12)  # pure noise: its variance once for the target, once for the draw


@shared
@pytest.mark.parametrize(("setup", "known"), [("1", 3), ("2", 100)])
def test_the_setups_on_the_real_file(setup: str, known: int) -> None:
    task = mocap.load(DATA, setup, 0)
    parts = task.parts
    for windows, count in ((parts.calibration, 3), (parts.test, 4)):
        assert sum(len(window.series) for window in windows) == count
        for window in windows:
            assert window.query.context.times.shape[1] == known
            assert window.mask.all() and window.mask.shape[2:] == (300 - known, 50)
            assert float(window.query.lead.max()) == pytest.approx(1)
    train, validation = (torch.isposinf(region.upper) for region in parts.split.folds[0])
    test = torch.isposinf(parts.split.test.upper)
    assert (int(train.sum()), int(validation.sum()), int(test.sum())) == (16, 3, 4)
    assert not (train & validation | train & test | validation & test).any()
    raw = mocap.loadmat(str(DATA / "boards" / "mocap35.mat"))["Xtest"][:, known:]
    found = torch.cat([window.values[:, 0] for window in parts.test]) * parts.scaler.scale[0]
    assert found.numpy() == pytest.approx(raw, abs=1e-4)


@shared
def test_a_file_of_another_shape_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mocap, "loadmat", lambda path: dict.fromkeys(("Xtr", "Xval", "Xtest"), np.zeros((1, 30, 5))))
    with pytest.raises(DataError, match="16, 3 and 4 sequences"):
        mocap.load(DATA, "1", 0)


def test_linear_noise_is_solved_by_euler_only() -> None:
    with pytest.raises(ConfigError, match="solved by method: euler"):
        load_experiment(
            None, ["model.family=latent_sde", "model.noise=linear", "model.method=reversible_heun"], horizon=1
        )
