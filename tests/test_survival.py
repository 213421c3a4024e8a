"""`tsde train` when something fails: killed, a full disk, a store that is gone, a loss of NaN, a clock that jumps.

Each has one outcome: an exit code, a sentence, and finished work that is kept.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import kills
import pipelines.train
from pipelines import data
from pipelines.cli import app
from tsde import training
from tsde.artifact import read_files
from tsde.locks import locked
from tsde.predictor import Predictor
from tsde.synthetic import spirals
from tsde.training import Progress

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = [
    *("train.steps=12", "train.validate_every=2", "train.members=2", "train.batch=8", "windows.held_out=50"),
    *("model.modes=4", "model.width=8", "model.horizon_modes=3", "model.steps=3"),
]
if sys.platform == "win32":
    pytest.skip("needs POSIX", allow_module_level=True)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "table.csv"
    spirals(30, 12, seed=3, missing=0.2).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def undisturbed(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "model"
    assert run(*starting(table, out)).exit_code == 0
    return out


def starting(table: Path, out: Path, *settings: str, workers: int = 1) -> list[str]:
    """The arguments of a training."""
    chosen = [word for text in (*SETTINGS, f"train.workers={workers}", *settings) for word in ("--set", text)]
    return ["train", "--data", str(table), "--horizon", "1", "--out", str(out), "--quiet", "--no-track", *chosen]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def same(one: Path, other: Path) -> bool:
    """Weights, calibration and scores, bit by bit; the configuration may differ in what decides no result."""
    found, expected = kills.results(one), kills.results(other)
    return found.keys() == expected.keys() and all(
        found[name] == expected[name] for name in found if not name.endswith("experiment.yaml")
    )


def once(action: Callable[[], object]) -> Callable[[int, bool], object]:
    """In place of the progress bar: do something when the first member reports."""

    @contextmanager
    def progress(members: int, quiet: bool) -> Iterator[Callable[[Progress], None]]:
        waiting = [action]

        def report(progress: Progress) -> None:
            if waiting:
                waiting.pop()()

        yield report

    return progress


# Killed


def test_a_training_that_is_killed_at_random_moments_comes_through(
    table: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bench of 200 kills, in small."""
    random.seed(0)
    folder, tally = tmp_path / "disturbed", kills.Tally()
    monkeypatch.setattr(kills, "SETTINGS", SETTINGS)
    monkeypatch.setattr(kills, "MOST_CHANGES", 10)
    (tmp_path / "table.csv").write_bytes(table.read_bytes())
    kills.survive(folder, 1, 5, tally)
    assert not tally.failures and tally.kills >= 2, tally
    assert same(folder / "model", undisturbed)
    assert sorted(path.name for path in folder.iterdir()) == ["log", "model"]


def test_workers_end_with_their_parent_and_the_training_goes_on(table: Path, undisturbed: Path, tmp_path: Path) -> None:
    out, script = tmp_path / "model", "from pipelines.cli import app; app()"
    command = [sys.executable, "-c", script, *starting(table, out, workers=2)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "KILLS_FOLDER": str(tmp_path)}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    states = [tmp_path / "model.run" / "checkpoints" / f"member-{member}.state" for member in (0, 1)]
    while process.poll() is None and not any(state.exists() for state in states):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert kills.orphans(tmp_path) == [] and kills.torn(tmp_path) == []
    assert (tmp_path / "log").read_bytes() == b""
    assert run("train", "--resume", f"{out}.run", "--no-track", "--quiet").exit_code == 0
    assert same(out, undisturbed) and not (tmp_path / "model.run").exists()


def test_a_worker_that_is_killed_is_told_and_the_training_goes_on(
    table: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill_a_worker() -> None:
        mark = f"KILLS_FOLDER={tmp_path}".encode()
        victim = next(place for place in Path("/proc").glob("[0-9]*/environ") if kills._has(place, mark))
        os.kill(int(victim.parent.name), signal.SIGKILL)

    if not Path("/proc/self/environ").exists():
        pytest.skip("needs /proc")
    out = tmp_path / "model"
    monkeypatch.setenv("KILLS_FOLDER", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(pipelines.train, "training_progress", once(kill_a_worker))
        result = run(*starting(table, out, "train.steps=2000", "train.patience=2000", workers=2))
    assert result.exit_code == 1 and "killed by signal 9" in result.stderr and "--resume" in result.stderr
    assert not out.exists() and kills.orphans(tmp_path) == []
    assert pipelines.train.reopen(tmp_path / "model.run")[1] == out


@pytest.mark.parametrize("existing", [False, True], ids=["new", "interrupted before"])
def test_a_run_exists_whole_or_not_at_all(existing: bool, table: Path, tmp_path: Path) -> None:
    from test_crashes import killed_at

    found = data.load(table, horizon="1", overrides=SETTINGS)
    for step in range(1, 200):
        if existing and not (tmp_path / "model.run").exists():
            pipelines.train.start(found, tmp_path / "model")
        if not killed_at(step, lambda: pipelines.train.start(found, tmp_path / "model")):
            break
        if (tmp_path / "model.run").exists():
            pipelines.train.reopen(tmp_path / "model.run")
    assert step > 5
    pipelines.train.start(found, tmp_path / "model")
    assert os.listdir(tmp_path) == ["model.run"]


def test_a_run_that_is_not_to_be_tracked_stays_so(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found, out = data.load(table, horizon="1", overrides=SETTINGS), tmp_path / "model"
    folder = pipelines.train.start(found, out, tracked=False)
    assert run("train", "--resume", folder, "--quiet").exit_code == 0
    assert os.listdir(tmp_path) == ["model"]
    assert pipelines.train.reopen(pipelines.train.start(found, out))[2]


def test_a_run_belongs_to_one_process(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    folder = pipelines.train.start(data.load(table, horizon="1", overrides=SETTINGS), out)
    before = sorted(folder.iterdir())
    with locked(folder):
        for arguments in (starting(table, out), ["train", "--resume", str(folder), "--quiet"]):
            result = run(*arguments)
            assert result.exit_code == 73 and "another `tsde train` is at work" in result.stderr
    assert sorted(folder.iterdir()) == before


def test_resuming_what_is_finished_says_so(undisturbed: Path) -> None:
    result = run("train", "--resume", f"{undisturbed}.run")
    assert result.exit_code == 66 and f"{undisturbed} beside it is a model" in result.stderr


def test_a_damaged_checkpoint_says_what_to_remove(
    table: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    out = tmp_path / "model"
    with monkeypatch.context() as patch:
        patch.setattr(pipelines.train, "training_progress", once(interrupt))
        assert run(*starting(table, out)).exit_code == 130
    state = tmp_path / "model.run" / "checkpoints" / "member-0.state"
    damaged = bytearray((state / "state.safetensors").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (state / "state.safetensors").write_bytes(damaged)
    result = run("train", "--resume", f"{out}.run", "--quiet")
    assert result.exit_code == 65 and f"{state}" in result.stderr and "SHA-256" in result.stderr
    subprocess.run(["rm", "-r", str(state)], check=True)
    assert run("train", "--resume", f"{out}.run", "--quiet", "--no-track").exit_code == 0
    assert same(out, undisturbed)


# No room, no permission


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_ends_the_training_until_there_is_room(
    workers: int,
    table: Path,
    undisturbed: Path,
    mounted: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = mounted("-t", "tmpfs", "-o", "size=4m", "none")
    out, filler = disk / "model", disk / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4096))

    with monkeypatch.context() as patch:
        patch.setattr(pipelines.train, "training_progress", once(fill))
        result = run(*starting(table, out, workers=workers))
    assert result.exit_code == 73, result.output
    assert re.search(r"error: .*cannot write .*No space left on device", result.stderr)
    assert f"--resume {out}.run" in result.stderr and "Traceback" not in result.stderr
    assert not out.exists() and kills.torn(disk) == []
    if workers == 1:
        assert run("train", "--resume", f"{out}.run", "--quiet", "--no-track").exit_code == 73
    filler.unlink()
    assert run("train", "--resume", f"{out}.run", "--quiet", "--no-track").exit_code == 0
    assert same(out, undisturbed) and os.listdir(disk) == ["model"]


def test_where_nothing_can_be_written_is_known_before_training(
    table: Path, mounted: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "place").mkdir()
    disk = mounted("--bind", str(tmp_path / "place"))
    subprocess.run(["mount", "-o", "remount,ro,bind", str(disk)], check=True)
    result = run(*starting(table, disk / "model"))
    assert result.exit_code == 73 and "Read-only file system" in result.stderr


# Numbers that are not finite


def diverging(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The `at`-th validation of a process, from 0, is NaN."""
    score, count = training.validation_crps, iter(range(10**6))
    monkeypatch.setattr(training, "validation_crps", lambda *_: float("nan") if next(count) == at else score(*_))


def test_a_divergence_keeps_what_was_validated(
    table: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old model stays; resuming accepts the best weights of the member that diverged and trains the other."""
    out = tmp_path / "model"
    Predictor.load(undisturbed).save(out)
    with monkeypatch.context() as patch:
        diverging(patch, at=3)
        result = run(*starting(table, out))
    assert result.exit_code == 70 and "validation CRPS is nan after step 8" in result.stderr
    assert f"best validated weights: tsde train --resume {out}.run" in result.stderr
    assert same(out, undisturbed)
    resumed = run("train", "--resume", f"{out}.run", "--no-track", "--quiet")
    assert resumed.exit_code == 0 and "warning: member 1 ends with its best validation" in resumed.stderr
    found, expected = (read_files(path, "model")[1]["weights.safetensors"] for path in (out, undisturbed))
    different = {name.split("/")[0] for name in expected if not found[name].equal(expected[name])}
    assert different == {"0"}
    assert os.listdir(tmp_path) == ["model"]


def test_a_divergence_before_any_validation_leaves_nothing(table: Path, tmp_path: Path) -> None:
    wild = ("train.learning_rate=1e30", "train.clip=1e30", "train.warmup=0")
    result = run(*starting(table, tmp_path / "model", *wild))
    assert result.exit_code == 70 and "Lower train.learning_rate" in result.stderr and "resume" not in result.stderr
    assert os.listdir(tmp_path) == []


# The tracking server


class Store(HTTPServer):
    """Answers like a tracking server for a number of requests, then with `status`, or not at all."""

    def __init__(self, answers: int, then: int | None):
        super().__init__(("127.0.0.1", 0), Answers)
        self.answers, self.then, self.asked = answers, then, 0
        self.over = threading.Event()


class Answers(BaseHTTPRequestHandler):
    server: Store

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked += 1
        if self.server.asked > self.server.answers and self.server.then is None:
            self.server.over.wait(30)
            return
        run = {"run_id": "a" * 32, "experiment_id": "1", "status": "RUNNING", "lifecycle_stage": "active"}
        run |= {"artifact_uri": "mlflow-artifacts:/1/a/artifacts", "start_time": 1}
        place = {"experiment_id": "1", "name": "tsde", "artifact_location": "mlflow-artifacts:/1"}
        body = json.dumps({"experiment": place, "run": {"info": run, "data": {}}}).encode()
        gone = self.server.asked > self.server.answers
        self.send_response(self.server.then if gone and self.server.then else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PUT = do_PATCH = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize(
    ("answers", "then"), [(0, 500), (0, None), (3, None), (6, 500)], ids=["broken", "silent", "gone", "broken later"]
)
def test_a_tracking_server_that_fails_costs_a_warning(
    answers: int, then: int | None, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(answers, then)
    threading.Thread(target=store.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{store.server_port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    out = tmp_path / "model"
    result = run("train", "--data", table, "--horizon", 1, "--family", "last", "--out", out, "--quiet")
    store.over.set()
    store.shutdown()
    store.server_close()
    assert result.exit_code == 0, result.output
    assert store.asked > answers
    assert result.stderr.startswith(f"warning: the model in {out} is complete, but its run was not recorded")
    assert "Traceback" not in result.stderr
    Predictor.load(out)
    assert os.listdir(tmp_path) == ["model"]


def test_a_run_that_was_killed_while_it_was_recorded_is_recorded_again(
    table: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(trained: object) -> None:
        raise KeyboardInterrupt

    out, seen = tmp_path / "model", []
    arguments = [word for word in starting(table, out) if word != "--no-track"]
    monkeypatch.setattr("pipelines.cli._record", interrupted)
    assert run(*arguments).exit_code == 130
    assert same(out, undisturbed) and (tmp_path / "model.run").exists()
    monkeypatch.setattr("pipelines.cli._record", seen.append)
    assert run("train", "--resume", f"{out}.run", "--quiet").exit_code == 0
    assert len(seen) == 1 and same(out, undisturbed) and os.listdir(tmp_path) == ["model"]


# The clock on the wall


def test_a_clock_that_jumps_changes_nothing(
    table: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Budgets and elapsed times are of a clock that only goes forward."""
    jumps = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: jumps.uniform(0, 4e9))
    monkeypatch.setattr(time, "time_ns", lambda: jumps.randrange(4 * 10**18))
    out = tmp_path / "model"
    assert run(*starting(table, out, "train.max_time=1h")).exit_code == 0
    assert same(out, undisturbed)
    assert 0 < json.loads((out / "card.json").read_text())["seconds"] < 600
