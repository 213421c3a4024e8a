"""A model's scores beside its baselines', before and after calibration: to keep and to print."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pydantic import BaseModel
from rich import box
from rich.table import Table

from tsde.evaluation import Evaluation, Scores, Slice, evaluate_both
from tsde.models import BASELINES
from tsde.predictor import Predictor
from tsde.windows import Window

LEVEL = 80
"""The central interval, in per cent, whose coverage is shown."""


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
    """

    family: str
    part: str
    horizon: float
    unit: str
    model: Entry
    baselines: dict[str, Entry]

    def rows(self) -> Iterator[tuple[str, Entry]]:
        """Name and scores, the model first."""
        yield self.family, self.model
        yield from self.baselines.items()

    def skill(self, entry: Entry) -> float:
        """Share of the first baseline's CRPS that was saved: 0 is no better, 1 is perfect."""
        return 1 - entry.after.overall.crps / self.baselines[BASELINES[0]].after.overall.crps

    def lowest(self, measure: str) -> float:
        """The lowest `crps`, `mse` or `mae` of all, calibrated."""
        return min(getattr(entry.after.overall, measure) for _, entry in self.rows())

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
    return Scoreboard(
        family=predictor.experiment.model.family,
        part=part,
        horizon=float(length.removesuffix(unit)),
        unit=unit,
        model=_entry(predictor, windows),
        baselines={name: _entry(baseline, windows) for name, baseline in predictor.baselines.items()},
    )


def _entry(predictor: Predictor, windows: Sequence[Window]) -> Entry:
    before, after = evaluate_both(predictor, windows)
    return Entry(after=after, before=before)


def overall_table(board: Scoreboard) -> Table:
    """The model beside its baselines."""
    table = _table(
        f"Scores on {board.part}",
        "forecast by",
        "CRPS",
        "MSE",
        "MAE",
        f"skill vs {BASELINES[0]}",
        f"{LEVEL} % coverage",
    )
    for name, entry in board.rows():
        s = entry.after.overall
        style = "bold" if entry is board.model else None
        numbers = (f"{s.crps:.4f}", f"{s.mse:.4f}", f"{s.mae:.4f}", f"{board.skill(entry):+.1%}")
        table.add_row(name, *numbers, _coverage(entry.before.overall, s), style=style)
    table.caption = "errors in standard deviations; coverage before → after calibration"
    return table


def lead_table(board: Scoreboard) -> Table:
    """The model by lead time."""
    table = _table("By lead time", "lead", "CRPS", f"{LEVEL} % coverage", "observations")
    for before, after in zip(board.model.before.by_lead, board.model.after.by_lead, strict=True):
        _slice_row(table, board.between(after), before, after)
    return table


def channel_table(board: Scoreboard) -> Table:
    """The model by channel."""
    table = _table("By channel", "channel", "CRPS", f"{LEVEL} % coverage", "observations")
    for before, after in zip(board.model.before.by_channel, board.model.after.by_channel, strict=True):
        _slice_row(table, after.name, before, after)
    return table


def _slice_row(table: Table, name: str, before: Slice, after: Slice) -> None:
    scores = after.scores
    table.add_row(name, f"{scores.crps:.4f}", _coverage(before.scores, scores), f"{scores.count:,}")


def _coverage(before: Scores, after: Scores) -> str:
    share, error = after.coverage[LEVEL]
    margin = f"± {100 * error:.1f}" if math.isfinite(error) else "(one series)"
    return f"{100 * before.coverage[LEVEL][0]:.1f} → {100 * share:.1f} {margin}"


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        caption_style="dim",
    )
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table
