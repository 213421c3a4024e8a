"""A model's scores beside its baselines', before and after calibration, and its skill against each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from pydantic import BaseModel

from tsde.evaluation import Comparison, Evaluation, Losses, Measure, Skills, Slice, compare, evaluate_both
from tsde.models import BASELINES
from tsde.predictor import Predictor
from tsde.windows import Window

LEVEL = 80
"""The central interval, in per cent, whose coverage stands for all where one must do."""
MEASURES: tuple[Measure, ...] = ("crps", "mse")
"""In which skill is measured."""


class Entry(BaseModel, frozen=True):
    """One predictor's scores with calibrated and with raw forecasts."""

    after: Evaluation
    before: Evaluation


class Scoreboard(BaseModel, frozen=True):
    """A model and its baselines on the same windows.

    Attributes:
        family: the model's.
        part: what was scored, in words.
        horizon, unit: the horizon as a number of d, h, min or s; the unit is empty where times are numbers.
        skills: the model's against each baseline but itself, calibrated; none on a card of an older version.
    """

    family: str
    part: str
    horizon: float
    unit: str
    model: Entry
    baselines: dict[str, Entry]
    skills: dict[str, Comparison] = {}

    def as_json(self) -> str:
        """Everything, for programs, in ASCII: escapes of a terminal's making would be no JSON."""
        return json.dumps(json.loads(self.model_dump_json()), indent=1)

    def rows(self) -> Iterator[tuple[str, Entry]]:
        """Name and scores, the model first."""
        yield self.family, self.model
        yield from self.baselines.items()

    def skill(self, entry: Entry) -> float:
        """Share of the first baseline's CRPS that an entry saves: 0 is no better, 1 is perfect."""
        return 1 - entry.after.overall.crps / self.baselines[BASELINES[0]].after.overall.crps

    def lowest(self, measure: str) -> float:
        """The lowest `crps`, `mse` or `mae` of all, calibrated."""
        return min(getattr(entry.after.overall, measure) for _, entry in self.rows())

    def overall_skills(self) -> dict[str, Skills]:
        """The model's skill against each baseline over everything."""
        return {name: found.overall for name, found in self.skills.items()}

    def by_lead(self) -> Iterator[tuple[str, dict[str, Skills]]]:
        """Lead times as text, and the model's skill there against each baseline."""
        for number, part in enumerate(self.model.after.by_lead):
            yield self.between(part), {name: found.by_lead[number] for name, found in self.skills.items()}

    def by_channel(self) -> Iterator[tuple[str, dict[str, Skills]]]:
        """Channels, and the model's skill there against each baseline."""
        for number, part in enumerate(self.model.after.by_channel):
            yield part.name, {name: found.by_channel[number] for name, found in self.skills.items()}

    def lead(self, share: float) -> str:
        """A lead time in horizons as text in the horizon's unit."""
        return f"{share * self.horizon:.3g}{self.unit}"

    def between(self, part: Slice) -> str:
        """The lead times of a slice as text."""
        low, high = part.lead or (0.0, 0.0)
        return f"{self.lead(low)} to {self.lead(high)}"


def score(predictor: Predictor, windows: Sequence[Window], part: str) -> Scoreboard:
    """Score a model and its baselines on windows with known answers, at least one."""
    length = predictor.clock.format_duration(predictor.scaler.horizon)
    unit = length.lstrip("0123456789.e+-")
    family = predictor.experiment.model.family
    model, ours = _entry(predictor, windows)
    baselines, skills = {}, {}
    for name, baseline in predictor.baselines.items():
        baselines[name], theirs = _entry(baseline, windows)
        if name != family:
            skills[name] = compare(ours, theirs, predictor.channels)
    return Scoreboard(
        family=family,
        part=part,
        horizon=float(length.removesuffix(unit)),
        unit=unit,
        model=model,
        baselines=baselines,
        skills=skills,
    )


def _entry(predictor: Predictor, windows: Sequence[Window]) -> tuple[Entry, Losses]:
    before, after, losses = evaluate_both(predictor, windows)
    return Entry(after=after, before=before), losses
