"""A model's scores: those kept from its training, or on a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines import pictures
from pipelines.card import Card
from pipelines.data import load_for, require_use
from pipelines.heldout import HeldOut, of_table
from pipelines.places import require_apart
from pipelines.rows import require_table_name
from pipelines.score_tables import write_rows
from pipelines.scores import Scoreboard, score
from tsde.errors import CannotWriteError, UsageError
from tsde.plot import save_figure
from tsde.predictor import Predictor


def run(
    model: Path,
    data: Path | None = None,
    columns: Mapping[str, Any] | None = None,
    plots: Path | None = None,
    out: Path | None = None,
) -> Scoreboard:
    """Score the model beside its baselines on `data`, or look up the scores of its training.

    Args:
        plots: a directory for figures. out: a table of all scores.

    Raises:
        UsageError: no data, and no scores were kept; `out` is no name of a table, or a place that is read.
        DataError: the table leaves nothing to score.
    """
    if out is not None:
        require_table_name(out)
    require_apart((out, plots), (model, data))
    require_use(columns, data)
    predictor = Predictor.load(model)
    if data is None:
        card = Card.of(predictor)
        if card is None or card.scores is None:
            raise UsageError(f"{model} keeps no scores of its training: name a table to score it on with --data")
        board, held_out = card.scores, None
    else:
        held_out = of_table(predictor, *load_for(predictor, data, columns))
        board = score(predictor, held_out.windows, held_out.part)
    if plots is not None:
        _draw(predictor, board, held_out, plots)
    if out is not None:
        write_rows(board, out)
    return board


def _draw(predictor: Predictor, board: Scoreboard, held_out: HeldOut | None, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWriteError(f"cannot make the directory {folder}: {error.strerror}") from error
    figures = pictures.of_scores(board)
    fan = pictures.of_held_out(predictor, held_out) if held_out else None
    if fan is not None:
        figures["forecasts.png"] = fan
    for name, figure in figures.items():
        save_figure(figure, folder / name)
