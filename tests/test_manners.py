"""How every command behaves: examples, JSON, quiet, dry runs, colours, interruption, completion."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from commands import succeed, tsde

from pipelines.cli import app
from tsde.config import load_experiment
from tsde.synthetic import spirals

ROOT = Path(__file__).resolve().parents[1]
START = "from pipelines.cli import app; app(prog_name='tsde')"
FAST = ["--family", "last", "--no-track"]
GROUP: Any = typer.main.get_command(app)


@dataclass(frozen=True)
class Place:
    """A table with a time column of its own name and a model of it."""

    table: Path
    model: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("manners")
    table, model = folder / "table.csv", folder / "model"
    spirals(60, 12, seed=3).assign(site="ward").to_csv(table, index=False)
    succeed("train", "--data", table, "--channels", "x,y", "--horizon", 1, "--out", model, *FAST)
    return Place(table, model)


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def examples() -> list[list[str]]:
    lines = [line for command in GROUP.commands.values() for line in (command.epilog or "").splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("  tsde ")]


@pytest.mark.parametrize("words", examples(), ids=lambda words: " ".join(words[1:4]))
def test_every_example_of_the_help_is_a_command_line_that_parses(words: list[str]) -> None:
    words = words[: words.index(">")] if ">" in words else words
    command = GROUP.commands[words[1]]
    command.make_context(words[1], words[2:], parent=GROUP.make_context("tsde", ["models"]))


@pytest.mark.parametrize("name", GROUP.commands)
def test_every_command_has_help_with_examples(name: str) -> None:
    said = succeed(name, "--help").stdout
    assert f"\n    tsde {name}" in said
    assert all(len(line) <= 100 for line in said.splitlines())


def test_models_as_json() -> None:
    families = json.loads(succeed("models", "--json").stdout)
    lines = succeed("models").stdout.splitlines()
    assert [family["family"] for family in families] == [line.split()[0] for line in lines]
    assert {family["family"] for family in families if family["baseline"]} == {"last", "mean", "ridge"}


def test_training_as_json(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "m"
    result = succeed("train", "--data", place.table, "--channels", "x,y", "--horizon", 1, "--out", out, "--json", *FAST)
    found = json.loads(result.stdout)
    assert found["model"] == str(out)
    assert found["scores"] == json.loads(succeed("evaluate", out, "--json").stdout)
    assert found["data"]["series"] == 60


def test_a_forecast_summary_as_json(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "f.csv"
    found = json.loads(succeed("forecast", place.model, place.table, "--horizon", 1, "--out", out, "--json").stdout)
    assert found == {"forecasts": str(out), "series": 60, "rows": 120, "statuses": {"ok": 120}}
    refused = tsde("forecast", place.model, place.table, "--horizon", 1, "--json")
    assert refused.exit_code == 2 and "--out" in refused.stderr and refused.stdout == ""


QUIET = {
    "ingest": "ingest {table} --channels x,y --horizon 1 --out {folder}/d",
    "train": "train --data {table} --channels x,y --horizon 1 --out {folder}/m --family last --no-track",
    "evaluate": "evaluate {model} --data {table}",
    "forecast": "forecast {model} {table} --horizon 1 --out {folder}/f.csv",
    "report": "report {model} --data {table} --out {folder}/r.html",
}


@pytest.mark.parametrize("name", QUIET)
def test_quiet_leaves_stderr_empty_where_there_was_something(name: str, place: Place, tmp_path: Path) -> None:
    words = QUIET[name].format(table=place.table, model=place.model, folder=tmp_path).split()
    loud, quiet = succeed(*words), succeed(*words, "--quiet")
    assert loud.stderr != "" and quiet.stderr == ""
    if name in ("evaluate", "forecast", "report"):
        assert "note: " in loud.stderr and "site" in loud.stderr  # a column that the model does not know
    assert quiet.stdout == loud.stdout


def test_quiet_keeps_errors(tmp_path: Path) -> None:
    assert tsde("evaluate", tmp_path / "none", "--quiet").stderr.startswith("error: ")


def test_a_dry_run_of_training_prints_a_configuration_and_writes_nothing(place: Place, tmp_path: Path) -> None:
    words = ["train", "--data", place.table, "--channels", "x,y", "--horizon", 1, "--out", tmp_path / "m"]
    said = succeed(*words, "--set", "train.steps=7", "--dry-run").stdout
    assert contents(tmp_path) == []
    (tmp_path / "c.yaml").write_text(said)
    assert load_experiment(tmp_path / "c.yaml").train.steps == 7
    assert load_experiment(tmp_path / "c.yaml").data.channels == ("x", "y")
    for line in ("60 series, 720 rows", "4 members of filter, 7 steps each", "nothing was written"):
        assert re.search(f"^# .*{line}", said, re.M)
    found = json.loads(succeed(*words, "--dry-run", "--json").stdout)
    assert found["dry_run"] and found["experiment"]["horizon"] == 1 and len(found["plan"]) == 4
    assert contents(tmp_path) == ["c.yaml"]


def test_a_dry_run_says_what_would_be_replaced(place: Place) -> None:
    folder = place.model.with_name("model.run")
    words = ["train", "--data", place.table, "--channels", "x,y", "--horizon", 1, "--out", place.model, "--dry-run"]
    assert "in place of the one there" in succeed(*words).stdout and not folder.exists()


def test_a_dry_run_of_ingest_and_forecast_writes_nothing(place: Place, tmp_path: Path) -> None:
    words = ["ingest", place.table, "--channels", "x,y", "--horizon", 1, "--out", tmp_path / "d", "--dry-run"]
    assert "60 series" in succeed(*words).stdout
    words = ["forecast", place.model, place.table, "--horizon", 1, "--step", 0.5, "--dry-run"]
    assert "240 rows to stdout" in succeed(*words).stdout
    words += ["--out", tmp_path / "f.csv", "--plot", tmp_path / "f.png"]
    assert "f.csv and " in succeed(*words).stdout
    found = json.loads(succeed(*words, "--json").stdout)
    assert found["rows"] == 240 and found["files"] == [str(tmp_path / "f.csv"), str(tmp_path / "f.png")]
    assert contents(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("train --data {folder}/bad.csv --horizon 1 --out {folder}/m", 65),
        ("train --data {table} --channels x,y --horizon 1e-9 --out {folder}/m", 65),
        ("train --data {table} --channels x,y --horizon 1 --out {folder}", 73),
        ("ingest {folder}/bad.csv --horizon 1 --out {folder}/d", 65),
        ("ingest {table} --channels x,y --horizon 1e-9 --out {folder}/d", 65),
        ("ingest {table} --channels x,y --horizon 1 --out {folder}", 73),
        ("forecast {model} {folder}/bad.csv --horizon 1 --out {folder}/f.csv", 65),
        ("forecast {model} {table} --horizon 30d --out {folder}/f.csv", 2),
    ],
)
def test_a_dry_run_refuses_what_the_real_one_would(words: str, code: int, place: Place, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("unique_id,ds,x,y\na,1,2,\na,1,3,\n")
    filled = words.format(table=place.table, model=place.model, folder=tmp_path).split()
    for result in (tsde(*filled, "--dry-run"), tsde(*filled)):
        assert result.exit_code == code and result.stdout == "", result.output
        assert result.stderr.count("error: ") == 1 and "# the configuration" not in result.stderr
        assert contents(tmp_path) == ["bad.csv"]


def test_what_was_prepared_is_what_is_trained(place: Place, tmp_path: Path) -> None:
    """The command checks the data first and hands on what it found; the library alone does both at once."""
    from tsde.fitting import fit_predictor
    from tsde.table import read_table

    experiment = load_experiment(place.model / "experiment.yaml")
    fit_predictor(read_table(place.table, experiment.data), experiment).predictor.save(tmp_path / "m")
    for name in ("weights.safetensors", "calibration.safetensors", "predictor.json"):
        assert (tmp_path / "m" / name).read_bytes() == (place.model / name).read_bytes()


TWICE = """
import os, sys
from pipelines.cli import app
app(sys.argv[1:], standalone_mode=False)
print("AGAIN", flush=True)
os.environ["NO_COLOR"] = "1"
app(sys.argv[1:], standalone_mode=False)
"""


def terminal(command: list[str]) -> str:
    """What a process writes to a terminal."""
    leader, follower = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm-256color"}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=follower, stderr=follower, stdin=follower)
    os.close(follower)
    pieces = []
    try:
        while piece := os.read(leader, 65536):
            pieces.append(piece)
    except OSError:  # how Linux says that the other side has closed
        pass
    os.close(leader)
    assert process.wait(timeout=60) == 0
    return b"".join(pieces).decode()


_COLOUR = re.compile(r"\x1b\[[0-9;]*(3[0-7]|4[0-7]|9[0-7]|38|48)[0-9;]*m")


def test_no_color_is_honoured_and_a_bar_needs_a_terminal(place: Place, tmp_path: Path) -> None:
    words = [
        *("train", "--data", place.table, "--channels", "x,y", "--horizon", 1, "--no-track", "--out", tmp_path / "m"),
        *("--set", "train.steps=4", "--set", "train.validate_every=2", "--set", "train.members=1"),
        *("--set", "model.modes=2", "--set", "model.width=4", "--set", "model.horizon_modes=2"),
    ]
    coloured, plain = terminal([sys.executable, "-c", TWICE, *map(str, words)]).split("AGAIN")
    assert "\x1b[?25l" in coloured and "\x1b[?25l" in plain  # both have a bar, which hides the cursor
    assert _COLOUR.search(coloured) and not _COLOUR.search(plain)
    piped = succeed(*words)
    assert "\x1b" not in piped.stdout + piped.stderr and "\r" not in piped.stderr
    assert "member 1/1 step 4" in piped.stderr


@pytest.mark.parametrize(
    "words",
    [
        "ingest {table} --channels x,y --horizon 1 --out {folder}/out",
        "forecast {model} {table} --horizon 1 --out {folder}/out.csv",
        "report {model} --out {folder}/out.html",
        "evaluate {model} --plots {folder}",
    ],
)
def test_an_interruption_leaves_nothing_half_written(
    words: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)  # everything is written, nothing is in its place yet
    result = tsde(*words.format(table=place.table, model=place.model, folder=tmp_path).split())
    assert result.exit_code == 130 and result.stderr.endswith("interrupted\n")
    assert contents(tmp_path) == []


def test_ctrl_c_ends_training_and_its_workers_without_a_traceback(place: Place, tmp_path: Path) -> None:
    """The terminal sends the signal to the whole group of processes."""
    words = [
        *("train", "--data", place.table, "--channels", "x,y", "--horizon", 1, "--no-track", "--out", tmp_path / "m"),
        *("--set", "train.steps=100000", "--set", "train.validate_every=1", "--set", "train.workers=2"),
        *("--set", "train.members=2", "--set", "model.modes=2", "--set", "model.width=4"),
    ]
    command = [sys.executable, "-c", START, *map(str, words)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("checkpoints/*/manifest.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == ""
    assert err.endswith("interrupted\n") and "Traceback" not in err and f"--resume {tmp_path}/m.run" in err
    assert contents(tmp_path) == ["m.run"]


def test_a_shell_can_complete(tmp_path: Path) -> None:
    env = {**os.environ, "_TSDE_COMPLETE": "complete_bash", "COMP_WORDS": "tsde fore", "COMP_CWORD": "1"}
    done = subprocess.run([sys.executable, "-c", START], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["forecast"]
    env |= {"COMP_WORDS": "tsde train --dry", "COMP_CWORD": "2"}
    done = subprocess.run([sys.executable, "-c", START], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["--dry-run"]
    for option in ("--show-completion", "--install-completion"):
        assert option in succeed("--help").stdout


def test_a_configuration_without_a_test_part_is_said_plainly(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "m"
    words = ["train", "--data", place.table, "--channels", "x,y", "--horizon", 1, "--out", out, *FAST]
    found = json.loads(succeed(*words, "--set", "split.test=0", "--json").stdout)
    assert found["scores"] is None
    refused = tsde("evaluate", out, "--data", place.table, "--quiet")
    assert refused.exit_code == 65 and "split.test was 0" in refused.stderr
    succeed("report", out, "--out", tmp_path / "r.html")
    assert "keeps no scores" in (tmp_path / "r.html").read_text()


def test_the_plan_is_yaml_alone(place: Place, tmp_path: Path) -> None:
    said = succeed("train", "--data", place.table, "--channels", "x,y", "--horizon", 1, "--dry-run", "--quiet")
    assert said.stderr == "" and yaml.safe_load(said.stdout)["model"]["family"] == "filter"


def test_a_terminal_without_the_letters_of_a_name_gets_escapes(tmp_path: Path) -> None:
    table, model = tmp_path / "table.csv", tmp_path / "m"
    names = {"x": "Größe", "y": "\u4e2d\U0001f600"}
    spirals(60, 12, seed=3).rename(columns=names).to_csv(table, index=False)
    succeed("train", "--data", table, "--horizon", 1, "--out", model, *FAST)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}

    def ask(*words: object) -> str:
        command = [sys.executable, "-c", START, *map(str, words)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode("ascii")

    assert "Gr\\xf6\\xdfe" in ask("evaluate", model)
    for words in (("evaluate", model, "--json"), ("validate", table, "--json")):
        json.loads(ask(*words))
    channels = json.loads(ask("evaluate", model, "--json"))["model"]["after"]["by_channel"]
    assert [channel["name"] for channel in channels] == list(names.values())
