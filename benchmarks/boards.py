"""Boards: the same families, training and predictor as `tsde train`, under published protocols.

    python benchmarks/boards.py run B1 --set LEN01 --fold 0 --family filter --set-config train.max_time=300s
    python benchmarks/boards.py report

B1 (Physiome-ODE), B2 (MuJoCo Hopper), B3 (stochastic Lorenz), B4 (CMU MoCap 35), B5 (USHCN sporadic) and B6
(PhysioNet-2012 a) have their protocols in `protocols.py`, `lorenz.py` and `mocap.py`. A run appends a row to
`rows/BOARD.jsonl` per (set, fold, family, settings); a row that exists is not run again, and an interrupted run goes on
from its members' checkpoints. The test split of a fold is scored once, by the run that writes its row. Beside the
families a board may have references of its own: `analog` on B3 and B4, `oracle` on B3.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from protocols import BOARDS
from scoreboard import render
from tasks import Board, Task
from tsde.config import Experiment, load_experiment
from tsde.errors import DivergedError, TsdeError
from tsde.evaluation import Evaluation, Scores, evaluate
from tsde.fitting import _assemble as calibrated_predictor
from tsde.members import train_members
from tsde.model import Forecaster
from tsde.models import BASELINES, MODELS
from tsde.predictor import Predictor
from tsde.scaling import Scaler
from tsde.threads import single_thread
from tsde.training import Progress

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared" / "data"
Row = dict[str, Any]

app = typer.Typer(help=__doc__, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def run(
    board: Annotated[str, typer.Argument(help=f"One of {', '.join(BOARDS)}.")],
    sets: Annotated[list[str] | None, typer.Option("--set", help="A set of the board; repeatable. [all]")] = None,
    folds: Annotated[list[int] | None, typer.Option("--fold", help="A fold or seed; repeatable. [all]")] = None,
    families: Annotated[
        list[str] | None, typer.Option("--family", help="Family or reference; repeatable. [filter]")
    ] = None,
    config: Annotated[list[str] | None, typer.Option("--set-config", help="Such as train.max_time=300s.")] = None,
    data: Annotated[Path, typer.Option(envvar="TSDE_BOARDS", help="The folder that has boards/.")] = DATA,
    rows: Annotated[Path, typer.Option(help="Where rows are kept.")] = HERE / "rows",
    work: Annotated[Path, typer.Option(help="Where interrupted runs leave their checkpoints.")] = HERE / ".work",
    track: Annotated[bool, typer.Option(help="Also log each row to MLflow, experiment tsde-boards.")] = False,
) -> None:
    """Run families on sets and folds of one board; rows that exist are skipped."""
    _choice(board, "board", BOARDS)
    chosen, kept = BOARDS[board], rows / f"{board}.jsonl"
    for label in _labels(chosen, sets, folds, families, config):
        if any(label.items() <= row.items() for row in read_rows(kept)):
            print(f"{_title(label)}: there is a row already", file=sys.stderr)
            continue
        try:
            row = label | run_one(chosen, label, data, work)
        except DivergedError as error:
            row = label | {"diverged": str(error), "commit": _commit()}
        except TsdeError as error:
            raise SystemExit(str(error)) from error
        append_row(kept, row)
        if track:
            _track(row)


@app.command()
def report(
    rows: Annotated[Path, typer.Option(help="Where rows are kept.")] = HERE / "rows",
    out: Annotated[Path, typer.Option(help="The document to write.")] = HERE / "BOARDS.md",
) -> None:
    """Write BOARDS.md from the rows and the published numbers."""
    out.write_text(render({name: read_rows(rows / f"{name}.jsonl") for name in BOARDS}), encoding="utf-8")


def run_one(board: Board, label: Row, data: Path, work: Path) -> Row:
    """Train one family on one fold, calibrate it, score the test windows once, and describe all that in a row."""
    task = board.load(data, label["set"], label["fold"])
    experiment = experiment_of(task, label)
    digest = hashlib.sha256(json.dumps(label).encode()).hexdigest()[:8]
    folder = work / f"{board.name}-{label['set']}-{label['fold']}-{label['family']}-{digest}"
    started = time.monotonic()
    reference = board.references.get(label["family"])
    predictor, history = train(task, experiment, _reporter(label), folder, reference)
    wall = time.monotonic() - started
    with single_thread():
        milliseconds = forecast_ms(predictor, task)
        row = scores(evaluate(predictor, task.parts.test, lead_bins=3), task.parts.scaler)
        row |= board.further(task, predictor)
    shutil.rmtree(folder, ignore_errors=True)
    done = {last["member"]: last for last in history}.values()  # the last validation of each member
    return row | {
        "train_seconds": round(sum(last["elapsed"] for last in done) or wall, 1),
        "forecast_ms": milliseconds,
        "parameters": sum(p.numel() for member in predictor.members for p in member.parameters() if p.requires_grad),
        "members": len(predictor.members),
        "steps": [int(last["step"]) for last in done],
        "commit": _commit(),
    }


def experiment_of(task: Task, label: Row) -> Experiment:
    """The default experiment of a family on a board, with the run's overrides; its seed is the fold.

    A reference is no family: its experiment says how to calibrate, and nothing of its model.
    """
    fields: Row = {"horizon": task.parts.scaler.horizon, "seed": label["fold"], "windows": dict(task.windows)}
    if label["family"] in MODELS:
        fields["model"] = {"family": label["family"]}
    if label["family"] in BASELINES:
        fields["train"] = {"members": 1}
    return load_experiment(None, label["overrides"], **fields)


def train(
    task: Task,
    experiment: Experiment,
    report: Callable[[Progress], None],
    folder: Path,
    reference: Callable[[Task], Forecaster] | None = None,
) -> tuple[Predictor, list[dict[str, float]]]:
    """The ordinary training, or a board's reference in its place, and the ordinary calibration, on a board's split."""
    parts = task.parts
    if reference is not None:
        with single_thread():
            return calibrated_predictor(parts, experiment, task.table, [reference(task)]), []
    members, history = train_members(parts.series, parts.split.folds, experiment, report, folder, parts.calibration)
    with single_thread():
        return calibrated_predictor(parts, experiment, task.table, members), history


def scores(evaluation: Evaluation, scaler: Scaler) -> Row:
    """Scores in the board's units: each channel's errors times its scale, weighted by its number of targets."""
    scales = dict(zip(scaler.channels, scaler.scale, strict=True))
    channels = evaluation.by_channel
    total = sum(channel.scores.count for channel in channels)

    def micro(score: Callable[[Scores, float], float]) -> float:
        return sum(c.scores.count * score(c.scores, scales[c.name]) for c in channels) / total

    overall = evaluation.overall
    return {
        "mse": micro(lambda found, scale: found.mse * scale**2),
        "mae": micro(lambda found, scale: found.mae * scale),
        "crps": micro(lambda found, scale: found.crps * scale),
        "nll": micro(lambda found, scale: found.nll + math.log(scale)),
        "width_80": micro(lambda found, scale: found.width_80 * scale),
        **_coverage(overall),
        "coverage_80_se": overall.coverage[80][1],
        "by_lead": [
            {"lead": part.lead, "mse_scaled": part.scores.mse} | _coverage(part.scores) for part in evaluation.by_lead
        ],
        "targets": overall.count,
    }


def forecast_ms(predictor: Predictor, task: Task) -> float:
    """Milliseconds per series on one thread, measured on the calibration windows."""
    windows = task.parts.calibration
    started = time.perf_counter()
    predictor.residuals(windows)
    return 1000 * (time.perf_counter() - started) / sum(len(window.series) for window in windows)


def read_rows(path: Path) -> list[Row]:
    """The rows of a board, none where the file is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append_row(path: Path, row: Row) -> None:
    """Add one row as one line, numbers to six digits."""
    rounded = json.loads(json.dumps(row), parse_float=lambda text: float(f"{float(text):.6g}"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(rounded) + "\n")
    print(
        f"{_title(row)}: " + (row.get("diverged") or f"MSE {row['mse']:.4g}, CRPS {row['crps']:.4g}"), file=sys.stderr
    )


def _coverage(found: Scores) -> Row:
    return {f"coverage_{level}": share for level, (share, _) in found.coverage.items()}


def _labels(
    board: Board,
    sets: Sequence[str] | None,
    folds: Sequence[int] | None,
    families: Sequence[str] | None,
    config: Sequence[str] | None,
) -> list[Row]:
    """What names a row, for each run that is asked for; everything, or the default family, where nothing is named."""
    for name in sets or []:
        _choice(name, f"set of {board.name}", board.sets)
    for fold in folds or []:
        _choice(fold, f"fold of {board.name}", range(board.folds))
    for family in families or []:
        _choice(family, f"family or reference of {board.name}", [*MODELS, *board.references])
    return [
        {"board": board.name, "set": name, "family": family, "fold": fold, "overrides": sorted(config or [])}
        for name in sets or board.sets
        for fold in folds or range(board.folds)
        for family in families or ["filter"]
    ]


def _choice(value: object, what: str, known: Collection[object]) -> None:
    if value not in known:
        raise SystemExit(f"{value} is no {what}; expected one of {', '.join(map(str, known))}")


def _title(row: Row) -> str:
    return " ".join(str(part) for part in (row["board"], row["set"], row["fold"], row["family"], *row["overrides"]))


def _reporter(label: Row) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        print(
            f"{_title(label)}: member {progress.member} step {progress.step} at {progress.elapsed:.0f} s, "
            f"validation CRPS {progress.validation_crps:.4f}",
            file=sys.stderr,
        )

    return report


def _commit() -> str:
    """The version of the code, with `-dirty` for changes to code that are not committed; rows are none."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False)

    changed = git("diff", "--quiet", "HEAD", "--", "*.py", "../tsde").returncode
    return git("describe", "--always", "--abbrev=10").stdout.strip() + "-dirty" * (changed == 1)


def _track(row: Row) -> None:
    """One MLflow run per row in the store that `tsde train` uses: its label as parameters, its scores as metrics."""
    from pipelines.dashboard import store
    from pipelines.tracking import connect

    mlflow = connect(store())
    mlflow.set_experiment("tsde-boards")
    with mlflow.start_run(run_name=_title(row)):
        mlflow.log_params({name: value for name, value in row.items() if isinstance(value, str) or name == "fold"})
        mlflow.log_params({"overrides": " ".join(row["overrides"])})
        mlflow.log_metrics({name: value for name, value in row.items() if isinstance(value, float)})


if __name__ == "__main__":
    app()
