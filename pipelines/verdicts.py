"""What a model's scores amount to, in plain sentences."""

from __future__ import annotations

import math

from pipelines.scores import Entry, Scoreboard
from tsde.evaluation import Scores

LEVELS = (50, 80, 95)
_MEASURES = {"crps": "CRPS", "mse": "MSE", "mae": "MAE"}
_DOUBT = 2.0  # standard errors within which a coverage is no different from its level


def rivals(board: Scoreboard) -> dict[str, Entry]:
    """The baselines, without the model itself if it is one."""
    return {name: entry for name, entry in board.baselines.items() if name != board.family}


def best_baseline(board: Scoreboard) -> tuple[str, Entry]:
    """The baseline with the lowest CRPS, by name."""
    return min(rivals(board).items(), key=lambda item: item[1].after.overall.crps)


def gain(board: Scoreboard) -> float:
    """Share of the best baseline's CRPS that the model saves; below zero where the baseline wins."""
    return 1 - board.model.after.overall.crps / best_baseline(board)[1].after.overall.crps


def skill(board: Scoreboard) -> list[str]:
    """Whether the model beats its baselines, by every measure; the baseline is named where it does not."""
    name, entry = best_baseline(board)
    ours, theirs = board.model.after.overall.crps, entry.after.overall.crps
    if ours < theirs:
        saved = f"{100 * gain(board):.1f} % lower than that of the best baseline, {name}"
        first = f"The model's CRPS is {saved} ({ours:.4f} against {theirs:.4f})."
    else:
        first = (
            f"A baseline wins: {name} has a CRPS of {theirs:.4f}, no higher than the model's {ours:.4f}. "
            f"It is as simple as can be, so prefer it: tsde train --family {name}"
        )
    return [first, *filter(None, (_other(board, measure) for measure in ("mse", "mae")))]


def _other(board: Scoreboard, measure: str) -> str | None:
    """Where a baseline is better by this measure."""
    ours = getattr(board.model.after.overall, measure)
    name, theirs = min(
        ((name, getattr(entry.after.overall, measure)) for name, entry in rivals(board).items()),
        key=lambda item: item[1],
    )
    if ours < theirs:
        return None
    return f"By {_MEASURES[measure]} the baseline {name} is no worse ({theirs:.4f} against {ours:.4f})."


def channels(board: Scoreboard) -> str:
    """For how many channels a baseline does at least as well."""
    lost = [part.name for part in board.model.after.by_channel if part.scores.crps >= best_for(board, part.name)[1]]
    total = len(board.model.after.by_channel)
    if not lost:
        return f"The model has a lower CRPS than every baseline in each of the {total} channels that were scored."
    return f"In {len(lost)} of {total} channels a baseline has a CRPS no higher than the model's; they are marked."


def best_for(board: Scoreboard, channel: str) -> tuple[str, float]:
    """The best baseline for a channel and its CRPS there."""
    found = {
        name: part.scores.crps
        for name, entry in rivals(board).items()
        for part in entry.after.by_channel
        if part.name == channel
    }
    name = min(found, key=found.__getitem__)
    return name, found[name]


def calibration(board: Scoreboard) -> list[str]:
    """Whether the intervals hold what they promise, overall and by lead time."""
    overall = [_interval(level, board.model.after.overall) for level in LEVELS]
    strays = [
        f"{board.between(part)} ({level} %: {100 * part.scores.coverage[level][0]:.1f} %)"
        for part in board.model.after.by_lead
        for level in LEVELS
        if _verdict(level, *part.scores.coverage[level]) in ("too narrow", "too wide")
    ]
    if strays:
        return [*overall, f"By lead time, coverage is off by more than two standard errors at: {'; '.join(strays)}."]
    if not all(math.isfinite(part.scores.coverage[LEVELS[0]][1]) for part in board.model.after.by_lead):
        return overall
    return [*overall, "At no lead time is coverage off by more than two standard errors."]


def _interval(level: int, scores: Scores) -> str:
    share, error = scores.coverage[level]
    found = f"The {level} % intervals held {100 * share:.1f} %"
    margin = f" ± {100 * error:.1f} of the observations: {_verdict(level, share, error)}."
    return found + (margin if math.isfinite(error) else " of the observations; one series is too few to judge.")


def _verdict(level: int, share: float, error: float) -> str:
    if not math.isfinite(error):
        return "unknown"
    if abs(share - level / 100) <= _DOUBT * error:
        return "as promised, within two standard errors"
    return "too narrow" if share < level / 100 else "too wide"
