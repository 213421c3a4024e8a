"""`family: auto`: short trials of several families, and the one that forecasts the validation series best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tsde.config import Experiment
from tsde.errors import DivergedError
from tsde.members import train_members, validation_windows
from tsde.models import MODELS, AutoConfig
from tsde.series import SeriesSet
from tsde.threads import single_thread
from tsde.training import Progress
from tsde.validating import validation_crps
from tsde.windows import Fold

_MEMBERS = 2  # of a trial: one seed is a coin toss between families that are alike


def choose_family(
    series: SeriesSet,
    folds: Sequence[Fold],
    experiment: Experiment,
    report: Callable[[Progress], None] = lambda progress: None,
    checkpoints: Path | None = None,
) -> tuple[Experiment, dict[str, float]]:
    """The experiment with the chosen family's defaults and the budget that is left, and each trial's CRPS.

    A trial is an ordinary training with its own complete schedule, a tenth of the steps and of the time budget by
    default; its score is the mean CRPS of its members on their validation windows, in scaled units. Only
    validation series decide. An experiment that names its family is returned as it is.

    Args:
        checkpoints: directory for the trials' states; a trial that is complete there is not run again.

    Raises:
        DivergedError: every trial diverged.
    """
    if not isinstance(experiment.model, AutoConfig):
        return experiment, {}
    auto, train = experiment.model, experiment.train
    scores, spent = {}, 0.0
    trial = train.model_copy(
        update={
            "steps": max(1, round(auto.trial * train.steps)),
            "members": min(_MEMBERS, train.members),
            "max_time": train.max_time and auto.trial * train.max_time,
        }
    )
    for name in auto.candidates:
        candidate = experiment.model_copy(update={"model": MODELS[name].config(), "train": trial})
        place = checkpoints / f"trial-{name}" if checkpoints else None
        scores[name], learnt = _trial(series, folds, candidate, name, report, place)
        spent += auto.trial if learnt else 0.0
    if all(math.isinf(score) for score in scores.values()):
        raise DivergedError(f"each of {', '.join(scores)} diverged in its trial; lower train.learning_rate")
    best = min(scores, key=lambda name: scores[name])
    left = train.model_copy(update={"max_time": train.max_time and max(1 - spent, auto.trial) * train.max_time})
    return experiment.model_copy(update={"model": MODELS[best].config(), "train": left}), scores


def _trial(
    series: SeriesSet,
    folds: Sequence[Fold],
    experiment: Experiment,
    name: str,
    report: Callable[[Progress], None],
    checkpoints: Path | None,
) -> tuple[float, bool]:
    """The validation CRPS of one family, infinite if it diverged, and whether it learns by steps."""
    try:
        members, history = train_members(
            series, folds, experiment, lambda progress: report(replace(progress, trial=name)), checkpoints
        )
    except DivergedError:
        return math.inf, True
    scores = []
    with single_thread():
        for number, member in enumerate(members):
            windows = validation_windows(series, folds[number % len(folds)], experiment)
            scores.append(validation_crps(member, windows))
    return sum(scores) / len(scores), bool(history)
