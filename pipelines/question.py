"""What is asked of a model, and where the answers go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.places import require_apart
from pipelines.rows import require_table_name
from tsde.errors import CannotWriteError, UsageError


@dataclass(frozen=True)
class Question:
    """What is asked: regular times up to a horizon after each series' last row, or the rows of a table of times.

    Raises:
        UsageError: both kinds at once, or neither.
    """

    horizon: str | None = None
    step: str | None = None
    times: Path | None = None
    levels: Sequence[float] = (80.0,)
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.horizon is None) == (self.times is None):
            found = "both" if self.horizon else "neither"
            raise UsageError(f"expected --horizon (with --step if you like) or else --times, got {found}")
        if self.step is not None and self.horizon is None:
            raise UsageError("--step divides a --horizon; a table of --times says by itself when")
        object.__setattr__(self, "levels", tuple(dict.fromkeys(self.levels)))


@dataclass(frozen=True)
class Outputs:
    """What to write: the table of forecasts, to the standard output without a path; samples of them; a fan chart.

    Raises:
        UsageError: an unknown suffix, or samples without a place to go.
        CannotWriteError: there is a directory in the place of a table.
    """

    table: Path | None = None
    samples: int = 0
    samples_table: Path | None = None
    picture: Path | None = None

    def __post_init__(self) -> None:
        for path in (self.table, self.samples_table):
            if path is not None:
                require_table_name(path)
        if self.picture is not None and self.picture.suffix not in (".png", ".svg"):
            raise UsageError(f"{self.picture}: expected a picture that ends in .png or .svg")
        if (self.samples > 0) != (self.samples_table is not None):
            raise UsageError("--samples N and --samples-out P go together: how many, and where to")

    def require_place(self, *inputs: Path | None) -> None:
        """Refuse, before any work is done, to write a table where a directory stands, or over one of the inputs."""
        require_apart((self.table, self.samples_table, self.picture), inputs)
        for path in (self.table, self.samples_table):
            if path is not None and path.is_dir():
                raise CannotWriteError(f"cannot write {path}: it is a directory")


def unknown_note(count: int, times: Path | None, example: str) -> str:
    """What to say of ids that were asked for and have no rows."""
    return f"note: {count} ids of {times} are not in the table, first {example!r}"
