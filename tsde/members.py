"""The members of an ensemble, trained beside each other: one process per core, each with one thread.

A small model on a small batch is faster on one thread than on several, so the cores go to different members. A worker
(`tsde.worker`) reads the job from a folder and the numbers of members, one after the other, from its standard input;
it reports progress as lines of JSON on its standard output and leaves weights in the folder, so that a job that was
interrupted is simply run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path

import torch
import yaml
from safetensors.torch import save

from tsde.artifact import read_files, write_files
from tsde.config import Experiment, parse_experiment
from tsde.crew import Crew
from tsde.errors import ArtifactError, TsdeError
from tsde.model import Forecaster
from tsde.models import build
from tsde.series import SeriesSet
from tsde.threads import WORKER_ENVIRONMENT, single_thread
from tsde.training import Divergence, Progress, TrainConfig, divergence, fit
from tsde.trust import choose_trust
from tsde.windows import Fold, Origins, Region, Window, WindowConfig, eligible_origins, fixed_windows

_SEED_STEP = 1000  # between members
_SERIES = tuple(field.name for field in fields(SeriesSet))


def training_windows(origins: Origins, config: WindowConfig, count: int = Forecaster.examples) -> list[Window]:
    """A fixed sample of about `count` training windows for closed-form fits, at least two of each series."""
    return fixed_windows(origins, config.model_copy(update={"held_out": count}))


def validation_windows(series: SeriesSet, fold: Fold, experiment: Experiment) -> list[Window]:
    """The windows that members of a fold are validated on."""
    return fixed_windows(eligible_origins(series, fold.validation), experiment.windows)


def train_members(
    series: SeriesSet,
    folds: Sequence[Fold],
    experiment: Experiment,
    report: Callable[[Progress], None] = lambda progress: None,
    checkpoints: Path | None = None,
    unseen: Sequence[Window] = (),
) -> tuple[list[Forecaster], list[dict[str, float]]]:
    """Train `experiment.train.members` models; member i learns from fold `i mod len(folds)`.

    Last, the trust of cautious parts is chosen, for all members together. The result does not depend on how many run
    at once.

    Args:
        unseen: windows of no fold; they have a say in that trust.

    Returns:
        The members, and the record of their validations, also of those before an interruption.

    Raises:
        DivergedError: if a member diverges; the others are stopped. The checkpoints remember it: going on from them,
            the member ends with the weights of its best validation.
    """
    count = experiment.train.members
    workers = _workers(experiment.train)
    with single_thread():
        members = [_untrained(experiment, series.values.shape[1], member) for member in range(count)]
    if not any(parameter.requires_grad for parameter in members[0].parameters()):
        with single_thread():
            return [_fresh(series, folds, experiment, member).eval() for member in range(count)], []
    history: list[dict[str, float]] = []
    with nullcontext(checkpoints) if checkpoints else tempfile.TemporaryDirectory(prefix="tsde-") as place:
        folder = Path(str(place))
        _write_job(folder, series, folds, experiment)
        if workers == 1:
            for member in range(count):
                _train(folder, member, series, folds, experiment, report)
        else:
            _run_workers(folder, count, workers, report)
        for number, model in enumerate(members):
            files, tensors = read_files(_weights(folder, number))
            model.load_state_dict(tensors["weights.safetensors"])
            history += json.loads(files["history.json"])
    members = [model.eval() for model in members]
    with single_thread():
        choose_trust(members, (validation_windows(series, fold, experiment) for fold in folds[:count]), unseen)
    return members, history


def _untrained(experiment: Experiment, channels: int, member: int) -> Forecaster:
    """A member with its seed's initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.seed + _SEED_STEP * member)
        return build(experiment.model, channels)


def _fresh(series: SeriesSet, folds: Sequence[Fold], experiment: Experiment, member: int) -> Forecaster:
    """An untrained member, prepared on its fold."""
    model = _untrained(experiment, series.values.shape[1], member)
    origins = eligible_origins(series, folds[member % len(folds)].train)
    model.prepare(training_windows(origins, experiment.windows, model.examples))
    return model


def _train(
    folder: Path,
    member: int,
    series: SeriesSet,
    folds: Sequence[Fold],
    experiment: Experiment,
    report: Callable[[Progress], None],
    startup: float = 0.0,
) -> None:
    """Train one member from its last checkpoint, unless its weights are there already."""
    if _weights(folder, member).exists():
        return
    began = time.monotonic()
    config = experiment.train
    fold = folds[member % len(folds)]
    with single_thread():
        model = _fresh(series, folds, experiment, member)
        history = fit(
            model,
            eligible_origins(series, fold.train),
            validation_windows(series, fold, experiment),
            experiment.windows.settled(fold.train),
            config,
            seed=experiment.seed + _SEED_STEP * member,
            member=member,
            budget=_budget(config, startup, time.monotonic() - began),
            checkpoint=_state(folder, member),
            report=report,
        )
    files = {"history.json": json.dumps(history).encode()}
    write_files(_weights(folder, member), files, {"weights.safetensors": model.state_dict()})


def _budget(config: TrainConfig, startup: float, spent: float) -> float | None:
    """Seconds for one member's steps: its part of the whole less what went before, but half its part at least.

    Args:
        startup: of its process, which trains other members too. spent: on preparing this one.
    """
    if config.max_time is None:
        return None
    rounds = -(-config.members // _workers(config))
    return max((config.max_time - startup) / rounds - spent, config.max_time / rounds / 2)


def _workers(config: TrainConfig) -> int:
    return min(config.members, config.workers or os.cpu_count() or 1)


def _weights(folder: Path, member: int) -> Path:
    return folder / f"member-{member}"


def _state(folder: Path, member: int) -> Path:
    return folder / f"member-{member}.state"


def divergences(checkpoints: Path, experiment: Experiment) -> dict[int, Divergence]:
    """What ended members of an interrupted training before their time, by member."""
    found = {member: divergence(_state(checkpoints, member)) for member in range(experiment.train.members)}
    return {member: what for member, what in found.items() if what is not None}


def _write_job(folder: Path, series: SeriesSet, folds: Sequence[Fold], experiment: Experiment) -> None:
    """What workers read, and what the checkpoints beside it belong to, however many workers there were.

    Raises:
        ArtifactError: the folder has checkpoints of something else.
    """
    tensors = {name: getattr(series, name) for name in _SERIES}
    for number, fold in enumerate(folds):
        for part, region in zip(("train", "validation"), fold, strict=True):
            tensors |= {f"{number}/{part}/{name}": bound.clone() for name, bound in region._asdict().items()}
    same = experiment.model_copy(update={"train": experiment.train.model_copy(update={"workers": None})})
    identity = hashlib.sha256(same.to_yaml().encode() + save(tensors)).hexdigest().encode()
    job = folder / "job"
    if job.exists() and read_files(job)[0]["identity"] != identity:
        raise ArtifactError(f"{folder} holds the checkpoints of another experiment or other data: remove it")
    files = {"experiment.yaml": experiment.to_yaml().encode(), "identity": identity}
    write_files(job, files, {"data.safetensors": tensors})


def _read_job(folder: Path) -> tuple[SeriesSet, list[Fold], Experiment]:
    files, groups = read_files(folder / "job")
    tensors = groups["data.safetensors"]
    series = SeriesSet(**{name: tensors[name] for name in _SERIES})
    count = sum(name.endswith("/train/lower") for name in tensors)

    def region(number: int, part: str) -> Region:
        return Region(tensors[f"{number}/{part}/lower"], tensors[f"{number}/{part}/upper"])

    folds = [Fold(region(number, "train"), region(number, "validation")) for number in range(count)]
    return series, folds, parse_experiment(yaml.safe_load(files["experiment.yaml"]), str(folder))


def _run_workers(folder: Path, count: int, workers: int, report: Callable[[Progress], None]) -> None:
    """Run all members, at most `workers` at a time; on any failure or interrupt none is left running."""
    command = ["tsde.worker", str(folder), repr(time.monotonic())]
    with Crew(command, WORKER_ENVIRONMENT, workers, str, _heard, "training", "the checkpoints are kept") as crew:
        for progress in crew.work(range(count)):
            if progress is not None:
                report(progress)


def _heard(line: str) -> tuple[Progress | None, bool]:
    """What a worker reports, and whether its member is trained.

    Raises:
        TsdeError: what the worker could not handle, as the type that it was.
    """
    message = json.loads(line)
    if "error" in message:
        kinds = {kind.__name__: kind for kind in TsdeError.__subclasses__()}
        raise kinds[message["error"]](message["message"])
    done = "done" in message
    return None if done else Progress(**message), done


def work(folder: Path, members: Iterable[int], startup: float) -> None:
    """A worker's whole life: train each of `members` and say so; `startup` is what it took to begin, in seconds."""

    def send(message: dict[str, object]) -> None:
        os.write(1, (json.dumps(message) + "\n").encode())

    for member in members:
        try:
            _train(folder, member, *_read_job(folder), lambda progress: send(asdict(progress)), startup)
            send({"done": member})
        except TsdeError as error:
            send({"error": type(error).__name__, "message": f"member {member + 1}: {error}"})
