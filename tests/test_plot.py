import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.dates import ConciseDateFormatter, num2date
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tsde.errors import CannotWriteError, UsageError
from tsde.plot import (
    FanPanel,
    coverage_by_lead,
    fan_chart,
    reliability_diagram,
    save_figure,
    skill_by_channel,
    skill_by_lead,
    training_curve,
)

pytestmark = pytest.mark.filterwarnings("error")

TIMES = np.array([5.1, 5.4, 6.0, 7.5])
PANEL = FanPanel(
    title="north · level",
    history_times=np.array([0.0, 1.5, 1.7, 4.0, 5.0]),
    history_values=np.array([1.0, 2.0, 1.5, 3.0, 2.5]),
    future_times=np.array([5.5, 7.0]),
    future_values=np.array([2.6, 3.4]),
    times=TIMES,
    mean=np.full(4, 2.6),
    median=np.full(4, 2.5),
    bands={80: (np.full(4, 1.8), np.full(4, 3.2)), 50: (np.full(4, 2.2), np.full(4, 2.8))},
    origin=5.0,
    time_label="time (days)",
)
NONE = np.empty(0)
PANELS = {
    "usual": PANEL,
    "one point of history": replace(PANEL, history_times=np.array([5.0]), history_values=np.array([2.5])),
    "no history": replace(PANEL, history_times=NONE, history_values=NONE),
    "no truth": replace(PANEL, future_times=None, future_values=None),
    "one query": replace(
        PANEL,
        times=TIMES[:1],
        mean=PANEL.mean[:1],
        median=PANEL.median[:1],
        bands={level: (lo[:1], hi[:1]) for level, (lo, hi) in PANEL.bands.items()},
    ),
    "diverged": replace(PANEL, mean=np.full(4, np.nan), median=np.full(4, np.nan), bands={}),
    "dates": replace(
        PANEL,
        history_times=1.7e9 + 86400 * PANEL.history_times,
        future_times=1.7e9 + 86400 * np.array([5.5, 7.0]),
        times=1.7e9 + 86400 * TIMES,
        origin=1.7e9 + 86400 * 5.0,
        time_label="",
        datetime=True,
    ),
}


def points(ax: Axes, label: str) -> NDArray[np.float64]:
    """`(N, 2)` vertices of the line so labelled; dates are days."""
    return np.asarray(next(line for line in ax.lines if line.get_label() == label).get_xydata(), float)


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("name", PANELS)
def test_every_panel_can_be_drawn(name: str, tmp_path: Path) -> None:
    save_figure(fan_chart([PANELS[name]]), tmp_path / "fan.png", dpi=50)


def test_fan_chart_shows_what_it_was_given() -> None:
    (ax,) = fan_chart([PANEL]).axes
    assert ax.get_title(loc="left") == "north · level" and ax.get_xlabel() == "time (days)"
    np.testing.assert_array_equal(points(ax, "median"), np.stack([TIMES, PANEL.median], axis=1))
    np.testing.assert_array_equal(points(ax, "observed")[:, 1], PANEL.history_values)
    np.testing.assert_array_equal(points(ax, "held out")[:, 1], [2.6, 3.4])
    np.testing.assert_array_equal(points(ax, "forecast origin")[:, 0], [5.0, 5.0])
    wide, narrow = ax.collections  # the wide band lies beneath
    assert (wide.get_label(), narrow.get_label()) == ("80 % interval", "50 % interval")
    assert wide.get_paths()[0].get_extents().bounds == pytest.approx((5.1, 1.8, 2.4, 1.4))


def test_a_dollar_in_a_name_is_a_dollar(tmp_path: Path) -> None:
    """Matplotlib would set what stands between two of them as mathematics, or refuse to."""
    panel = replace(PANEL, title="cost $\\frac{$ of $x", time_label="$\\nothing$")
    save_figure(fan_chart([panel]), tmp_path / "fan.svg")


def test_fan_chart_puts_the_panels_on_a_grid_with_one_legend() -> None:
    figure = fan_chart([*PANELS.values()], title="all")
    assert len(figure.axes) == 7 and figure.get_suptitle() == "all"
    labels = legend(figure)
    assert len(labels) == len(set(labels)) == 7
    assert all(ax.get_legend() is None for ax in figure.axes)


def test_epoch_seconds_become_dates() -> None:
    (ax,) = fan_chart([PANELS["dates"]]).axes
    first, origin = points(ax, "observed")[0, 0], points(ax, "forecast origin")[0, 0]
    assert num2date(first).isoformat() == "2023-11-14T22:13:20+00:00"
    assert num2date(origin).isoformat() == "2023-11-19T22:13:20+00:00"
    assert isinstance(ax.xaxis.get_major_formatter(), ConciseDateFormatter)


def test_reliability_diagram_shows_both_and_their_difference() -> None:
    nominal, before, after = np.array([0.1, 0.5, 0.9]), np.array([0.2, 0.5, 0.7]), np.array([0.12, 0.5, 0.88])
    figure = reliability_diagram(nominal, before, after, np.full(3, 0.02))
    top, bottom = figure.axes
    np.testing.assert_array_equal(points(top, "before calibration")[:, 1], before)
    np.testing.assert_allclose(points(bottom, "after calibration")[:, 1], [0.02, 0, -0.02], atol=1e-12)
    assert "± 2 standard errors" in legend(figure)
    assert "± 2 standard errors" not in legend(reliability_diagram(nominal, before, after, None))


LEADS = np.array([1.0, 2.0, 4.0])


def test_coverage_by_lead_is_in_per_cent_with_a_panel_per_level() -> None:
    found = {50: (LEADS / 8, LEADS / 9, None), 80: (np.full(3, 0.7), np.array([0.8, 0.79, 0.81]), np.full(3, 0.01))}
    figure = coverage_by_lead(LEADS, found, "h")
    for ax, (level, (before, after, _)) in zip(figure.axes, found.items(), strict=True):
        np.testing.assert_allclose(points(ax, "before calibration"), np.stack([LEADS, 100 * before], 1))
        np.testing.assert_allclose(points(ax, "after calibration")[:, 1], 100 * after)
        np.testing.assert_array_equal(points(ax, "nominal")[:, 1], [level, level])
        assert f"{level} %" in ax.get_ylabel() and np.ptp(ax.get_ylim()) >= 15
    assert [len(ax.collections) for ax in figure.axes] == [0, 1]  # the band
    assert figure.axes[-1].get_xlabel() == "lead time (h)"


def skills(value: float, *, half: float = 0.1) -> tuple[NDArray[np.float64], ...]:
    middle = value + LEADS / 100
    return middle, middle - half, middle + half


def test_skill_by_lead_is_in_per_cent_with_its_interval(tmp_path: Path) -> None:
    measures = {"CRPS": {"last": skills(0.1), "ridge": skills(-0.3)}, "MSE": {"last": skills(0.2)}}
    figure = skill_by_lead(LEADS, measures, "d")
    top, bottom = figure.axes
    np.testing.assert_allclose(points(top, "against last")[:, 1], [11, 12, 14])
    np.testing.assert_allclose(points(bottom, "against last")[:, 1], [21, 22, 24])
    assert (points(top, "against last")[:, 0] < points(top, "against ridge")[:, 0]).all()  # beside each other
    np.testing.assert_allclose(top.collections[0].get_segments()[2][:, 1], [4, 24])
    assert legend(figure) == ["no better", "against last", "against ridge", "95 % interval"]
    assert bottom.get_xlabel() == "lead time (d)" and bottom.get_ylabel() == "MSE saved (%)"
    save_figure(figure, tmp_path / "skill.svg")


def test_skill_by_channel_has_a_bar_per_channel_and_reference(tmp_path: Path) -> None:
    figure = skill_by_channel(["a", "$\\frac{$", "c"], {"last": skills(0.1), "ridge": skills(-0.3)}, "CRPS")
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "$\\frac{$", "c"]
    last, ridge = ax.containers
    assert [bar.get_width() for bar in last] == pytest.approx([11, 12, 14])
    assert [bar.get_width() for bar in ridge] == pytest.approx([-29, -28, -26])
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first on top
    save_figure(figure, tmp_path / "channels.png", dpi=50)


def test_one_hopeless_channel_does_not_hide_the_others(tmp_path: Path) -> None:
    hopeless = np.array([0.3, -40.0, np.nan])
    figure = skill_by_channel(["a", "b", "c"], {"last": (hopeless, hopeless - 1, hopeless + 9)}, "CRPS")
    assert figure.axes[0].get_xlim() == (-105, 105)
    figure = skill_by_lead(LEADS, {"CRPS": {"last": (hopeless, hopeless - 1, hopeless + 9)}}, "d")
    assert figure.axes[0].get_ylim() == (-105, 105)
    nothing = np.full(3, np.nan)  # of a single series there is no interval
    save_figure(skill_by_lead(LEADS, {"CRPS": {"last": (LEADS / 9, nothing, nothing)}}, "d"), tmp_path / "one.png")
    save_figure(skill_by_channel(["a"] * 3, {"last": (LEADS / 9, nothing, nothing)}, "CRPS"), tmp_path / "two.png")


def test_training_curve_joins_what_was_measured() -> None:
    figure = training_curve(np.arange(4.0), {"train": np.ones(4), "validation": np.array([2, np.nan, np.nan, 1.0])})
    (ax,) = figure.axes
    np.testing.assert_array_equal(points(ax, "validation"), [[0, 2], [3, 1]])
    assert legend(figure) == ["train", "validation"]
    assert figure.axes[0].get_ylabel() == "loss"
    assert training_curve(np.arange(2.0), {"a": np.ones(2)}, "CRPS").axes[0].get_ylabel() == "CRPS"


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_figures_are_written_whole_and_alone(suffix: str, start: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"curve{suffix}"
    path.write_bytes(b"old")
    save_figure(training_curve(np.arange(3.0), {"train": np.ones(3)}), path)
    assert path.read_bytes().startswith(start)
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    path, figure = tmp_path / "curve.png", training_curve(np.arange(3.0), {"train": np.ones(3)})
    path.write_bytes(b"old")
    monkeypatch.setattr("tsde.files.os.fsync", full)
    with pytest.raises(CannotWriteError, match="No space left"):
        save_figure(figure, path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(CannotWriteError, match=r"curve\.png"):
        save_figure(figure, tmp_path / "absent" / "curve.png")


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"curve\.jpg"):
        save_figure(training_curve(np.arange(3.0), {"train": np.ones(3)}), tmp_path / "curve.jpg")
    assert not list(tmp_path.iterdir())


def test_matplotlib_is_loaded_on_use_and_pyplot_never() -> None:
    code = (
        "import sys, numpy, tsde.plot\n"
        "assert 'matplotlib' not in sys.modules\n"
        "tsde.plot.training_curve(numpy.arange(3.0), {'train': numpy.ones(3)})\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
