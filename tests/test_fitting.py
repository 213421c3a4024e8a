"""From a table to a predictor: what is learnt from which rows, and that the result does not depend on how."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from tsde import members
from tsde.clock import Clock
from tsde.config import Experiment, load_experiment
from tsde.errors import DataError, DivergedError, TsdeError
from tsde.evaluation import evaluate
from tsde.fitting import Fitted, fit_predictor, prepare
from tsde.models import BASELINES
from tsde.predictor import Predictor
from tsde.synthetic import ornstein_uhlenbeck
from tsde.table import Table, read_table
from tsde.training import Progress
from tsde.windows import Region, Window, eligible_origins

SMALL = ["model.modes=4", "model.width=8", "model.horizon_modes=3", "model.steps=3"]
SHORT = ["train.steps=4", "train.validate_every=2", "train.batch=4", "train.members=2", "train.workers=1"]


def experiment(*overrides: str, by: str = "series") -> Experiment:
    return load_experiment(None, [*SMALL, *SHORT, "windows.held_out=20", f"split.by={by}", *overrides], horizon=1.5)


def history(count: int = 20, rows: int = 14, seed: int = 0) -> pd.DataFrame:
    frame = ornstein_uhlenbeck(count, rows, rate=0.5, level=3.0, seed=seed, missing=0.1)
    frame["v"] = np.random.default_rng(seed).normal(-1, 2, len(frame))
    return frame


TABLE = read_table(history())
NUMBERS = Clock(kind="number")


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    return fit_predictor(TABLE, experiment())


def weights(predictor: Predictor) -> dict[str, Tensor]:
    return {f"{n}/{name}": t for n, member in enumerate(predictor.members) for name, t in member.state_dict().items()}


def same(a: Predictor, b: Predictor) -> bool:
    one, other = weights(a), weights(b)
    return (
        one.keys() == other.keys()
        and all(torch.equal(one[name], other[name]) for name in one)
        and a.scaler == b.scaler
        and torch.equal(a.calibrator.shift, b.calibrator.shift)
    )


def mine(region: Region) -> set[int]:
    return set(torch.nonzero(region.upper > region.lower)[:, 0].tolist())


def rows_of(region: Region) -> np.ndarray:
    """The table's rows in a region, `(R,)` bool."""
    owner, times = torch.from_numpy(TABLE.row_series), torch.from_numpy(TABLE.times / 1.5)
    return ((region.lower[owner] < times) & (times <= region.upper[owner])).numpy()


def changed(rows: np.ndarray) -> Table:
    return replace(TABLE, values=np.where(rows[:, None], 50 - 3 * TABLE.values, TABLE.values))


@pytest.mark.parametrize("by", ["series", "time"])
def test_nothing_is_learnt_from_the_test_part(by: str) -> None:
    """Not a bit of the predictor changes with the test rows, nor do scaler and members with those for calibration:
    these only tell how far members are trusted."""
    asked = experiment(by=by)
    split = prepare(TABLE, asked).split
    reference = fit_predictor(TABLE, asked).predictor
    assert rows_of(split.test).any() and rows_of(split.calibration).any()
    assert same(fit_predictor(changed(rows_of(split.test)), asked).predictor, reference)
    recalibrated = fit_predictor(changed(rows_of(split.calibration)), asked).predictor
    assert recalibrated.scaler == reference.scaler
    before, after = weights(reference), weights(recalibrated)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and all(name.endswith(".trust") for name in moved)
    assert not torch.equal(recalibrated.calibrator.shift, reference.calibrator.shift)
    for name in BASELINES:
        found, expected = recalibrated.baselines[name], reference.baselines[name]
        assert all(map(torch.equal, weights(found).values(), weights(expected).values()))


def test_calibration_leaves_the_last_value_and_the_mean_what_they_are_called(fitted: Fitted) -> None:
    for name, baseline in fitted.predictor.baselines.items():
        shift = baseline.calibrator.shift
        assert (shift[..., :-1] != 0).any() and (name == "ridge" or (shift[..., -1] == 0).all())
    query = fitted.test[0].query
    found, raw = (fitted.predictor.baselines["last"].law(query, calibrated) for calibrated in (True, False))
    assert torch.equal(found.mean, raw.mean) and not torch.equal(found.values, raw.values)


def test_training_rows_do_matter(fitted: Fitted) -> None:
    other = fit_predictor(changed(rows_of(fitted.split.train)), experiment()).predictor
    assert other.scaler != fitted.predictor.scaler and not same(other, fitted.predictor)


def test_the_scaler_is_that_of_the_rows_of_training_and_validation(fitted: Fitted) -> None:
    learnt = TABLE.values[rows_of(fitted.split.train) | rows_of(fitted.split.validation)]
    np.testing.assert_allclose(fitted.predictor.scaler.location, np.nanmean(learnt, 0))
    np.testing.assert_allclose(fitted.predictor.scaler.scale, np.nanstd(learnt, 0))


def series_in(windows: list[Window]) -> set[int]:
    return {number for window in windows for number in window.series.tolist()}


def test_held_out_windows_come_from_their_own_part(fitted: Fitted) -> None:
    parts = prepare(TABLE, experiment())
    assert series_in(parts.calibration) <= mine(parts.split.calibration)
    assert series_in(parts.test) <= mine(parts.split.test) and series_in(fitted.test) == series_in(parts.test)
    for fold in parts.split.folds:
        learnt = mine(fold.train) | mine(fold.validation)
        assert not learnt & (series_in(parts.calibration) | series_in(parts.test))


def test_a_given_scaler_is_kept(fitted: Fitted) -> None:
    scaler = fitted.predictor.scaler.model_copy(update={"location": (1.0, 2.0), "horizon": 3.0})
    parts = prepare(TABLE, experiment(), scaler)
    assert parts.scaler == scaler
    assert float(parts.series.times[-1]) == TABLE.times[-1] / 3.0


def test_what_comes_out(fitted: Fitted) -> None:
    predictor = fitted.predictor
    assert len(predictor.members) == 2 and not any(member.training for member in predictor.members)
    first, second = (member.state_dict() for member in predictor.members)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert set(predictor.baselines) == set(BASELINES)
    for baseline in predictor.baselines.values():
        assert baseline.scaler == predictor.scaler and len(baseline.members) == 1 and not baseline.baselines
    assert [(row["member"], row["step"]) for row in fitted.history] == [(0, 2), (0, 4), (1, 2), (1, 4)]
    assert evaluate(predictor, fitted.test).overall.count > 0


def test_members_start_from_different_weights() -> None:
    asked = experiment("train.steps=1", "train.learning_rate=1e-12", "train.validate_every=1")
    first, second = fit_predictor(TABLE, asked).predictor.members
    apart = [
        not torch.allclose(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True) if a.ndim > 1
    ]
    assert apart and all(apart)


def test_baselines_do_not_depend_on_the_model(fitted: Fitted) -> None:
    other = fit_predictor(TABLE, experiment("train.members=1", "model.width=4", "train.steps=1")).predictor
    for name in BASELINES:
        assert same(other.baselines[name], fitted.predictor.baselines[name]) or len(fitted.split.folds) > 1
        assert other.baselines[name].scaler == fitted.predictor.scaler


@pytest.mark.parametrize("by", ["series", "time"])
def test_a_test_part_is_not_needed(by: str) -> None:
    found = fit_predictor(TABLE, experiment("split.test=0", "train.members=1", by=by))
    assert found.test == [] and (found.predictor.forecast(TABLE)["status"] == "ok").all()


def test_a_calibration_part_may_turn_out_empty() -> None:
    """The rows for calibration observe nothing: forecasts stay as they are."""
    part = prepare(TABLE, experiment()).split.calibration
    blank = replace(TABLE, values=np.where(rows_of(part)[:, None], np.nan, TABLE.values))
    found = fit_predictor(blank, experiment("train.members=1")).predictor
    assert not found.calibrator.shift.any()


def test_calibration_on_request() -> None:
    off = fit_predictor(TABLE, experiment("calibration.enabled=false", "train.members=1")).predictor
    on = fit_predictor(TABLE, experiment("train.members=1")).predictor
    assert not off.calibrator.shift.any() and on.calibrator.shift.any()


def test_reports_arrive_as_they_happen() -> None:
    seen: list[Progress] = []
    found = fit_predictor(TABLE, experiment(), report=seen.append)
    assert [progress.record() for progress in seen] == found.history


@pytest.mark.parametrize(("horizon", "part"), [("1e-6", "training"), ("0.0001", "training")])
def test_too_short_a_horizon_is_refused(horizon: str, part: str) -> None:
    asked = load_experiment(None, [*SMALL, *SHORT], horizon=horizon)
    with pytest.raises(DataError, match=rf"horizon.*{part} part \(20 series, 280 rows\)"):
        fit_predictor(TABLE, asked)


@pytest.mark.parametrize("by", ["series", "time"])
def test_a_horizon_is_no_longer_than_what_training_tells_of(by: str) -> None:
    asked = experiment("horizon=1000", "train.members=1", by=by)
    found = fit_predictor(TABLE, asked)
    predictor, train = found.predictor, found.split.train
    reach = predictor.scaler.horizon
    spans = [times.max() - times.min() for times in np.split(TABLE.times, TABLE.offsets[1:-1])]
    assert reach <= NUMBERS.round_up(max(spans)) and (by == "time" or reach > np.median(spans))
    assert predictor.experiment.horizon == NUMBERS.format_duration(reach)
    told = eligible_origins(prepare(TABLE, predictor.experiment).series, train)
    longest = (told.series.times[told.last] - told.series.times[told.row]).max()
    assert 0.98 < longest <= 1
    forecast = predictor.forecast(TABLE, horizon=4 * reach, step=reach)
    assert forecast["status"].tolist()[:8:2] == ["ok", *["beyond_horizon"] * 3]
    assert same(predictor, fit_predictor(TABLE, predictor.experiment).predictor)


def test_a_longer_horizon_is_no_remedy_for_a_part_without_rows() -> None:
    table = read_table(history(5, 6))
    for horizon in (1.0, 1e6):
        asked = load_experiment(None, [*SMALL, *SHORT], horizon=horizon)
        with pytest.raises(DataError, match="give more data"):
            fit_predictor(table, asked)


@pytest.mark.parametrize(
    ("count", "rows", "by"), [(2, 14, "series"), (1, 14, "series"), (20, 1, "series"), (3, 2, "time")]
)
def test_too_little_data_is_refused(count: int, rows: int, by: str) -> None:
    with pytest.raises(DataError, match="part"):
        fit_predictor(read_table(history(count, rows)), experiment(by=by))


def test_one_series_is_enough_when_split_by_time() -> None:
    found = fit_predictor(read_table(history(1, 60)), experiment("split.by=auto", by="time"))
    table = read_table(history(1, 60))
    assert (found.predictor.forecast(table)["status"] == "ok").all()


def test_a_channel_that_is_never_seen_is_forecast_all_the_same() -> None:
    frame = history()
    frame["v"] = np.nan
    table = read_table(frame, expected_channels=("y", "v"))
    found = fit_predictor(table, experiment("train.members=1")).predictor.forecast(table)
    assert np.isfinite(found[["tsde", "tsde-lo-80", "tsde-hi-80"]].to_numpy()).all()


@pytest.mark.parametrize("family", ["filter", "ridge", "last"])
def test_a_channel_that_is_never_a_target_is_as_uncertain_as_it_was(family: str) -> None:
    frame = history(60)
    frame.loc[frame["unique_id"].duplicated(), "v"] = np.nan  # known once, at the beginning
    table = read_table(frame)
    settings = [f"model={{family: {family}}}"] if family != "filter" else []
    ours = load_experiment(None, [*settings, *(SHORT if settings else [*SMALL, *SHORT])], horizon=1.5)
    found = fit_predictor(table, ours).predictor.forecast(table)
    known = found[found["channel"] == "v"]
    width = (known["tsde-hi-80"] - known["tsde-lo-80"]) / frame["v"].std()
    assert (width > 1).all()
    assert known["tsde"].between(known["tsde-lo-80"], known["tsde-hi-80"]).all()


def test_rows_that_observe_nothing_push_nothing_out_of_a_context(fitted: Fitted) -> None:
    frame = history()
    last = frame["ds"] == frame.groupby("unique_id")["ds"].transform("max")
    context = fitted.predictor.experiment.windows.context
    empty = pd.concat([frame[last].assign(ds=frame[last]["ds"] - 1e-6 * n, y=np.nan, v=np.nan) for n in range(1, 40)])
    predictor = replaced_context(fitted.predictor, 20)
    assert predictor.experiment.windows.context == 20 < context
    whole = read_table(pd.concat([frame, empty]))
    assert whole.n_rows == len(frame) + len(empty)
    pd.testing.assert_frame_equal(predictor.forecast(whole), predictor.forecast(TABLE))


def replaced_context(predictor: Predictor, rows: int) -> Predictor:
    windows = predictor.experiment.windows.model_copy(update={"context": rows})
    ours = copy.copy(predictor)
    ours.experiment = predictor.experiment.model_copy(update={"windows": windows})
    return ours


# Members beside each other


def test_two_processes_give_the_result_of_one(fitted: Fitted) -> None:
    found = fit_predictor(TABLE, experiment("train.workers=2"))
    assert same(found.predictor, fitted.predictor)
    assert sorted((row["member"], row["step"]) for row in found.history) == [(0, 2), (0, 4), (1, 2), (1, 4)]


def test_the_number_of_threads_changes_nothing() -> None:
    """A member trained in this process has as many threads as the machine has cores, one in a process of its own."""
    wide = load_experiment(None, [*SHORT, "train.members=1", "train.batch=32", "split.by=series"], horizon=1.5)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(fit_predictor(TABLE, wide).predictor)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert same(*found)


def test_divergence_in_a_process_of_its_own_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the number of the member; the other process is stopped."""
    started: list[Any] = []

    class Watched(subprocess.Popen):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr("tsde.crew.subprocess.Popen", Watched)
    asked = experiment("train.workers=2", "train.learning_rate=1e30", "train.clip=1e30", "train.warmup=0")
    with pytest.raises(DivergedError, match=r"member \d: .*step"):
        fit_predictor(TABLE, asked)
    assert len(started) == 2 and all(process.poll() is not None for process in started)


def test_an_interrupted_run_goes_on_where_it_was(fitted: Fitted, tmp_path: Path) -> None:
    seen: list[Progress] = []

    def report(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == 3:  # the first member is done, the second is half done
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_predictor(TABLE, experiment(), report=report, checkpoints=tmp_path / "run")
    rest: list[Progress] = []
    found = fit_predictor(TABLE, experiment(), report=rest.append, checkpoints=tmp_path / "run")
    assert same(found.predictor, fitted.predictor)
    assert [(progress.member, progress.step) for progress in rest] == [(1, 4)]


CHANGES: dict[str, Callable[[], tuple[Table, Experiment]]] = {
    "seed": lambda: (TABLE, experiment().model_copy(update={"seed": 1})),
    "data": lambda: (read_table(history(seed=5)), experiment()),
    "steps": lambda: (TABLE, experiment("train.steps=8")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_checkpoints_of_another_run_are_not_taken_for_this_one(change: str, tmp_path: Path) -> None:
    """Either refused or ignored; never the old weights under the new name."""
    fit_predictor(TABLE, experiment(), checkpoints=tmp_path / "run")
    table, asked = CHANGES[change]()
    for _ in range(2):  # who is refused may try again
        with suppress(TsdeError):
            found = fit_predictor(table, asked, checkpoints=tmp_path / "run").predictor
            assert same(found, fit_predictor(table, asked).predictor)


def test_a_refused_run_leaves_the_checkpoints_of_the_other(tmp_path: Path) -> None:
    first = fit_predictor(TABLE, experiment(), checkpoints=tmp_path / "run")
    with suppress(TsdeError):
        fit_predictor(TABLE, experiment("train.steps=8"), checkpoints=tmp_path / "run")
    again = fit_predictor(TABLE, experiment(), checkpoints=tmp_path / "run", report=must_not_report)
    assert same(again.predictor, first.predictor) and again.history == first.history


def must_not_report(progress: Progress) -> None:
    raise AssertionError(f"member {progress.member} was trained again")


def test_a_run_may_go_on_with_another_number_of_workers(tmp_path: Path) -> None:
    """How many processes there are decides no result, so it makes no other run."""
    first, again = (
        fit_predictor(TABLE, experiment("train.members=1", f"train.workers={workers}"), checkpoints=tmp_path / "run")
        for workers in (1, 2)
    )
    assert same(again.predictor, first.predictor) and again.history == first.history


def test_the_clock_bounds_the_whole_training() -> None:
    found = fit_predictor(TABLE, experiment("train.steps=1000000", "train.patience=1000000", "train.max_time=1s"))
    assert {row["member"] for row in found.history} == {0, 1}
    last = {row["member"]: row for row in found.history}
    assert sum(row["elapsed"] for row in last.values()) < 3
    assert all(row["share"] == 1 and 1 < row["step"] < 1e6 for row in last.values())


def test_a_budget_leaves_room_for_what_comes_before_the_steps() -> None:
    """Four members in two processes are two rounds; starting a process counts once, preparing a member each time."""
    config = experiment("train.members=4", "train.workers=2", "train.max_time=100s").train
    assert members._budget(config, startup=10, spent=1) == 44
    assert members._budget(config, startup=90, spent=30) == 25  # half its part, whatever starting took
    assert members._budget(experiment("train.members=4").train, startup=10, spent=1) is None


def test_the_first_of_a_group_counts_for_all_stretches_of_its_time() -> None:
    table = read_table(history(30, 60))
    asked = experiment(by="time")
    alone = prepare(table, asked)
    together = prepare(replace(table, groups=np.array(["a", "b", "c"] * 10, object)), asked)
    assert float(together.pieces.sum()) == pytest.approx(float(alone.pieces.sum())) and alone.pieces.sum() > 3
    assert torch.nonzero(together.pieces)[:, 0].tolist() == [0, 1, 2]
    assert {int(n) for window in together.calibration for n in window.series} == {0, 1, 2}
    with pytest.raises(DataError, match="groups of them, are too few"):
        prepare(replace(table, groups=np.array(["a"] * 30, object)), experiment())
