"""The command line: data on stdout or in files, progress and messages on stderr, one exit code per kind of failure."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

import tsde
from pipelines import messages
from pipelines.examples import examples
from pipelines.exits import BAD_DATA, Commands
from pipelines.options import (
    Config,
    DryRun,
    Horizon,
    Json,
    Model,
    Quiet,
    Set,
    TablePath,
    with_columns,
    with_reading,
)
from tsde.errors import UsageError

if TYPE_CHECKING:
    from pipelines.scores import Scoreboard
    from pipelines.train import Trained

app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
Data = Annotated[
    Path | None, Option(metavar="DATASET|TABLE", readable=False, help="What `tsde ingest` wrote, or a table.")
]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"tsde {tsde.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[bool, Option("--version", callback=_version, is_eager=True, help="Say which version.")] = False,
    debug: Annotated[bool, Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    """Calibrated forecasts of irregular time series: an uneven, gappy table in, forecasts at any future time out."""
    # The models are small: a second thread costs them more than it gives, and a lot more where cores are shared.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    messages.listen()


@app.command(epilog=examples("demo"))
def demo(
    out: Annotated[Path, Option(metavar="DIR", help="Where everything goes.")] = Path("demo"), quiet: Quiet = False
) -> None:
    """Everything below on a bundled real sample, in two minutes."""
    from pipelines import demo

    trained = demo.run(out, quiet)
    _record(trained)
    _show(trained)
    print(demo.next_steps(out))


@app.command(epilog=examples("validate"))
@with_columns
def validate(table: TablePath, columns: dict[str, Any], config: Config = None, json: Json = False) -> None:
    """Check a table; exit code 65 if it cannot be used."""
    from pipelines import validate

    findings = validate.run(table, config, columns)
    print(validate.as_json(table, findings) if json else validate.as_text(table, findings))
    if not validate.sound(findings):
        raise typer.Exit(BAD_DATA)


@app.command(epilog=examples("ingest"))
@with_columns
def ingest(
    table: TablePath,
    out: Annotated[Path, Option(metavar="DATASET", help="The directory to write.")],
    columns: dict[str, Any],
    config: Config = None,
    horizon: Horizon = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Turn a table into a checked dataset.

    A directory with the table as Parquet, its SHA-256, its columns, and how it is split and scaled.
    """
    from pipelines import data, ingest

    found = data.load(table, config, horizon, columns=columns)
    if dry_run:
        ingest.check(found, out)
        print(f"would write {out}: {found.facts.sentence()}; nothing was written")
        return
    ingest.run(found, out)
    messages.note(f"{out}: {found.facts.sentence()}; train on it with: tsde train --data {out}")


@app.command(epilog=examples("train"))
@with_columns
def train(
    columns: dict[str, Any],
    data: Data = None,
    config: Config = None,
    horizon: Horizon = None,
    family: Annotated[str | None, Option(metavar="F", help="The model's family, see `tsde models`.")] = None,
    settings: Set = None,
    out: Annotated[Path | None, Option(metavar="MODEL", help="The directory to write [tsde-model].")] = None,
    resume: Annotated[Path | None, Option(metavar="RUN", help="Go on with an interrupted run, MODEL.run.")] = None,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    no_track: Annotated[bool, Option("--no-track", help="Record nothing in MLflow.")] = False,
) -> None:
    """Train a model, and score it beside naive baselines.

    Without a configuration the defaults fit the table and are printed, to keep. Everything is scored on a part of
    the data that was kept for it, before and after calibration.
    """
    from pipelines import data as source
    from pipelines import plan, train

    if resume is not None:
        if config or horizon or family or settings or columns:
            raise UsageError("an interrupted run goes on as it was started: leave out what changes it beside --resume")
        found, target, tracked = train.reopen(resume, data)
    elif data is not None:
        found = source.load(data, config, horizon, family, settings or [], columns)
        target, tracked = Path("tsde-model"), True
    else:
        raise UsageError("name the data: --data DATASET|TABLE")
    target, tracked = out or target, tracked and not no_track
    parts = plan.check(found, target)
    if dry_run:
        print(plan.describe(found, parts, target, resume, json), end="")
        return
    folder = resume or train.start(found, target, tracked)
    if config is None and resume is None:
        messages.note(f"# the configuration, to keep and change (--config)\n{found.experiment.to_yaml()}")
    trained = train.run(found, target, folder, quiet, parts, _record if tracked else (lambda trained: None))
    if json:
        print(trained.as_json())
        return
    _show(trained)
    print(f"The model is in {trained.out}. Forecast with: tsde forecast {trained.out} TABLE --horizon H --out F.csv")
    print(f"Everything about it on one page: tsde report {trained.out} --data {found.path} --out report.html")


@app.command(epilog=examples("evaluate"))
@with_reading
def evaluate(
    model: Model,
    columns: dict[str, Any],
    data: Data = None,
    json: Json = False,
    out: Annotated[Path | None, Option(metavar="S.csv", help="Also .csv.gz or .parquet: all scores as rows.")] = None,
    plots: Annotated[Path | None, Option(metavar="DIR", help="Draw skill, calibration and forecasts here.")] = None,
    quiet: Quiet = False,
) -> None:
    """Score a model beside naive baselines.

    On DATASET|TABLE, or as it was scored after training. Of the table it was trained on only the test part counts.
    docs/evaluation.md says what the numbers mean.
    """
    from pipelines import evaluate, tracking

    board = evaluate.run(tracking.resolve_model(model), data, columns, plots, out)
    if json:
        print(board.as_json())
    else:
        _print(board, by_channel=True)


@app.command(epilog=examples("forecast"))
@with_reading
def forecast(
    model: Model,
    table: TablePath,
    columns: dict[str, Any],
    out: Annotated[Path | None, Option(metavar="F.csv", help="Also .csv.gz or .parquet; stdout without.")] = None,
    horizon: Horizon = None,
    step: Annotated[str | None, Option(metavar="1d", help="Forecast every step up to the horizon.")] = None,
    times: Annotated[
        Path | None, Option(metavar="T.csv", readable=False, help="Or forecast for these ids and times.")
    ] = None,
    level: Annotated[list[float] | None, Option(metavar="80", help="Central interval in percent; repeatable.")] = None,
    seed: Annotated[int, Option(metavar="S", help="Of sampled forecasts.")] = 0,
    samples: Annotated[int, Option(metavar="N", min=0, help="Also draw samples, with --samples-out.")] = 0,
    samples_out: Annotated[Path | None, Option(metavar="P", help="Table of samples to write.")] = None,
    plot: Annotated[Path | None, Option(metavar="PNG", help="Draw a few of the series.")] = None,
    strict: Annotated[bool, Option("--strict", help="Exit code 70 if one diverged, 65 if not all are ok.")] = False,
    dry_run: DryRun = False,
    json: Annotated[bool, Option("--json", help="What came of it as JSON on stdout, with --out.")] = False,
    workers: Annotated[int | None, Option(metavar="N", min=1, help="Processes [one per core, if worth it].")] = None,
    quiet: Quiet = False,
) -> None:
    """Forecast every series of a table.

    At regular times up to a horizon after each series' last row, or at the ids and times of another table. Every series
    gets an answer and a status; --strict tells by the exit code, once all is written, that one is not ok. A large
    table is sorted on disk, beside F.csv, and may be larger than the memory.
    """
    from pipelines import forecast, tracking

    question = forecast.Question(horizon, step, times, level or [80.0], seed)
    outputs = forecast.Outputs(out, samples, samples_out, plot)
    if json and out is None and not dry_run:
        raise UsageError("--json and the forecasts cannot share stdout: write the forecasts to a file with --out")
    if dry_run:
        print(forecast.plan(tracking.resolve_model(model), table, question, outputs, columns, json))
        return
    tally = forecast.run(tracking.resolve_model(model), table, question, outputs, columns, workers, quiet)
    if json:
        print(tally.as_json(outputs))
    messages.note(f"{out or 'forecasts'}: {tally.sentence()}")
    if strict:
        forecast.require_ok(tally.statuses)


@app.command(epilog=examples("report"))
@with_reading
def report(
    model: Model,
    columns: dict[str, Any],
    out: Annotated[Path, Option(metavar="F.html", help="The page to write.")] = Path("report.html"),
    data: Data = None,
    quiet: Quiet = False,
) -> None:
    """Write one page about a model.

    Its scores, calibration, training and provenance, in HTML that needs no network, no script and no other file. With
    DATASET|TABLE the scores are on that, and forecasts of held-out series are drawn: the page then holds their values.
    """
    from pipelines import report, tracking

    report.run(tracking.resolve_model(model), out, data, columns)
    messages.note(f"{out}: open it in any browser")


@app.command(epilog=examples("serve"))
def serve(
    model: Model,
    host: Annotated[str, Option(help="Where to listen; 0.0.0.0 is every address of this machine.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="0 takes a free one and logs it.")] = 8000,
    allowed_host: Annotated[list[str] | None, Option(metavar="NAME", help="A name to answer to; repeatable.")] = None,
    token_file: Annotated[Path | None, Option(metavar="FILE", help="Bearer token to ask for [$TSDE_TOKEN].")] = None,
    limit: Annotated[list[str] | None, Option(metavar="NAME=N", help="Such as rows=200000; repeatable.")] = None,
) -> None:
    """Answer forecasts over HTTP, on this machine alone unless told otherwise.

    POST /forecast, GET /metadata, /healthz, /readyz and /openapi.json; docs/operations.md describes them.
    """
    from pipelines import serve, tracking

    settings = serve.Settings.of(host, port, allowed_host or [], token_file, limit or [])
    serve.run(tracking.resolve_model(model), settings)


@app.command(epilog=examples("ui"))
def ui(
    host: Annotated[str, Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, Option(min=1, max=65535)] = 5000,
    store: Annotated[str | None, Option(metavar="URI", help="Tracking store [sqlite:///mlflow.db].")] = None,
    quiet: Quiet = False,
) -> None:
    """Open the MLflow dashboard on the runs recorded here."""
    from pipelines import dashboard

    raise typer.Exit(dashboard.run(host, port, store))


@app.command(epilog=examples("models"))
def models(json: Json = False) -> None:
    """List the families of models, one line each."""
    from json import dumps

    from tsde.models import BASELINES, MODELS, AutoConfig

    summaries = {name: family.summary for name, family in MODELS.items()} | {"auto": AutoConfig.SUMMARY}
    if json:
        families = [
            {"family": name, "baseline": name in BASELINES, "summary": summary} for name, summary in summaries.items()
        ]
        print(dumps(families, indent=1))
        return
    for name, summary in summaries.items():
        print(f"{name:<12} {summary}")


def _record(trained: Trained) -> None:
    """Track a run whose model is saved: if the store fails, that is a pity but no more."""
    from pipelines import dashboard, tracking

    try:
        tracking.record(trained)
    except Exception as error:  # any database, server or disk
        reason = " ".join(str(error).split())[:300]
        told = f"the model in {trained.out} is complete, but its run was not recorded in {dashboard.store()}"
        messages.warn(f"{told}: {reason}")


def _show(trained: Trained) -> None:
    if trained.card.scores is not None:
        _print(trained.card.scores)


def _print(board: Scoreboard, by_channel: bool = False) -> None:
    from rich.console import Console

    from pipelines import score_tables as tables

    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(tables.overall_table(board))
    if board.skills:
        for measure in ("crps", "mse"):
            console.print(tables.skill_table(board, measure, by_channel))
    console.print(tables.lead_table(board))
    if by_channel:
        console.print(tables.channel_table(board))
