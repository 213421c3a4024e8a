"""The whole job through the command line on a small table, and what it says and returns when something is wrong."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import refuse, succeed, tsde
from rich.console import Console

import pipelines.demo
import pipelines.train
from pipelines.card import Card
from pipelines.exits import CODES, verdict
from pipelines.score_tables import channel_table, lead_table
from tsde import errors
from tsde.config import load_experiment
from tsde.predictor import Predictor
from tsde.synthetic import spirals
from tsde.training import Progress

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    *("--set", "train.steps=20", "--set", "train.validate_every=10", "--set", "train.members=1"),
    *("--set", "model.modes=4", "--set", "model.width=8", "--set", "model.horizon_modes=4", "--set", "model.steps=3"),
]


@dataclass(frozen=True)
class Job:
    """What one run of the whole job left behind."""

    table: Path
    dataset: Path
    model: Path
    forecasts: Path
    printed: str
    noted: str


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """validate, ingest, train and forecast."""
    folder = tmp_path_factory.mktemp("job")
    table, dataset, model, out = (folder / name for name in ("table.csv", "dataset", "model", "f.csv"))
    spirals(60, 12, seed=3, missing=0.2).rename(columns={"ds": "when"}).to_csv(table, index=False)
    succeed("validate", table, "--time-col", "when")
    succeed("ingest", table, "--time-col", "when", "--horizon", 1, "--out", dataset)
    trained = succeed("train", "--data", dataset, "--out", model, "--no-track", *SMALL)
    succeed("forecast", model, table, "--horizon", 1, "--step", 0.25, "--level", 80, "--level", 50, "--out", out)
    return Job(table, dataset, model, out, trained.stdout, trained.stderr)


def test_training_prints_the_model_beside_the_baselines(job: Job) -> None:
    for word in ("filter", "last", "mean", "ridge", "CRPS", "80 % coverage", "By lead time", str(job.model)):
        assert word in job.printed
    assert not job.model.with_name("model.run").exists()


def test_tables_of_scores_fit_a_terminal_of_eighty_columns(job: Job) -> None:
    card = Card.of(Predictor.load(job.model))
    assert card is not None and card.scores is not None
    for table in (lead_table(card.scores), channel_table(card.scores)):
        console = Console(width=80, record=True, file=io.StringIO())
        console.print(table)
        assert "…" not in console.export_text()


def test_training_says_what_it_will_not_do(job: Job, tmp_path: Path) -> None:
    few = tmp_path / "few.csv"
    spirals(3, 8, seed=3).to_csv(few, index=False)
    long = ("train", "--data", job.dataset, "--horizon", 365, "--dry-run", "--out", tmp_path / "m")
    assert "no training series tells what comes 365 later" in succeed(*long).stderr
    small = succeed("train", "--data", few, "--horizon", 0.5, "--dry-run", "--out", tmp_path / "m").stderr
    assert "too small for a part to score on" in small and "tells what comes" not in small
    assert "warning" not in succeed("train", "--data", job.dataset, "--dry-run", "--out", tmp_path / "m").stderr


def test_training_says_how_much_of_the_forecast_is_ridge_regression(job: Job) -> None:
    means, quantiles = Predictor.load(job.model).trust
    assert max(means, quantiles) < 0.5, "twenty steps taught more than a ridge regression knows"
    said = f"bears out {means:.0%} of the means and {quantiles:.0%} of the quantiles that the members learnt"
    assert f"{said}; the rest is ridge regression" in " ".join(job.noted.split())


def test_the_card_says_where_the_model_comes_from(job: Job) -> None:
    card = json.loads((job.model / "card.json").read_text())
    about = json.loads((job.dataset / "dataset.json").read_text())
    assert card["data"] == about["data"]
    assert card["data"]["series"] == 60 and card["data"]["rows"] == 720
    assert {"tsde", "torch", "python"} <= set(card["versions"])
    assert set(card["scores"]["baselines"]) == {"last", "mean", "ridge"}
    assert len(about["split"]["test"]) == 6


def test_a_forecast_has_the_columns_of_the_contract_and_every_series(job: Job) -> None:
    frame = pd.read_csv(job.forecasts)
    intervals = ["tsde-lo-80", "tsde-hi-80", "tsde-lo-50", "tsde-hi-50"]
    assert list(frame.columns) == ["unique_id", "when", "channel", "tsde", "tsde-median", *intervals, "status"]
    assert len(frame) == 60 * 4 * 2
    assert set(frame["unique_id"]) == set(pd.read_csv(job.table)["unique_id"])
    assert set(frame["status"]) == {"ok"}
    assert frame.notna().all(axis=None)
    ordered = frame[["tsde-lo-80", "tsde-lo-50", "tsde-median", "tsde-hi-50", "tsde-hi-80"]].to_numpy()
    assert (ordered[:, 1:] >= ordered[:, :-1]).all()


def test_arbitrary_times_are_answered_in_their_order(job: Job, tmp_path: Path) -> None:
    times, out = tmp_path / "times.csv", tmp_path / "f.parquet"
    times.write_text("unique_id,when\nspiral-0003,2.50\nunheard-of,1\nspiral-0000,1e2\nspiral-0003,0.001\n")
    said = succeed("forecast", job.model, job.table, "--times", times, "--out", out).stderr
    frame = pd.read_parquet(out).iloc[::2]
    assert frame["unique_id"].tolist() == ["spiral-0003", "unheard-of", "spiral-0000", "spiral-0003"]
    assert frame["when"].tolist() == ["2.50", "1", "1e2", "0.001"]
    assert frame["status"].tolist()[1:] == ["no_history", "beyond_horizon", "no_history"]
    assert "3 series, 8 rows" in said


def test_a_forecast_does_not_depend_on_the_order_of_rows_or_the_format(job: Job, tmp_path: Path) -> None:
    shuffled, out = tmp_path / "shuffled.parquet", tmp_path / "f.csv.gz"
    pd.read_csv(job.table).sample(frac=1, random_state=0).to_parquet(shuffled)
    succeed("forecast", job.model, shuffled, "--horizon", 1, "--step", 0.25, "--level", 80, "--level", 50, "--out", out)
    pd.testing.assert_frame_equal(pd.read_csv(out), pd.read_csv(job.forecasts), check_exact=True)


def test_a_forecast_goes_to_stdout_alone(job: Job) -> None:
    result = succeed("forecast", job.model, job.table, "--horizon", 1, "--quiet")
    assert result.stdout.startswith("unique_id,when,channel,tsde,") and result.stdout.count("\n") == 121
    assert "left out" not in result.stdout


def test_samples_are_written_beside_the_forecast(job: Job, tmp_path: Path) -> None:
    out = tmp_path / "samples.csv"
    succeed(
        "forecast", job.model, job.table, "--horizon", 1, "--out", tmp_path / "f.csv",
        "--samples", 40, "--samples-out", out, "--plot", tmp_path / "fan.png",
    )  # fmt: skip
    samples, frame = pd.read_csv(out), pd.read_csv(tmp_path / "f.csv")
    assert len(samples) == 40 * len(frame)
    inside = samples.merge(frame, on=["unique_id", "when", "channel"])
    covered = inside["value"].between(inside["tsde-lo-80"], inside["tsde-hi-80"]).mean()
    assert 0.75 < covered < 0.85
    assert (tmp_path / "fan.png").read_bytes().startswith(b"\x89PNG")


def test_evaluation_finds_the_test_part_of_the_training_table(job: Job, tmp_path: Path) -> None:
    kept = json.loads(succeed("evaluate", job.model, "--json").stdout)
    again = json.loads(succeed("evaluate", job.model, "--data", job.table, "--json", "--plots", tmp_path / "p").stdout)
    assert again == kept
    drawn = [f"{name}.png" for name in ("channels", "coverage", "forecasts", "reliability", "skill")]
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == drawn


def test_evaluation_says_what_the_model_saves_of_each_baseline(job: Job) -> None:
    found = succeed("evaluate", job.model, "--json")
    said, skills = succeed("evaluate", job.model).stdout, json.loads(found.stdout)["skills"]
    assert set(skills) == {"last", "mean", "ridge"}
    for measure in ("crps", "mse"):
        table = said.partition(f"Share of a baseline's {measure.upper()}")[2].partition("one standard")[0]
        for each in skills.values():
            for part in (each["overall"], *each["by_lead"], *each["by_channel"]):
                assert f"{100 * part[measure]['value']:+.1f} ± {100 * part[measure]['error']:.1f}" in table
    for level in (50, 80, 95):
        assert said.count(f"{level} % coverage") >= 2


def test_evaluation_writes_a_row_per_part_and_forecaster(job: Job, tmp_path: Path) -> None:
    out = tmp_path / "scores.csv"
    board = json.loads(succeed("evaluate", job.model, "--out", out, "--json").stdout)
    frame = pd.read_csv(out)
    assert frame.groupby("forecast_by", sort=False).size().to_dict() == dict.fromkeys(
        ("filter", "last", "mean", "ridge"), 1 + 4 + 2
    )
    ridge = frame[(frame["forecast_by"] == "ridge") & (frame["part"] == "channel")]
    parts = board["baselines"]["ridge"]["after"]["by_channel"]
    assert ridge["channel"].tolist() == ["x", "y"] == [part["name"] for part in parts]
    assert ridge["coverage_95_se"].tolist() == pytest.approx([part["scores"]["coverage"]["95"][1] for part in parts])
    own = frame[frame["forecast_by"] == "filter"]
    assert own["series"].tolist()[0] == 6
    assert own["lead_to"].max() == pytest.approx(board["model"]["after"]["by_lead"][-1]["lead"][1])
    skill = board["skills"]["last"]
    parts = [skill["overall"], *skill["by_lead"], *skill["by_channel"]]
    expected = [(part["mse"]["value"], part["mse"]["error"]) for part in parts]
    columns = ["mse_skill_vs_last", "mse_skill_vs_last_se"]
    assert own[columns].to_numpy() == pytest.approx(np.array(expected), rel=1e-6)
    assert frame.loc[frame["forecast_by"] != "filter", columns].isna().all(axis=None)
    assert (own["mse_skill_vs_last_lo"] < own["mse_skill_vs_last"]).all()
    refuse(2, "evaluate", job.model, "--out", tmp_path / "scores.xlsx")


def test_evaluation_takes_all_of_another_table(job: Job, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    spirals(20, 12, seed=4).rename(columns={"ds": "time"}).to_csv(other, index=False)
    result = succeed("evaluate", job.model, "--data", other, "--time-col", "time")
    assert "all 20 series of a table other than the training table" in result.stdout
    assert "By channel" in result.stdout


def test_validate_speaks_json(job: Job) -> None:
    found = json.loads(succeed("validate", job.table, "--time-col", "when", "--json").stdout)
    assert found["ok"] and found["table"] == str(job.table)


def test_a_family_replaces_the_model_section(job: Job, tmp_path: Path) -> None:
    succeed(
        "train", "--data", job.dataset, "--family", "ridge", "--config", job.model / "experiment.yaml",
        "--out", tmp_path / "m", "--no-track", "--quiet",
    )  # fmt: skip
    assert load_experiment(tmp_path / "m" / "experiment.yaml").model.family == "ridge"


@contextmanager
def interrupted(members: int, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    def report(progress: Progress) -> None:
        raise KeyboardInterrupt

    yield report


def test_an_interrupted_run_is_resumed_to_the_same_model(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, out = tmp_path / "table.csv", tmp_path / "m"
    table.write_bytes(job.table.read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(pipelines.train, "training_progress", interrupted)
        options = ["--data", table, "--time-col", "when", "--horizon", 1, "--out", out, "--no-track", *SMALL]
        result = tsde("train", *options)
    assert result.exit_code == 130 and "--resume" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.run", "table.csv"]
    table.write_bytes(job.table.read_bytes() + b"new,1,1,1\n")
    refuse(65, "train", "--resume", f"{out}.run")
    table.write_bytes(job.table.read_bytes())
    succeed("train", "--resume", f"{out}.run", "--no-track", "--quiet")
    assert (out / "weights.safetensors").read_bytes() == (job.model / "weights.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "table.csv"]


HEADER = "unique_id,ds,y\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (HEADER, "no rows"),
        (f"{HEADER}a,1,2\na,2,many\na,3,1\n", "line 3.*'y'.*'many'"),
        (f"{HEADER}a,1,2\na,1,3\n", "series 'a': the time 1 .*--duplicates"),
        ("id,ds,y\na,1,2\n", "no column 'unique_id'.*--id-col"),
        (f"{HEADER}a,1,2\nb,1,3\n", "within the horizon"),
    ],
    ids=["empty", "header", "text", "duplicate", "column", "single rows"],
)
def test_a_bad_table_is_refused(text: str, message: str, job: Job, tmp_path: Path) -> None:
    table = tmp_path / "bad.csv"
    table.write_text(text)
    said = refuse(65, "train", "--data", table, "--horizon", 1, "--out", tmp_path / "m", "--no-track", "--quiet")
    assert re.search(message, said), said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.csv"]
    if "horizon" not in message:
        assert tsde("validate", table).exit_code == 65


@pytest.mark.parametrize(
    ("code", "arguments", "message"),
    [
        (2, "train --data {table} --time-col when --horizon 0", "above zero"),
        (2, "train --data {table} --time-col when", "--horizon 30d"),
        (2, "train", "--data"),
        (2, "train --data {table} --horizon 1 --family no_such", "tsde models"),
        (2, "train --data {dataset} --out {dataset}", "is the data"),
        (2, "forecast {model} {table} --horizon 0", "above zero"),
        (2, "forecast {model} {table} --horizon 1 --out {table}", "is read: writing there would lose"),
        (2, "forecast {model} {table} --horizon 1 --out {model}/f.csv", "lies inside"),
        (2, "forecast {model} {table} --times {table} --out {folder}/../{folder.name}/link.csv", "would lose"),
        (2, "forecast {model} {table} --horizon 1 --out f.csv --samples 1 --samples-out f.csv", "two"),
        (2, "forecast {model} {table} --horizon 1 --dry-run --plot {model}/f.png", "lies inside"),
        (2, "forecast {model} {table} --horizon 1 --timezone Mars", "this model's have none"),
        (2, "forecast {model} {table} --horizon 1 --id-col when --time-col when", "must differ"),
        (2, "forecast {model} {table} --horizon 1 --id-col tsde", "a column of every forecast table"),
        (2, "evaluate {model} --out {model}/s.csv", "lies inside"),
        (2, "evaluate {model} --data {table} --plots {model}", "is read"),
        (2, "evaluate {model} --id-col foo", "--id-col tells how to read a table: name it with --data"),
        (2, "report {model} --data {table} --out {folder}/page.pdf", "ends in .html"),
        (2, "report {model} --data {table} --out {model}/page.html", "lies inside"),
        (2, "report {model} --dayfirst --out {folder}/page.html", "--dayfirst tells how"),
        (2, "ui --store foo://x", "no tracking store: expected one that begins with sqlite"),
        (2, "forecast {model} {table}", "neither"),
        (2, "forecast {model} {table} --horizon 1 --times {table}", "both"),
        (2, "forecast {model} {table} --horizon 1 --level 100", "level"),
        (2, "forecast {model} {table} --horizon 1 --out {folder}/f.xlsx", ".parquet"),
        (2, "forecast {model} {table} --horizon 30d", "unit"),
        (65, "forecast {folder} {table} --horizon 1", "manifest"),
        (65, "forecast {dataset} {table} --horizon 1", "is a 'dataset' of tsde, expected a model"),
        (65, "evaluate {folder}", "manifest"),
        (66, "forecast {folder}/none {table} --horizon 1", "does not exist"),
        (66, "forecast {table} {model} --horizon 1", "table.csv is a file: name the directory of a model"),
        (66, "forecast {model} {folder}/none.csv --horizon 1", "no such file"),
        (66, "forecast {model} {table} --times {folder}/none.csv", "no such file"),
        (66, "train --data {folder}/none.csv --horizon 1", "no such file"),
        (66, "train --data {table} --config {folder}/none.yaml", "does not exist"),
        (66, "train --resume {folder}/none", "no interrupted run"),
        (66, "ui --store sqlite:///{folder}/none.db", "no tracking store"),
        (73, "forecast {model} {table} --horizon 1 --out {folder}/taken.csv", "cannot write"),
        (73, "train --data {dataset} --out {folder}/taken.csv", "not written by tsde"),
        (73, "ingest {table} --time-col when --horizon 1 --out {folder}/taken.csv", "not written by tsde"),
        (78, "train --data {table} --horizon 1 --set train.stepz=3", "'train.stepz'"),
        (78, "train --data {table} --horizon 1 --set train.steps=many", "'train.steps'.*'many'"),
        (78, "train --data {table} --horizon 1 --set train.max_time=5m", "'train.max_time': expected seconds, or"),
        (78, "train --data {table} --horizon 1 --set data.channels=x", "'data.channels': expected a list of names"),
    ],
)
def test_every_refusal_has_its_code(code: int, arguments: str, message: str, job: Job, tmp_path: Path) -> None:
    (tmp_path / "taken.csv").mkdir()
    (tmp_path / "taken.csv" / "precious").touch()
    (tmp_path / "link.csv").symlink_to(job.table)
    places = {"table": job.table, "dataset": job.dataset, "model": job.model, "folder": tmp_path}
    said = refuse(code, *arguments.format(**places).split())
    assert re.search(message, said), said
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link.csv", "precious", "taken.csv"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you ...")])
def test_too_little_memory_is_called_that(error: Exception) -> None:
    code, said = verdict(error)
    assert code == 1 and said.startswith("error: out of memory; a smaller model")


def test_every_error_has_a_code() -> None:
    assert set(errors.TsdeError.__subclasses__()) == set(CODES) - {errors.TsdeError}


def test_debug_shows_where_an_error_came_from(tmp_path: Path) -> None:
    result = tsde("validate", tmp_path / "none.csv", "--debug")
    assert result.exit_code == 66 and "Traceback" in result.stderr


def test_help_is_quick() -> None:
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        script = "from pipelines.cli import app; app()"
        done = subprocess.run([sys.executable, "-c", script, "--help"], cwd=ROOT, capture_output=True, text=True)
        taken.append(time.perf_counter() - start)
        assert done.returncode == 0 and "forecast" in done.stdout
    assert min(taken) < 1.5  # 0.15 s on an idle core


def test_the_families_and_the_version_are_listed() -> None:
    assert succeed("models").stdout.count("\n") >= 6
    assert succeed("--version").stdout.startswith("tsde ")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_loads(path: Path) -> None:
    load_experiment(path)


def test_the_demo_leaves_what_it_names(tmp_path: Path) -> None:
    small = ["train.steps=10", "train.validate_every=10", "train.members=1", "windows.held_out=50"]
    trained = pipelines.demo.run(tmp_path / "demo", quiet=True, overrides=small)
    assert trained.card.scores is not None and trained.card.data.series == 312
    for line in pipelines.demo.next_steps(tmp_path / "demo").splitlines():
        if (word := line.split()[0]).startswith(str(tmp_path)):
            assert Path(word).exists()
    frame = pd.read_csv(tmp_path / "demo" / "forecasts.csv")
    assert set(frame["unique_id"]) == set(pd.read_csv(tmp_path / "demo" / "context.csv")["unique_id"])
    assert set(frame["status"]) == {"ok"} and frame["channel"].nunique() == 12


def test_the_demo_has_one_configuration() -> None:
    assert (ROOT / "configs" / "demo.yaml").read_bytes() == (ROOT / "pipelines" / "demo.yaml").read_bytes()


def test_a_short_refusal_never_aborts(tmp_path: Path) -> None:
    """A thread pool that had barely started used to take the program down at its end, one time in two."""
    table = tmp_path / "header.csv"
    table.write_text("unique_id,ds,y\n")
    command = [sys.executable, "-c", "from pipelines.cli import app; app()", "validate", str(table)]
    assert {subprocess.run(command, capture_output=True).returncode for _ in range(8)} == {65}


def test_stays_of_one_patient_are_in_one_part(tmp_path: Path) -> None:
    """Groups say how to split; a forecast needs none, and the training table's parts cannot be told without."""
    table, bare, dataset, model = (tmp_path / name for name in ("t.csv", "bare.csv", "dataset", "model"))
    frame = spirals(120, 8, seed=3)
    frame.to_csv(bare, index=False)
    frame.insert(2, "patient", [int(name[-4:]) // 2 for name in frame["unique_id"]])
    frame.to_csv(table, index=False)
    succeed("ingest", table, "--horizon", 1, "--group-col", "patient", "--out", dataset)
    about = json.loads((dataset / "dataset.json").read_text())
    assert about["data"]["channels"] == ["x", "y"]
    patients = [{int(name[-4:]) // 2 for name in about["split"][part]} for part in ("calibration", "test")]
    assert [len(about["split"][part]) for part in ("calibration", "test")] == [12, 12]
    assert [len(part) for part in patients] == [6, 6] and not patients[0] & patients[1]
    succeed("train", "--data", dataset, "--family", "ridge", "--out", model, "--no-track")
    answers = [succeed("forecast", model, path, "--horizon", 1).stdout for path in (table, bare)]
    assert answers[0] == answers[1]
    scored = succeed("evaluate", model, "--data", table, "--json")
    assert "the test part" in scored.stdout and json.loads(scored.stdout)["skills"]["last"]["overall"]["series"] == 6
    for other in ("P" + frame["patient"].astype(str), None):
        (frame.drop(columns="patient") if other is None else frame.assign(patient=other)).to_csv(bare, index=False)
        assert "expected the groups that column 'patient' named" in refuse(65, "evaluate", model, "--data", bare)
    for wrong in ("null", "doctor"):
        override = f"data.group_col={wrong}"
        refuse(2, "train", "--data", dataset, "--set", override, "--out", tmp_path / "other", "--no-track")
    plain = tmp_path / "plain"
    succeed("train", "--data", bare, "--horizon", 1, "--family", "ridge", "--out", plain, "--no-track")
    scores = [succeed("evaluate", plain, "--data", place, "--json").stdout for place in (bare, dataset)]
    assert scores[0] == scores[1]  # a model without groups looks at none
    frame.assign(patient="").to_csv(bare, index=False)
    assert succeed("forecast", model, bare, "--horizon", 1).stdout == answers[0]
