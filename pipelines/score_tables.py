"""Scores as tables: to print beside each other, and to keep as rows of a file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table

from pipelines.rows import encode, is_text, write_table
from pipelines.scores import LEVEL, MEASURES, Entry, Scoreboard
from tsde.evaluation import LEVELS, Measure, Scores, Skill, Skills, Slice
from tsde.models import BASELINES


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
        table.add_row(name, *numbers, _coverage(entry.before.overall, s, LEVEL), style=style)
    table.caption = "errors in standard deviations; coverage before → after calibration"
    return table


def skill_table(board: Scoreboard, measure: Measure, by_channel: bool = False) -> Table:
    """What the model saves of each baseline's CRPS or MSE: overall, by lead time, and by channel if asked for."""
    versus = [f"vs {name}" for name in board.skills]
    table = _table(f"Share of a baseline's {measure.upper()} that {board.family} saves, in per cent", "", *versus)
    parts = [("overall", board.overall_skills()), *board.by_lead(), *(board.by_channel() if by_channel else ())]
    for name, skills in parts:
        table.add_row(name, *(_saved(getattr(found, measure)) for found in skills.values()))
    table.caption = "± one standard error, series or their groups as clusters; * zero lies outside the 95 % interval"
    return table


def lead_table(board: Scoreboard) -> Table:
    """The model by lead time."""
    table = _table("By lead time", "lead", "CRPS", *_headings(), "values")
    for before, after in zip(board.model.before.by_lead, board.model.after.by_lead, strict=True):
        _slice_row(table, board.between(after), before, after)
    return table


def channel_table(board: Scoreboard) -> Table:
    """The model by channel."""
    table = _table("By channel", "channel", "CRPS", *_headings(), "values")
    for before, after in zip(board.model.before.by_channel, board.model.after.by_channel, strict=True):
        _slice_row(table, after.name, before, after)
    return table


def write_rows(board: Scoreboard, path: Path) -> None:
    """All scores as a table, CSV or Parquet: see `frame`.

    Raises:
        CannotWriteError: it cannot be written.
    """
    rows = frame(board)
    write_table(path, [str(name) for name in rows.columns], [encode(rows, is_text(path))])


def frame(board: Scoreboard) -> pd.DataFrame:
    """A row for the model and each baseline, overall, per lead-time bin and per channel.

    Columns: `forecast_by, part` ("overall", "lead" or "channel"), `channel, lead_from, lead_to` (in the horizon's
    unit), `observations, series` (how many, in the model's rows), `crps, mse, mae, nll, width_80`; `coverage_50,
    coverage_50_se, coverage_50_raw` (before calibration) and likewise 80 and 95; in the model's rows
    `crps_skill_vs_last`, with `_se` its standard error and with `_lo` and `_hi` the ends of its 95 % interval, and
    likewise for `mse` and the other baselines.
    """
    rows = []
    for name, entry in board.rows():
        rows += [{"forecast_by": name, **row} for row in _rows(board, entry)]
    return pd.DataFrame(rows)


def _rows(board: Scoreboard, entry: Entry) -> Iterator[dict[str, Any]]:
    before, after = entry.before, entry.after
    nowhere = {"channel": "", "lead_from": math.nan, "lead_to": math.nan}
    ours = entry is board.model
    skills = board.overall_skills() if ours else {}
    yield {"part": "overall", **nowhere} | _cells(before.overall, after.overall, skills)
    for raw, part, (_, skills) in zip(before.by_lead, after.by_lead, board.by_lead(), strict=True):
        low, high = (board.horizon * share for share in part.lead or (0.0, 0.0))
        place = {"part": "lead", **nowhere, "lead_from": low, "lead_to": high}
        yield place | _cells(raw.scores, part.scores, skills if ours else {})
    for raw, part, (_, skills) in zip(before.by_channel, after.by_channel, board.by_channel(), strict=True):
        place = {"part": "channel", **nowhere, "channel": part.name}
        yield place | _cells(raw.scores, part.scores, skills if ours else {})


def _cells(before: Scores, after: Scores, skills: Mapping[str, Skills]) -> dict[str, Any]:
    series = next((found.series for found in skills.values()), math.nan)
    cells: dict[str, Any] = {"observations": after.count, "series": series}
    cells |= {name: getattr(after, name) for name in ("crps", "mse", "mae", "nll", "width_80")}
    for level in LEVELS:
        share, error = after.coverage[level]
        cells |= {f"coverage_{level}": share, f"coverage_{level}_se": error}
        cells[f"coverage_{level}_raw"] = before.coverage[level][0]
    for name, found in skills.items():
        for measure in MEASURES:
            skill = getattr(found, measure)
            cells |= {f"{measure}_skill_vs_{name}": skill.value, f"{measure}_skill_vs_{name}_se": skill.error}
            cells |= dict(
                zip((f"{measure}_skill_vs_{name}_{end}" for end in ("lo", "hi")), skill.interval(), strict=True)
            )
    return cells


def _headings() -> list[str]:
    return [f"{level} % coverage" for level in LEVELS]


def _slice_row(table: Table, name: str, before: Slice, after: Slice) -> None:
    scores = after.scores
    coverage = [_coverage(before.scores, scores, level) for level in LEVELS]
    table.add_row(name, f"{scores.crps:.4f}", *coverage, f"{scores.count:,}")


def _coverage(before: Scores, after: Scores, level: int) -> str:
    share, error = after.coverage[level]
    return f"{100 * before.coverage[level][0]:.1f}→{100 * share:.1f}{_margin(error)}"


def _margin(error: float) -> str:
    """Of a share; one series has none."""
    return f" ± {100 * error:.1f}" if math.isfinite(error) else ""


def _saved(skill: Skill) -> str:
    if not math.isfinite(skill.value):
        return "undefined"
    return f"{100 * skill.value:+.1f}{_margin(skill.error)}" + ("*" if skill.verdict() else " ")


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        collapse_padding=True,  # for terminals of eighty columns
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        caption_style="dim",
    )
    table.add_column(first, min_width=min(len(first), 12))
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table
