"""The whole job on the bundled sample: ingest, train, evaluate, forecast, report."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from shutil import which

from pipelines import data, evaluate, forecast, ingest, pictures, report, train
from pipelines.messages import note
from pipelines.rows import as_csv
from tsde.files import write_file
from tsde.plot import save_figure
from tsde.predictor import Predictor
from tsde.table import Table

HORIZON, STEP = "730", "90"  # days
_LEVELS = (50.0, 80.0)


def run(out: Path, quiet: bool = False, overrides: Sequence[str] = ()) -> train.Trained:
    """Fill the directory `out`; at most two minutes on two cores. `overrides` change settings as --set does."""
    sample = out / "pbcseq.csv"
    write_file(sample, (files("tsde") / "data" / "pbcseq.csv").read_bytes())
    config = Path(str(files("pipelines") / "demo.yaml"))
    note(f"1 of 5  ingest    {sample}: visits of patients, at their own times, with gaps")
    ingest.run(data.load(sample, config, overrides=overrides), out / "dataset")
    note(f"2 of 5  train     on {out / 'dataset'}")
    dataset, model = data.load(out / "dataset"), out / "model"
    trained = train.run(dataset, model, train.start(dataset, model), quiet)
    note("3 of 5  evaluate  on the patients that were held out")
    evaluate.run(out / "model", plots=out)
    note(f"4 of 5  forecast  them {HORIZON} days ahead, from halfway through their visits")
    past, future = trained.held_out.cut()
    write_file(out / "context.csv", as_csv(past.frame()).encode())
    outputs = forecast.Outputs(out / "forecasts.csv")
    forecast.run(out / "model", out / "context.csv", forecast.Question(HORIZON, STEP, levels=_LEVELS), outputs)
    note(f"5 of 5  report    and pictures into {out}")
    _draw(trained.predictor, past, future, out / "forecasts.png")
    report.run(out / "model", out / "report.html", out / "dataset")
    return trained


def next_steps(out: Path) -> str:
    """Where to look, for a person who has just seen the scores."""
    command = "tsde" if which("tsde") else os.path.relpath(sys.argv[0])
    places = {
        f"{out}/report.html": "everything about the model on one page, for any browser",
        f"{out}/forecasts.png": "six held-out patients: the forecasts, and hollow what came",
        f"{out}/forecasts.csv": f"all of those, {HORIZON} days ahead every {STEP}, from the visits in context.csv",
        f"{out}/reliability.png": "how far the intervals can be trusted; coverage.png shows it by lead time",
        f"{out}/model": "the model, which learnt from pbcseq.csv in the same directory",
        f"{command} ui": "this run in the MLflow dashboard",
        f"{command} forecast {out}/model {out}/pbcseq.csv --horizon 365": "a forecast of your own",
    }
    lines = [
        f"  {place:<24}  {text}" if len(place) <= 24 else f"  {place}\n{'':28}{text}" for place, text in places.items()
    ]
    return "\n".join(["Where to look next", *lines])


def _draw(predictor: Predictor, past: Table, future: Table, path: Path) -> None:
    past, future = pictures.longest(past, future)
    queries = predictor.queries(past, HORIZON, STEP)
    frame = predictor.forecast(past, queries=queries, levels=_LEVELS)
    save_figure(pictures.fan(predictor, frame, queries, _LEVELS, past, future), path)
