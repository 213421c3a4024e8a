"""How much of a forecast is what was learnt, and how much something simple that it stands on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tsde.distribution import Quantiles, summarise
from tsde.metrics import clustered_ratio, crps_quantiles, mse
from tsde.model import Cautious, Forecaster
from tsde.validating import log_scores
from tsde.windows import Window

_TRUSTS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
_DEAREST = 0.05  # excess of score that is paid for a simpler forecast


def choose_trust(model: Forecaster, validation: Sequence[Window]) -> None:
    """The least trust in what was learnt whose score on the validation windows is within a standard error of the best.

    Means are scored by squared error and quantile functions by CRPS. Where they cannot tell two trusts apart, the
    simpler forecast has the say (the rule of one standard error of Breiman et al. 1984), but for no more than a
    twentieth of the score. Scores are compared group by group of origins (`tsde.windows.Origins`), by logarithms
    (`tsde.metrics.log_means`): of totals, one wild series in six can have nine tenths, and whatever it says has an
    error in which nothing differs. From a single group there is no error, and the best is taken.
    """
    cautious = [part for part in model.modules() if isinstance(part, Cautious)]
    if not cautious:
        return

    def law(window: Window, trust: float) -> Quantiles:
        for part in cautious:
            part.trust.fill_(trust)
        return summarise(model(window.query))

    def both(window: Window) -> Tensor:
        """Squared error and CRPS with each trust, `(B, K, H, C, 2, trusts)`."""
        learnt, simple = law(window, 1.0), law(window, 0.0)
        found = []
        for trust in _TRUSTS:
            error = mse(torch.lerp(simple.mean, learnt.mean, trust), window.values)
            values = torch.lerp(simple.values, learnt.values, trust)
            found.append(torch.stack([error, crps_quantiles(values, learnt.levels, window.values)], -1))
        return torch.stack(found, -1)

    logs, weight = log_scores(validation, both)
    taken = [_least(log, weight) for log in logs.unbind(1)]
    for part in cautious:
        part.trust.copy_(torch.tensor(taken))


def _least(logs: Tensor, weight: Tensor) -> float:
    """The least trust that will do, from the groups' logarithms `(G, trusts)` and weights `(G,)`."""
    best = int((weight[:, None] * logs).sum(0).argmin())
    difference = weight[:, None] * (logs - logs[:, best, None])
    excess = clustered_ratio(difference, weight[:, None], torch.arange(len(weight)))
    fair = (excess.value <= excess.error.clamp(max=_DEAREST)) & torch.isfinite(excess.error)
    fair[best] = True
    return _TRUSTS[int(torch.nonzero(fair).max())]
