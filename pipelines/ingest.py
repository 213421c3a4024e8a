"""A table that was checked once and for all: canonical Parquet, its identity, and how it would be split and scaled."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from pipelines.data import EXPERIMENT_FILE, FACTS_FILE, TABLE_FILE, Data
from tsde.artifact import require_replaceable, write_files
from tsde.fitting import Parts, prepare
from tsde.table import write_parquet

_KIND = "dataset"


def check(data: Data, out: Path) -> None:
    """Find out what `run` would refuse, and write nothing.

    Raises:
        DataError: too little data to train on within the horizon. CannotWriteError: `out` is something else.
    """
    prepare(data.table, data.experiment)
    require_replaceable(out, _KIND)


def run(data: Data, out: Path) -> None:
    """Write a DATASET, whole or not at all; `tsde train` needs no other option about its columns.

    Raises:
        DataError: too little data to train on within the horizon.
    """
    parts = prepare(data.table, data.experiment)
    about = {"data": data.facts.model_dump(), "split": _split(data, parts), "scaler": parts.scaler.model_dump()}
    files = {
        TABLE_FILE: _parquet(data),
        FACTS_FILE: json.dumps(about, indent=1).encode(),
        EXPERIMENT_FILE: data.experiment.to_yaml().encode(),
    }
    write_files(out, files, {}, kind=_KIND)


def _split(data: Data, parts: Parts) -> dict[str, Any]:
    """Which series, or which end of every series, no model will learn from."""
    held_out = {"calibration": parts.split.calibration, "test": parts.split.test}
    if torch.isfinite(parts.split.train.upper).any():
        config = data.experiment.split
        return {"by": "time", "calibration": config.calibration, "test": config.test}
    ids = {name: data.table.ids[(region.upper > region.lower).numpy()].tolist() for name, region in held_out.items()}
    return {"by": "series", **ids}


def _parquet(data: Data) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / TABLE_FILE
        write_parquet(data.table, path)
        return path.read_bytes()
