"""What a training would do: everything that can be known before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

from pipelines.data import Data
from pipelines.messages import warn
from pipelines.train import working_directory
from tsde.fitting import Parts, prepare
from tsde.threads import single_thread


def check(data: Data, out: Path) -> Parts:
    """Find out now what would fail later; returns what training begins with.

    Raises:
        UsageError, CannotWriteError: `out` cannot become a model.
        DataError: too little data.
    """
    working_directory(data, out)
    with single_thread():
        parts = prepare(data.table, data.experiment)
    _tell(data, parts)
    return parts


def _tell(data: Data, parts: Parts) -> None:
    """Say what a training will not do, though it was asked for."""
    clock, experiment, horizon = data.table.clock, data.experiment, parts.scaler.horizon
    asked = clock.parse_duration(experiment.horizon)
    if horizon < asked:
        warn(
            f"no training series tells what comes {clock.format_duration(asked)} later: the model learns to forecast "
            f"{clock.format_duration(horizon)} ahead, and what is asked beyond has the status beyond_horizon"
        )
    if experiment.calibration.enabled and not parts.calibration:
        warn("the table is too small for a part to calibrate on: intervals stay as they are learnt")
    if experiment.split.test and not parts.test:
        warn("the table is too small for a part to score on: `tsde evaluate` scores the model on another table")


def describe(data: Data, parts: Parts, out: Path, resume: Path | None = None, as_json: bool = False) -> str:
    """The steps of a training, and its complete configuration: YAML with comments, or JSON."""
    train, left = data.experiment.train, working_directory(data, out)
    held_out = [sum(window.query.origins.numel() for window in windows) for windows in (parts.calibration, parts.test)]
    bound = f", at most {train.max_time:g} s" if train.max_time else ""
    steps = [
        f"would train on {data.path}: {data.facts.sentence()}",
        f"would train {train.members} members of {data.experiment.model.family}, {train.steps} steps each{bound}",
        f"would calibrate on {held_out[0]} and score on {held_out[1]} held-out forecast origins",
        f"would write the model {out}" + (", in place of the one there" if out.exists() else ""),
    ]
    if resume is not None:
        steps.append(f"would go on from the interrupted run {resume}")
    elif left.exists():
        steps.append(f"would discard the interrupted run {left}")
    if as_json:
        about = {"dry_run": True, "model": str(out), "data": data.facts.model_dump(), "plan": steps}
        return json.dumps(about | {"experiment": data.experiment.model_dump(mode="json")}, indent=1)
    return "\n".join(f"# {step}" for step in [*steps, "nothing was written"]) + "\n" + data.experiment.to_yaml()
