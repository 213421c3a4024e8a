"""Command-line options that several commands share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from typer import Argument, Option

from pipelines import messages

Model = Annotated[str, Argument(metavar="MODEL", help="A model: a directory, runs:/ID or models:/NAME@ALIAS.")]
# whether files can be read is found out, and said, where they are read
TablePath = Annotated[Path, Argument(metavar="TABLE", readable=False, help="A table: .csv, .csv.gz or .parquet.")]
Config = Annotated[
    Path | None, Option(metavar="C", readable=False, help="Configuration in YAML; configs/ has examples.")
]
Horizon = Annotated[str | None, Option(metavar="H", help="How far ahead: 30d, 12h, or a plain number like the times.")]
Set = Annotated[list[str] | None, Option("--set", metavar="a.b=c", help="Override one setting; may be repeated.")]


def _hush(quiet: bool) -> bool:
    messages.listen(quiet)
    return quiet


Quiet = Annotated[bool, Option("--quiet", callback=_hush, help="Nothing but warnings and errors on stderr.")]
Json = Annotated[bool, Option("--json", help="JSON on stdout, for programs.")]
DryRun = Annotated[bool, Option("--dry-run", help="Check everything, say what would be done, and write nothing.")]
IdCol = Annotated[str | None, Option(help="Column with the series' id [unique_id].")]
TimeCol = Annotated[str | None, Option(help="Column with the time [ds].")]


class Duplicates(StrEnum):
    """What becomes of rows that repeat an id and a time."""

    error = "error"
    mean = "mean"
    first = "first"
    last = "last"


Timezone = Annotated[str | None, Option(help="Zone of times written without one, such as Europe/Paris.")]
Dayfirst = Annotated[bool | None, Option("--dayfirst", help="01/02/2024 is 1 February.")]


def with_columns(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say what a table's columns mean; the command gets those typed as the mapping `columns`."""
    return _with(command, _columns)


def with_reading(command: Callable[..., None]) -> Callable[..., None]:
    """The same for a table that is read for a model, which knows its channels."""
    return _with(command, _reading)


def _with(command: Callable[..., None], options: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    own = inspect.signature(command, eval_str=True)
    more = inspect.signature(options, eval_str=True).parameters
    kept = [parameter for name, parameter in own.parameters.items() if name != "columns"]

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> None:
        command(columns=options(**{name: arguments.pop(name) for name in more}), **arguments)

    hints = get_type_hints(command, include_extras=True) | get_type_hints(options, include_extras=True)
    wrapper.__signature__ = own.replace(parameters=[*kept, *more.values()])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {name: hint for name, hint in hints.items() if name != "columns"}
    return wrapper


def _reading(
    *,
    id_col: IdCol = None,
    time_col: TimeCol = None,
    duplicates: Annotated[Duplicates | None, Option(help="Rows that repeat an id and a time [as in training].")] = None,
    timezone: Timezone = None,
    dayfirst: Dayfirst = None,
) -> dict[str, Any]:
    policy = duplicates and duplicates.value
    return _typed(id_col=id_col, time_col=time_col, duplicates=policy, timezone=timezone, dayfirst=dayfirst)


def _columns(
    *,
    id_col: IdCol = None,
    time_col: TimeCol = None,
    channels: Annotated[str | None, Option(metavar="a,b,c", help="The channels [every other numeric column].")] = None,
    channel_col: Annotated[str | None, Option(help="Tidy table: column that names the channel.")] = None,
    value_col: Annotated[str | None, Option(help="Tidy table: column with the value.")] = None,
    group_col: Annotated[
        str | None, Option(help="Column with what series belong to, such as the patient of several stays [none].")
    ] = None,
    duplicates: Annotated[Duplicates | None, Option(help="Rows that repeat an id and a time [error].")] = None,
    timezone: Timezone = None,
    dayfirst: Dayfirst = None,
) -> dict[str, Any]:
    names = [name.strip() for name in channels.split(",")] if channels is not None else None
    policy = duplicates and duplicates.value
    return _typed(
        id_col=id_col, time_col=time_col, channels=names, channel_col=channel_col, value_col=value_col,
        group_col=group_col, duplicates=policy, timezone=timezone, dayfirst=dayfirst,
    )  # fmt: skip


def _typed(**options: Any) -> dict[str, Any]:
    """The options that were typed."""
    return {name: value for name, value in options.items() if value is not None}
