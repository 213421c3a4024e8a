r"""The control of a neural CDE: from an irregular, partly observed context to a path `X` on an index grid.

A neural CDE reads its data through the path that drives it,

    dz(r) = F(z(r)) dX(r),    z(0) = initial network(X(0)),    r in [0, n],

and is invariant to the speed at which the path is run through. Every series is therefore laid on the same grid of unit
intervals, whatever its own clock, and time is a channel of the path: no common clock, and padding is a path that
stands still, so that a solution crosses it unchanged.

Channels, in this order: time since the first row (1), filled values (C), and per channel `log(1 + number of
observations so far)` (C), which tells the field how often it is being observed and an unobserved channel from a zero.

Sources: Kidger et al. 2020 (neural CDEs, "observational intensity"), arXiv:2005.08926. Morrill et al. 2022 (backward
Hermite and rectilinear paths, causality), arXiv:2106.11028. Morrill et al. 2021 (log-ODE), arXiv:2009.08295.
Deviations: counts are compressed by a logarithm and never divided by a length, which would tie a series to the padding
of its batch; a forward fill starts at zero instead of looking ahead; gap ratios of Hermite paths are bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt, model_validator
from torch import Tensor
from torch.nn.functional import linear, pad

from tsde.series import SeriesBatch

FillKind = Literal["forward", "linear"]

# max of s (1 - s)^2 on [0, 1] is 4/27: with this bound an inherited slope bends a path by at most the step it came from
GAP_RATIO = 27 / 4


class PathConfig(BaseModel):
    """How a context becomes a control.

    Attributes:
        kind: `linear` and `hermite` join the rows, `rectilinear` moves time first and values after it, `logsignature`
            summarises windows of rows, which makes long series short.
        fill: what an unobserved value is: the last one (`forward`) or the line between its neighbours (`linear`).
        depth: of the log-signature: 1 = increments, 2 = increments and Levy areas.
        window: rows per log-signature window.
        time: time is a channel; without it a linear path cannot tell slow from fast.
        counts: observation counts are channels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["linear", "hermite", "rectilinear", "logsignature"] = "linear"
    fill: FillKind = "forward"
    depth: Literal[1, 2] = 2
    window: PositiveInt = 8
    time: bool = True
    counts: bool = True

    @model_validator(mode="after")
    def _rectilinear_is_causal(self) -> PathConfig:
        if self.kind == "rectilinear" and not (self.time and self.fill == "forward"):
            raise ValueError(
                "a rectilinear path expects time=true and fill='forward', "
                f"got time={str(self.time).lower()} and fill={self.fill!r}; set those, or kind='linear'"
            )
        return self


@dataclass(frozen=True)
class ControlPath:
    r"""A piecewise polynomial path by its derivative: on interval `i`, with `s` in [0, 1],

        X(i + s) = X(i) + b s + c/2 s^2 + d/3 s^3,    dX/ds = b + c s + d s^2.

    Attributes:
        initial: `(B, P)`, `X(0)`, the first row.
        linear: `(B, n, P)`, `b`.
        quadratic: `(B, n, P)`, `c`; None (with `cubic`) where the path is piecewise linear.
        cubic: `(B, n, P)`, `d`.
        knot: `(B, L)` int64 in 0..n, the grid point at which a solution has seen rows `0..l`; exactly those if the
            path is causal (`is_causal`), up to the end of their window for log-signatures.
        elapsed: `(B, n)`, the time that passes in each interval.
    """

    initial: Tensor
    linear: Tensor
    quadratic: Tensor | None
    cubic: Tensor | None
    knot: Tensor
    elapsed: Tensor

    @property
    def intervals(self) -> int:
        """n, the length of the index grid; zero for a context of one row."""
        return self.linear.shape[1]

    def mapped(self, matrix: Tensor) -> ControlPath:
        """The path `M X`, `M` of shape `(Q, P)`: all increments in one product, before any solve."""
        # narrow products round by a row's place in the batch unless the inner size is a multiple of four
        spare = (0, -matrix.shape[1] % 4)
        matrix = pad(matrix, spare)

        def map_(x: Tensor) -> Tensor:
            return linear(pad(x, spare), matrix)

        quadratic = None if self.quadratic is None else map_(self.quadratic)
        cubic = None if self.cubic is None else map_(self.cubic)
        return ControlPath(map_(self.initial), map_(self.linear), quadratic, cubic, self.knot, self.elapsed)

    def drive(self, nodes: Sequence[float], substeps: int) -> Tensor:
        """Increments at the stages of a solver with `substeps` equal steps per interval, time first.

        `dX/ds` at the stages' nodes times the step, `(n substeps, S, B, P)`; S is 1 if the path is piecewise linear,
        where all stages of a step see the same increment.
        """
        linear = self.linear.transpose(0, 1)[:, None] / substeps  # (n, 1, B, P)
        if self.quadratic is None or self.cubic is None:
            return linear.repeat_interleave(substeps, 0)
        node = torch.tensor(nodes, dtype=linear.dtype, device=linear.device)
        at = (torch.arange(substeps, device=linear.device)[:, None] + node) / substeps
        at = at.flatten()[:, None, None]  # (substeps S, 1, 1)
        bend = at * (self.quadratic.transpose(0, 1)[:, None] + at * self.cubic.transpose(0, 1)[:, None]) / substeps
        return (linear + bend).unflatten(1, (substeps, len(nodes))).flatten(0, 1)

    def derivative(self, interval: int, s: float) -> Tensor:
        """`dX/ds`, `(B, P)`, at fraction `s` of an interval."""
        slope = self.linear[:, interval]
        if self.quadratic is None or self.cubic is None:
            return slope
        return slope + s * (self.quadratic[:, interval] + s * self.cubic[:, interval])


def control_size(channels: int, config: PathConfig) -> int:
    """P, the channels of the control of a series of C channels; with p rows' channels, depth 2 has `p (p + 1) / 2`."""
    size = config.time + channels * (1 + config.counts)
    return size * (size + 1) // 2 if config.kind == "logsignature" and config.depth == 2 else size


def is_causal(config: PathConfig) -> bool:
    """Whether the solution at `knot[l]` never depends on rows after `l`; windows and linear fills look ahead."""
    return config.fill == "forward" and config.kind != "logsignature"


def control_path(context: SeriesBatch, config: PathConfig) -> ControlPath:
    """The control of a context, `(B, L, C)` -> `n` intervals of `P` channels.

    `n` is `L - 1`, for rectilinear paths `2 (L - 1)`, for log-signatures `ceil((L - 1) / window)`. A lifted path
    starts with zero areas, so that `initial` always has P channels.
    """
    rows = _rows(context, config)
    initial, steps, gaps = rows[:, 0], rows.diff(dim=1), context.gaps[:, 1:]
    knot = torch.arange(rows.shape[1], device=rows.device).expand(rows.shape[:2])
    if config.kind == "hermite":
        return ControlPath(initial, *_hermite(steps, gaps), knot, gaps)
    if config.kind == "rectilinear":
        elapsed = torch.stack((gaps, torch.zeros_like(gaps)), dim=2).flatten(1)
        return ControlPath(initial, _rectilinear(steps), None, None, 2 * knot, elapsed)
    if config.kind == "logsignature":
        lifted = _log_signature(steps, config.window, config.depth)
        initial = pad(initial, (0, lifted.shape[-1] - initial.shape[-1]))
        elapsed = _log_signature(gaps.unsqueeze(-1), config.window, 1).squeeze(-1)
        return ControlPath(initial, lifted, None, None, (knot + config.window - 1) // config.window, elapsed)
    return ControlPath(initial, steps, None, None, knot, gaps)


def fill(times: Tensor, values: Tensor, mask: Tensor, kind: FillKind) -> Tensor:
    """Unobserved values replaced, `(B, L, C)`; nothing under a false mask is read."""
    return fill_forward(values, mask) if kind == "forward" else fill_linear(times, values, mask)


def fill_forward(values: Tensor, mask: Tensor) -> Tensor:
    """The last observed value, `(B, L, C)`; zero before the first."""
    before, _ = _observed_around(mask)
    return _picked(values.mT, before.clamp(min=0)).masked_fill_(before < 0, 0.0).mT


def fill_linear(times: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """The line in time between the observations around a row, `(B, L, C)`.

    Constant before the first observation and after the last, zero in an empty channel; times are `(B, L)`.
    """
    before, after = _observed_around(mask)
    first, last, end = after[..., :1], before[..., -1:], mask.shape[1] - 1
    left, right = torch.maximum(before, first).clamp_(max=end), torch.minimum(after, last).clamp_(min=0)
    clock = times[:, None].expand(before.shape)
    start, channels = _picked(clock, left), values.mT
    span = _picked(clock, right).sub_(start).clamp_(min=torch.finfo(times.dtype).tiny)
    value = _picked(channels, left)
    step = _picked(channels, right).sub_(value)  # zero outside the observations, where left is right
    weight = (clock - start).div_(span).clamp_(0, 1)
    return value.addcmul_(step, weight).masked_fill_(last < 0, 0.0).mT


def _observed_around(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row the last observed row up to it, -1 if none, and the first from it on, L if none; both `(B, C, L)`."""
    seen = mask.mT.contiguous()  # cumulative maxima are several times faster along the last dimension
    length = mask.shape[1]
    number = torch.arange(1, length + 1, dtype=torch.int32, device=mask.device)
    before = (seen * number).cummax(-1).values - 1
    after = length - (seen.flip(-1) * number).cummax(-1).values.flip(-1)
    return before, after


def _picked(x: Tensor, index: Tensor) -> Tensor:
    """`x[..., index]` row by row of the last dimension, both `(B, C, L)`; as one selection, four times a gather."""
    length = x.shape[-1]
    row = torch.arange(index.shape[:-1].numel(), device=x.device).mul_(length).reshape(*index.shape[:-1], 1)
    return x.reshape(-1).index_select(0, (row + index).reshape(-1)).reshape(index.shape)


def _rows(context: SeriesBatch, config: PathConfig) -> Tensor:
    """The knots of the path, `(B, L, p)`: time, filled values, counts."""
    parts = [fill(context.times, context.values, context.mask, config.fill)]
    if config.time:
        # only differences of times carry meaning, so X(0) may not depend on where the clock starts
        parts.insert(0, (context.times - context.times[:, :1]).unsqueeze(-1))
    if config.counts:
        parts.append(context.mask.cumsum(1).to(context.values).log1p())
    return torch.cat(parts, dim=-1)


def _hermite(steps: Tensor, gaps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Cubic Hermite coefficients with backward differences, each `(B, n, p)`.

    On `[t_i, t_{i+1}]`, with gap `h_i` and step `D_i = X_{i+1} - X_i`, the slope in time goes from `D_{i-1} / h_{i-1}`
    to `D_i / h_i`. Per unit of `s` the slopes are `v = D_{i-1} h_i / h_{i-1}` and `D_i`, hence

        b = v,    c = 4 (D_i - v),    d = -3 (D_i - v),    X(i + s) = X(i) + D_i (2 s^2 - s^3) + v s (1 - s)^2.

    The first interval is straight. In padding `h_i = D_i = 0`, so all coefficients are zero. Deviation: the ratio
    `h_i / h_{i-1}` is at most `GAP_RATIO`, or two nearly simultaneous rows before a long gap would throw the path far
    outside the data; this also gives a jump (`h_{i-1} = 0`) a finite slope.
    """
    previous = torch.cat((gaps[:, :1], gaps[:, :-1]), dim=1)
    ratio = (gaps / previous.clamp(min=torch.finfo(gaps.dtype).tiny)).clamp(max=GAP_RATIO)
    start = torch.cat((steps[:, :1], steps[:, :-1]), dim=1) * ratio.unsqueeze(-1)
    bend = steps - start
    return start, 4 * bend, -3 * bend


def _rectilinear(steps: Tensor) -> Tensor:
    """Time moves alone, then everything else at that time, `(B, n, p)` -> `(B, 2 n, p)`; time is the first channel."""
    is_time = torch.arange(steps.shape[-1], device=steps.device) == 0
    return torch.stack((steps.where(is_time, 0.0), steps.where(~is_time, 0.0)), dim=2).flatten(1, 2)


def _log_signature(steps: Tensor, window: int, depth: int) -> Tensor:
    r"""Log-signatures of a piecewise linear path over consecutive windows, `(B, n, p)` -> `(B, ceil(n / window), P)`.

    With steps `D_k` of one window and `S_k = D_1 + ... + D_k`, by Chen's identity

        increment = S_end,    area^{ij} = 1/2 sum_k (S_k^i D_k^j - S_k^j D_k^i),    i < j, row by row;

    `S_k` may include its own step, whose product `D_k^i D_k^j` is symmetric and cancels. A last partial window is
    completed by zero steps, which change neither.
    """
    batch, n, size = steps.shape
    count = -(-n // window)
    steps = pad(steps, (0, 0, 0, count * window - n)).reshape(batch, count, window, size)
    increment = steps.sum(2)
    if depth == 1:
        return increment
    products = steps.cumsum(2).mT @ steps  # (B, count, p, p)
    i, j = torch.triu_indices(size, size, offset=1, device=steps.device)
    return torch.cat((increment, (products - products.mT)[..., i, j] / 2), dim=-1)
