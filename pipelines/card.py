"""What is kept about a model beside its weights: what it learnt from, how well it did, and with what it was made."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version

from pydantic import BaseModel

import tsde
from pipelines.data import Facts
from pipelines.scores import Scoreboard
from tsde.predictor import Predictor


class Card(BaseModel, frozen=True):
    """`scores` is None where no test part was kept; `seconds` is the wall time of fitting and scoring."""

    data: Facts
    scores: Scoreboard | None
    seed: int
    seconds: float
    finished: str
    versions: dict[str, str]
    git_commit: str | None

    @classmethod
    def new(cls, data: Facts, scores: Scoreboard | None, seed: int, seconds: float) -> Card:
        """A card of now, here."""
        packages = {name: version(name) for name in ("torch", "numpy", "pandas")}
        return cls(
            data=data,
            scores=scores,
            seed=seed,
            seconds=round(seconds, 1),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            versions={"tsde": tsde.__version__, "python": platform.python_version(), **packages},
            git_commit=_git_commit(),
        )

    @classmethod
    def of(cls, predictor: Predictor) -> Card | None:
        """The card of a predictor, None for one that the library trained without this application."""
        return cls.model_validate(predictor.card) if predictor.card else None


def _git_commit() -> str | None:
    """The commit of the working directory, which is the user's project; None outside of one."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
