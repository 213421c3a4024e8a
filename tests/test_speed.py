"""The speed table's light sections still run: they ask parts of models that change."""

from __future__ import annotations

import math

import pytest

import speed


@pytest.mark.parametrize("section", [speed.dense, speed.coefficients])
def test_a_light_section_gives_ratios(section: object) -> None:
    rows = list(section(quick=True))  # type: ignore[operator]
    assert rows
    for row in rows:
        assert math.isfinite(row.ratio) and row.ratio > 0
        assert (row.met is None) == (row.target is None)
    table = speed.markdown(rows, "python benchmarks/speed.py")
    assert table.count("\n| ") == len(rows) + 1 and all(row.name in table for row in rows)
