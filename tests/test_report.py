"""The report: complete, true to the scores, safe against hostile names, and readable without anything else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import browser
import commands
import numpy as np
import pandas as pd
import pytest
import torch

from pipelines import data, fans, report, train, verdicts
from pipelines.card import Card
from pipelines.heldout import HeldOut, of_table
from pipelines.scores import Entry, Scoreboard
from tsde.config import Experiment
from tsde.evaluation import Comparison, Evaluation, Scores, Skill, Skills, Slice
from tsde.fitting import fit_predictor
from tsde.metrics import crps_quantiles
from tsde.model import Cautious
from tsde.predictor import Predictor
from tsde.scaling import Scaler
from tsde.synthetic import spirals
from tsde.table import Queries, read_table
from tsde.windows import Region

SMALL = [
    *("train.steps=20", "train.validate_every=10", "train.members=2", "train.workers=1"),
    *("model.modes=4", "model.width=8", "model.horizon_modes=4", "model.steps=3"),
]
SCRIPT = "<script>alert('x')</script>"
CHANNELS = {"x": SCRIPT, "y": "dollar $\\frac{$ & \u202e\u4e2d"}
EVIL = '"><img src=http://example.org/x onerror=alert(1)></svg></style>'
VOID = {"meta", "link", "br", "img", "input", "hr", "base", "col", "source", "wbr", "area", "embed", "track"}


@dataclass(frozen=True)
class Model:
    """A trained model, its table, and the page about it without and with the table."""

    folder: Path
    table: Path
    bare: str
    full: str


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("report")
    table, out = folder / "<b>labs & co.csv", folder / "model"
    frame = spirals(60, 12, seed=3, missing=0.2).rename(columns=CHANNELS)
    frame["unique_id"] = frame["unique_id"] + EVIL
    frame["ds"] = pd.Timestamp("2024-01-01") + pd.to_timedelta((frame["ds"] * 86400).round(), unit="s")
    frame.to_csv(table, index=False)
    found = data.load(table, horizon="1d", overrides=SMALL)
    train.run(found, out, train.start(found, out), quiet=True)
    report.run(out, folder / "bare.html")
    report.run(out, folder / "full.html", table)
    assert sorted(path.name for path in folder.iterdir()) == [table.name, "bare.html", "full.html", "model"]
    return Model(out, table, (folder / "bare.html").read_text(), (folder / "full.html").read_text())


@pytest.fixture(params=["bare", "full"])
def page(request: pytest.FixtureRequest, model: Model) -> str:
    return getattr(model, request.param)


@dataclass
class Reader(HTMLParser):
    """The page as a parser sees it."""

    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]} at {self.getpos()}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


def test_every_tag_is_closed_and_every_reference_is_met(page: str) -> None:
    reader = read(page)
    assert page.startswith("<!DOCTYPE html>") and reader.open == []
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    asked = [word for _, a in reader.tags for word in a.get("aria-labelledby", "").split()]
    asked += [a["href"][1:] for _, a in reader.tags if a.get("href", "").startswith("#")]
    asked += re.findall(r"url\(#([^)]+)\)", page)
    assert asked and set(asked) <= set(ids)


def test_nothing_is_asked_of_a_network_and_nothing_runs(page: str) -> None:
    reader = read(page)
    tags = {tag for tag, _ in reader.tags}
    assert not tags & {"script", "iframe", "object", "embed", "base", "form", "img", "image", "foreignobject"}
    for tag, attributes in reader.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "xlink:href", "action", "srcset", "data", "poster"):
            assert attributes.get(name, "#").startswith("#") or attributes[name] == "data:,", (tag, attributes)
    assert not re.search(r"@import|url\((?!#)", page)
    policy = next(a["content"] for _, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';") and "script" not in policy


def test_hostile_names_are_text(model: Model) -> None:
    for page in (model.bare, model.full):
        reader = read(page)
        for name in CHANNELS.values():
            assert name in reader.text
        assert "<b>labs" in reader.text
    titles = [word for word in read(model.full).words if EVIL in word and SCRIPT in word]
    assert titles  # a figure's title holds the id and the channel


def test_a_page_without_the_table_holds_no_series(model: Model) -> None:
    card = (model.folder / "card.json").read_text()
    for text in (model.bare, card):
        assert "spiral-" not in text
    assert "spiral-" in model.full and "treat it like the data" in model.full
    assert "--data TABLE" in model.bare


def test_headings_tables_and_figures_are_named(page: str) -> None:
    reader = read(page)
    levels = [int(tag[1]) for tag, _ in reader.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    tags = [tag for tag, _ in reader.tags]
    assert tags.count("table") == tags.count("caption") > 5
    assert all("scope" in attributes for tag, attributes in reader.tags if tag == "th")
    drawings = [attributes for tag, attributes in reader.tags if tag == "svg"]
    assert len(drawings) == tags.count("figcaption") == tags.count("title") - 1 == tags.count("desc") >= 5
    assert all(a["role"] == "img" and len(a["aria-labelledby"].split()) == 2 for a in drawings)
    assert dict(reader.tags)["html"]["lang"] == "en"


def test_the_numbers_are_those_of_evaluate(model: Model) -> None:
    said = commands.succeed("evaluate", model.folder, "--json").stdout
    board = json.loads(said)
    for page in (model.bare, model.full):
        text = read(page).text
        for entry in (board["model"], *board["baselines"].values()):
            scores = entry["after"]["overall"]
            row = " ".join(f"{scores[name]:.4f}" for name in ("crps", "mse", "mae"))
            assert row in text
        for part in (*board["model"]["after"]["by_lead"], *board["model"]["after"]["by_channel"]):
            assert f"{part['scores']['count']} {part['scores']['crps']:.4f}" in text
        for level in ("50", "80", "95"):
            for when in ("before", "after"):
                for part in board["model"][when]["by_lead"]:
                    assert f"{100 * part['scores']['coverage'][level][0]:.1f}" in text


def test_the_skill_on_the_page_is_that_of_evaluate(model: Model) -> None:
    found = json.loads(commands.succeed("evaluate", model.folder, "--json").stdout)["skills"]
    assert set(found) == {"last", "mean", "ridge"}
    text = read(model.bare).text
    for skills in found.values():
        for part in (skills["overall"], *skills["by_lead"]):
            for skill in (part["crps"], part["mse"]):
                assert f"{100 * skill['value']:+.1f} ± {100 * skill['error']:.1f}" in text
    assert text.count("saves, with a 95 % interval") >= 1


def test_a_page_of_scores_without_skill_does_without(model: Model) -> None:
    """A card of an older version knows neither skill nor the errors of frequencies."""
    page = report.gather(model.folder)
    assert page.board is not None
    old = page.board.model_dump(mode="json")
    del old["skills"]
    for part in ("before", "after"):
        del old["model"][part]["frequency_error"]
    shown = report.render(replace(page, board=Scoreboard.model_validate(old)))
    assert "skill-table" not in shown and read(shown).open == []


def test_the_page_says_where_the_model_comes_from(page: str, model: Model) -> None:
    card = Card.of(Predictor.load(model.folder))
    assert card is not None and card.data.span is not None and len(card.curves) == 2
    text = read(page).text
    expected = [card.data.sha256, *card.data.span, card.finished, *card.versions.values(), card.data.sentence()]
    expected += json.loads((model.folder / "manifest.json").read_text())["files"].values()
    expected += [f"{card.data.counts[0]:,}", "steps: 20", "family: filter"]
    for curve in card.curves:
        assert curve.step == (10, 20)
        expected.append(f"20 {min(curve.validation_crps):.4f}")
    for fact in expected:
        assert str(fact) in text, fact


def test_the_page_says_how_much_of_a_forecast_is_ridge_regression(model: Model) -> None:
    page = report.gather(model.folder)
    means, quantiles = page.predictor.trust
    assert max(means, quantiles) < 0.5, "twenty steps taught more than a ridge regression knows"
    said = f"bears out {100 * means:.0f} % of the means and {100 * quantiles:.0f} % of the quantiles that they learnt"
    assert said in read(report.render(page)).text
    for part in (part for member in page.predictor.members for part in member.modules() if isinstance(part, Cautious)):
        part.trust.fill_(1.0)
    assert "ridge regression" not in read(report.render(replace(page, board=None))).text


def test_the_card_counts_what_the_table_holds(model: Model) -> None:
    card, frame = Card.of(Predictor.load(model.folder)), pd.read_csv(model.table)
    assert card is not None
    assert card.data.counts == tuple(frame[list(CHANNELS.values())].notna().sum())
    assert card.data.observed == sum(card.data.counts)
    assert card.data.span == tuple(frame["ds"].agg(["min", "max"]).str.replace(" ", "T"))


def test_the_same_model_gives_the_same_page(model: Model, tmp_path: Path) -> None:
    script = "import sys, pathlib, pipelines.report as r; r.run(*map(pathlib.Path, sys.argv[1:]))"
    command = [sys.executable, "-c", script, model.folder, tmp_path / "again.html", model.table]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"})
    assert (tmp_path / "again.html").read_text() == model.full


def test_typical_and_worst_are_what_they_say(model: Model) -> None:
    """Against a loop over every held-out series and channel."""
    predictor = Predictor.load(model.folder)
    held_out = of_table(predictor, *data.load_for(predictor, model.table))
    found = fans.choose(predictor, held_out)
    assert found is not None
    past, future = held_out.cut(86400)
    scores: dict[str, float] = {}
    counts: dict[str, int] = {}
    for number in range(past.n_series):
        known, came = past.select(np.array([number])), future.select(np.array([number]))
        near = came.times <= known.times[-1] + 86400
        queries = Queries(np.repeat(came.ids, near.sum()), came.times[near], came.times[near].astype(object))
        law = predictor.answer(known, queries).law
        for channel, name in enumerate(predictor.channels):
            y = came.values[near, channel]
            crps = crps_quantiles(law.values[:, channel], law.levels, torch.from_numpy(y)).numpy()
            title = f"{known.ids[0]}, {name}"
            counts[title] = int((~np.isnan(y)).sum())
            scores[title] = float(np.nanmean(crps)) / predictor.scaler.scale[channel] if counts[title] else np.nan
    enough = {title: score for title, score in scores.items() if counts[title] >= 3}
    assert found.median == pytest.approx(np.median(list(enough.values())))
    for fan in (*found.typical, *found.worst):
        assert fan.crps == pytest.approx(scores[fan.panel.title], rel=1e-4)
        assert fan.observations == counts[fan.panel.title] == len(fan.panel.future_times)
        assert fan.panel.times[-1] == pytest.approx(fan.panel.origin + 86400)
    titles = [fan.panel.title for fan in (*found.worst, *found.typical)]
    names = [title.split(EVIL)[0] for title in titles]
    assert len(set(names)) == len(names) == 6
    assert titles[0] == max(enough, key=enough.__getitem__)
    best = {}
    for title, score in enough.items():
        best[title.split(EVIL)[0]] = max(score, best.get(title.split(EVIL)[0], 0.0))
    assert names[:3] == sorted(best, key=best.__getitem__, reverse=True)[:3]


def test_a_table_is_the_same_in_another_file(model: Model, tmp_path: Path) -> None:
    predictor, again = Predictor.load(model.folder), tmp_path / "again.csv.gz"
    frame = pd.read_csv(model.table)
    frame.iloc[::-1].to_csv(again, index=False)
    first, second = (of_table(predictor, *data.load_for(predictor, table)) for table in (model.table, again))
    assert first.part == second.part == "the test part of the training table"
    frame.iloc[0, 2] += 1e-9
    frame.to_csv(again, index=False)
    assert of_table(predictor, *data.load_for(predictor, again)).part != first.part


def test_a_model_of_the_library_alone_has_a_page_too(tmp_path: Path) -> None:
    frame = spirals(50, 10, seed=1)
    fit_predictor(read_table(frame), Experiment(horizon=1, model={"family": "last"})).predictor.save(tmp_path / "m")
    report.run(tmp_path / "m", tmp_path / "bare.html")
    text = read((tmp_path / "bare.html").read_text()).text
    assert "keeps no scores" in text and "does not say on what" in text
    frame.to_csv(tmp_path / "t.csv", index=False)
    report.run(tmp_path / "m", tmp_path / "full.html", tmp_path / "t.csv")
    text = read((tmp_path / "full.html").read_text()).text
    assert "A baseline wins: " in text and "all 50 series" in text
    rows = [(f"s{n}", time, 1.0, 2.0) for n in range(5) for time in (0, 0.5, 0.9, 50, 100, 150, 200)]
    pd.DataFrame(rows, columns=["unique_id", "ds", "x", "y"]).to_csv(tmp_path / "sparse.csv", index=False)
    report.run(tmp_path / "m", tmp_path / "sparse.html", tmp_path / "sparse.csv")
    assert "so there is nothing to draw" in read((tmp_path / "sparse.html").read_text()).text


def scores(crps: float, mse: float, mae: float, share: float, error: float) -> Scores:
    coverage = {level: (share * level / 80, error) for level in (50, 80, 95)}
    return Scores(count=100, mse=mse, mae=mae, crps=crps, nll=1.0, width_80=2.0, coverage=coverage)


def entry(overall: Scores) -> Entry:
    lead, channel = Slice("0-1", (0.0, 1.0), overall), Slice("level", None, overall)
    found = Evaluation(overall, [lead], [channel], [0.5], [0.5])
    return Entry(after=found, before=found)


def board(ours: Scores, theirs: Scores) -> Scoreboard:
    baselines = {"last": entry(scores(9, 9, 9, 0.8, 0.01)), "ridge": entry(theirs)}
    return Scoreboard(family="filter", part="it", horizon=30, unit="d", model=entry(ours), baselines=baselines)


def test_the_verdict_names_the_baseline_that_wins() -> None:
    good, bad = scores(0.3, 0.5, 0.4, 0.8, 0.01), scores(0.4, 0.7, 0.5, 0.8, 0.01)
    (won,) = verdicts.skill(board(good, bad))
    assert won == "The model's CRPS is 25.0 % lower than that of the best baseline, ridge (0.3000 against 0.4000)."
    lost = verdicts.skill(board(bad, good))
    assert lost[0].startswith("A baseline wins: ridge") and "--family ridge" in lost[0]
    assert [text.split(" the")[0] for text in lost[1:]] == ["By MSE", "By MAE"]
    mixed = verdicts.skill(board(good, scores(0.4, 0.49, 0.5, 0.8, 0.01)))
    assert mixed[1:] == ["By MSE the baseline ridge is no worse (0.4900 against 0.5000)."]
    assert verdicts.skill(board(good, good))[0].startswith("A baseline wins")  # a draw goes to the simpler one
    assert "In 1 of 1 channels" in verdicts.channels(board(bad, good))
    assert "every baseline in each of the 1" in verdicts.channels(board(good, bad))
    itself = board(bad, good).model_copy(update={"family": "ridge"})
    assert verdicts.best_baseline(itself)[0] == "last"  # a baseline is not compared with itself


def skilled(ours: Scores, theirs: Scores, error: float) -> Scoreboard:
    """The same with the skill against ridge that the scores imply, give or take `error`."""
    crps, squared = (Skill(1 - a / b, error, 30) for a, b in ((ours.crps, theirs.crps), (ours.mse, theirs.mse)))
    found = Skills(crps, squared, 30)
    return board(ours, theirs).model_copy(update={"skills": {"ridge": Comparison(found, [found], [found])}})


def test_the_verdict_on_skill_heeds_its_standard_error() -> None:
    good, bad = scores(0.3, 0.5, 0.4, 0.8, 0.01), scores(0.4, 0.7, 0.5, 0.8, 0.01)
    (sure,) = verdicts.skill(skilled(good, bad, 0.02))
    assert "25.0 ± 2.0 % lower" in sure and "chance" not in sure
    doubtful, mse = verdicts.skill(skilled(good, bad, 0.2))
    assert "25.0 ± 20.0 % lower" in doubtful and doubtful.endswith("too little to tell from chance on these series.")
    assert mse == "By MSE the model cannot be told from the baseline ridge (0.7000 against 0.5000)."
    assert "chance" in verdicts.skill(skilled(good, bad, float("inf")))[0]
    assert verdicts.skill(skilled(bad, good, 0.02))[0].startswith("A baseline wins: ridge")
    assert verdicts.skill(skilled(bad, good, 0.9))[0].startswith("A baseline does as well: ridge")
    assert "better than the channel's best baseline in 1 of 1" in verdicts.channels(skilled(good, bad, 0.02))
    assert "in 0 of 1 channels, and worse in 1." in verdicts.channels(skilled(bad, good, 0.02))
    assert "in 0 of 1 channels, and worse in 0." in verdicts.channels(skilled(good, bad, 0.9))


@pytest.mark.parametrize(
    ("share", "error", "words"),
    [
        (0.81, 0.01, "as promised"),
        (0.85, 0.01, "too wide"),
        (0.75, 0.01, "too narrow"),
        (0.75, 0.04, "as promised"),
        (0.75, float("nan"), "one series is too few"),
    ],
)
def test_the_verdict_on_calibration_heeds_the_standard_error(share: float, error: float, words: str) -> None:
    found = verdicts.calibration(board(scores(0.3, 0.5, 0.4, share, error), scores(1, 1, 1, 0.8, 0.01)))
    assert words in next(text for text in found if "80 % intervals" in text)
    assert ("0d to 30d (80 %" in found[-1]) == (words in ("too wide", "too narrow"))
    assert ("At no lead time" in found[-1]) == (words == "as promised")


def themes() -> dict[str, dict[str, str]]:
    css = (Path(report.__file__).parent / "report.css").read_text()
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in css.split("@media screen")[:2])
    return {"light": light, "dark": dark}


def luminance(colour: str) -> float:
    parts = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return float(np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast_is_enough_in_both_themes(theme: str) -> None:
    """WCAG 2.2 AA: 4.5 for text, 3 for lines and marks."""
    colours = themes()[theme]
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    for ground in ("paper", "ground"):
        for text in ("ink", "aside", "link"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for line in ("faint", *(f"series-{number}" for number in range(1, 7))):
        assert contrast(colours[line], colours["paper"]) >= 3, line


def test_every_colour_of_a_figure_follows_the_theme(model: Model) -> None:
    used = set()
    for tag, attributes in read(model.full).tags:
        style = attributes.get("style", "")
        assert not re.search(r"#[0-9a-fA-F]{3,8}\b|rgb|font-family", style), (tag, style)
        used |= set(re.findall(r"var\(--([\w-]+)\)", style))
    assert {"ink", "paper", "faint", "grid", "series-1", "series-2", "band-20", "band-35", "band-50"} <= used
    for colours in themes().values():
        assert used <= set(colours)


@pytest.mark.skipif(browser.EXECUTABLE is None, reason=f"none of {browser.NAMES} is installed")
def test_a_browser_shows_it_in_light_and_dark_and_asks_for_nothing(model: Model, tmp_path: Path) -> None:
    place = tmp_path / "page.html"
    place.write_text(model.full)
    with browser.browser(tmp_path / "profile") as tab:
        for scheme, width in (("light", 1280), ("dark", 1280), ("dark", 390)):
            tab.events.clear()
            tab.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
            tab.ask("Emulation.setDeviceMetricsOverride", **size)
            tab.ask("Page.navigate", url=place.as_uri())
            tab.wait("Page.loadEventFired")
            ground = tab.value("getComputedStyle(document.body).backgroundColor")
            expected = themes()[scheme]["ground"]
            assert ground == f"rgb({', '.join(str(int(expected[n : n + 2], 16)) for n in (1, 3, 5))})"
            assert tab.value("document.documentElement.scrollWidth") <= width  # nothing sticks out to the right
            assert tab.value("document.querySelectorAll('figure svg').length") == model.full.count("<svg") > 8
            assert tab.value("Math.min(...[...document.querySelectorAll('svg')].map(s => s.clientHeight))") > 100
            requests = [event["request"]["url"] for event in tab.named("Network.requestWillBeSent")]
            assert [url for url in requests if not url.startswith("data:")] == [place.as_uri()]
            assert not tab.named("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        tab.ask(
            "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
        )
        assert tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert len(tab.ask("Page.printToPDF", preferCSSPageSize=True)["data"]) > 10_000


def test_an_origin_moves_on_to_where_something_follows() -> None:
    times = {"sparse": [0, 1, 20, 40, 41, 60], "dense": [0, 1, 2, 3, 4, 5], "alone": [0, 20, 40, 60, 80, 100]}
    rows = [(name, time, 1.0) for name, own in times.items() for time in own]
    table = read_table(pd.DataFrame(rows, columns=["unique_id", "ds", "y"]))
    series = Scaler.unit(("y",), 1.0).apply(table, 0)
    names = table.ids.tolist()

    def cut(lower: float, reach: float) -> dict[str, list[float]]:
        bounds = torch.full((3,), lower, dtype=torch.float64)
        held_out = HeldOut(table, series, Region(bounds, torch.full_like(bounds, torch.inf)), [], "all")
        past, future = held_out.cut(reach)
        assert past.ids.tolist() == future.ids.tolist() == names
        for place, name in enumerate(names):
            known, came = (t.times[t.offsets[place] : t.offsets[place + 1]].tolist() for t in (past, future))
            assert known + came == times[name]
        return {name: float(past.times[past.offsets[place + 1] - 1]) for place, name in enumerate(names)}

    assert cut(1.5, np.inf) == {"sparse": 1, "dense": 1, "alone": 0}
    assert cut(1.5, 1.0) == {"sparse": 40, "dense": 1, "alone": 0}
    assert cut(-np.inf, 1.0) == {"sparse": 40, "dense": 2, "alone": 40}
    assert cut(-np.inf, 20.0) == {"sparse": 20, "dense": 2, "alone": 40}
