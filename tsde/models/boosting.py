"""Peer: gradient boosting (LightGBM) on hand-made features of the context. Needs the optional extra `boosting`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.distributions import Distribution

from tsde import trees
from tsde.calendar import PLAIN
from tsde.distribution import GRID, Quantiles
from tsde.model import Forecaster, Loss
from tsde.models.parts import clip_values, closed_form_loss
from tsde.models.recent import RecentValues, last_observed
from tsde.windows import Query, Window

LEVELS = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
"""Quantiles that have trees of their own."""

_RATES = len(RecentValues.RATES)
_SLOPES = slice(4 + 2 * _RATES, 4 + 3 * _RATES)  # within the features of `RecentValues`
_HELD_OUT = 5  # every fifth group of origins tells when to stop
_LARGEST = 10.0  # targets enter the squared error clipped at this many standard deviations
_NARROWEST = 1e-3  # of a forecast, in standard deviations: no two of its quantiles are the same


class BoostingConfig(BaseModel):
    """Gradient boosting of the mean and of seven quantiles."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["boosting"] = "boosting"
    trees: int = Field(300, ge=1, le=10_000, description="trees at most, for the mean and for each quantile")
    leaves: int = Field(31, ge=2, le=1024, description="leaves of a tree")
    learning_rate: float = Field(0.1, gt=0, le=1)
    smallest_leaf: int = Field(50, ge=1, description="observed targets that a leaf needs")
    patience: int = Field(20, ge=1, description="trees without improvement on held-out origins before stopping")
    cells: int = Field(200_000, ge=100, description="observed targets to learn from, at most; more are drawn from")

    @model_validator(mode="after")
    def _is_installed(self) -> BoostingConfig:
        if not trees.available():
            raise ValueError(trees.MISSING)
        return self


class Boosting(Forecaster):
    """With phi the features of a cell (series, origin, channel, time) and F_0, F_p sums of regression trees,

        E x_c(t) = F_0(phi),    q_p(x_c(t)) = F_p(phi) sorted over p,    p in LEVELS

    F_0 by squared error and each F_p by the pinball loss (Friedman 2001; LightGBM, Ke et al. 2017), one model for all
    channels. phi holds the channel as a category, the lead time, the time since the channel's last value, that value
    and its straight continuation at several slopes, the channel's recent past (age, kernel means, slopes, spreads and
    counts at fixed rates), the last value and its age of every channel, and where in the calendar's cycles the time
    lies; what was never observed is missing. Between levels a quantile is linear on the scale of the standard normal,
    and so are the tails.

    Every fifth group of origins (`tsde.windows.Origins`) decides how many trees there are. No gradient steps: all is
    fitted by `prepare`, on one thread, and follows from the seed; `train.steps` and `train.max_time` do not govern
    it. The trees are kept as text (`tsde.trees`) beside the weights.
    """

    def __init__(self, config: BoostingConfig, channels: int):
        super().__init__()
        self.config, self.channels = config, channels
        self.examples = max(Forecaster.examples, config.cells // (10 * channels))  # a third of 32 targets is observed
        self.features = 4 + _RATES + RecentValues.size + 2 * channels + PLAIN
        self.seed = int(torch.randint(2**31 - 1, ()))
        self.recent = RecentValues()
        self._take(trees.constants([0.0, *torch.special.ndtri(torch.tensor(LEVELS)).tolist()], self.features).encode())

    def _take(self, text: bytes) -> None:
        self._booster = trees.read(text, self.features, 1 + len(LEVELS))
        self._text = text

    def get_extra_state(self) -> Tensor:
        """The trees as bytes: their number is not known before they are fitted, so they are no buffer."""
        return torch.frombuffer(bytearray(self._text), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take trees over.

        Raises:
            ValueError: they are no text of trees for these features, or one of them is none.
        """
        if not isinstance(state, Tensor) or state.dtype != torch.uint8 or state.ndim != 1:
            raise ValueError("expected trees as a vector of bytes")
        self._take(state.cpu().numpy().tobytes())

    def prepare(self, windows: Sequence[Window]) -> None:
        features, targets, held = self._examples(windows)
        if held.all() or not held.any():
            return
        library = trees.library()
        shared = {
            "num_leaves": self.config.leaves,
            "learning_rate": self.config.learning_rate,
            "min_data_in_leaf": self.config.smallest_leaf,
            "feature_fraction": 0.5,
            "bagging_fraction": 0.8,
            "bagging_freq": 1,
            "lambda_l2": 1.0,
            "max_bin": 127,
            "seed": self.seed,
            "num_threads": 1,
            "deterministic": True,
            "force_row_wise": True,  # else it times two ways of counting, and takes the faster
            "verbosity": -1,
        }
        x, y = features.numpy(), targets.numpy()
        fitted, kept = (~held).numpy(), held.numpy()
        learnt = library.Dataset(x[fitted], y[fitted], categorical_feature=[0], params=shared, free_raw_data=False)
        watched = library.Dataset(x[kept], y[kept], reference=learnt, free_raw_data=False)
        texts = []
        for level in (None, *LEVELS):
            goal = {"objective": "regression"} if level is None else {"objective": "quantile", "alpha": level}
            stop = library.early_stopping(self.config.patience, verbose=False)
            model = library.train(shared | goal, learnt, self.config.trees, valid_sets=[watched], callbacks=[stop])
            texts.append(model.model_to_string(num_iteration=model.best_iteration))
        self._take(trees.join(texts, self.features).encode())

    def _examples(self, windows: Sequence[Window]) -> tuple[Tensor, Tensor, Tensor]:
        """Features `(M, P)`, targets `(M,)` and which are held out, of at most `config.cells` observed cells."""
        generator = torch.Generator().manual_seed(self.seed)
        share = self.config.cells / max(1, sum(int(window.mask.sum()) for window in windows))
        cells = [w.mask & (torch.rand(w.mask.shape, generator=generator) < share) for w in windows]
        features = torch.cat([self._features(w.query, chosen) for w, chosen in zip(windows, cells, strict=True)])
        targets = torch.cat([w.values[chosen] for w, chosen in zip(windows, cells, strict=True)])
        owner = torch.cat(
            [
                w.query.groups[..., None, None].expand(chosen.shape)[chosen]
                for w, chosen in zip(windows, cells, strict=True)
            ]
        )
        owners = owner.unique()
        kept = owners[torch.randperm(len(owners), generator=generator)[: max(1, len(owners) // _HELD_OUT)]]
        return features, targets.clamp(-_LARGEST, _LARGEST), torch.isin(owner, kept)

    def _features(self, query: Query, cells: Tensor) -> Tensor:
        """phi of the chosen cells, `(B, K, H, C)` bool -> `(M, P)`; NaN where there is none, as LightGBM expects."""
        recent, _ = self.recent(query)  # (B, K, C, F)
        value, age = last_observed(query)
        known = torch.isfinite(age)
        value, age = torch.where(known, clip_values(value), torch.nan), torch.where(known, age, torch.nan)
        b, k, h, c = cells.nonzero(as_tuple=True)
        lead, own, last = query.lead[b, k, h], recent[b, k, c], value[b, k, c]
        rise = own[:, _SLOPES] * lead.new_tensor(RecentValues.RATES) * lead[:, None]
        moving = torch.stack([c.float(), lead, age[b, k, c] + lead, last], -1)
        everyone = torch.cat([value, age], -1)[b, k]
        plain = query.phases[b, k, h, :PLAIN]
        return torch.cat([moving, last[:, None] + clip_values(rise), own, everyone, plain], -1)

    def forward(self, query: Query) -> Distribution:
        cells = torch.ones(*query.times.shape, self.channels, dtype=torch.bool)
        found = self._booster.predict(self._features(query, cells).numpy(), raw_score=True, num_threads=1)
        raw = torch.from_numpy(found).float().reshape(*cells.shape, -1)
        known, asked = (torch.special.ndtri(torch.tensor(levels)) for levels in (LEVELS, GRID))
        right = torch.searchsorted(known, asked).clamp(1, len(known) - 1)
        share = (asked - known[right - 1]) / (known[right] - known[right - 1])
        values = raw[..., 1:].sort(-1).values
        values = torch.lerp(values[..., right - 1], values[..., right], share) + _NARROWEST * asked
        return Quantiles(raw[..., 0], values, torch.tensor(GRID))

    def loss(self, window: Window) -> Loss:
        return closed_form_loss(self(window.query), window)
