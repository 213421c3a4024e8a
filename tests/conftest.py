"""What every test shares: one thread per worker, no window, no telemetry, property tests that repeat, and mounts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch, matplotlib and mlflow are imported by anything; subprocesses inherit them.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["GIT_PYTHON_REFRESH"] = "quiet"

import pytest
import torch
from hypothesis import settings

from tsde import trees

torch.set_num_threads(1)
settings.register_profile("tsde", deadline=None, derandomize=True, database=None)
settings.load_profile("tsde")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts something on a new directory; skips where that is not allowed."""
    places: list[Path] = []

    def mount(*arguments: str) -> Path:
        place = tmp_path / f"mounted-{len(places)}"
        place.mkdir()
        if subprocess.run(["mount", *arguments, str(place)], capture_output=True).returncode != 0:
            pytest.skip("mounting is not allowed here")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", str(place)], check=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that run over all families leave out the one whose library is not installed."""
    boosting = [item for item in items if "boosting" in item.name.partition("[")[2].rstrip("]").split("-")]
    if boosting and not trees.available():
        for item in boosting:
            item.add_marker(pytest.mark.skip(reason="the extra `boosting` is not installed"))
