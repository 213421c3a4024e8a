"""How well a model does on validation windows, where every group of origins has the same say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tsde.distribution import summarise
from tsde.metrics import crps_quantiles, log_means
from tsde.model import Forecaster
from tsde.windows import Window


def log_scores(windows: Sequence[Window], score: Callable[[Window], Tensor]) -> tuple[Tensor, Tensor]:
    """`log_means` of a score over the windows' groups of origins: `(G, ...)` and numbers of targets `(G,)`.

    Args:
        score: of each answer of a window, `(B, K, H, C, ...)`.
    """
    scores, counts, groups = [], [], []  # per origin
    with torch.no_grad():
        for window in windows:
            found = score(window)
            mask = window.mask.reshape(*window.mask.shape, *[1] * (found.dim() - window.mask.dim()))
            scores.append(torch.where(mask, found, 0.0).sum((2, 3)).flatten(0, 1))
            counts.append(window.mask.sum((2, 3)).flatten())
            groups.append(window.query.groups.flatten())
    return log_means(torch.cat(scores), torch.cat(counts), torch.cat(groups))


def validation_crps(model: Forecaster, windows: Sequence[Window]) -> float:
    """CRPS in scaled units: the geometric mean of what the groups of origins have on average, as in `log_means`."""

    def crps(window: Window) -> Tensor:
        forecast = summarise(model(window.query))
        return crps_quantiles(forecast.values, forecast.levels, window.values)

    logs, weight = log_scores(windows, crps)
    return float(((weight * logs).sum() / weight.sum()).exp())
