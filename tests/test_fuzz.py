"""Fuzzing: whatever bytes come, tables, configurations and saved directories are read or refused with a sentence."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.data import load, read_dataset
from pipelines.ingest import run as ingest
from tsde.artifact import read_files
from tsde.config import Experiment, load_experiment
from tsde.errors import ConfigError, TsdeError
from tsde.table import TableSchema, check_table, read_table

WIDE = b'unique_id,ds,y,z\na,2024-01-01,1,2\n007,2024-01-02T03:04,2.5,\n"b ""c""",2024-02-01 00:00,-1e3,4\n'
WIDE += b"a,2024-01-03,NA,5\n"
NUMBERS = (
    WIDE.replace(b"2024-01-0", b"1.").replace(b"T03:04", b"").replace(b"2024-02-01 00:00", b"7").replace(b",", b";")
)
ZONES = WIDE.replace(b"2024-01-01", b"01/13/2024 07:00 +02:00").replace(b"2024-01-03", b"2024-01-03T00:00Z")
TIDY = b"unique_id\tds\tchannel\tvalue\r\na\t1\tx\t2\r\na\t1\ty\t3\r\nb\t5\tx\t1,5\r\n"
SEEDS = [WIDE, NUMBERS, ZONES, TIDY, WIDE.decode().encode("utf-16")]
PIECES = [
    b"\0",
    b"\r",
    b"\n",
    b'"',
    b",",
    b";",
    b"\t",
    b"|",
    b"\xff",
    b"\xc3",
    b"\xef\xbb\xbf",
    b"NA",
    b"inf",
    b"1e999",
]
PIECES += [b"9" * 400, b"=", b"#", b"-", b"+00:00", b"0001-01-01", b"9999-12-31", b"24:00", b"20240131", b"\x1f\x8b"]


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes], pieces: list[bytes]) -> bytes:
    """A valid file after a few cuts, repeats, insertions and flips."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        end = draw(st.integers(at, min(len(data), at + 40)))
        kind = draw(st.sampled_from(["cut", "repeat", "insert", "replace", "flip", "truncate"]))
        if kind == "cut":
            data = data[:at] + data[end:]
        elif kind == "repeat":
            data = data[:end] + data[at:end] + data[end:]
        elif kind == "insert":
            data = data[:at] + draw(st.sampled_from(pieces)) + data[at:]
        elif kind == "replace":
            data = data[:at] + draw(st.binary(max_size=6)) + data[end:]
        elif kind == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :]
        elif kind == "truncate":
            data = data[:at]
    return data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def judge(path: Path, schema: TableSchema) -> None:
    """The table is sound, or refused; `check_table` and `read_table` agree on which."""
    try:
        table = read_table(path, schema)
    except TsdeError as error:
        assert 0 < len(str(error)) < 5000
        assert any(finding.severity == "error" for finding in check_table(path, schema))
        return
    assert all(finding.severity == "warning" for finding in check_table(path, schema))
    assert np.isfinite(table.times).all() and not np.isinf(table.values).any()
    assert len(set(table.ids)) == table.n_series and (np.diff(table.offsets) > 0).all()
    inside = np.diff(table.row_series) == 0
    assert (np.diff(table.times)[inside] > 0).all()
    assert table.values.shape == (table.n_rows, len(table.channels)) and table.channels
    assert len(table.clock.format(table.times)) == table.n_rows


SCHEMAS = [TableSchema(), TableSchema(channel_col="channel", value_col="value"), TableSchema(timezone="Europe/Paris")]


@settings(max_examples=300)
@given(data=mutated(SEEDS, PIECES), schema=st.sampled_from(SCHEMAS))
def test_any_csv_is_read_or_refused(data: bytes, schema: TableSchema, folder: Path) -> None:
    (folder / "t.csv").write_bytes(data)
    judge(folder / "t.csv", schema)


@settings(max_examples=100)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes, folder: Path) -> None:
    for name in ("t.csv", "t.csv.gz", "t.parquet"):
        (folder / name).write_bytes(data)
        judge(folder / name, TableSchema())


@settings(max_examples=100)
@given(data=mutated([gzip.compress(WIDE, mtime=0)], PIECES))
def test_any_gzip_is_read_or_refused(data: bytes, folder: Path) -> None:
    (folder / "t.csv.gz").write_bytes(data)
    judge(folder / "t.csv.gz", TableSchema())


@pytest.fixture(scope="module")
def parquet(folder: Path) -> bytes:
    frame = pd.DataFrame({"unique_id": ["a", "a", "é"], "ds": pd.date_range("2024-01-01", periods=3), "y": [1, 2, 3.5]})
    frame.assign(kind=pd.Categorical(["x", "y", "x"])).to_parquet(folder / "seed.parquet")
    return (folder / "seed.parquet").read_bytes()


@settings(max_examples=120)
@given(mutate=st.data())
def test_any_parquet_is_read_or_refused(mutate: st.DataObject, parquet: bytes, folder: Path) -> None:
    (folder / "t.parquet").write_bytes(mutate.draw(mutated([parquet], PIECES)))
    judge(folder / "t.parquet", TableSchema())


@settings(max_examples=25)
@given(data=mutated(SEEDS, PIECES))
def test_the_command_line_ends_with_the_stated_code(data: bytes, folder: Path) -> None:
    (folder / "t.csv").write_bytes(data)
    done = CliRunner().invoke(app, ["validate", str(folder / "t.csv"), "--json"])
    assert done.exit_code in (0, 65), done.output
    assert json.loads(done.stdout)["ok"] == (done.exit_code == 0)


# ---------------------------------------------------------------------------------------------- configurations

CONFIG = Experiment(horizon="30d").to_yaml().encode()
YAML_PIECES = [
    b"&a ",
    b"*a",
    b"!!int ",
    b"!!python/name:os ",
    b"[" * 50,
    b"{",
    b": ",
    b"- ",
    b"\n",
    b"  ",
    b"\t",
    b"null",
]
YAML_PIECES += [
    b".nan",
    b".inf",
    b"true",
    b"2024-99-99",
    b"1e999",
    b"9" * 5000,
    b"<<: ",
    b"? ",
    b"---\n",
    b"\0",
    b"\xff",
    b"'",
]


def test_yaml_bombs_are_refused_quickly(folder: Path) -> None:
    lines = [
        f"{name}: &{name} [{', '.join(['*' + before] * 9)}]"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    (folder / "bomb.yaml").write_text("a: &a [x, x]\n" + "\n".join(lines) + "\nhorizon: *i\n")
    with pytest.raises(ConfigError, match=r"bomb\.yaml, line 2: the alias \*a is not read"):
        load_experiment(folder / "bomb.yaml")


@settings(max_examples=150)
@given(
    text=mutated(
        [CONFIG, b"horizon: 24\ntrain: {steps: 5, learning_rate: 3e-4}\ndata:\n  channels: [a, b]\n"], YAML_PIECES
    )
)
def test_any_configuration_is_read_or_refused(text: bytes, folder: Path) -> None:
    (folder / "c.yaml").write_bytes(text)
    for columns in ({}, {"id_col": "patient"}):
        try:
            experiment = load_experiment(folder / "c.yaml", data=columns)
        except ConfigError as error:
            assert "c.yaml" in str(error) and len(str(error)) < 4000
        else:
            assert Experiment.model_validate(yaml.safe_load(experiment.to_yaml())) == experiment


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    *Experiment.model_fields,
    *(f"train.{name}" for name in ("steps", "batch", "learning_rate", "max_time", "clip")),
]
FIELDS += [
    "model.family",
    "model.width",
    "split.by",
    "windows.context",
    "data.channels",
    "data.timezone",
    "calibration.enabled",
]


@settings(max_examples=150)
@given(field=st.sampled_from(FIELDS), value=VALUES)
def test_any_value_of_a_field_is_taken_or_refused(field: str, value: object) -> None:
    try:
        experiment = load_experiment(None, [f"{field}={yaml.safe_dump(value, width=10**6)}"], **{"horizon": "1d"})
    except ConfigError as error:
        assert "the command line" in str(error) or "--set" in str(error)
    else:
        assert isinstance(experiment, Experiment)


# ---------------------------------------------------------------------------------------------- saved directories


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Path:
    rows = "".join(f"s{i},{j},{(i * j) % 5},{i + j}\n" for i in range(12) for j in range(10))
    (folder / "train.csv").write_text("unique_id,ds,y,z\n" + rows)
    ingest(load(folder / "train.csv", horizon="3"), folder / "dataset")
    return folder / "dataset"


def refused_or_read(path: Path, name: str, data: bytes, read: Callable[[], object]) -> None:
    """Put other bytes in the place of one file, read, and put the file back."""
    before = {file: (path / file).read_bytes() for file in (name, "manifest.json")}
    (path / name).write_bytes(data)
    if name != "manifest.json":  # whoever forges a file can forge its digest
        manifest = json.loads(before["manifest.json"])
        manifest["files"][name] = hashlib.sha256(data).hexdigest()
        (path / "manifest.json").write_text(json.dumps(manifest))
    try:
        read()
    except TsdeError as error:
        assert str(error)
    finally:
        for file, content in before.items():
            (path / file).write_bytes(content)


@settings(max_examples=150)
@given(mutate=st.data())
def test_any_manifest_is_read_or_refused(mutate: st.DataObject, dataset: Path) -> None:
    seed = (dataset / "manifest.json").read_bytes()
    data = mutate.draw(mutated([seed], [*PIECES, b"{", b"[", b"null", b"1e999", b"../", b'"schema": 99,']))
    refused_or_read(dataset, "manifest.json", data, lambda: read_files(dataset))


@settings(max_examples=100)
@given(mutate=st.data())
def test_any_forged_table_is_read_or_refused(mutate: st.DataObject, dataset: Path) -> None:
    data = mutate.draw(mutated([(dataset / "table.parquet").read_bytes()], PIECES))
    refused_or_read(dataset, "table.parquet", data, lambda: read_dataset(dataset))
