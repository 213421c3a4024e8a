"""The boards: their protocols hold, scores come in the board's units, and a row is written once."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import boards
import protocols
import scoreboard
import tasks
from tsde.errors import MissingInputError
from tsde.evaluation import evaluate
from tsde.series import SeriesSet

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("TSDE_BOARDS", ROOT.parent / "shared" / "data"))
shared = pytest.mark.skipif(not (DATA / "boards").is_dir(), reason="the boards' data is not here")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with one small Physiome-like set: phase-shifted waves of unlike scales."""
    folder = tmp_path / "data" / "boards" / "physiome"
    folder.mkdir(parents=True)
    clock = np.linspace(0, 10, 100, dtype=np.float32)
    phase = np.random.default_rng(0).uniform(0, 6, (60, 1, 1))
    values = np.sin(clock[:, None] + phase) * [1.0, 50.0] + [0.0, 7.0]
    np.savez(folder / "LEN01.npz", t=clock, values=values.astype(np.float32), channels=np.array(["a", "b"]))
    return tmp_path / "data"


def ragged() -> SeriesSet:
    """Three series: rows 0 1 2 3, rows 5 6 (nothing before a cut of 1.5) and rows 0 1 (nothing after it)."""
    times = torch.tensor([0.0, 1, 2, 3, 5, 6, 0, 1], dtype=torch.float64)
    values = torch.arange(8.0)[:, None]
    return SeriesSet(torch.tensor([0, 4, 6, 8]), times, values, torch.ones(8, 1, dtype=torch.bool), torch.arange(3))


def test_windows_end_at_the_cut_and_ask_for_everything_after_it() -> None:
    (window,) = tasks.windows_at(ragged(), torch.arange(3), 1.5)
    assert window.series.tolist() == [0]
    assert window.query.context.times.tolist() == [[-1.0, 0.0]]
    assert window.query.lead.tolist() == [[[1.0, 2.0]]]
    assert window.values.flatten().tolist() == [2.0, 3.0]


def test_next_rows_limit_the_targets_and_a_row_on_the_cut_is_known() -> None:
    (window,) = tasks.windows_at(ragged(), torch.tensor([0]), 1.0, next_rows=1)
    assert window.query.context.times.shape == (1, 2)
    assert window.values.flatten().tolist() == [2.0]


def test_windows_of_unlike_lengths_share_a_batch() -> None:
    series = ragged()
    both = tasks.windows_at(series, torch.arange(2), 5.5)
    (window,) = tasks.windows_at(series, torch.tensor([2, 0]), 0.5)
    assert [len(w.series) for w in both] == [1]
    assert window.mask.sum((1, 2, 3)).tolist() == [1, 3]


def test_windows_say_which_group_they_are_of() -> None:
    """Else the windows of a trajectory would count as series that differ, when trust is told."""
    series = replace(ragged(), belongs=torch.tensor([7, 3, 7]))
    windows = tasks.windows_at(series, torch.tensor([0, 2]), 0.5) + tasks.windows_at(series, torch.tensor([1]), 5.5)
    of = dict(zip((0, 2, 1), torch.cat([w.query.groups.flatten() for w in windows]).tolist(), strict=True))
    assert of[0] == of[2] != of[1]


def test_physiome_splits_whole_series_by_seed(data: Path) -> None:
    task = protocols.physiome(data, "LEN01", 0)
    split, parts = task.parts.split, task.parts
    held = [split.train, split.validation, split.calibration, split.test]
    assert [int(torch.isinf(region.upper).sum() - (region.upper == -torch.inf).sum()) for region in held] == [
        42,
        6,
        6,
        6,
    ]
    assert (sum((region.upper == torch.inf).int() for region in held) == 1).all()
    again, other = protocols.physiome(data, "LEN01", 0), protocols.physiome(data, "LEN01", 1)
    assert torch.equal(parts.series.values, again.parts.series.values)
    assert not torch.equal(split.test.upper, other.parts.split.test.upper)
    assert all((w.query.context.times <= 0).all() and (w.query.lead[w.mask.any(-1)] > 0).all() for w in parts.test)
    assert 0.15 < float(parts.series.mask.sum()) / (60 * 100 * 2) < 0.25


def test_scores_are_in_the_boards_units(data: Path) -> None:
    task = protocols.physiome(data, "LEN01", 0)
    label = {"family": "mean", "fold": 0, "overrides": []}
    predictor, _ = boards.train(task, boards.experiment_of(task, label), lambda progress: None, data / "work")
    scale = (1.0, 50.0)
    scaler = task.parts.scaler.model_copy(update={"scale": scale})
    found = boards.scores(evaluate(predictor, task.parts.test), scaler)
    residuals = predictor.residuals(task.parts.test)
    unit = torch.tensor(scale)[residuals.channel]
    assert found["mse"] == pytest.approx(float(((residuals.value - residuals.forecast.mean) * unit).square().mean()))
    plain = boards.scores(evaluate(predictor, task.parts.test), task.parts.scaler)
    assert plain["mse"] == pytest.approx(evaluate(predictor, task.parts.test).overall.mse)
    assert found["nll"] > plain["nll"] and found["coverage_80"] == plain["coverage_80"]


def test_a_row_is_written_once_and_reported(data: Path, tmp_path: Path) -> None:
    places = ["--data", str(data), "--rows", str(tmp_path / "rows"), "--work", str(tmp_path / "work")]
    command = ["run", "B1", "--set", "LEN01", "--fold", "0", "--family", "mean", "--family", "last", *places]
    for _ in range(2):
        assert CliRunner().invoke(boards.app, command).exit_code == 0
    lines = (tmp_path / "rows" / "B1.jsonl").read_text().splitlines()
    assert [json.loads(line)["family"] for line in lines] == ["mean", "last"]
    out = tmp_path / "BOARDS.md"
    told = CliRunner().invoke(boards.app, ["report", "--rows", str(tmp_path / "rows"), "--out", str(out)])
    assert told.exit_code == 0 and "GraFITi [R]" in out.read_text() and "| last |" in out.read_text()


def test_absent_data_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="TSDE_BOARDS"):
        protocols.mujoco(tmp_path, "0", 0)


def test_means_deviations_and_ratios_over_folds() -> None:
    rows = [
        {"set": "LEN01", "family": "filter", "fold": f, "overrides": [], "mse": mse} for f, mse in ((0, 0.1), (1, 0.3))
    ]
    table = scoreboard._mse_table(protocols.BOARDS["B1"], rows)
    line = next(line for line in table.splitlines() if line.startswith("| filter"))
    assert "| 0.2 ± 0.14 (2) |" in line and "0.52 (1)" in line
    assert "**0.387**" in table  # two folds of five are no winner


@shared
@pytest.mark.parametrize(
    ("board", "chosen", "targets", "groups"),
    [("B1", "NEL01", 7317, 188), ("B2", "70", 84000, 15), ("B5", "sporadic", 368, 110)],
)
def test_protocols_on_the_real_files(board: str, chosen: str, targets: int, groups: int) -> None:
    test = protocols.BOARDS[board].load(DATA, chosen, 0).parts.test
    assert sum(int(window.mask.sum()) for window in test) == targets
    assert len(torch.cat([window.series for window in test]).unique()) == groups


@shared
def test_mujoco_drops_whole_steps_of_the_context_only() -> None:
    for window in protocols.mujoco(DATA, "70", 0).parts.test:
        assert window.query.context.observed.sum(1).tolist() == [15] * len(window.series)
        assert window.mask.all() and window.mask.shape[1:] == (1, 10, 14)
