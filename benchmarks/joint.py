"""Scores of joint laws where the true one can be drawn from: energy score, Kullback-Leibler divergence, time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import scoringrules
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from tasks import Task
from tsde.distribution import Quantiles
from tsde.metrics import crps_samples, pit
from tsde.model import Forecaster, Wrapped
from tsde.models.bend import Bent
from tsde.noise import uniform
from tsde.predictor import Predictor
from tsde.series import SeriesBatch
from tsde.windows import Query, Window, eligible_origins, fixed_windows

SAMPLES = 1000  # of the model and of the true law, per series and lead
PAIRED = 250  # of them that the energy score compares with each other
TIMED = 100
BATCH = 8  # series at once
NEAREST = 200  # held-out forecasts whose errors say how channels go together
HELD_OUT = 4000  # origins of them in each of validation and calibration
_INDEPENDENT = 0.02  # part of independence in their copula, which keeps it proper
_RARE = 1e-6  # no level lies nearer to zero or one
_STREAM = -2  # of random numbers; models use the others

Truth = Callable[[Tensor, Tensor, int, int], Tensor]
"""Last rows `(B, C)`, leads `(H,)`, number of draws, seed -> draws from the true law `(S, B, H, C)`."""


@runtime_checkable
class Coupled(Protocol):
    """A forecaster that draws all channels of a time together: `(S, B, K, H, C)`."""

    def joint(self, query: Query, count: int) -> Tensor:
        """Draws."""
        ...


class Neighbours(NamedTuple):
    """How the errors of channels go together, told by those of similar held-out forecasts: a local Gaussian copula.

    Similar are forecasts with nearly the same means and lead time, in the spirit of the similarity-based Schaake
    shuffle (Schefzik 2016), which takes the ranks of what happened where forecasts were alike. With z = Phi^-1(PIT) of
    the nearest, the correlation of channels i and j is sum z_i z_j / sqrt(sum z_i^2 sum z_j^2).

    Attributes:
        places: of means and lead times `(M, C + 1)`, scaled and in horizons. scores: z, `(M, C)`.
    """

    places: cKDTree
    scores: Tensor

    @classmethod
    def of(cls, task: Task, predictor: Predictor) -> Neighbours:
        """From the complete rows that come after origins in the validation and calibration series."""
        parts, config = task.parts, predictor.experiment.windows.model_copy(update={"held_out": HELD_OUT})
        places, scores = [], []
        for region in (parts.split.validation, parts.split.calibration):
            for window in fixed_windows(eligible_origins(parts.series, region), config):
                law, seen = predictor.law(window.query), window.mask.all(-1)
                places.append(_place(law, window.query)[seen])
                level = pit(law.values, law.levels, window.values)[seen]
                scores.append(torch.special.ndtri(level.clamp(law.levels[0] / 2, 1 - law.levels[0] / 2)))
        return cls(cKDTree(torch.cat(places).numpy()), torch.cat(scores))

    def couple(self, level: Tensor, law: Quantiles, query: Query) -> Tensor:
        """Independent levels `(S, B, K, H, C)` -> levels with the copula of each forecast's neighbours."""
        count = min(NEAREST, len(self.scores))
        nearest = self.places.query(_place(law, query).numpy(), list(range(1, count + 1)))[1]
        z = self.scores[torch.from_numpy(nearest)]  # (B, K, H, neighbours, C)
        z = z / z.square().sum(-2, keepdim=True).sqrt().clamp(min=1e-6)
        correlation = torch.lerp(z.mT @ z, torch.eye(z.shape[-1]), _INDEPENDENT)
        root = torch.linalg.cholesky(correlation)
        drawn = (root @ torch.special.ndtri(level)[..., None])[..., 0] / correlation.diagonal(dim1=-2, dim2=-1).sqrt()
        return torch.special.ndtr(drawn).clamp(_RARE, 1 - _RARE)


def _place(law: Quantiles, query: Query) -> Tensor:
    return torch.cat([law.mean, query.lead[..., None]], -1)


def scores(task: Task, predictor: Predictor, truth: Truth, leads: Sequence[float]) -> dict[str, object]:
    """Scores at some leads, means over the test series: `crps_T, energy_T, kl_T, kl_floor_T` for each lead T.

    crps is the fair CRPS per channel and energy the fair energy score of the channels together, both against what
    happened. kl is KL(truth || forecast) by `divergence` from as many draws of each, and kl_floor the same between two
    sets of draws of the truth: what the estimator says of a perfect forecast. `ms_per_100` is the time to draw 100
    joint samples of one series at all the leads, in batches, and `coupling` says what couples the channels.
    """
    coupled = isinstance(_family(predictor.members[0]), Coupled)
    neighbours = None if coupled else Neighbours.of(task, predictor)
    found: dict[str, list[float]] = {}
    for query, values in _at_leads(task.parts.test, leads):
        seed = abs(int(query.context.key[0]))
        drawn = draws(predictor, query, SAMPLES, neighbours)
        law, other = (truth(query.context.values[:, -1], query.lead[0, 0], SAMPLES, seed + i) for i in (1, 2))
        for h, lead in enumerate(leads):
            sample, y = drawn[:, :, h], values[:, h]
            pairs = sample[:: SAMPLES // PAIRED].double().numpy()
            by_series = {
                "crps": crps_samples(sample, y).mean(-1).tolist(),
                "energy": scoringrules.energy_score(y.double().numpy(), pairs, m_axis=0, estimator="fair").tolist(),
                "kl": [divergence(law[:, b, h].numpy(), sample[:, b].numpy()) for b in range(len(y))],
                "kl_floor": [divergence(law[:, b, h].numpy(), other[:, b, h].numpy()) for b in range(len(y))],
            }
            for name, each in by_series.items():
                found.setdefault(f"{name}_{lead:g}", []).extend(each)
    started = time.perf_counter()
    timed = [len(draws(predictor, query, TIMED, neighbours)[0]) for query, _ in _at_leads(task.parts.test, leads)]
    elapsed = 1000 * (time.perf_counter() - started) / sum(timed)
    means = {name: float(np.mean(each)) for name, each in found.items()}
    return means | {"ms_per_100": elapsed, "coupling": "paths" if coupled else "neighbours"}


def draws(predictor: Predictor, query: Query, count: int, neighbours: Neighbours | None = None) -> Tensor:
    """Joint samples of a scaled query, `(count, B, H, C)`, for one origin per series.

    The marginals are the predictor's law, members averaged and calibrated, as in every other score. Members that draw
    channels together lend their ranks, the members equally many draws each: the empirical copula of their samples
    (Schefzik, Thorarinsdottir and Gneiting 2013, ensemble copula coupling). Without such members `neighbours` couple
    the channels; without those they are drawn independently.
    """
    members = predictor.members
    shares = [count // len(members) + (i < count % len(members)) for i in range(len(members))]
    with torch.no_grad():
        levels = [
            _levels(m, query, share, i) for i, (m, share) in enumerate(zip(members, shares, strict=True)) if share
        ]
    level = torch.cat(levels)  # (count, B, 1, H, C)
    law = predictor.law(query)
    if neighbours is not None:
        level = neighbours.couple(level, law, query)
    return law.at(level.movedim(0, -1)).movedim(-1, 0)[:, :, 0]


def _family(member: Forecaster) -> Forecaster:
    while isinstance(member, Wrapped):
        member = member.family
    return member


def _levels(member: Forecaster, query: Query, count: int, number: int) -> Tensor:
    """Uniform levels `(count, B, 1, H, C)`, in the order of the member's joint draws where it has them."""
    batch, _, horizon = query.times.shape
    shape = (count, horizon, query.context.values.shape[-1])
    fresh = uniform(query.context.key, shape, _STREAM - number).transpose(0, 1)[:, :, None].float()
    family = _family(member)
    if not isinstance(family, Coupled):
        return fresh.clamp(_RARE, 1 - _RARE)
    seen = member.seen(query) if isinstance(member, Bent) else query
    rank = family.joint(seen, count).argsort(0).argsort(0)  # what straightens draws leaves their order
    return ((rank + fresh) / count).clamp(_RARE, 1 - _RARE)


def divergence(truth: NDArray[np.float64], model: NDArray[np.float64], neighbours: int = 5) -> float:
    """KL(P || Q) in nats from n draws `(n, D)` of P and m draws `(m, D)` of Q, by distances to k-th neighbours:

        D / n sum_i log(nu_k(i) / rho_k(i)) + log(m / (n - 1))

    where rho is the distance of the i-th draw of P to its k-th neighbour among the others, nu that among the draws of
    Q. Both samples are whitened by P's covariance first, which KL does not notice and thin laws need. The estimate is
    consistent and can be slightly negative; where the laws hardly overlap it grows with the logarithm of their
    distance only, so large values are understated.

    Source: Wang, Kulkarni and Verdu (2009), Divergence estimation for multidimensional densities via k-nearest-neighbor
    distances, equation 14.
    """
    n, size = truth.shape
    centre = truth.mean(0)
    root = np.linalg.cholesky(np.cov(truth.T).reshape(size, size))
    p, q = (np.linalg.solve(root, (x - centre).T).T for x in (truth.astype(float), model.astype(float)))
    own = cKDTree(p).query(p, neighbours + 1)[0][:, -1]
    other = cKDTree(q).query(p, [neighbours])[0][:, -1]
    tiny = np.finfo(float).tiny  # of draws that coincide
    ratio = np.log(np.maximum(other, tiny)) - np.log(np.maximum(own, tiny))
    return float(size * ratio.mean() + np.log(len(q) / (n - 1)))


def _at_leads(windows: Sequence[Window], leads: Sequence[float]) -> Iterator[tuple[Query, Tensor]]:
    """The windows' series in small batches, asked at the leads only: queries, and their answers `(B, H, C)`."""
    for window in windows:
        here = window.query.lead[0, 0]
        index = torch.stack([(here - lead).abs().argmin() for lead in leads])
        if not torch.allclose(here[index], torch.tensor(leads, dtype=here.dtype), atol=1e-4):
            raise ValueError(f"expected targets at leads {', '.join(map(str, leads))}, got {here.tolist()}")
        for part in torch.arange(len(window.series)).split(BATCH):
            whole = window.query.context
            cut = SeriesBatch(
                whole.times[part], whole.values[part], whole.mask[part], whole.key[part], whole.static[part]
            )
            query = Query(cut, window.query.origins[part], window.query.times[part][..., index])
            yield query, window.values[part, 0][:, index]
