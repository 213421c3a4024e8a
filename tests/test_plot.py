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
from tsde.plot import FanPanel, coverage_by_lead, fan_chart, reliability_diagram, save_figure, training_curve

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


def test_coverage_by_lead_is_in_per_cent() -> None:
    figure = coverage_by_lead(np.array([1.0, 2.0]), np.array([0.7, 0.6]), np.array([0.8, 0.79]), None, 80, "h")
    (ax,) = figure.axes
    np.testing.assert_allclose(points(ax, "after calibration")[:, 1], [80, 79])
    np.testing.assert_array_equal(points(ax, "nominal")[:, 1], [80, 80])
    assert ax.get_xlabel() == "lead time (h)"


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
