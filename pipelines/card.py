"""What is kept about a model beside its weights: what it learnt from, how well it did, and with what it was made."""

from __future__ import annotations

import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version

from pydantic import BaseModel

import tsde
from pipelines.data import Facts
from pipelines.scores import Scoreboard
from tsde.predictor import Predictor


class Curve(BaseModel, frozen=True):
    """One member's validations: after which step, and what was found there."""

    step: tuple[int, ...]
    train_score: tuple[float, ...]
    kl: tuple[float, ...]
    validation_crps: tuple[float, ...]


class Card(BaseModel, frozen=True):
    """What a person would like to know of a model. It holds no row of the data and no name of a series.

    Attributes:
        scores: None where no test part was kept.
        seconds: wall time of fitting and scoring.
        curves: one per member; none for a family that is fitted in closed form.
        trials: validation CRPS of each family that was tried, where the family was chosen; infinite ones left out.
    """

    data: Facts
    scores: Scoreboard | None
    seed: int
    seconds: float
    finished: str
    versions: dict[str, str]
    git_commit: str | None
    curves: tuple[Curve, ...] = ()
    trials: dict[str, float] = {}

    @classmethod
    def new(
        cls,
        data: Facts,
        scores: Scoreboard | None,
        seed: int,
        seconds: float,
        history: Sequence[Mapping[str, float]] = (),
        trials: Mapping[str, float] | None = None,
    ) -> Card:
        """A card of now, here. `history` has a row per validation of each member."""
        packages = {name: version(name) for name in ("torch", "numpy", "pandas")}
        return cls(
            data=data,
            scores=scores,
            seed=seed,
            seconds=round(seconds, 1),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            versions={"tsde": tsde.__version__, "python": platform.python_version(), **packages},
            git_commit=_git_commit(),
            curves=tuple(_curve(history, member) for member in sorted({row["member"] for row in history})),
            trials={name: crps for name, crps in (trials or {}).items() if math.isfinite(crps)},
        )

    @classmethod
    def of(cls, predictor: Predictor) -> Card | None:
        """The card of a predictor, None for one that the library trained without this application."""
        return cls.model_validate(predictor.card) if predictor.card else None


def _curve(history: Sequence[Mapping[str, float]], member: float) -> Curve:
    rows = [row for row in history if row["member"] == member]
    return Curve.model_validate({name: [row[name] for row in rows] for name in Curve.model_fields})


def _git_commit() -> str | None:
    """The commit of the working directory, which is the user's project; None outside of one."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
