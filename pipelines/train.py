"""Train, score and save a model.

While it trains, a working directory beside the model (`<out>.run`) holds what it takes to go on after an interruption.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from pipelines.card import Card
from pipelines.data import EXPERIMENT_FILE, Data, load
from pipelines.heldout import HeldOut, of_training
from pipelines.messages import note
from pipelines.progress import training_progress
from pipelines.scores import score
from tsde.artifact import require_replaceable
from tsde.errors import CannotWriteError, DataError, DivergedError, MissingInputError, UsageError
from tsde.files import write_file
from tsde.fitting import Parts, fit_predictor
from tsde.predictor import KIND, Predictor

_RUN_FILE = "run.json"


class _Run(BaseModel, frozen=True):
    """What a working directory is for: where the model goes, and which data it learns from."""

    data: Path
    sha256: str
    out: Path


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


def start(data: Data, out: Path) -> Path:
    """A fresh working directory for a run whose model goes to `out`.

    Raises:
        UsageError, CannotWriteError: `out` cannot become a model, which is better known before training.
    """
    folder = working_directory(data, out)
    if folder.exists():
        note(f"starting afresh: the interrupted run in {folder} is discarded")
        shutil.rmtree(folder)
    about = _Run(data=data.path.absolute(), sha256=data.facts.sha256, out=out.absolute())
    write_file(folder / EXPERIMENT_FILE, data.experiment.to_yaml().encode())
    write_file(folder / _RUN_FILE, about.model_dump_json(indent=1).encode())
    return folder


def reopen(folder: Path, data: Path | None = None) -> tuple[Data, Path]:
    """The data and the `out` of an interrupted run, with the experiment it was started with.

    Raises:
        MissingInputError: there is no such run.
        DataError: the data is not what the run started on.
    """
    try:
        about = _Run.model_validate_json((folder / _RUN_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise MissingInputError(f"{folder} is no interrupted run of `tsde train`: it has no {_RUN_FILE}") from error
    found = load(data or about.data, folder / EXPERIMENT_FILE)
    if found.facts.sha256 != about.sha256:
        raise DataError(f"{found.path} has changed since the run {folder} started: start a new run on it")
    return found, about.out


def run(data: Data, out: Path, folder: Path, quiet: bool = False, parts: Parts | None = None) -> Trained:
    """Train on `data` in the working directory `folder`, from where it stands, and save the model as `out`.

    Args:
        parts: of the data, if they were prepared before.

    Raises:
        DataError: too little data. DivergedError: training produced a value that is not finite.
    """
    started = time.monotonic()
    try:
        with training_progress(data.experiment.train.members, quiet) as report:
            fitted = fit_predictor(data.table, data.experiment, report, folder / "checkpoints", parts)
    except KeyboardInterrupt:
        print(f"what was learnt so far is in {folder}; go on with: tsde train --resume {folder}", file=sys.stderr)
        raise
    except (DataError, DivergedError):
        shutil.rmtree(folder)  # going on would end the same way
        raise
    held_out, predictor = of_training(data.table, fitted), fitted.predictor
    board = score(predictor, held_out.windows, held_out.part) if held_out.windows else None
    card = Card.new(data.facts, board, data.experiment.seed, time.monotonic() - started, fitted.history)
    predictor.card = card.model_dump(mode="json")
    predictor.save(out)
    shutil.rmtree(folder)
    return Trained(predictor, card, held_out, fitted.history, out)
