"""Windows against direct loops: which origins exist, what a split keeps apart, what a batch holds.

In these sets the value of row r is `r + 1` in channel 0 and `r + 1001` in channel 1, so a value names its row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from tsde.noise import series_keys
from tsde.scaling import Scaler
from tsde.series import SeriesBatch, SeriesSet
from tsde.table import read_table
from tsde.windows import (
    Origins,
    Query,
    Region,
    Split,
    SplitConfig,
    Window,
    WindowConfig,
    draw_windows,
    eligible_origins,
    fixed_windows,
    split_windows,
)

INFINITY = math.inf


def ragged(seed: int, count: int = 6, longest: int = 14, observed: float = 0.6, exact: bool = True) -> SeriesSet:
    """Series of 1 to `longest` rows and two channels; exact: times are multiples of 1/32, so sums do not round."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, longest + 1, count)
    clocks = []
    for size in sizes:
        clock = random.uniform(-5, 40) + random.exponential(0.3, size).clip(1e-3).cumsum()
        clocks.append(np.unique(np.round(clock * 32)) / 32 if exact else clock)
    sizes = np.array([len(clock) for clock in clocks])
    rows = int(sizes.sum())
    values = torch.arange(rows, dtype=torch.float32)[:, None] + torch.tensor([1.0, 1001.0])
    mask = torch.from_numpy(random.random((rows, 2)) < observed)
    return SeriesSet(
        torch.from_numpy(np.append(0, sizes.cumsum())),
        torch.from_numpy(np.concatenate(clocks)),
        torch.where(mask, values, 0.0),
        mask,
        series_keys([f"s{i}" for i in range(count)], 0),
    )


def everywhere(series: SeriesSet) -> Region:
    infinity = torch.full((len(series),), INFINITY, dtype=torch.float64)
    return Region(-infinity, infinity)


def random_region(series: SeriesSet, seed: int) -> Region:
    """Bounds at rows' own times, between rows and outside; some empty."""
    random = np.random.default_rng(seed)
    lower, upper = [], []
    for start, stop in zip(series.offsets[:-1].tolist(), series.offsets[1:].tolist(), strict=True):
        times = series.times[start:stop].tolist()
        places = [-INFINITY, INFINITY, *times, *[t + 1 / 64 for t in times], times[0] - 1, times[-1] + 1]
        lower.append(random.choice(places[:1] + places[2:]))
        upper.append(random.choice(places[1:]))
    return Region(torch.tensor(lower).double(), torch.tensor(upper).double())


def rows_of(series: SeriesSet) -> Iterator[tuple[int, range]]:
    for number in range(len(series)):
        yield number, range(int(series.offsets[number]), int(series.offsets[number + 1]))


def direct_origins(series: SeriesSet, region: Region, horizon: float = 1.0) -> list[tuple[int, int, int]]:
    """(origin row, first target row, last target row) by the definition, one row at a time."""
    times, seen = series.times.tolist(), series.mask.any(1).tolist()
    found = []
    for number, rows in rows_of(series):
        lower, upper = float(region.lower[number]), float(region.upper[number])
        before = [r for r in rows if times[r] <= lower]
        earliest = before[-1] if before else rows.start
        for origin in rows:
            targets = [
                r for r in rows if r > origin and lower < times[r] <= upper and times[r] <= times[origin] + horizon
            ]
            history = any(seen[r] for r in rows if r <= origin)
            if origin >= earliest and history and any(seen[r] for r in targets):
                found.append((origin, targets[0], targets[-1]))
    return found


def as_tuples(origins: Origins) -> list[tuple[int, int, int]]:
    return list(zip(origins.row.tolist(), origins.first.tolist(), origins.last.tolist(), strict=True))


@pytest.mark.parametrize("exact", [True, False], ids=["dyadic", "any-times"])
@pytest.mark.parametrize("seed", range(8))
def test_eligible_origins_against_a_direct_loop(seed: int, exact: bool) -> None:
    series = ragged(seed, exact=exact)
    for region in (everywhere(series), random_region(series, seed), random_region(series, seed + 100)):
        assert as_tuples(eligible_origins(series, region)) == direct_origins(series, region)
    wide = eligible_origins(series, everywhere(series), horizon=2.5)
    assert as_tuples(wide) == direct_origins(series, everywhere(series), 2.5)


def line(times: list[float], mask: list[bool] | None = None) -> SeriesSet:
    rows = len(times)
    seen = torch.tensor([True] * rows if mask is None else mask)[:, None]
    offsets = torch.tensor([0, rows])
    return SeriesSet(
        offsets, torch.tensor(times, dtype=torch.float64), torch.ones(rows, 1), seen, torch.zeros(1).long()
    )


def test_a_target_one_horizon_ahead_is_inside_it() -> None:
    for times in ([0.1, 1.1], [0.3, 1.3], [1e6 + 0.1, 1e6 + 1.1]):  # 1.1 - 0.1 > 1 in floating point
        series = line(times)
        assert len(eligible_origins(series, everywhere(series))) == 1
    series = line([0.0, 1.001])
    assert len(eligible_origins(series, everywhere(series))) == 0


@pytest.mark.parametrize("step", [0.05, 0.001])
def test_rows_a_fraction_of_a_second_apart_are_a_horizon_apart(step: float) -> None:
    times = (1.7e9 + step * np.arange(1000)) / step  # dates, in horizons
    series = line(times.tolist())
    assert len(eligible_origins(series, everywhere(series))) == 999
    assert len(eligible_origins(series, everywhere(series), horizon=0.99)) == 0


def test_an_origin_needs_a_past_and_a_future() -> None:
    series = line([0.0, 0.5, 0.9, 5.0], [False, True, True, True])
    assert eligible_origins(series, everywhere(series)).row.tolist() == [1]
    series = line([0.0, 0.5, 0.9], [True, False, False])
    assert len(eligible_origins(series, everywhere(series))) == 0


ASKED = {
    "own-time": lambda t: t,
    "a-hair-before": lambda t: torch.nextafter(t, torch.tensor(-INFINITY).double()),
    "a-hair-after": lambda t: torch.nextafter(t, torch.tensor(INFINITY).double()),
    "between": lambda t: t + 0.01,
    "far-before": lambda t: torch.full_like(t, -INFINITY),
    "far-after": lambda t: torch.full_like(t, INFINITY),
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("exact", [True, False], ids=["dyadic", "any-times"])
def test_count_until_against_a_direct_loop(asked: str, exact: bool) -> None:
    """Whatever the clocks of the other series are. A forecast for the time of a row must not read that row."""
    for seed in range(150):
        series = ragged(seed, count=8, exact=exact)
        owner, times = series.series_of_row, ASKED[asked](series.times)
        direct = [
            rows.start + np.searchsorted(series.times[rows.start : rows.stop], times[rows.start : rows.stop], "right")
            for _, rows in rows_of(series)
        ]
        assert series.count_until(owner, times).tolist() == np.concatenate(direct).tolist()
        strict = [
            rows.start + np.searchsorted(series.times[rows.start : rows.stop], times[rows.start : rows.stop], "left")
            for _, rows in rows_of(series)
        ]
        assert series.count_until(owner, times, strict=True).tolist() == np.concatenate(strict).tolist()


# Splits


def parts(split: Split) -> list[Region]:
    return [split.train, split.validation, split.calibration, split.test]


def targets(series: SeriesSet, region: Region) -> set[int]:
    origins = eligible_origins(series, region)
    return {row for _, first, last in as_tuples(origins) for row in range(first, last + 1)}


@pytest.mark.parametrize("by", ["series", "time"])
@pytest.mark.parametrize("seed", range(4))
def test_no_row_is_a_target_of_two_parts(by: str, seed: int) -> None:
    series = ragged(seed, count=12, longest=30)
    split = split_windows(series, SplitConfig.model_validate({"by": by, "validation": 0.2, "test": 0.2}), seed)
    found = [targets(series, region) for region in parts(split)]
    assert all(found)
    assert len(set.union(*found)) == sum(map(len, found))


@pytest.mark.parametrize("seed", range(4))
def test_split_by_time_keeps_the_order_of_time(seed: int) -> None:
    """Per series: training targets, then validation, calibration and test; no origin of one lies in an earlier one."""
    series = ragged(seed, count=8, longest=40)
    split = split_windows(series, SplitConfig(by="time", validation=0.15, calibration=0.2, test=0.25), seed)
    for number, rows in rows_of(series):
        times = series.times[rows.start : rows.stop]
        sizes = [int(((r.lower[number] < times) & (times <= r.upper[number])).sum()) for r in parts(split)]
        assert sum(sizes) == len(rows)
        edges = [math.ceil(len(rows) * share - 1e-9) for share in (0.4, 0.55, 0.75)]
        direct = [max(edge, 1) for edge in edges]
        assert np.cumsum(sizes)[:3].tolist() == direct
    for earlier, later in zip(parts(split)[:-1], parts(split)[1:], strict=True):
        assert torch.equal(earlier.upper, later.lower)
        first_origin = eligible_origins(series, later)
        owner = series.series_of_row[first_origin.row]
        before = series.times[first_origin.row] < later.lower[owner]
        latest = series.count_until(owner, later.lower[owner]) - 1
        assert (first_origin.row[before] == latest[before]).all()


@pytest.mark.parametrize("count", [5, 12, 40])
def test_split_by_series_gives_each_series_to_one_part(count: int) -> None:
    series = ragged(0, count=count)
    split = split_windows(series, SplitConfig(by="series", validation=0.2, calibration=0.1, test=0.2), 3)
    mine = torch.stack([region.upper > region.lower for region in parts(split)])
    assert (mine.sum(0) == 1).all()
    held = [max(1, round(share * count)) for share in (0.2, 0.1, 0.2)]
    assert mine.sum(1).tolist() == [count - sum(held), *held]


@pytest.mark.parametrize("members", [1, 3, 50])
def test_folds_share_out_the_series_that_are_not_held_out(members: int) -> None:
    series = ragged(0, count=20)
    split = split_windows(series, SplitConfig(by="series", validation=0.2, calibration=0.1, test=0.2), 3, members)
    assert len(split.folds) == min(members, 14 // 4)

    def mine(region: Region) -> set[int]:
        return set(torch.nonzero(region.upper > region.lower)[:, 0].tolist())

    kept = set(range(20)) - mine(split.calibration) - mine(split.test)
    assert len(kept) == 14
    for fold in split.folds:
        assert mine(fold.train) | mine(fold.validation) == kept
        assert not mine(fold.train) & mine(fold.validation) and len(mine(fold.validation)) == 4
    held = [series for fold in split.folds for series in mine(fold.validation)]
    assert len(held) == len(set(held))  # validated on different series, so together they learn from all
    single = split_windows(series, SplitConfig(by="series", validation=0.2, calibration=0.1, test=0.2), 3)
    assert torch.equal(single.train.upper, split.folds[0].train.upper)


def test_parts_of_one_period_count_for_twenty_pieces_at_most() -> None:
    lower = torch.tensor([0.0, 0.0, -torch.inf]).double()
    pieces = Region(lower, torch.tensor([300.0, 100.0, torch.inf]).double()).pieces()
    assert pieces.tolist() == [15.0, 5.0, 1.0]


def test_a_part_by_time_has_as_many_pieces_as_horizons() -> None:
    infinity = torch.inf
    lower = torch.tensor([0.0, 2.0, -infinity, 3.0, -infinity]).double()
    upper = torch.tensor([4.5, 2.25, infinity, infinity, -infinity]).double()
    assert Region(lower, upper).pieces().tolist() == [4.5, 1.0, 1.0, 1.0, 1.0]


def test_members_share_one_split_by_time() -> None:
    series = ragged(0, count=20)
    assert len(split_windows(series, SplitConfig(by="time"), 3, members=4).folds) == 1


def test_split_by_series_belongs_to_the_name_not_the_row() -> None:
    series = ragged(0, count=20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    config = SplitConfig(by="series")
    first = split_windows(series, config, 5)
    second = split_windows(replace(series, key=series.key[order]), config, 5)
    for a, b in zip(parts(first), parts(second), strict=True):
        assert torch.equal(a.upper[order], b.upper)
    another = split_windows(series, config, 6)
    assert not torch.equal(another.train.upper, first.train.upper)


@pytest.mark.parametrize("seed", range(3))
def test_a_group_of_series_is_in_one_part(seed: int) -> None:
    """And in one group of origins, which has one number in all scores: that of its first series."""
    belongs = torch.from_numpy(np.random.default_rng(seed).integers(0, 50, 150))
    series = replace(ragged(seed, 150), belongs=belongs)
    split = split_windows(series, SplitConfig(), seed, 3)
    for fold in split.folds:
        parts = [region.upper == INFINITY for region in (*fold, split.calibration, split.test)]
        assert (torch.stack(parts).sum(0) == 1).all()
        found = [set(belongs[part].tolist()) for part in parts]
        assert sum(map(len, found)) == len(belongs.unique()) and all(found)
    first = {int(group): int((belongs == group).nonzero()[0]) for group in belongs.unique()}
    origins = eligible_origins(series, split.train)
    owner = belongs[series.series_of_row[origins.row]]
    pairs = torch.stack([owner, origins.group], 1).unique(dim=0)
    assert len(pairs) == len(owner.unique()) == len(origins.group.unique())
    apart = eligible_origins(replace(series, belongs=series.belongs[:0]), split.train)
    assert torch.equal(origins.fold, apart.group % 5)  # folds are of series
    scored = torch.cat([window.series for window in fixed_windows(origins, WindowConfig())])
    assert set(scored.tolist()) == {first[int(group)] for group in owner.unique()}


def test_few_groups_are_split_by_time() -> None:
    series = replace(ragged(0, 60), belongs=torch.arange(60) // 2)
    assert torch.isfinite(split_windows(series, SplitConfig(), 0).train.upper).all()


def test_auto_splits_by_series_from_forty_on() -> None:
    for count, by in ((39, "time"), (40, "series")):
        series = ragged(1, count=count)
        auto, told = (split_windows(series, SplitConfig.model_validate({"by": each}), 0) for each in ("auto", by))
        assert all(torch.equal(a.upper, b.upper) for a, b in zip(parts(auto), parts(told), strict=True))


@pytest.mark.parametrize("by", ["series", "time"])
def test_no_test_part_on_request(by: str) -> None:
    series = ragged(2, count=12, longest=30)
    split = split_windows(series, SplitConfig.model_validate({"by": by, "test": 0}), 0)
    assert len(eligible_origins(series, split.test)) == 0
    assert all(targets(series, region) for region in parts(split)[:3])


# Batches


CONFIG = WindowConfig(origins=4, targets=5, thinning=0.0, context=9, held_out=30)


def row_numbers(values: Tensor) -> Tensor:
    """The row that each pair of values `(..., 2)` was taken from, int64; -1 where neither was observed."""
    return torch.where(values[..., 1] > 0, values[..., 1] - 1001, values[..., 0] - 1).long()


def origin_rows(query: Query) -> Tensor:
    """The row at each origin, `(B, K)`, of a context without missing values."""
    latest = row_numbers(query.context.values).cummax(1).values  # padding stands for the row before it
    return latest.gather(1, query.context.last_row(query.origins))


def full_origins(seed: int = 0, part: str = "train") -> Origins:
    """Origins in a part of a set without missing values."""
    series = ragged(seed, count=8, longest=30, observed=1.1)
    split = split_windows(series, SplitConfig(by="time", validation=0.3), 0)
    return eligible_origins(series, getattr(split, part))


def check_window(window: Window, origins: Origins, config: WindowConfig, most: int) -> None:
    """Every number in a window is the one that its series, row and clock say, and nothing is where it must not be."""
    series, query = origins.series, window.query
    allowed = {row: set(range(first, last + 1)) for row, first, last in as_tuples(origins)}
    for b, number in enumerate(window.series.tolist()):
        seen = query.context.mask[b].all(-1)
        rows = row_numbers(query.context.values[b])[seen].tolist()
        low, high = int(series.offsets[number]), int(series.offsets[number + 1])
        latest = rows[-1]
        assert rows == list(range(rows[0], latest + 1)) and low <= rows[0] and latest < high
        assert len(rows) == min(config.context, latest - low + 1)
        reference = series.times[latest]
        times = (series.times[rows[0] : latest + 1] - reference).float()
        assert torch.equal(query.context.times[b, seen], times)
        assert (query.context.times[b, len(rows) :] == 0).all() and not query.context.mask[b, len(rows) :].any()
        assert query.context.key[b] == series.key[number]
        assert float(query.origins[b].max()) == 0  # the last origin is the context's last row
        at = origin_rows(query)[b].tolist()
        assert at == sorted(at)
        for k, origin in enumerate(at):
            assert query.origins[b, k] == (series.times[origin] - reference).float()
            asked = window.mask[b, k].any(-1)
            found = row_numbers(window.values[b, k])[asked].tolist()
            assert found == sorted(set(found)) and set(found) <= allowed[origin]
            assert len(found) >= min(most, len(allowed[origin])) - 1 and found
            assert torch.equal(query.times[b, k, asked], (series.times[found] - reference).float())
            lead = query.lead[b, k, asked]
            assert (lead > 0).all() and (lead <= 1 + 1e-5).all()


@pytest.mark.parametrize("seed", range(4))
def test_drawn_windows_hold_what_their_rows_say(seed: int) -> None:
    origins = full_origins(seed)
    window = draw_windows(origins, CONFIG, 16, torch.Generator().manual_seed(seed))
    assert window.query.origins.shape == (16, 4) and window.query.times.shape == window.values.shape[:3]
    assert window.values.shape[2] <= 5
    check_window(window, origins, CONFIG, window.values.shape[2])


def test_drawn_windows_meet_every_origin_and_target() -> None:
    origins = full_origins()
    series, generator = origins.series, torch.Generator().manual_seed(0)
    met, asked = set(), set()
    for _ in range(60):
        window = draw_windows(origins, CONFIG, 16, generator)
        met |= set(origin_rows(window.query).flatten().tolist())
        asked |= set(row_numbers(window.values)[window.mask.any(-1)].tolist())
    assert met == set(origins.row.tolist())
    assert asked == {row for _, first, last in as_tuples(origins) for row in range(first, last + 1)}
    assert len(series) > 1


def test_series_are_drawn_in_proportion_to_their_contexts() -> None:
    """A series of three contexts' length is drawn three times as often as one of a single context."""
    sizes = [9, 27, 6]
    times = torch.cat([torch.arange(size) / 8 for size in sizes]).double()
    offsets = torch.tensor([0, *np.cumsum(sizes)])
    ones = torch.ones(len(times), 1)
    series = SeriesSet(offsets, times, ones, ones.bool(), torch.arange(3))
    origins = eligible_origins(series, everywhere(series))
    config = CONFIG.model_copy(update={"context": 9})
    drawn = torch.cat([draw_windows(origins, config, 500, torch.Generator().manual_seed(i)).series for i in range(6)])
    share = torch.bincount(drawn, minlength=3).double() / len(drawn)
    expected = torch.tensor([1, 3, 1]).double() / 5
    assert ((share - expected).abs() < 4 * (expected * (1 - expected) / len(drawn)).sqrt()).all()


def several(starts: list[float], rows: int, span: float) -> SeriesSet:
    """Series of `rows` rows that begin at `starts` and last `span` horizons."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "unique_id": np.repeat([f"{number:03d}" for number in range(len(starts))], rows),
            "ds": np.concatenate([start + np.sort(random.uniform(0, span, rows)) for start in starts]),
            "x": 1.0,
        }
    )
    return Scaler.unit(("x",), 1.0).apply(read_table(frame), 0)


def groups(series: SeriesSet) -> Tensor:
    return eligible_origins(series, everywhere(series)).group


def test_many_series_are_a_group_each() -> None:
    found = groups(several([0.0] * 25, 10, 5.0))
    assert len(found.unique()) == 25


@pytest.mark.parametrize("starts", [[0.0] * 10, [0.0], [*[500.0] * 9, 0.0]])
def test_few_long_series_are_cut_into_stretches_of_time_with_like_numbers_of_origins(starts: list[float]) -> None:
    series = several(starts, 60, 30.0)
    found = groups(series)
    counts = torch.bincount(found)
    assert len(counts) == 10 and counts.max() < 1.3 * counts.min()
    origins = eligible_origins(series, everywhere(series))
    order = series.times[origins.row].argsort()
    assert (found[order].diff() >= 0).all()
    assert torch.equal(groups(replace(series, times=series.times + 1.0)), found)


def test_few_short_series_are_groups_and_a_single_one_is_cut_into_five() -> None:
    assert len(groups(several([0.0] * 7, 20, 1.9)).unique()) == 7
    assert len(groups(several([0.0], 200, 1.9)).unique()) == 5


def test_many_targets_are_spread_over_the_horizon() -> None:
    series = line([i / 100 for i in range(101)])
    origins = eligible_origins(series, everywhere(series))
    window = fixed_windows(
        Origins(series, origins.row[:1], origins.first[:1], origins.last[:1], origins.group[:1], origins.fold[:1]),
        CONFIG,
        targets=10,
    )[0]
    torch.testing.assert_close(window.query.lead[0, 0], torch.arange(10) / 10 + 0.06, rtol=0, atol=0.011)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("seed", range(3))
def test_fixed_windows_against_a_direct_loop(seed: int, part: str) -> None:
    origins = full_origins(seed, part)
    windows = fixed_windows(origins, CONFIG, targets=5, batch=4)
    owner = origins.series.series_of_row[origins.row].tolist()
    present = sorted(set(owner))
    count = max(2, math.ceil(CONFIG.held_out / len(present)))
    expected = set()
    for number in present:
        rows = [row for row, n in zip(origins.row.tolist(), owner, strict=True) if n == number]
        expected |= {rows[int(np.float32((i + 0.5) / count) * np.float32(len(rows)))] for i in range(count)}
    found = []
    for window in windows:
        check_window(window, origins, CONFIG, window.values.shape[2])
        assert len(window.series) <= 4 and window.query.origins.shape[1] == 1
        found += origin_rows(window.query)[:, 0].tolist()
    assert len(found) == len(set(found)) and set(found) == expected


def test_a_part_without_origins_has_no_windows() -> None:
    series = line([0.0, 5.0, 10.0])
    origins = eligible_origins(series, everywhere(series))
    assert len(origins) == 0 and fixed_windows(origins, CONFIG) == []


def test_fixed_windows_are_about_as_many_as_wanted() -> None:
    origins = full_origins(1)
    for wanted in (1, 20, 40):
        config = CONFIG.model_copy(update={"held_out": wanted})
        count = sum(len(window.series) for window in fixed_windows(origins, config))
        present = len(set(origins.series.series_of_row[origins.row].tolist()))
        assert present <= count <= max(2 * present, wanted + present)


def test_held_out_windows_never_show_a_later_part() -> None:
    """What a training window contains, context or target, is no validation, calibration or test target."""
    series = ragged(3, count=8, longest=30, observed=1.1)
    split = split_windows(series, SplitConfig(by="time"), 0)
    held = set.union(*(targets(series, region) for region in parts(split)[1:]))
    train = eligible_origins(series, split.train)
    for seed in range(20):
        window = draw_windows(train, CONFIG, 16, torch.Generator().manual_seed(seed))
        shown = row_numbers(window.query.context.values)[window.query.context.mask.any(-1)].tolist()
        assert not held & (set(shown) | set(row_numbers(window.values)[window.mask.any(-1)].tolist()))


def windows_equal(a: Window, b: Window) -> bool:
    pairs = [
        (a.values, b.values),
        (a.mask, b.mask),
        (a.series, b.series),
        (a.query.origins, b.query.origins),
        (a.query.times, b.query.times),
        (a.query.context.times, b.query.context.times),
        (a.query.context.values, b.query.context.values),
        (a.query.context.mask, b.query.context.mask),
        (a.query.context.key, b.query.context.key),
    ]
    return all(torch.equal(x, y) for x, y in pairs)


def test_a_target_that_rounding_places_at_its_origin_is_not_asked_for() -> None:
    series = line([0.0, 1e-6, 50.0, 100.0])
    origins = eligible_origins(series, everywhere(series), horizon=100.0)
    for seed in range(20):
        window = draw_windows(origins, CONFIG, 8, torch.Generator().manual_seed(seed))
        assert (window.query.lead[window.mask.any(-1)] > 0).all()


def test_rows_that_observe_nothing_tell_nothing() -> None:
    series = line([0.0, 1.0, 2.0, 3.0, 4.0], [True, False, True, False, False])
    both = SeriesSet(
        torch.tensor([0, 5, 6]),
        torch.cat([series.times, series.times[:1]]),
        torch.arange(6.0)[:, None],
        torch.cat([series.mask, series.mask[1:2]]),
        torch.arange(2),
    ).telling()
    assert both.offsets.tolist() == [0, 3, 4]
    assert both.times.tolist() == [0.0, 2.0, 4.0, 0.0]
    assert both.values.ravel().tolist() == [0.0, 2.0, 4.0, 5.0]
    assert both.mask.ravel().tolist() == [True, True, False, False]


def test_thinning_hides_and_changes_nothing_else() -> None:
    origins = full_origins()
    thinned, whole = (
        draw_windows(origins, CONFIG.model_copy(update={"thinning": share}), 64, torch.Generator().manual_seed(7))
        for share in (0.6, 0.0)
    )
    context, before = thinned.query.context, whole.query.context
    assert not (context.mask & ~before.mask).any()
    assert torch.equal(context.values[context.mask], before.values[context.mask])
    unthinned = replace(thinned, query=replace(thinned.query, context=replace(context, mask=before.mask)))
    assert windows_equal(unthinned, whole)


def test_each_context_is_thinned_by_a_share_of_its_own() -> None:
    series = line([i / 100 for i in range(500)])
    origins = eligible_origins(series, everywhere(series))
    origins = Origins(
        series, origins.row[400:], origins.first[400:], origins.last[400:], origins.group[400:], origins.fold[400:]
    )
    config = WindowConfig(origins=1, thinning=0.6, context=300)
    window = draw_windows(origins, config, 300, torch.Generator().manual_seed(0))
    hidden = 1 - window.query.context.mask.sum((1, 2)) / 300
    assert float(hidden.mean()) == pytest.approx(0.3, abs=0.04)
    assert float(hidden.std()) == pytest.approx(0.6 / math.sqrt(12), abs=0.03)  # uniform on [0, 0.6]
    assert hidden.min() < 0.05 and hidden.max() < 0.6 + 4 * math.sqrt(0.24 / 300)


def test_pace_stretches_the_times_of_a_series_and_changes_nothing_else() -> None:
    origins = full_origins()
    plain, paced = (
        draw_windows(
            origins, CONFIG.model_copy(update={"pace": pace, "origins": 1}), 16, torch.Generator().manual_seed(0)
        )
        for pace in (0.0, 0.5)
    )
    spread = paced.query.lead.flatten(1).amax(1) / plain.query.lead.flatten(1).amax(1)
    assert spread.min() >= math.exp(-0.5) - 1e-5 and spread.max() <= math.exp(0.5) + 1e-5
    assert spread.max() / spread.min() > 1.5  # each its own
    factor = spread[:, None]
    assert torch.allclose(paced.query.context.times, factor * plain.query.context.times, rtol=1e-5, atol=1e-6)
    assert torch.allclose(paced.query.lead, factor[..., None] * plain.query.lead, rtol=1e-5, atol=1e-5)
    assert torch.equal(paced.values, plain.values) and torch.equal(paced.query.context.mask, plain.query.context.mask)
    late = paced.query.lead > 1 + 1e-5
    assert late.any() and not paced.mask[late].any()
    early = paced.query.lead < 1 - 1e-5
    assert torch.equal(paced.mask[early], plain.mask[early])


def test_noise_falls_on_the_values_of_contexts_and_on_nothing_else() -> None:
    series = line([i / 100 for i in range(500)])
    origins = eligible_origins(series, everywhere(series))
    origins = Origins(
        series, origins.row[400:], origins.first[400:], origins.last[400:], origins.group[400:], origins.fold[400:]
    )
    plain, noisy = (
        draw_windows(
            origins,
            WindowConfig(origins=1, thinning=0.0, context=300, noise=noise),
            300,
            torch.Generator().manual_seed(0),
        )
        for noise in (0.0, 0.4)
    )
    assert torch.equal(noisy.values, plain.values) and torch.equal(noisy.query.times, plain.query.times)
    assert torch.equal(noisy.query.context.mask, plain.query.context.mask)
    error = noisy.query.context.values - plain.query.context.values
    assert abs(float(error.mean())) < 0.01
    deviation = error.flatten(1).std(1)
    assert float(deviation.mean()) == pytest.approx(0.2, abs=0.03)  # uniform on [0, 0.4]
    assert float(deviation.std()) == pytest.approx(0.4 / math.sqrt(12), abs=0.03)


def test_values_that_were_not_observed_get_no_noise() -> None:
    origins = eligible_origins(series := ragged(0), everywhere(series))
    context = draw_windows(
        origins, CONFIG.model_copy(update={"noise": 1.0}), 32, torch.Generator().manual_seed(0)
    ).query.context
    assert not context.mask.all() and not context.values[~context.mask].any()


@pytest.mark.parametrize(("by", "settled"), [("time", 0.2), ("series", 0.0)])
def test_noise_is_for_tables_split_by_time_unless_it_is_given(by: str, settled: float) -> None:
    split = split_windows(full_origins().series, SplitConfig.model_validate({"by": by}), seed=0)
    assert WindowConfig().settled(split.train).noise == settled
    assert WindowConfig(noise=0.1).settled(split.train).noise == 0.1


def test_windows_follow_from_the_seed() -> None:
    origins, config = full_origins(), CONFIG.model_copy(update={"thinning": 0.5})
    first, again, other = (draw_windows(origins, config, 8, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert windows_equal(first, again)
    assert not torch.equal(first.values, other.values)


def test_windows_do_not_read_the_global_generator() -> None:
    origins = full_origins()
    torch.manual_seed(0)
    first = draw_windows(origins, CONFIG, 8, torch.Generator().manual_seed(1))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert windows_equal(first, draw_windows(origins, CONFIG, 8, torch.Generator().manual_seed(1)))
    assert torch.equal(torch.get_rng_state(), state)


def test_windows_do_not_depend_on_the_order_of_rows() -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "unique_id": np.repeat([f"n{i}" for i in range(10)], 12),
            "ds": random.exponential(0.4, (10, 12)).cumsum(1).ravel(),
            "y": random.normal(size=120),
        }
    )
    drawn, held = [], []
    for each in (frame, frame.sample(frac=1, random_state=1)):
        table = read_table(each)
        series = Scaler.unit(table.channels, 1.0).apply(table, 0)
        split = split_windows(series, SplitConfig(by="series", validation=0.3), 0)
        drawn.append(draw_windows(eligible_origins(series, split.train), CONFIG, 8, torch.Generator().manual_seed(0)))
        held.append(fixed_windows(eligible_origins(series, split.validation), CONFIG))
    assert windows_equal(*drawn)
    assert len(held[0]) == len(held[1]) and all(map(windows_equal, *held))


def test_per_origin_cuts_each_context_at_its_own_origin() -> None:
    window = draw_windows(full_origins(), CONFIG, 6, torch.Generator().manual_seed(0))
    single = window.per_origin()
    query, cut = window.query, single.query
    assert cut.origins.shape == (24, 1) and single.values.shape == (24, 1, *window.values.shape[2:])
    assert torch.equal(single.series, window.series.repeat_interleave(4))
    for b in range(6):
        for k in range(4):
            n, origin = 4 * b + k, query.origins[b, k]
            past = query.context.times[b] <= origin
            assert torch.equal(cut.context.mask[n], query.context.mask[b] & past[:, None])
            assert torch.equal(cut.context.times[n], query.context.times[b].minimum(origin))
            assert torch.equal(cut.context.values[n, past], query.context.values[b, past])
            assert torch.equal(cut.times[n, 0], query.times[b, k]) and cut.origins[n, 0] == origin
            assert torch.equal(single.values[n, 0], window.values[b, k])
            assert torch.equal(single.mask[n, 0], window.mask[b, k])
            assert cut.context.key[n] == query.context.key[b]
    torch.testing.assert_close(cut.lead.flatten(), query.lead.flatten())


def test_batch_gaps_rows_and_observations() -> None:
    times = torch.tensor([[0.0, 0.5, 2.0, 2.0]])
    mask = torch.tensor([[[True, False], [False, False], [True, True], [False, False]]])
    batch = SeriesBatch(times, torch.zeros(1, 4, 2), mask, torch.zeros(1).long(), torch.zeros(1, 0))
    assert batch.gaps.tolist() == [[0.0, 0.5, 1.5, 0.0]]
    assert batch.observed.tolist() == [[True, False, True, False]]
    assert batch.last_row(torch.tensor([[-1.0, 0.0, 0.4, 0.5, 2.0, 9.0]])).tolist() == [[0, 0, 0, 1, 3, 3]]
    query = Query(batch, torch.tensor([[0.5]]), torch.tensor([[[0.5, 1.5]]]))
    assert query.lead.tolist() == [[[0.0, 1.0]]]
