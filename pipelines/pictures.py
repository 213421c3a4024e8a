"""From scores and forecasts to the figures of `tsde.plot`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipelines.card import Curve
from pipelines.heldout import HeldOut
from pipelines.question import Question
from pipelines.scores import MEASURES, Scoreboard
from tsde import plot
from tsde.errors import DataError
from tsde.evaluation import LEVELS, Measure, Skills
from tsde.predictor import Predictor
from tsde.table import Queries, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BANDS = (50.0, 80.0)
_PANELS = 6
_CHANNELS = 30  # bars that a page has room for
_STEPS = 24  # times at which a fan is drawn over the horizon


def of_scores(board: Scoreboard) -> dict[str, Figure]:
    """Calibration, and skill where it is known, by file name."""
    figures = {"reliability.png": of_reliability(board), "coverage.png": of_coverage(board, LEVELS)}
    if board.skills:
        figures |= {"skill.png": of_skill(board), "channels.png": of_channels(board)}
    return figures


def of_reliability(board: Scoreboard) -> Figure:
    """The model's observed frequencies against its quantile levels."""
    before, after = board.model.before, board.model.after
    error = _known(np.array(after.frequency_error))
    return plot.reliability_diagram(
        np.array(after.levels), np.array(before.frequency), np.array(after.frequency), error
    )


def of_coverage(board: Scoreboard, levels: Sequence[int]) -> Figure:
    """Coverage of the model's central intervals of these levels by lead time."""
    before, after = board.model.before.by_lead, board.model.after.by_lead
    shares = {}
    for level in levels:
        raw, found = (np.array([part.scores.coverage[level] for part in parts]) for parts in (before, after))
        shares[level] = raw[:, 0], found[:, 0], _known(found[:, 1])
    return plot.coverage_by_lead(_leads(board), shares, _unit(board))


def of_skill(board: Scoreboard) -> Figure:
    """The model's skill against each baseline by lead time, with 95 % intervals."""
    measures = {
        measure.upper(): {name: _ranges(found.by_lead, measure) for name, found in board.skills.items()}
        for measure in MEASURES
    }
    return plot.skill_by_lead(_leads(board), measures, _unit(board))


def of_channels(board: Scoreboard) -> Figure:
    """The model's CRPS skill against each baseline by channel, those with most observations where there are many."""
    parts = board.model.after.by_channel
    chosen = sorted(sorted(range(len(parts)), key=lambda c: -parts[c].scores.count)[:_CHANNELS])
    names = [parts[c].name for c in chosen]
    skills = {name: _ranges([found.by_channel[c] for c in chosen], "crps") for name, found in board.skills.items()}
    return plot.skill_by_channel(names, skills, "CRPS")


def _ranges(skills: Sequence[Skills], measure: Measure) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Skill, and the lower and upper end of its interval, each `(K,)`; NaN where there is none."""
    each = [getattr(found, measure) for found in skills]
    rows = np.array([(skill.value, *skill.interval()) for skill in each])
    value, low, high = np.where(np.isfinite(rows), rows, np.nan).T
    return value, low, high


def _known(error: np.ndarray) -> np.ndarray | None:
    """Standard errors; of one series, or on a card of an older version, there are none."""
    return error if len(error) and np.isfinite(error).any() else None


def _leads(board: Scoreboard) -> np.ndarray:
    """Middle of each lead-time bin in the horizon's unit."""
    return np.array([part.lead or (0.0, 0.0) for part in board.model.after.by_lead]).mean(1) * board.horizon


def _unit(board: Scoreboard) -> str:
    return board.unit or "the table's unit of time"


def of_training(curves: Sequence[Curve]) -> Figure:
    """Validation CRPS of every member against its steps."""
    steps = np.array(sorted({step for curve in curves for step in curve.step}))
    named = {}
    for number, curve in enumerate(curves, start=1):
        known = dict(zip(curve.step, curve.validation_crps, strict=True))
        named[f"member {number}"] = np.array([known.get(step, np.nan) for step in steps])
    return plot.training_curve(steps, named, "validation CRPS")


def of_held_out(predictor: Predictor, held_out: HeldOut) -> Figure | None:
    """Forecasts of the held-out series with the longest records beside what came; None if no series can be cut."""
    past, future = longest(*held_out.cut())
    if not past.n_series:
        return None
    horizon = predictor.clock.format_duration(predictor.scaler.horizon)
    step = predictor.clock.format_duration(predictor.scaler.horizon / _STEPS)
    queries = predictor.queries(past, horizon, step)
    return fan(predictor, predictor.forecast(past, queries=queries, levels=BANDS), queries, BANDS, past, future)


def longest(past: Table, future: Table) -> tuple[Table, Table]:
    """The series with most rows to come, as many as a fan chart shows."""
    chosen = np.argsort(-np.diff(future.offsets), kind="stable")[:_PANELS]
    return past.select(chosen), future.select(chosen)


def of_answers(predictor: Predictor, table: Table, queries: Queries | None, question: Question) -> Figure:
    """The answers to a question about the first series of a table, or the first asked for that are in it."""
    asked = table.ids if queries is None else pd.unique(queries.ids)
    known = pd.Index(table.ids).get_indexer(pd.Index(asked))
    some = table.select(known[known >= 0][:_PANELS])
    if queries is None:
        assert question.horizon is not None
        queries = predictor.queries(some, question.horizon, question.step)
    else:
        kept = np.isin(queries.ids.astype(str), some.ids.astype(str))
        queries = Queries(queries.ids[kept], queries.times[kept], queries.labels[kept])
    found = predictor.answer(some, queries, question.seed)
    return fan(predictor, predictor.frame(found, queries, question.levels), queries, question.levels, some)


def fan(
    predictor: Predictor,
    frame: pd.DataFrame,
    queries: Queries,
    levels: Sequence[float],
    past: Table,
    future: Table | None = None,
) -> Figure:
    """The first series of a forecast with a history, up to six panels; few series show more than their first channel.

    Args:
        frame: the answer to `queries`, with intervals at `levels`.
        future: what came after the forecast's origin, where it is known.
    """
    names = [name for name in pd.unique(queries.ids) if name in set(past.ids)][:_PANELS]
    if not names:
        raise DataError("there is nothing to draw: none of the series asked for has a history")
    channels = range(min(len(predictor.channels), max(1, _PANELS // len(names))))
    panels = [panel(predictor, frame, queries, levels, past, future, name, c) for name in names for c in channels]
    return plot.fan_chart(panels)


def panel(
    predictor: Predictor,
    frame: pd.DataFrame,
    queries: Queries,
    levels: Sequence[float],
    past: Table,
    future: Table | None,
    name: str,
    channel: int,
) -> plot.FanPanel:
    """One channel of the series `name` of a forecast; arguments as in `fan`."""
    asked = np.flatnonzero(queries.ids == name)
    asked = asked[np.argsort(queries.times[asked], kind="stable")]
    rows = frame.iloc[asked * len(predictor.channels) + channel]

    def column(text: str) -> np.ndarray:
        return rows[text].to_numpy(float)

    history, came = _observed(past, name, channel), _observed(future, name, channel) if future else (None, None)
    return plot.FanPanel(
        title=f"{name}, {predictor.channels[channel]}",
        history_times=history[0],
        history_values=history[1],
        future_times=came[0],
        future_values=came[1],
        times=queries.times[asked],
        mean=column("tsde"),
        median=column("tsde-median"),
        bands={round(level): (column(f"tsde-lo-{level:g}"), column(f"tsde-hi-{level:g}")) for level in levels},
        origin=float(past.times[past.offsets[_place(past, name) + 1] - 1]),
        time_label=predictor.experiment.data.time_col,
        datetime=predictor.clock.kind == "datetime",
    )


def _observed(table: Table, name: str, channel: int) -> tuple[np.ndarray, np.ndarray]:
    place = _place(table, name)
    rows = slice(table.offsets[place], table.offsets[place + 1])
    seen = ~np.isnan(table.values[rows, channel])
    return table.times[rows][seen], table.values[rows, channel][seen]


def _place(table: Table, name: str) -> int:
    return int(np.flatnonzero(table.ids == name)[0])
