"""How errors leave the program: the one place that gives each type its exit code and its line on stderr."""

from __future__ import annotations

import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from pipelines.messages import speak_any_encoding
from tsde.errors import (
    ArtifactError,
    CannotWriteError,
    ConfigError,
    DataError,
    DivergedError,
    MissingInputError,
    TsdeError,
    UsageError,
)

# As in sysexits.h; a table, a dataset and a saved model are all data.
CODES: dict[type[TsdeError], int] = {
    UsageError: 2,
    DataError: 65,
    ArtifactError: 65,
    MissingInputError: 66,
    DivergedError: 70,
    CannotWriteError: 73,
    ConfigError: 78,
}
BAD_DATA = CODES[DataError]
UNEXPECTED = 1
INTERRUPTED = 130


class Commands(TyperGroup):
    """The group of all commands: whatever one of them raises becomes one message on stderr and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """`--debug` may stand anywhere: people add it at the end of a command that failed."""
        speak_any_encoding()
        debug = ["--debug"] * ("--debug" in args)
        return super().parse_args(ctx, debug + [arg for arg in args if arg != "--debug"])

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.TyperException, typer.Abort, typer.Exit, BrokenPipeError):
            raise  # typer's own business
        except (Exception, KeyboardInterrupt) as error:
            code, message = verdict(error)
            if ctx.params["debug"]:
                traceback.print_exception(error)
            print(message, file=sys.stderr)
            raise typer.Exit(code) from None


def verdict(error: BaseException) -> tuple[int, str]:
    """The exit code of an error, or of the closest type it derives from, and what to say."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    if isinstance(error, TsdeError):
        return next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), UNEXPECTED), f"error: {error}"
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    if isinstance(error, MemoryError) or "can't allocate memory" in reason:  # torch has no type for it
        return UNEXPECTED, f"error: out of memory; a smaller model, train.batch or table needs less ({reason})"
    return UNEXPECTED, f"error: unexpected {reason}; add --debug to see where it came from"
