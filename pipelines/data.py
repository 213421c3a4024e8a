"""DATASET|TABLE: what a command is given to work on, read and checked, beside its identity and its experiment."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel, ValidationError

from pipelines.messages import note
from tsde.artifact import read_files
from tsde.config import Experiment, load_experiment, parse_experiment
from tsde.errors import ArtifactError, DataError, TsdeError, UsageError
from tsde.models import MODELS
from tsde.predictor import Predictor
from tsde.table import Table, TableSchema, read_parquet, read_table

TABLE_FILE, FACTS_FILE, EXPERIMENT_FILE = "table.parquet", "dataset.json", "experiment.yaml"


class Facts(BaseModel, frozen=True):
    """What a table is: `sha256` of the file as the user has it, its size, and what it spans.

    Attributes:
        observed: values, of all channels together; `counts` has them by channel.
        span: first and last time, as text; None where an older tsde wrote this.
        content: SHA-256 of what the table says, whatever file says it; empty where an older tsde wrote this.
        groups: SHA-256 of what its series belong to; empty for nothing.
    """

    source: str
    sha256: str
    series: int
    rows: int
    observed: int
    channels: tuple[str, ...]
    counts: tuple[int, ...] = ()
    span: tuple[str, str] | None = None
    content: str = ""
    groups: str = ""

    @classmethod
    def of(cls, table: Table, path: Path) -> Facts:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        counts = tuple((~np.isnan(table.values)).sum(0).tolist())
        first, last = table.clock.format(np.array([table.times.min(), table.times.max()]))
        return cls(
            source=path.name,
            sha256=digest,
            series=table.n_series,
            rows=table.n_rows,
            observed=sum(counts),
            channels=table.channels,
            counts=counts,
            span=(str(first), str(last)),
            content=_content(table),
            groups="" if table.groups is None else hashlib.sha256("\0".join(table.groups).encode()).hexdigest(),
        )

    def same_data(self, other: Facts) -> bool:
        """Whether both are of one table, though it may stand in two files."""
        return self.sha256 == other.sha256 or (self.content != "" and self.content == other.content)

    def sentence(self) -> str:
        """The size in words."""
        return f"{self.series:,} series, {self.rows:,} rows, {len(self.channels)} channels, {self.observed:,} values"


@dataclass(frozen=True)
class Data:
    """A table that was read from `path`, and the experiment for it."""

    path: Path
    table: Table
    facts: Facts
    experiment: Experiment


def load(
    path: Path,
    config: Path | None = None,
    horizon: str | None = None,
    family: str | None = None,
    overrides: Sequence[str] = (),
    columns: Mapping[str, Any] | None = None,
) -> Data:
    """Read a dataset or a table, with the experiment that the options describe; its channels are written out.

    Raises:
        UsageError: no horizon anywhere, an unknown family, or columns for a dataset, which knows its own.
    """
    if path.is_dir():
        table, facts, stored = read_dataset(path)
        if columns:
            option = next(iter(columns)).replace("_", "-")
            raise UsageError(f"{path} is a dataset and knows its columns: leave out --{option}")
        asked = _experiment(config, horizon, family, overrides, {}, path / EXPERIMENT_FILE).data
        if "group_col" in asked.model_fields_set and asked.group_col != stored.data.group_col:
            raise UsageError(
                f"{path} is a dataset with the group_col {stored.data.group_col}, got {asked.group_col}: leave it out, "
                "or ingest the table again with --group-col"
            )
        experiment = _experiment(config, horizon, family, overrides, stored.data.model_dump(), path / EXPERIMENT_FILE)
        return _checked(Data(path, table, facts, experiment))
    experiment = _experiment(config, horizon, family, overrides, columns or {})
    table = _noted(read_table(path, experiment.data))
    settled = experiment.data.model_copy(update={"channels": table.channels})
    return _checked(Data(path, table, Facts.of(table, path), experiment.model_copy(update={"data": settled})))


def load_for(predictor: Predictor, path: Path, columns: Mapping[str, Any] | None = None) -> tuple[Table, Facts]:
    """Read a dataset or a table with the columns, the channels and the clock of a model."""
    if not path.is_dir():
        schema = schema_for(predictor, columns).model_copy(update={"group_col": predictor.experiment.data.group_col})
        channels, clock = predictor.channels, predictor.clock
        table = _noted(read_table(path, schema, expected_channels=channels, expected_clock=clock, grouped=True))
        return table, Facts.of(table, path)
    table, facts, _ = read_dataset(path)
    if missing := set(predictor.channels) - set(table.channels):
        raise DataError(f"{path} lacks the model's channels {sorted(missing)}; expected {list(predictor.channels)}")
    if problem := predictor.clock.mismatch(table.clock):
        raise DataError(f"{path}: {problem}")
    if predictor.experiment.data.group_col is None:
        table, facts = replace(table, groups=None), facts.model_copy(update={"groups": ""})
    order = [table.channels.index(channel) for channel in predictor.channels]
    return replace(table, values=table.values[:, order], channels=predictor.channels), facts


def schema_for(predictor: Predictor, columns: Mapping[str, Any] | None) -> TableSchema:
    """How to read a table to forecast: as the one in training, but for the options in `columns`, and without groups.

    Raises:
        UsageError: the options make no sense, alone, together or for this model.
    """
    columns = dict(columns or {})
    if "timezone" in columns and predictor.clock.timezone is None:
        raise UsageError("--timezone names the zone of the table's times, and this model's have none: leave it out")
    try:
        return TableSchema.model_validate(predictor.experiment.data.model_dump() | columns | {"group_col": None})
    except ValidationError as error:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in columns)
        raise UsageError(f"{options}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def require_use(columns: Mapping[str, Any] | None, data: Path | None) -> None:
    """Refuse options that tell how to read a table where there is none.

    Raises:
        UsageError: such an option, and no table.
    """
    if columns and data is None:
        raise UsageError(f"--{next(iter(columns)).replace('_', '-')} tells how to read a table: name it with --data")


def read_dataset(folder: Path) -> tuple[Table, Facts, Experiment]:
    """What `tsde ingest` wrote.

    Raises:
        ArtifactError: it is torn, altered, or something else.
    """
    files, _ = read_files(folder, kind="dataset")
    try:
        facts = Facts.model_validate(json.loads(files[FACTS_FILE])["data"])
        experiment = parse_experiment(yaml.safe_load(files[EXPERIMENT_FILE]), str(folder / EXPERIMENT_FILE))
        return read_parquet(folder / TABLE_FILE), facts, experiment
    except (LookupError, ValueError, TypeError, RecursionError, OSError, yaml.YAMLError, TsdeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ArtifactError(f"{folder} is not a dataset this tsde can read ({reason}): ingest it again") from error


def _content(table: Table) -> str:
    digest = hashlib.sha256("\0".join([*table.channels, "", *table.ids]).encode())
    values = np.where(np.isnan(table.values), np.nan, table.values + 0.0)  # one nan, one zero
    for part in (table.offsets, table.times, values):
        digest.update(part.tobytes())
    return digest.hexdigest()


def _checked(data: Data) -> Data:
    """Refuse a horizon that makes no sense on the table's clock."""
    data.table.clock.parse_duration(data.experiment.horizon)
    return data


def _noted(table: Table) -> Table:
    """Tell what reading did to a table."""
    for text in table.notes:
        note(f"note: {text}")
    return table


def _experiment(
    config: Path | None,
    horizon: str | None,
    family: str | None,
    overrides: Sequence[str],
    columns: Mapping[str, Any],
    fallback: Path | None = None,
) -> Experiment:
    """The configuration, or the fallback's, with the options on top; a family of another kind replaces the model."""
    if family is not None and family not in (known := [*MODELS, "auto"]):
        raise UsageError(f"there is no family {family!r}; expected one of {', '.join(known)} (`tsde models`)")
    source = config or fallback
    if source is None and horizon is None and not any(text.startswith("horizon=") for text in overrides):
        raise UsageError("say how far ahead to forecast: --horizon 30d (a number where the table's times are numbers)")
    replaced = []
    if family is not None and load_experiment(source, horizon=horizon or "1").model.family != family:
        replaced = [f"model={{family: {family}}}"]  # the settings of one family mean nothing to another
    return load_experiment(source, [*replaced, *overrides], horizon=_plain(horizon), data=columns)


def _plain(horizon: str | None) -> str | float | None:
    """A number as a number, so that the printed configuration reads well."""
    try:
        return horizon and float(horizon)
    except ValueError:
        return horizon
