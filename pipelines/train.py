"""Train, score and save a model.

While it trains, a working directory beside the model (`<out>.run`) holds what it takes to go on after an interruption
at any moment. It goes when everything is done, and whatever fails, the model that was there before stays as it was.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from pipelines.card import Card
from pipelines.data import EXPERIMENT_FILE, Data, load
from pipelines.heldout import HeldOut, of_training
from pipelines.messages import note, warn
from pipelines.progress import training_progress
from pipelines.scores import score
from tsde.artifact import require_replaceable
from tsde.config import Experiment
from tsde.errors import ArtifactError, CannotWriteError, DataError, DivergedError, MissingInputError, UsageError
from tsde.files import discard, staged, write_synced
from tsde.fitting import Parts, fit_predictor
from tsde.locks import locked
from tsde.members import divergences
from tsde.predictor import KIND, Predictor

_RUN_FILE = "run.json"
_CHECKPOINTS = "checkpoints"


class _Run(BaseModel, frozen=True):
    """What a working directory is for: where the model goes, which data it learns from, and whether MLflow is told."""

    data: Path
    sha256: str
    out: Path
    tracked: bool = True


@dataclass(frozen=True)
class Trained:
    """A saved predictor, its card, what it was scored on and how training went."""

    predictor: Predictor
    card: Card
    held_out: HeldOut
    history: Sequence[dict[str, float]]
    out: Path

    def as_json(self) -> str:
        """Where the model is, and its card, for programs."""
        about = {"model": str(self.out), **json.loads(self.card.model_dump_json())}
        return json.dumps(about, indent=1)


def working_directory(data: Data, out: Path) -> Path:
    """Where a run keeps its checkpoints. Neither it nor `out` may hold anything else.

    Raises:
        UsageError, CannotWriteError: one of them does.
    """
    if out.absolute() == data.path.absolute():
        raise UsageError(f"--out {out} is the data; give the model another name")
    require_replaceable(out, KIND)
    folder = out.with_name(f"{out.name}.run")
    if folder.exists() and not (folder / _RUN_FILE).is_file():
        raise CannotWriteError(f"{folder} is needed for checkpoints but holds something else; remove it")
    return folder


def start(data: Data, out: Path, tracked: bool = True) -> Path:
    """A fresh working directory for a run whose model goes to `out`.

    Raises:
        UsageError, CannotWriteError: `out` cannot become a model, which is better known before training.
    """
    folder = working_directory(data, out)
    if folder.exists():
        with _alone(folder):
            note(f"starting afresh: the interrupted run in {folder} is discarded")
            discard(folder)
    about = _Run(data=data.path.absolute(), sha256=data.facts.sha256, out=out.absolute(), tracked=tracked)
    try:
        with staged(folder, folder=True) as temporary:
            write_synced(temporary / EXPERIMENT_FILE, data.experiment.to_yaml().encode())
            write_synced(temporary / _RUN_FILE, about.model_dump_json(indent=1).encode())
            os.rename(temporary, folder)
    except OSError as error:
        raise CannotWriteError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder


def reopen(folder: Path, data: Path | None = None) -> tuple[Data, Path, bool]:
    """The data and the `out` of an interrupted run, with the experiment it was started with, and whether to track it.

    Raises:
        MissingInputError: there is no such run.
        DataError: the data is not what the run started on.
    """
    try:
        about = _Run.model_validate_json((folder / _RUN_FILE).read_bytes())
    except (OSError, ValueError) as error:
        model = folder.with_name(folder.name.removesuffix(".run"))
        done = f"; {model} beside it is a model" if model != folder and (model / EXPERIMENT_FILE).is_file() else ""
        raise MissingInputError(
            f"{folder} is no interrupted run of `tsde train`: it has no readable {_RUN_FILE}{done}"
        ) from error
    found = load(data or about.data, folder / EXPERIMENT_FILE)
    if found.facts.sha256 != about.sha256:
        raise DataError(f"{found.path} has changed since the run {folder} started: start a new run on it")
    return found, about.out, about.tracked


def run(
    data: Data,
    out: Path,
    folder: Path,
    quiet: bool = False,
    parts: Parts | None = None,
    record: Callable[[Trained], None] = lambda trained: None,
) -> Trained:
    """Train on `data` in the working directory `folder`, from where it stands, and save the model as `out`.

    Args:
        parts: of the data, if they were prepared before.
        record: called with the saved model before the working directory goes.

    Raises:
        DataError: too little data. DivergedError: training produced a value that is not finite.
        CannotWriteError: a full disk, say, or another process is at work in `folder`.
    """
    started = time.monotonic()
    with _alone(folder), _kept(folder, data.experiment):
        for member, found in divergences(folder / _CHECKPOINTS, data.experiment).items():
            warn(f"member {member + 1} ends with its best validation: {found.reason}")
        with training_progress(data.experiment.train.members, quiet) as report:
            fitted = fit_predictor(data.table, data.experiment, report, folder / _CHECKPOINTS, parts)
        held_out, predictor = of_training(data.table, fitted), fitted.predictor
        if fitted.trials:
            tried = ", ".join(f"{name} {crps:.4f}" for name, crps in fitted.trials.items())
            note(f"chose {predictor.experiment.model.family} by validation CRPS: {tried}")
        means, quantiles = predictor.trust
        if min(means, quantiles) < 1:
            note(
                f"held-out data bears out {means:.0%} of the means and {quantiles:.0%} of the quantiles that the "
                "members learnt; the rest is ridge regression"
            )
        board = score(predictor, held_out.windows, held_out.part) if held_out.windows else None
        card = Card.new(
            data.facts, board, data.experiment.seed, time.monotonic() - started, fitted.history, fitted.trials
        )
        predictor.card = card.model_dump(mode="json")
        predictor.save(out)
        trained = Trained(predictor, card, held_out, fitted.history, out)
        record(trained)
        discard(folder)
    return trained


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else works in `folder` meanwhile.

    Raises:
        CannotWriteError: somebody does.
    """
    with locked(folder.resolve()) as held:
        if held is False:
            raise CannotWriteError(f"another `tsde train` is at work in {folder}: wait for it, or give another --out")
        yield


@contextmanager
def _kept(folder: Path, experiment: Experiment) -> Iterator[None]:
    """Say how to go on after whatever ends the training early; discard what can only end the same way again."""
    try:
        yield
    except DataError:
        discard(folder)
        raise
    except DivergedError:
        if all(found.validated for found in divergences(folder / _CHECKPOINTS, experiment).values()):
            say = "what was learnt is in {0}; end with the best validated weights: tsde train --resume {0}"
            print(say.format(folder), file=sys.stderr)
        else:
            discard(folder)
        raise
    except ArtifactError:
        raise  # says itself what to do
    except BaseException:
        print(f"what was learnt so far is in {folder}; go on with: tsde train --resume {folder}", file=sys.stderr)
        raise
