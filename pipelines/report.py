"""One HTML page about a model that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from pipelines import fans, pictures, verdicts
from pipelines.card import Card
from pipelines.data import Facts, load_for, require_use
from pipelines.heldout import of_table
from pipelines.places import require_apart
from pipelines.scores import Scoreboard, score
from pipelines.svg import inline_svg, printable
from tsde import plot
from tsde.errors import UsageError
from tsde.evaluation import LEVELS
from tsde.files import write_file
from tsde.predictor import Predictor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawing:
    """A figure as it stands in the page, and what is written below it."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Page:
    """Everything that the template shows.

    Attributes:
        board: None for a model that keeps no scores.
        scored: the table behind `board`; None where the scores were kept from training.
        digests: SHA-256 of each of the model's files.
        fans: None without a table, or where nothing came after any origin.
    """

    predictor: Predictor
    card: Card | None
    board: Scoreboard | None
    scored: Facts | None
    fans: fans.Fans | None
    digests: dict[str, str]

    def horizon(self) -> str:
        """How far the model forecasts, as text."""
        return self.predictor.clock.format_duration(self.predictor.scaler.horizon)

    def skill(self, board: Scoreboard) -> list[Drawing]:
        """Skill against each baseline by lead time and by channel; none on a card of an older version."""
        if not board.skills:
            return []
        told = (
            "share of its error that the model saves, with a 95 % interval. Above the dashed line the model is better"
        )
        by_lead = f"By lead time and baseline: the {told}."
        by_channel = "The same for the CRPS by channel; to the right of the dashed line the model is better."
        return [
            _drawing(pictures.of_skill(board), "skill", "Skill against each baseline by lead time", by_lead),
            _drawing(pictures.of_channels(board), "skill-channels", "Skill by channel", by_channel),
        ]

    def calibration(self, board: Scoreboard) -> list[Drawing]:
        """Coverage by lead time at every level, and the reliability diagram."""
        drawings = [
            _drawing(
                pictures.of_coverage(board, [level]),
                f"coverage-{level}",
                f"Coverage of the {level} % interval by lead time",
                f"Share of observations inside the central {level} % interval. The dashed line is what was promised.",
            )
            for level in LEVELS
        ]
        caption = "How often an observation was at or below each quantile. The dashed line is ideal."
        return [*drawings, _drawing(pictures.of_reliability(board), "reliability", "Reliability", caption)]

    def training(self) -> Drawing | None:
        """The validation curve of every member."""
        if self.card is None or not self.card.curves:
            return None
        caption = "CRPS on each member's validation series after so many steps; the best point is the one that is kept."
        return _drawing(pictures.of_training(self.card.curves), "training", "Training curves", caption)

    def forecasts(self, kind: str) -> list[Drawing]:
        """Fan charts of the `typical` or the `worst` series."""
        found = getattr(self.fans, kind) if self.fans else []
        return [_fan(fan, f"{kind}-{number}", kind) for number, fan in enumerate(found, start=1)]


def run(model: Path, out: Path, data: Path | None = None, columns: Mapping[str, Any] | None = None) -> None:
    """Write the page about a model: its scores on `data` with forecasts of its series, or those of its training.

    Raises:
        UsageError: `out` is no name of a page, or a place that is read.
        DataError: the table leaves nothing to score.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{out}: expected a page that ends in .html")
    require_apart([out], (model, data))
    require_use(columns, data)
    write_file(out, render(gather(model, data, columns)).encode())


def gather(model: Path, data: Path | None = None, columns: Mapping[str, Any] | None = None) -> Page:
    """Read the model and compute what it does not hold."""
    predictor = Predictor.load(model)
    card = Card.of(predictor)
    digests = json.loads((model / "manifest.json").read_bytes())["files"]
    if data is not None:
        table, facts = load_for(predictor, data, columns)
        held_out = of_table(predictor, table, facts)
        board = score(predictor, held_out.windows, held_out.part)
        return Page(predictor, card, board, facts, fans.choose(predictor, held_out), digests)
    return Page(predictor, card, card.scores if card else None, None, None, digests)


def render(page: Page) -> str:
    """The page as HTML. Every text in it is escaped, whoever chose it; equal pages give equal text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"score": _score, "percent": _percent, "plain": _plain, "margin": _margin, "saved": _saved}
    source = files("pipelines")
    template = environment.from_string((source / "report.html").read_text(encoding="utf-8"))
    style = (source / "report.css").read_text(encoding="utf-8")
    shown = template.render(
        page=page, style=style, verdicts=verdicts, levels=LEVELS, history=fans.HISTORY, rows=fans.ROWS
    )
    return printable(shown).strip() + "\n"


def _fan(fan: fans.Fan, name: str, kind: str) -> Drawing:
    title = f"Forecast of a {kind} held-out series: {fan.panel.title}"
    observations = "1 observation" if fan.observations == 1 else f"{fan.observations} observations"
    caption = f"CRPS {fan.crps:.3f} standard deviations over {observations} within the horizon."
    return _drawing(plot.fan_chart([fan.panel]), name, title, caption)


def _drawing(figure: Figure, name: str, title: str, caption: str) -> Drawing:
    return Drawing(inline_svg(figure, name, title, caption), caption)


def _score(value: float) -> str:
    return f"{value:.4f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _margin(error: float) -> str:
    """A standard error in per cent; of a single series there is none, nor of what is undefined."""
    if np.isnan(error):
        return ""
    return f"± {100 * error:.1f}" if np.isfinite(error) else ""


def _saved(share: float) -> str:
    """Skill in per cent; against a baseline without error there is none."""
    return f"{100 * share:+.1f}" if np.isfinite(share) else "undefined"


def _plain(value: float) -> str:
    """Four digits, however large or small."""
    return f"{value:.4g}"
