"""The one contract between families of models and everything around them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.distributions import Distribution

from tsde.windows import Query, Window


class Loss(NamedTuple):
    """The parts of an objective, never pre-weighted: `score + beta * kl` is minimised, beta warmed up by the loop.

    Attributes:
        score: proper score of the head, a mean over observed targets.
        kl: Kullback-Leibler terms of a variational family per observed target, or zero.
    """

    score: Tensor
    kl: Tensor


@runtime_checkable
class Prepared(Protocol):
    """A part of a model that looks at training windows before the first gradient step."""

    def prepare(self, windows: Sequence[Window]) -> None:
        """Fit or adjust itself."""


@runtime_checkable
class Cautious(Protocol):
    """A part of a model that answers with `trust` of what it learnt, and for the rest with something simple.

    `trust (2,)` is that in means and that in quantile functions.

    Parts are recognised by their names alone, so that `trust` by itself would not do: other parts may have one.
    """

    trust: Tensor

    def learnt(self, query: Query, states: Tensor) -> Distribution:
        """The answer, whatever the trust in it."""


class Forecaster(nn.Module, ABC):
    """A family of models: what was observed up to an origin, and query times, in; a distribution out."""

    causal = True
    """Whether one pass over a series serves all its origins; else the loop hands over one origin per row (K = 1)."""

    adaptive = False
    """Whether a solver's steps follow its error; such a model is asked for one series at a time."""

    literal = False
    """Whether its means are what it is called after, so that calibration leaves them."""

    examples = 2000
    """Windows that `prepare` would like to see, of the training part."""

    def prepare(self, windows: Sequence[Window]) -> None:
        """Fit in closed form, or take statistics, before gradient steps: what each part has to prepare, if not more."""
        for part in self.modules():
            if part is not self and isinstance(part, Prepared):
                part.prepare(windows)

    @abstractmethod
    def forward(self, query: Query) -> Distribution:
        """Forecast: origins `(B, K)`, times `(B, K, H)` -> batch shape `(B, K, H, C)`.

        Nothing observed after an origin may influence the forecasts from it.
        """

    @abstractmethod
    def loss(self, window: Window) -> Loss:
        """The objective on windows whose future is known."""


class Wrapped(Forecaster):
    """A family that is asked and taught in other words than its own, and whose answers are put back into ours."""

    def __init__(self, family: Forecaster):
        super().__init__()
        self.family = family
        self.causal, self.adaptive, self.examples = family.causal, family.adaptive, family.examples

    @abstractmethod
    def taught(self, window: Window) -> Window:
        """What the family learns from in place of a window."""

    def prepare(self, windows: Sequence[Window]) -> None:
        self.family.prepare([self.taught(window) for window in windows])

    def loss(self, window: Window) -> Loss:
        return self.family.loss(self.taught(window))
