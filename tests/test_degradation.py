"""Forecasts degrade by row: one series that diverges never touches another, and --strict tells by the exit code."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution
from typer.testing import CliRunner, Result

from pipelines.cli import app
from tsde.config import load_experiment
from tsde.distribution import Quantiles, summarise
from tsde.fitting import fit_predictor
from tsde.model import Forecaster, Loss
from tsde.models import MODELS
from tsde.predictor import Predictor
from tsde.synthetic import spirals
from tsde.table import read_table
from tsde.windows import Query, Window

SMALL = ["train.steps=2", "train.members=2", "train.workers=1", "train.validate_every=2", "windows.held_out=20"]
FRAME = spirals(24, 10, seed=1)
WILD = "spiral-0003"
QUIET = FRAME[FRAME["unique_id"] != WILD]


class Exploding(Forecaster):
    """A member whose state overflows for series that were ever beyond 50 deviations: NaN, or infinity."""

    def __init__(self, inner: Forecaster, to: float):
        super().__init__()
        self.inner, self.to = inner, to
        self.causal = inner.causal

    def forward(self, query: Query) -> Distribution:
        law = summarise(self.inner(query))
        wild = (query.context.values.abs() * query.context.mask).amax((1, 2)) > 50

        def spoilt(x: Tensor) -> Tensor:
            return torch.where(wild.reshape(-1, *[1] * (x.ndim - 1)), self.to, x)

        return Quantiles(spoilt(law.mean), spoilt(law.values), law.levels)

    def loss(self, window: Window) -> Loss:
        raise NotImplementedError


def trained(family: str = "filter") -> Predictor:
    config = load_experiment(None, [*SMALL, f"model.family={family}"], horizon=1)
    return fit_predictor(read_table(FRAME), config).predictor


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return trained()


def exploding(predictor: Predictor, to: float) -> Predictor:
    members = [predictor.members[0], *(Exploding(member, to) for member in predictor.members[1:])]
    parts = (predictor.experiment, predictor.clock, predictor.scaler, members)
    return Predictor(*parts, predictor.calibrator, predictor.marginal, predictor.baselines)


def spoil(value: float) -> pd.DataFrame:
    """The table with one absurd observation in one series."""
    frame = FRAME.copy()
    frame.loc[frame.index[frame["unique_id"] == WILD][4], "x"] = value
    return frame


def numbers(frame: pd.DataFrame) -> np.ndarray:
    return frame.filter(like="tsde").to_numpy(dtype=float)


@pytest.mark.parametrize("to", [math.nan, math.inf, -math.inf])
def test_a_series_that_diverges_is_answered_and_told_and_touches_no_other(predictor: Predictor, to: float) -> None:
    asked = {"horizon": 1.0, "step": 0.25, "levels": [50.0, 80.0]}
    expected = predictor.forecast(read_table(QUIET), **asked)
    found = exploding(predictor, to).forecast(read_table(spoil(1e4)), **asked)
    assert np.isfinite(numbers(found)).all()
    mine = found["unique_id"] == WILD
    assert set(found.loc[mine, "status"]) == {"diverged"} and set(found.loc[~mine, "status"]) == {"ok"}
    pd.testing.assert_frame_equal(found[~mine].reset_index(drop=True), expected, check_exact=True)
    marginal = found[mine].groupby("channel")["tsde"].nunique()
    assert (marginal == 1).all()  # what training knew of the channel, whatever the time


@pytest.mark.parametrize("family", MODELS)
def test_an_absurd_value_stays_in_its_series(family: str) -> None:
    predictor = trained(family)
    expected = predictor.forecast(read_table(QUIET))
    for value in (9e299, -9e299, 1e15):  # a table holds nothing larger
        found = predictor.forecast(read_table(spoil(value)))
        assert np.isfinite(numbers(found)).all()
        kept = found[found["unique_id"] != WILD].reset_index(drop=True)
        pd.testing.assert_frame_equal(kept, expected, check_exact=True)


def test_weights_of_nan_answer_with_the_training_distribution(predictor: Predictor) -> None:
    broken = exploding(predictor, math.nan)
    broken.members = [copy.deepcopy(member) for member in predictor.members]
    with torch.no_grad():
        for parameter in broken.members[0].parameters():
            parameter.fill_(math.nan)
    found = broken.forecast(read_table(FRAME))
    assert set(found["status"]) == {"diverged"} and np.isfinite(numbers(found)).all()
    assert (found.groupby("channel")["tsde"].nunique() == 1).all()


def forecast(model: Path, table: Path, out: Path, *more: str) -> Result:
    words = ["forecast", str(model), str(table), "--out", str(out), *more]
    return CliRunner().invoke(app, words)


def test_strict_tells_by_the_exit_code_once_everything_is_written(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, table, out = tmp_path / "model", tmp_path / "t.csv", tmp_path / "f.csv"
    predictor.save(model)
    spoil(1e4).to_csv(table, index=False)
    assert forecast(model, table, out, "--horizon", "1", "--strict").exit_code == 0
    far = forecast(model, table, out, "--horizon", "2", "--strict")
    assert far.exit_code == 65 and "found 48 beyond_horizon; all were written" in far.stderr
    assert len(pd.read_csv(out)) == 48
    assert forecast(model, table, out, "--horizon", "2").exit_code == 0
    monkeypatch.setattr(Predictor, "load", lambda folder: exploding(predictor, math.nan))
    diverged = forecast(model, table, out, "--horizon", "1", "--strict")
    assert diverged.exit_code == 70 and "found 2 diverged; all were written" in diverged.stderr
    assert pd.read_csv(out)["status"].value_counts().to_dict() == {"ok": 46, "diverged": 2}
    assert forecast(model, table, out, "--horizon", "1").exit_code == 0
