"""Where outputs go, beside what is read: looked at before any work is done."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from tsde.errors import UsageError


def require_apart(outputs: Iterable[Path | None], inputs: Iterable[Path | None]) -> None:
    """Refuse outputs that would take the place of an input, lie inside a model or dataset, or share a name.

    Raises:
        UsageError: one would.
    """
    sources = {Path(os.path.realpath(path)): path for path in inputs if path is not None}
    taken: set[Path] = set()
    for path in (path for path in outputs if path is not None):
        place = Path(os.path.realpath(path))
        if place in sources:
            raise UsageError(f"{path} is read: writing there would lose {sources[place]}; give the output another name")
        if inside := next((sources[folder] for folder in place.parents if folder in sources), None):
            raise UsageError(f"{path} lies inside {inside}, which would be damaged; write somewhere else")
        if place in taken:
            raise UsageError(f"{path} is the place of two outputs; give each a name of its own")
        taken.add(place)
