"""Pictures of forecasts, of their calibration and of training, as free-standing matplotlib figures.

Nothing here touches pyplot or global settings, so figures can be made in threads and servers; matplotlib itself is
imported on first use because it is slow to load.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tsde.errors import UsageError
from tsde.files import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

# Okabe and Ito's colours: told apart by colour-blind readers and, the first two, in grey print.
BLUE, VERMILION = "#0072B2", "#D55E00"
PALETTE = (BLUE, VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, FAINT, GRID = "#22282E", "#7C858D", "#E7EAED"
DASHES = (0, (4, 3))


@dataclass(frozen=True)
class FanPanel:
    """One channel of one series and its forecast; times increase within each array and share one unit.

    Attributes:
        title: heading of the panel, for instance the series and its channel.
        history_times, history_values: `(N,)` what was observed before the origin; N may be 0.
        future_times, future_values: `(M,)` what was observed after it, or None.
        times: `(H,)` when the forecast was asked.
        mean, median: `(H,)`.
        bands: level in per cent -> (lower, upper), each `(H,)`.
        origin: the last time the forecast could look at.
        time_label: text under the time axis.
        datetime: True where times are epoch seconds and the axis shows UTC dates.
    """

    title: str
    history_times: Array
    history_values: Array
    future_times: Array | None
    future_values: Array | None
    times: Array
    mean: Array
    median: Array
    bands: Mapping[int, tuple[Array, Array]]
    origin: float
    time_label: str
    datetime: bool = False


def fan_chart(panels: Sequence[FanPanel], title: str | None = None) -> Figure:
    """At least one panel, on a grid: nested bands, median and mean, observations as dots, the held-out truth hollow."""
    columns = len(panels) if len(panels) <= 3 else math.ceil(math.sqrt(len(panels)))
    rows = math.ceil(len(panels) / columns)
    width, height = (7.2, 3.8) if len(panels) == 1 else (4.2 * columns, 2.6 * rows + 0.6)
    figure, axes = _figure(width, height, rows, columns)
    for ax, panel in zip(axes, panels, strict=False):
        _fan(ax, panel)
    for ax in axes[len(panels) :]:
        ax.remove()
    if title is not None:
        figure.suptitle(title, fontsize=12, color=INK)
    return _with_legend(figure)


def reliability_diagram(nominal: Array, before: Array, after: Array, standard_error: Array | None) -> Figure:
    """How often `y <= q_level` happened against the level, before and after calibration; ideal is the diagonal.

    The lower panel magnifies the difference from the diagonal.

    Args:
        nominal: `(Q,)` levels in (0, 1).
        before, after: `(Q,)` observed frequencies.
        standard_error: `(Q,)` of `after`, drawn as a band of two of them either way, or None.
    """
    figure, (top, bottom) = _figure(4.6, 6.2, rows=2, height_ratios=(3.4, 1), sharex=True)
    top.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=DASHES, label="ideal")
    _before_after(top, nominal, before, after, standard_error)
    top.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", ylabel="observed frequency")
    bottom.axhline(0, color=FAINT, linewidth=1, linestyle=DASHES)
    _before_after(bottom, nominal, before - nominal, after - nominal, standard_error)
    bottom.set(xlabel="quantile level", ylabel="difference")
    return _with_legend(figure)


def coverage_by_lead(
    centres: Array, levels: Mapping[int, tuple[Array, Array, Array | None]], unit_label: str
) -> Figure:
    """Share of observations inside central intervals against the lead time, before and after calibration.

    Args:
        centres: `(K,)` middle of each lead-time bin, in the unit that `unit_label` names.
        levels: level in per cent -> (before, after, standard error of after), each `(K,)` in [0, 1], a panel each; two
            standard errors are drawn as a band either way, where they are known.
    """
    figure, axes = _figure(6.0, 1.4 + 2.2 * len(levels), rows=len(levels), sharex=True)
    for ax, (level, (before, after, error)) in zip(axes, levels.items(), strict=True):
        ax.axhline(level, color=FAINT, linewidth=1, linestyle=DASHES, label="nominal")
        _before_after(ax, centres, 100 * before, 100 * after, None if error is None else 100 * error)
        low, high = ax.get_ylim()  # ten points either way at least, so that a small difference looks small
        ax.set(
            ylabel=f"coverage of the {level} % interval (%)",
            ylim=(min(low, level - 10), min(max(high, level + 10), 101)),
        )
    axes[-1].set_xlabel(f"lead time ({unit_label})")
    return _with_legend(figure)


def skill_by_lead(
    centres: Array, measures: Mapping[str, Mapping[str, tuple[Array, Array, Array]]], unit_label: str
) -> Figure:
    """Share of each reference's score that a forecast saves, against the lead time; above zero it is better.

    Args:
        centres: `(K,)` middle of each lead-time bin, in the unit that `unit_label` names.
        measures: name of a score -> reference -> (skill, lower, upper), each `(K,)` as shares; a panel each.
    """
    figure, axes = _figure(6.0, 1.0 + 2.4 * len(measures), rows=len(measures), sharex=True)
    room = 0.03 * (np.ptp(centres) or centres.max())
    for ax, (measure, references) in zip(axes, measures.items(), strict=True):
        ax.axhline(0, color=FAINT, linewidth=1, linestyle=DASHES, label="no better")
        for place, ((name, (skill, low, high)), colour) in enumerate(zip(references.items(), cycle(PALETTE))):
            at = centres + (place - (len(references) - 1) / 2) * room  # beside each other, else intervals overlap
            ax.vlines(at, 100 * low, 100 * high, color=colour, linewidth=1.2)
            ax.plot(at, 100 * skill, color=colour, linewidth=1.3, marker="o", markersize=3.5, label=f"against {name}")
        ax.vlines([], [], [], color=INK, linewidth=1.2, label="95 % interval")
        ax.set(ylabel=f"{measure} saved (%)")
        _cut_losses(ax.set_ylim, ax.get_ylim())
    axes[-1].set_xlabel(f"lead time ({unit_label})")
    return _with_legend(figure)


def skill_by_channel(
    channels: Sequence[str], references: Mapping[str, tuple[Array, Array, Array]], label: str
) -> Figure:
    """Share of each reference's score that a forecast saves, as bars by channel; to the right of zero it is better.

    Args:
        channels: `(C,)` names, from top to bottom.
        references: reference -> (skill, lower, upper), each `(C,)` as shares.
        label: which score.
    """
    thick = 0.8 / max(1, len(references))
    figure, (ax,) = _figure(6.0, 1.2 + 0.15 * len(channels) * (1 + len(references)))
    ax.axvline(0, color=FAINT, linewidth=1, linestyle=DASHES, label="no better")
    for place, ((name, (skill, low, high)), colour) in enumerate(zip(references.items(), cycle(PALETTE))):
        at = np.arange(len(channels)) + (place - (len(references) - 1) / 2) * thick
        ax.barh(at, 100 * skill, 0.8 * thick, color=colour, label=f"against {name}")
        ax.hlines(at, 100 * low, 100 * high, color=INK, linewidth=1.2, label="95 % interval")
    ax.set_yticks(np.arange(len(channels)), channels, parse_math=False)
    ax.set(xlabel=f"{label} saved (%)", ylim=(len(channels) - 0.5, -0.5))
    ax.grid(visible=False, axis="y")
    _cut_losses(ax.set_xlim, ax.get_xlim())
    return _with_legend(figure)


def training_curve(steps: Array, series: Mapping[str, Array], label: str = "loss") -> Figure:
    """Each named series `(N,)` against steps `(N,)`; NaN is not measured (a validation every few steps).

    `label` says what is measured.
    """
    figure, (ax,) = _figure(6.0, 3.6)
    for (name, values), colour in zip(series.items(), cycle(PALETTE)):
        known = np.isfinite(values)
        marker = "o" if known.sum() < 50 else ""  # a sparse series shows where it was measured
        ax.plot(steps[known], values[known], color=colour, linewidth=1.3, marker=marker, markersize=3, label=name)
    ax.set(xlabel="step", ylabel=label)
    return _with_legend(figure)


def save_figure(figure: Figure, path: Path | str, dpi: int = 150) -> None:
    """Writes a PNG or SVG, by the suffix of `path`, in full or not at all.

    Raises:
        UsageError: another suffix.
        CannotWriteError: the directory is missing or not writable, or the disk is full.
    """
    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise UsageError(f"a figure is written as .png or .svg, got {path.name!r}: change the suffix")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], dpi=dpi)
    write_file(path, buffer.getvalue())


def _fan(ax: Axes, panel: FanPanel) -> None:
    times = _clock(panel.times, panel.datetime)
    lone = "_" if len(times) == 1 else ""  # neither an area nor a line can show a single time
    levels = sorted(panel.bands, reverse=True)
    for level, tint in zip(levels, np.linspace(0.2, 0.5, len(levels)), strict=True):
        style: dict[str, Any] = {"color": on_white(BLUE, tint), "zorder": 1, "label": f"{level} % interval"}
        if lone:
            ax.vlines(times, *panel.bands[level], linewidth=9, **style)
        else:
            ax.fill_between(times, *panel.bands[level], linewidth=0, **style)
    ax.plot(times, panel.median, color=BLUE, linewidth=1.8, marker=lone, label="median")
    ax.plot(times, panel.mean, color=BLUE, linewidth=1.2, linestyle=(0, (1, 1.2)), marker=lone, label="mean")
    dots: dict[str, Any] = {"linestyle": "none", "marker": "o", "markeredgecolor": INK, "zorder": 3}
    seen = _clock(panel.history_times, panel.datetime)
    ax.plot(seen, panel.history_values, color=FAINT, linewidth=0.6, alpha=0.6)
    ax.plot(seen, panel.history_values, markersize=2.6, markerfacecolor=INK, label="observed", **dots)
    if panel.future_times is not None and panel.future_values is not None:
        held_out = _clock(panel.future_times, panel.datetime)
        ax.plot(held_out, panel.future_values, markersize=3.8, markerfacecolor="white", label="held out", **dots)
    origin = _clock(np.array([panel.origin]), panel.datetime)[0]
    ax.axvline(origin, color=FAINT, linewidth=1, linestyle=DASHES, zorder=1.5, label="forecast origin")
    ax.set_title(panel.title, fontsize=10, color=INK, loc="left", parse_math=False)  # a name may hold a dollar
    ax.set_xlabel(panel.time_label, parse_math=False)
    if panel.datetime:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator(minticks=3, maxticks=6)
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _clock(times: Array, datetime: bool) -> NDArray[Any]:
    """Times as the axis wants them: numbers, or epoch seconds as dates."""
    return np.rint(times * 1e6).astype("datetime64[us]") if datetime else times


def on_white(colour: str, share: float) -> tuple[float, float, float]:
    """The colour thinned with white: opaque, so nested bands look in the legend as they do in the axes."""
    from matplotlib.colors import to_rgb

    red, green, blue = (1 - share * (1 - part) for part in to_rgb(colour))
    return red, green, blue


def _before_after(ax: Axes, x: Array, before: Array, after: Array, standard_error: Array | None) -> None:
    line: dict[str, Any] = {"linewidth": 1.5, "marker": "o", "markersize": 3.5}
    ax.plot(x, before, color=VERMILION, markerfacecolor="white", label="before calibration", **line)
    ax.plot(x, after, color=BLUE, label="after calibration", **line)
    if standard_error is not None:
        lo, hi = after - 2 * standard_error, after + 2 * standard_error
        ax.fill_between(x, lo, hi, color=on_white(BLUE, 0.2), linewidth=0, zorder=1, label="± 2 standard errors")


def _cut_losses(set_limits: Callable[[float, float], Any], limits: tuple[float, float]) -> None:
    """Skill ends at 100 % and has no lower end: a loss of more than that, in an interval too, runs off the picture."""
    set_limits(max(limits[0], -105.0), min(limits[1], 105.0))


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **layout: Any) -> tuple[Figure, list[Axes]]:
    """A figure in inches and its axes row by row, in the house style."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
    axes = list(figure.subplots(rows, columns, squeeze=False, **layout).flat)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(FAINT)
        ax.tick_params(colors=FAINT, labelcolor=INK, labelsize=8.5, length=3)
        ax.xaxis.label.set(fontsize=9, color=INK)
        ax.yaxis.label.set(fontsize=9, color=INK)
        ax.grid(color=GRID, linewidth=0.7)
        ax.set_axisbelow(True)
        ax.margins(x=0.02)
    return figure, axes


def _with_legend(figure: Figure) -> Figure:
    """Adds one legend under all axes, each label once, in the order of first appearance."""
    entries: dict[str, Any] = {}
    for ax in figure.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    rows = math.ceil(len(entries) * 1.5 / figure.get_figwidth())  # inches that an entry takes
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower center",
        ncols=math.ceil(len(entries) / rows),
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
    )
    return figure
