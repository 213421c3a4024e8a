"""How much of a forecast is what was learnt, and how much something simple that it stands on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tsde.distribution import Quantiles, summarise
from tsde.metrics import clustered_ratio, crps_quantiles
from tsde.model import Cautious, Forecaster
from tsde.windows import Window

_TRUSTS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)


def choose_trust(model: Forecaster, validation: Sequence[Window]) -> None:
    """The least trust in what was learnt whose score on the validation windows is within a standard error of the best.

    Means are scored by squared error and quantile functions by CRPS. Where they cannot tell two trusts apart, the
    simpler forecast has the say (the rule of one standard error of Breiman et al. 1984). The error is that of the
    paired difference, with the groups of `tsde.windows.Origins` as clusters; from a single group there is none, and
    the best is taken.
    """
    cautious = [part for part in model.modules() if isinstance(part, Cautious)]
    if not cautious:
        return

    def law(window: Window, trust: float) -> Quantiles:
        for part in cautious:
            part.trust.fill_(trust)
        return summarise(model(window.query))

    scores, groups = [torch.zeros(0, 2, len(_TRUSTS))], [torch.zeros(0, dtype=torch.long)]  # per origin
    with torch.no_grad():
        for window in validation:
            learnt, simple = law(window, 1.0), law(window, 0.0)
            totals = []
            for trust in _TRUSTS:
                error = (torch.lerp(simple.mean, learnt.mean, trust) - window.values).square()
                crps = crps_quantiles(torch.lerp(simple.values, learnt.values, trust), learnt.levels, window.values)
                both = torch.where(window.mask, torch.stack([error, crps]), 0.0)
                totals.append(both.sum((3, 4)).flatten(1).T)
            scores.append(torch.stack(totals, -1))
            groups.append(window.query.groups.flatten())
    group = torch.cat(groups)
    taken = [_least(score, group) for score in torch.cat(scores).double().unbind(1)]
    for part in cautious:
        part.trust.copy_(torch.tensor(taken))


def _least(score: Tensor, group: Tensor) -> float:
    """The least trust within a standard error of the best, from scores `(M, trusts)` and their clusters `(M,)`."""
    best = int(score.sum(0).argmin())
    lowest = score[:, best, None]
    excess = clustered_ratio(score - lowest, lowest, group)
    fair = (excess.value <= excess.error) & torch.isfinite(excess.error)
    fair[best] = True
    return _TRUSTS[int(torch.nonzero(fair).max())]
