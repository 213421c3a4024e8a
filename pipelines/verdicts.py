"""What a model's scores amount to, in plain sentences."""

from __future__ import annotations

import math

from pipelines.scores import Entry, Scoreboard
from tsde.evaluation import LEVELS, Scores, Skill

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
    """Whether the model beats its baselines, by every measure; the baseline is named where it does not.

    A difference counts only where zero lies outside the 95 % interval of the paired skill.
    """
    name, entry = best_baseline(board)
    ours, theirs = board.model.after.overall.crps, entry.after.overall.crps
    found = board.skills[name].overall.crps if name in board.skills else None
    if ours < theirs:
        saved = f"{_give_or_take(gain(board), found)} % lower than that of the best baseline, {name}"
        first = f"The model's CRPS is {saved} ({ours:.4f} against {theirs:.4f}){_doubt(found)}."
    else:
        says = "A baseline does as well" if found and found.verdict() == 0 else "A baseline wins"
        first = (
            f"{says}: {name} has a CRPS of {theirs:.4f}, no higher than the model's {ours:.4f}. "
            f"It is as simple as can be, so prefer it: tsde train --family {name}"
        )
    return [first, *filter(None, (_other(board, measure) for measure in ("mse", "mae")))]


def _give_or_take(share: float, found: Skill | None) -> str:
    error = found.error if found else math.inf
    return f"{100 * share:.1f} ± {100 * error:.1f}" if math.isfinite(error) else f"{100 * share:.1f}"


def _doubt(found: Skill | None) -> str:
    return "" if found is None or found.verdict() else ", too little to tell from chance on these series"


def _other(board: Scoreboard, measure: str) -> str | None:
    """Where a baseline is better by this measure, or cannot be told from the model."""
    ours = getattr(board.model.after.overall, measure)
    name, theirs = min(
        ((name, getattr(entry.after.overall, measure)) for name, entry in rivals(board).items()),
        key=lambda item: item[1],
    )
    values, title = f"({theirs:.4f} against {ours:.4f})", _MEASURES[measure]
    if ours >= theirs:
        return f"By {title} the baseline {name} is no worse {values}."
    if measure == "mse" and name in board.skills and not board.skills[name].overall.mse.verdict():
        return f"By {title} the model cannot be told from the baseline {name} {values}."
    return None


def channels(board: Scoreboard) -> str:
    """For how many channels a baseline does at least as well, and where the difference is more than chance."""
    parts = board.model.after.by_channel
    lost = [part.name for part in parts if part.scores.crps >= best_for(board, part.name)[1]]
    if not lost:
        first = f"The model has a lower CRPS than every baseline in each of the {len(parts)} channels that were scored."
    else:
        worse = f"In {len(lost)} of {len(parts)} channels a baseline"
        first = f"{worse} has a CRPS no higher than the model's; they are marked."
    verdicts = [found.verdict() for part in parts if (found := skill_for(board, part.name)) is not None]
    if not verdicts:
        return first
    told = f"{verdicts.count(1)} of {len(parts)} channels, and worse in {verdicts.count(-1)}"
    return f"{first} Beyond chance it is better than the channel's best baseline in {told}."


def skill_for(board: Scoreboard, channel: str) -> Skill | None:
    """The model's CRPS skill against the best baseline of a channel; None on a card of an older version."""
    skills = dict(board.by_channel())[channel]
    found = skills.get(best_for(board, channel)[0])
    return found.crps if found else None


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
