"""How much of a forecast is what was learnt, and how much something simple that it stands on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tsde.distribution import Quantiles, average, summarise
from tsde.metrics import crps_quantiles, mse
from tsde.model import Cautious, Forecaster
from tsde.validating import log_scores
from tsde.windows import Window

_TRUSTS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)


def choose_trust(
    members: Sequence[Forecaster], validation: Iterable[Sequence[Window]], unseen: Sequence[Window] = ()
) -> None:
    """The trust in what was learnt that scores best on held-out windows.

    Means are scored by squared error and quantile functions by CRPS, and groups of origins (`tsde.windows.Origins`)
    count by the logarithms of their scores (`tsde.metrics.log_means`): of totals, one wild series in six can have nine
    tenths.

    All members have one trust. Each is scored where it was validated, and groups where several were count once, by the
    mean of their logarithms. But what was learnt was stopped where it did best there, which flatters it; so windows
    that no member has seen have a say beside them, about the members' average, which is what will be asked.

    Args:
        validation: windows of each fold; that of member i is number `i mod len(folds)`.
        unseen: windows that none of the members was trained or stopped on.
    """
    cautious = [part for member in members for part in _cautious(member)]
    if not cautious:
        return
    folds = list(validation)
    logs, weights = [], []
    for number, windows in enumerate(folds):
        scored = [_log_scores([member], windows) for member in members[number :: len(folds)]]
        logs.append(torch.stack([own for own, _ in scored]).mean(0))
        weights.append(scored[0][1])
    if unseen:
        together, count = _log_scores(members, unseen)
        logs.append(together)
        weights.append(count)
    total = (torch.cat(weights)[:, None, None] * torch.cat(logs)).sum(0)  # (2, trusts)
    taken = torch.tensor(_TRUSTS)[total.argmin(-1)]
    for part in cautious:
        part.trust.copy_(taken)


def _cautious(member: Forecaster) -> list[Cautious]:
    return [part for part in member.modules() if isinstance(part, Cautious)]


def _log_scores(members: Sequence[Forecaster], windows: Sequence[Window]) -> tuple[Tensor, Tensor]:
    """Logarithms of the average forecast's squared errors and CRPS with each trust, `(G, 2, trusts)`, and weights of
    the groups `(G,)`."""
    cautious = [part for member in members for part in _cautious(member)]

    def law(window: Window, trust: float) -> Quantiles:
        for part in cautious:
            part.trust.fill_(trust)
        return average([summarise(member(window.query)) for member in members])

    def both(window: Window) -> Tensor:
        learnt, simple = law(window, 1.0), law(window, 0.0)
        found = []
        for trust in _TRUSTS:
            error = mse(torch.lerp(simple.mean, learnt.mean, trust), window.values)
            values = torch.lerp(simple.values, learnt.values, trust)
            found.append(torch.stack([error, crps_quantiles(values, learnt.levels, window.values)], -1))
        return torch.stack(found, -1)

    return log_scores(windows, both)
