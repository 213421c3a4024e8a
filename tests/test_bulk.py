"""Tables of any size: read in blocks, sorted on disk, answered in parts, and the same bytes as in memory."""

from __future__ import annotations

import gzip
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from numpy.testing import assert_array_equal
from typer.testing import CliRunner, Result

import pipelines.answers
import pipelines.bulk
import pipelines.forecast
from pipelines import messages
from pipelines.bulk import Sizes
from pipelines.cli import app
from pipelines.question import Outputs, Question
from pipelines.rows import SAMPLE_COLUMNS, as_csv, encode, encode_samples, write_table
from pipelines.worker import JOB, Job, Reply, Task, solve
from tsde.blocks import merged, read_blocks
from tsde.bulk import read_part, spill_table
from tsde.config import load_experiment
from tsde.errors import TsdeError
from tsde.findings import Finding, TableError
from tsde.fitting import fit_predictor
from tsde.predictor import Predictor
from tsde.reading import read_sheet
from tsde.runs import Span, read_span, spans, write_run
from tsde.stamps import date_order
from tsde.synthetic import spirals
from tsde.table import TableSchema, read_table

ROOT = Path(__file__).resolve().parents[1]
SMALL = Sizes(block=700, part=9000)


# Blocks


def nasty_csv(seed: int) -> bytes:
    """Quoted line breaks and quotes, blank lines, either line end, with and without a last one."""
    draw = random.Random(seed)
    lines = ["\n" * draw.choice([0, 0, 2]) + draw.choice(["a,b", '"a","b"'])]
    for i in range(draw.randint(1, 30)):
        lines.append(f"{i}," + draw.choice(["x", '"q\nz"', '"a""b"', "", '"k,l"', '"\n\n"']))
        lines += [""] * draw.choice([0, 0, 0, 1])
    return (draw.choice(["\n", "\r\n"]).join(lines) + draw.choice(["", "\n", "\n\n\n"])).encode()


@pytest.mark.parametrize("size", [9, 14, 64, 1000])
def test_blocks_are_the_file(size: int, tmp_path: Path) -> None:
    for seed in range(60):
        data = nasty_csv(seed)
        for name, content in (("t.csv", data), ("t.csv.gz", gzip.compress(data))):
            (tmp_path / name).write_bytes(content)
            whole, parts = read_sheet(tmp_path / name), list(read_blocks(tmp_path / name, size))
            assert [line for part in parts for line in part.lines.tolist()] == whole.lines.tolist()
            for column in whole.columns:
                cells = [cell for part in parts for cell in part.columns[column].to_pylist()]
                assert cells == whole.columns[column].to_pylist()


def test_blocks_of_parquet_are_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame({"a": [f"s{i}" for i in range(50)], "b": np.arange(50.0)})
    frame.to_parquet(tmp_path / "t.parquet", row_group_size=20)
    monkeypatch.setattr("tsde.blocks._CELLS", 14)
    parts = list(read_blocks(tmp_path / "t.parquet"))
    assert len(parts) > 5 and [line for part in parts for line in part.lines.tolist()] == list(range(1, 51))
    assert [cell for part in parts for cell in part.columns["b"].to_pylist()] == frame["b"].tolist()


@pytest.mark.parametrize("tail", [b"1,2,3\n", b"x,\xff\n", b'x,"y\n1,2\n'], ids=["ragged", "bytes", "quote"])
def test_a_flaw_has_the_line_of_the_file(tail: bytes, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"a,b\n" + b"1,2\n\n" * 100 + tail)
    with pytest.raises(TableError) as whole:
        read_sheet(path)
    with pytest.raises(TableError) as parts:
        list(read_blocks(path, 64))
    assert parts.value.findings == whole.value.findings and "line 20" in str(parts.value)


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet", "none.csv", "t.txt"])
def test_what_is_no_table_is_refused_as_ever(name: str, tmp_path: Path) -> None:
    for content in (b"", b"a,b\n", b"junk\n" * 40):
        if not name.startswith("none"):
            (tmp_path / name).write_bytes(content)
        outcomes = []
        for read in (read_sheet, lambda path: next(iter(read_blocks(path, 16)))):
            try:
                outcomes.append(str(list(read(tmp_path / name).columns)))
            except Exception as error:
                outcomes.append(f"{type(error).__name__} {error}")
        assert outcomes[0] == outcomes[1]


def test_utf_16_and_old_line_ends_come_in_one_block(tmp_path: Path) -> None:
    text = "a,b\n" + "1,2\n" * 50
    for data in (text.encode("utf-16"), text.replace("\n", "\r").encode()):
        (tmp_path / "t.csv").write_bytes(data)
        assert [len(sheet.lines) for sheet in read_blocks(tmp_path / "t.csv", 64)] == [50]


@pytest.mark.parametrize(
    ("cells", "order"),
    [
        (["2024-01-02", "2024-01-02 03:04", ""], "year"),
        (["2024/1/2", "x"], "year"),
        (["1", "2.5"], "none"),
        (["13/2/2024", "3/4/2024"], "day"),
        (["1/13/2024", "3/4/2024"], "month"),
        (["1/2/2024", "3/4/2024"], None),
        (["13/1/2024", "1/13/2024"], None),
        (["2024/1/2", "13/1/2024"], None),
    ],
)
def test_the_order_of_dates(cells: list[str], order: str | None) -> None:
    assert date_order(pa.chunked_array([cells])) == order


def test_findings_of_parts_become_findings_of_the_table() -> None:
    left_out = Finding("W-LEFT-OUT", "warning", "t.csv: columns are left out: 'a'")
    unsorted = [
        Finding("W-UNSORTED", "warning", "t.csv, lines 3, 5, 7 and 2 more: sorted", (3, 5, 7, 8, 9), 5),
        Finding("W-UNSORTED", "warning", "t.csv, line 21: sorted", (21,), 1),
    ]
    wrong = [
        Finding("E", "error", f"t.csv, line {line}: holds {what!r}", (line,), 1) for line, what in ((4, "a"), (6, "b"))
    ]
    found = merged([left_out, unsorted[0], wrong[0], left_out, unsorted[1], wrong[1]], "t.csv", "line")
    together = Finding("W-UNSORTED", "warning", "t.csv, lines 3, 5, 7 and 3 more: sorted", (3, 5, 7, 8, 9, 21), 6)
    assert found == [left_out, together, *wrong]


# Runs


def test_spans_cover_all_rows_in_order_and_cut_no_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsde.runs._BATCH", 7)
    draw = np.random.default_rng(1)
    ids = np.array([f"é{i}" if i % 7 == 0 else f"s{i}" for i in draw.integers(0, 40, 500)], object)
    runs, number = [], np.arange(500)
    for part in np.array_split(number, 6):
        order = part[np.argsort(ids[part], kind="stable")]
        runs.append(write_run(pa.table({"id": pa.array(ids[order]), "n": order}), tmp_path / f"{len(runs)}", 10))
    expected = pd.DataFrame({"id": ids, "n": number}).sort_values("id", kind="stable")
    for budget in (1, 500, 3000, 10**6):
        cut = spans(runs, budget)
        read = [read_span(runs, span).to_pandas() for span in cut]
        assert pd.concat(read)["n"].nunique() == 500 and not any(part.empty for part in read)
        assert_array_equal(pd.concat([part.sort_values("id", kind="stable") for part in read])["n"], expected["n"])
        assert sum(part["id"].nunique() for part in read) == len(set(ids))
    assert len(spans(runs, 10**6)) == 1 and len(spans(runs, 3000)) > 3


# The same bytes as in memory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = ["train.steps=3", "train.members=2", "train.workers=1", "train.validate_every=3", "windows.held_out=12"]
    small = ["model.modes=4", "model.width=8", "model.horizon_modes=4", "model.steps=3"]
    experiment = load_experiment(None, [*settings, *small], horizon=0.5, seed=1)
    folder = tmp_path_factory.mktemp("bulk") / "model"
    fit_predictor(read_table(spirals(20, 12, seed=1, missing=0.2)), experiment).predictor.save(folder)
    return folder


def uneven(rows: bool = False) -> pd.DataFrame:
    """Series of 1 to 40 rows with odd names, one of which needs quotes; by time, so every block has many series."""
    frame = spirals(30, 40, seed=5, missing=0.2)
    frame["unique_id"] = (
        frame["unique_id"].str.replace("spiral-0003", 'the "third", \n one').str.replace("spiral-0007", "é")
    )
    keep = frame.groupby("unique_id").cumcount() < frame.groupby("unique_id").ngroup() * 40 // 30 + 1
    frame = frame[keep]
    return frame if rows else frame.sort_values("ds", kind="stable")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "t.csv"
    uneven().to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def times(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions in no order: before, inside and far after the rows, of every series and of strangers; some twice."""
    draw = np.random.default_rng(3)
    ids = np.append(uneven()["unique_id"].unique(), ["a stranger", "zz"])
    frame = pd.DataFrame({"unique_id": draw.choice(ids, 400), "ds": draw.uniform(-1, 12, 400).round(3)})
    path = tmp_path_factory.mktemp("times") / "times.csv"
    pd.concat([frame, frame.head(9)]).to_csv(path, index=False)
    return path


class Alone:
    """A crew whose work is done in this process."""

    def __init__(self, folder: Path, model: Path, litter: Iterable[Path], count: int):
        self.folder, self.predictor = folder, Predictor.load(model)

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def work(self, tasks: Iterable[Task]) -> Iterator[Reply]:
        for task in tasks:
            yield from solve(
                self.folder, self.predictor, Job.model_validate_json((self.folder / JOB).read_bytes()), task
            )


def streamed(model: Path, table: Path, question: Question, outputs: Outputs, sizes: Sizes, workers: int = 2) -> None:
    predictor = Predictor.load(model)
    tally = pipelines.bulk.run(
        predictor, model, predictor.experiment.data, table, question, outputs, workers, lambda doing, share: None, sizes
    )
    assert tally is not None and tally.rows > 0


def outputs_in(folder: Path, suffix: str, samples: int = 0) -> Outputs:
    return Outputs(folder / f"f{suffix}", samples, folder / f"s{suffix}" if samples else None)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
@pytest.mark.parametrize("kind", ["horizon", "times"])
def test_parts_give_the_bytes_of_the_whole(
    suffix: str, kind: str, model: Path, table: Path, times: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the size of blocks, parts and answers."""
    question = Question("1", "0.25", levels=(50, 90)) if kind == "horizon" else Question(times=times)
    (tmp_path / "whole").mkdir()
    pipelines.forecast.run(model, table, question, outputs_in(tmp_path / "whole", suffix, samples=3))
    expected = contents(tmp_path / "whole")
    assert len(expected) == 2
    monkeypatch.setattr("pipelines.bulk.forecasters", Alone)
    monkeypatch.setattr("tsde.runs._BATCH", 16)
    monkeypatch.setattr("pipelines.worker._BATCH", 500)
    for sizes, cells, rows in ((SMALL, 40, 60), (Sizes(3000, 30000), 2**17, 2**17), (replace(SMALL, part=1), 1, 7)):
        monkeypatch.setattr("pipelines.answers._CELLS", cells)
        monkeypatch.setattr("pipelines.bulk._ROWS", rows)
        folder = tmp_path / f"parts-{cells}"
        folder.mkdir()
        streamed(model, table, question, outputs_in(folder, suffix, samples=3), sizes)
        assert contents(folder) == expected


@pytest.mark.parametrize("kind", ["horizon", "times"])
@pytest.mark.parametrize(("seconds", "expected"), [(1e-9, 3), (1e9, None)], ids=["slow", "quick"])
def test_forecasts_that_take_long_get_a_process_per_core(
    kind: str, seconds: float, expected: int | None, model: Path, table: Path, times: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """And the same bytes, since the crew is chosen by the clock."""
    question = Question("1", "0.25") if kind == "horizon" else Question(times=times)
    pipelines.forecast.run(model, table, question, Outputs(tmp_path / "plain.csv"))
    crews = []

    def crew(folder: Path, model: Path, places: list[Path], count: int) -> Alone:
        crews.append(count)
        return Alone(folder, model, places, count)

    monkeypatch.setattr("pipelines.bulk.forecasters", crew)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    monkeypatch.setattr("pipelines.forecast._LARGE_TABLE", 1)
    monkeypatch.setattr("pipelines.forecast._PROBE", 20)
    monkeypatch.setattr("pipelines.forecast._START", seconds)
    pipelines.forecast.run(model, table, question, Outputs(tmp_path / "timed.csv"))
    assert crews == ([] if expected is None else [expected])
    assert (tmp_path / "timed.csv").read_bytes() == (tmp_path / "plain.csv").read_bytes()


def test_the_bytes_are_those_of_the_predictor(model: Path, table: Path, tmp_path: Path) -> None:
    """The table as pandas writes the frame that the library returns."""
    predictor, out = Predictor.load(model), tmp_path / "f.csv"
    pipelines.forecast.run(model, table, Question("1", "0.25"), Outputs(out))
    frame = predictor.forecast(read_table(table), 1, 0.25)
    assert out.read_bytes() == frame.to_csv(index=False, float_format="%.9g", lineterminator="\n").encode()


def tsde(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_give_the_same_bytes(workers: int, model: Path, table: Path, times: Path, tmp_path: Path) -> None:
    for asked in (["--horizon", 1, "--step", 0.5], ["--times", times, "--samples", 2]):
        for number in (None, workers):
            out = tmp_path / f"{len(asked)}-{number}"
            options = ["--out", out / "f.csv", *(["--samples-out", out / "s.csv"] if "--samples" in asked else [])]
            chosen = ["--workers", number] if number else []
            result = tsde("forecast", model, table, *asked, *options, *chosen)
            assert result.exit_code == 0, result.output
            assert result.stderr.count("not in the table") == ("--times" in asked)
        assert contents(tmp_path / f"{len(asked)}-{workers}") == contents(tmp_path / f"{len(asked)}-None")


def test_many_small_parts_by_real_workers(model: Path, table: Path, tmp_path: Path) -> None:
    question = Question("1", "0.25")
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    pipelines.forecast.run(model, table, question, outputs_in(tmp_path / "whole", ".csv"))
    streamed(model, table, question, outputs_in(tmp_path / "parts", ".csv"), SMALL)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_tidy_table_of_typed_columns(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = uneven()
    wide["unique_id"] = wide["unique_id"].astype("category").cat.codes
    tidy = wide.melt(["unique_id", "ds"], var_name="what", value_name="amount").dropna().sample(frac=1, random_state=1)
    tidy.to_parquet(tmp_path / "t.parquet")
    columns = {"channel_col": "what", "value_col": "amount"}
    monkeypatch.setattr("pipelines.bulk.forecasters", Alone)
    monkeypatch.setattr("tsde.blocks._CELLS", 400)
    predictor = Predictor.load(model)
    schema = predictor.experiment.data.model_copy(update=columns)
    pipelines.forecast.run(model, tmp_path / "t.parquet", Question("1"), Outputs(tmp_path / "whole.csv"), columns)
    pipelines.bulk.run(
        predictor, model, schema, tmp_path / "t.parquet", Question("1"), Outputs(tmp_path / "parts.csv"), 1,
        lambda doing, share: None, SMALL,
    )  # fmt: skip
    assert (tmp_path / "whole.csv").read_bytes() == (tmp_path / "parts.csv").read_bytes()


def test_a_picture_and_the_standard_output(model: Path, table: Path, times: Path, tmp_path: Path) -> None:
    for asked in (["--horizon", 1], ["--times", times]):
        plain = tsde("forecast", model, table, *asked)
        result = tsde("forecast", model, table, *asked, "--workers", 1, "--plot", tmp_path / "fan.png")
        assert result.exit_code == 0, result.output
        assert result.stdout == plain.stdout and result.stdout.count("\n") > 60
        assert (tmp_path / "fan.png").read_bytes().startswith(b"\x89PNG")


# Refusals


def spoiled(table: Path, tmp_path: Path, *changes: tuple[int, str]) -> Path:
    lines = table.read_text().split("\n")
    for line, text in changes:
        lines[line - 1] = text
    path = tmp_path / "spoiled.csv"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([(400, "s,1,many,2")], ["line 400", "'many'"]),
        ([(400, "s,1,1,2"), (410, "s,1,3,4")], ["lines 400, 410", "more than once"]),
        ([(400, "s,never,1,2")], ["line 400", "'never'"]),
        ([(400, ",1,1,2")], ["line 400", "blank"]),
        ([(400, "s,1,2")], ["line 400", "cells"]),
        ([(30, "a,1,many,2"), (400, "z,1,some,2"), (401, "z,2,any,2")], ["line 30", "'many'"]),
    ],
    ids=["value", "duplicate", "time", "id", "ragged", "several"],
)
def test_a_refusal_names_the_line_and_leaves_nothing(
    changes: list[tuple[int, str]], words: list[str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uneven(rows=True).assign(unique_id=lambda f: f["unique_id"].str.replace("\n", "")).to_csv(
        tmp_path / "t.csv", index=False
    )
    path = spoiled(tmp_path / "t.csv", tmp_path, *changes)
    monkeypatch.setattr("pipelines.bulk.forecasters", Alone)
    monkeypatch.setattr("pipelines.forecast.bulk.Sizes", lambda: SMALL)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(TableError) as refused:
        streamed(model, path, Question("1"), outputs_in(tmp_path, ".csv"), SMALL)
    for word in words:
        assert word in str(refused.value)
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(TableError) as whole:
        read_table(path, expected_channels=("x", "y"))
    places = [sorted(line for f in e.value.findings for line in f.rows) for e in (refused, whole)]
    assert places[0] == places[1]


def test_notes_of_parts_come_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    path = tmp_path / "t.csv"
    frame = uneven().sort_values("ds", ascending=False, kind="stable").assign(comment="nothing")
    frame.to_csv(path, index=False)
    monkeypatch.setattr("pipelines.bulk.forecasters", Alone)
    messages.listen()
    streamed(model, path, Question("1"), outputs_in(tmp_path, ".csv"), SMALL)
    said = capsys.readouterr().err.splitlines()
    whole = read_table(path, expected_channels=("x", "y"))
    assert len(said) == len(whole.notes) == 2
    assert said[0] == f"note: {whole.notes[0]}" and "comment" in said[0]
    assert said[1].split("lines ")[1].split(" more")[0].split()[-1] == whole.notes[1].split(" more")[0].split()[-1]


def test_dates_that_only_the_whole_column_explains(model: Path, tmp_path: Path) -> None:
    """The first block could be read in either order: it is read as the later days prove."""
    frame = uneven().astype({"ds": int})
    days = pd.Timestamp("2024-01-01") + pd.to_timedelta(frame["ds"].rank(method="first") % 28, "D")
    path = tmp_path / "t.csv"
    frame.assign(ds=days.dt.strftime("%d/%m/%Y")).sort_values("ds").to_csv(path, index=False)
    predictor = Predictor.load(model)
    folder = tmp_path / "runs"
    folder.mkdir()
    clock = predictor.clock.model_copy(update={"kind": "datetime"})
    assert spill_table(path, TableSchema(), ("x", "y"), clock, folder, lambda rows: None, 700) is None


POOLS: list[pa.MemoryPool] = []
"""Kept for good: buffers may outlive the test that made them, and must not outlive their pool."""


def test_memory_does_not_grow_with_the_table(tmp_path: Path) -> None:
    frame = spirals(400, 100, seed=2)
    path = tmp_path / "t.csv"
    frame.to_csv(path, index=False)
    assert path.stat().st_size > 2**21
    peaks = []
    for block, part in ((2**24, 2**30), (2**16, 2**18)):
        before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.system_memory_pool())
        POOLS.append(pool)
        pa.set_memory_pool(pool)
        try:
            folder = tmp_path / f"{block}"
            folder.mkdir()
            clock = read_table(frame.head(5)).clock
            spilled = spill_table(path, TableSchema(), ("x", "y"), clock, folder, lambda rows: None, block)
            assert spilled is not None
            read = [
                read_part(spilled, span, TableSchema(), ("x", "y"), clock).table for span in spans(spilled.runs, part)
            ]
        finally:
            pa.set_memory_pool(before)
        assert sum(table.n_rows for table in read) == len(frame)
        peaks.append(pool.max_memory())
    assert peaks[1] < peaks[0] / 8


# Whatever happens


def processes_of(folder: Path) -> list[int]:
    """Processes that name the folder on their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="counts processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_kill_leaves_nothing(how: signal.Signals, model: Path, tmp_path: Path) -> None:
    """Neither output, workers nor temporary files, and an older output stays."""
    spirals(4000, 60, seed=2).to_csv(tmp_path / "t.csv", index=False)
    out = tmp_path / "f.csv"
    out.write_text("old")
    command = [
        sys.executable,
        "-c",
        "from pipelines.cli import app; app()",
        "forecast",
        str(model),
        str(tmp_path / "t.csv"),
    ]
    options = ["--horizon", "1", "--step", "0.01", "--out", str(out), "--workers", "2"]
    running = subprocess.Popen([*command, *options], cwd=ROOT, stderr=subprocess.PIPE)
    until = time.monotonic() + 120
    while not list(tmp_path.glob(".f.csv.*/forecasts-*.arrow")) and time.monotonic() < until:
        assert running.poll() is None, running.stderr and running.stderr.read()
        time.sleep(0.02)
    running.send_signal(how)
    running.wait(60)
    assert running.returncode != 0
    while (processes_of(tmp_path) or len(list(tmp_path.iterdir())) > 2) and time.monotonic() < until:
        time.sleep(0.05)
    assert processes_of(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.csv", "t.csv"] and out.read_text() == "old"


def test_what_a_killed_run_left_goes_with_the_next(model: Path, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.csv"
    left = tmp_path / ".f.csv.parts.0123abcd.tmp"
    left.mkdir()
    (left / "table-0.arrow").write_bytes(b"patients")
    pipelines.forecast.run(model, table, Question("1"), Outputs(out), workers=2)
    assert [path.name for path in tmp_path.iterdir()] == ["f.csv"]


def test_a_worker_that_dies_is_an_error_and_leaves_nothing(model: Path, table: Path, tmp_path: Path) -> None:
    crew = pipelines.bulk.forecasters(tmp_path / "none", tmp_path / "no model", [], 1)
    with crew, pytest.raises(TsdeError, match="ended early"):
        list(crew.work([Task(number=0, span=Span(lower=None, upper=None))]))


def test_a_place_that_cannot_be_written(model: Path, table: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.csv").mkdir()
    for out in (tmp_path / "file" / "f.csv", tmp_path / "folder.csv"):
        for workers in ([], ["--workers", 1]):
            result = tsde("forecast", model, table, "--horizon", 1, "--out", out, *workers)
            assert result.exit_code == 73 and "cannot write" in result.stderr, result.output


# Rows


def test_csv_is_what_pandas_writes() -> None:
    names = ["a", "b,c", 'd"e', "f\ng", " h ", "é", "i\r", ""]
    numbers = [1.0, np.nan, 1e-5, 1e9, -0.0, 123456789.123, 1 / 3, 3e300]
    frame = pd.DataFrame(
        {"id, or so": np.array(names, object), "n": np.arange(8), "v": numbers, "w": np.linspace(0, 1e-7, 8)}
    )
    assert as_csv(frame) == frame.to_csv(index=False, float_format="%.9g", lineterminator="\n")


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_a_file_does_not_show_in_which_pieces_it_was_written(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.rows._ROW_GROUP", 4)
    frame = pd.DataFrame({"id": np.array([f"s{i}" for i in range(11)], object), "v": np.arange(11) / 7})
    written = set()
    for cuts in ([], [3], [1, 2, 9]):
        pieces = [frame.iloc[part] for part in np.split(np.arange(11), cuts)]
        path = tmp_path / f"f{suffix}"
        write_table(path, list(frame), [encode(piece, suffix != ".parquet") for piece in pieces])
        written.add(path.read_bytes())
    assert len(written) == 1
    if suffix == ".parquet":
        pd.testing.assert_frame_equal(pd.read_parquet(path), frame.astype({"id": "str"}))


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    def pieces() -> Iterator[pa.Table]:
        yield encode(pd.DataFrame({"a": [1.0]}), text=True)
        raise RuntimeError("half way")

    path = tmp_path / "f.csv"
    path.write_text("old")
    with pytest.raises(RuntimeError):
        write_table(path, ["a"], pieces())
    assert [path.name for path in tmp_path.iterdir()] == ["f.csv"] and path.read_text() == "old"


@pytest.mark.parametrize("text", [True, False])
def test_samples_have_a_row_each(text: bool, tmp_path: Path) -> None:
    keys = pd.DataFrame(
        {"id": np.array(["a,%s", "a,%s", "b", "b"], object), "ds": [1, 1, 2, 2], "channel": list("xyxy")}
    )
    drawn = np.arange(12.0).reshape(3, 2, 2) / 7
    path = tmp_path / ("s.csv" if text else "s.parquet")
    write_table(path, [*keys, *SAMPLE_COLUMNS], [encode_samples(keys, drawn, text)])
    frame = pd.read_csv(path) if text else pd.read_parquet(path)
    assert frame["id"].tolist() == np.repeat(keys["id"], 3).tolist() and frame["channel"].str.cat() == "xxxyyyxxxyyy"
    assert frame["sample"].tolist() == [0, 1, 2] * 4
    np.testing.assert_allclose(frame["value"], drawn.reshape(3, 4).T.ravel(), rtol=1e-8)
