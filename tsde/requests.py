"""Questions to a predictor as batches whose shapes follow from each question alone.

Matrix products may round differently in batches of different shapes. So that a forecast is the same bit for bit
whatever is asked beside it, every batch has one of a few fixed shapes, chosen by the question's own context and number
of times, and is filled up with repeats.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from tsde.calendar import phases
from tsde.series import SeriesSet
from tsde.windows import Query

MAX_LEAD = 4.0
"""Horizons ahead beyond which a forecast stays what it is at this lead."""

_BLOCKS = (8, 16, 24, 32, 48, 64, 96, 128)  # times per row of a batch: the least for a request, or several of the most
_CELLS = 2**17  # targets per batch: bounds memory
_ROWS = 128  # requests per batch: fewer leave a scan waiting for its own bookkeeping, more leave the cache


def request_batches(
    series: SeriesSet,
    asked: Tensor,
    owner: Tensor,
    row: Tensor,
    times: Tensor,
    context: int,
    channels: int,
    alone: bool,
) -> Iterator[tuple[Tensor, Query]]:
    """Queries as batches of fixed shapes: `(index (B, H), query)`, index -1 where a slot is padding.

    Queries of one series with the same last known row form a request; a request is cut into blocks of one of a few
    sizes, and its context is padded to a power of two. All of that follows from the request itself, and the
    number of rows in a batch from those two sizes, so no request changes the arithmetic of another. Contexts of a
    batch are of similar length, since scans stop where only padding is left. `alone` puts each into a batch of its
    own, for models whose steps follow the error of the whole batch.
    """
    order = _by_row_and_time(asked, row, times)
    if len(order) == 0:
        return
    last, request, counts = torch.unique_consecutive(row[order], return_inverse=True, return_counts=True)  # R requests
    first = counts.cumsum(0) - counts
    rank = torch.arange(len(order)) - first[request]
    sizes = torch.tensor(_BLOCKS)
    size = sizes[torch.bucketize(counts, sizes).clamp(max=len(sizes) - 1)]
    length = last - torch.maximum(series.offsets[owner[order[first]]], last - context + 1) + 1
    padded = 2 ** torch.ceil(torch.log2(length.double())).long().clamp(min=3)
    for wide in size.unique().tolist():
        blocks = (counts + wide - 1) // wide
        for long in padded[size == wide].unique().tolist():
            chosen = (size == wide) & (padded == long)
            own = torch.where(chosen, blocks, 0)
            before, mine = own.cumsum(0) - own, chosen[request]
            index = torch.full((int(own.sum()), wide), -1)
            index[before[request[mine]] + rank[mine] // wide, rank[mine] % wide] = order[mine]
            index = index[length.repeat_interleave(own).argsort(stable=True)]
            rows = 1 if alone else _batch_rows(wide, channels)
            for part in index.split(rows):
                yield part, _query(series, part, owner, row, times, context, long, rows)


def _by_row_and_time(asked: Tensor, row: Tensor, times: Tensor) -> Tensor:
    """The queries `asked`, sorted by their row and then their time, as they mostly are already."""
    ahead, later = row[asked].diff(), times[asked].diff()
    if ((ahead > 0) | (ahead == 0) & (later >= 0)).all():
        return asked
    return asked[np.lexsort((times[asked].numpy(), row[asked].numpy()))]


def _batch_rows(wide: int, channels: int) -> int:
    """A multiple of 16 where memory allows: in other batches products round by a row's place."""
    rows = max(1, min(_ROWS, _CELLS // (wide * channels)))
    return rows - rows % 16 if rows > 16 else rows


def _query(
    series: SeriesSet, index: Tensor, owner: Tensor, row: Tensor, times: Tensor, context: int, length: int, rows: int
) -> Query:
    """One batch of exactly `rows` rows and `length` context rows; spare rows repeat the first."""
    full = torch.cat([index, index[:1].expand(rows - len(index), -1)])
    head = full[:, 0]
    slot = torch.where(full >= 0, full, head[:, None])
    last, chosen = row[head], owner[head]
    start = torch.maximum(series.offsets[chosen], last - context + 1)
    reference = series.times[last]
    batch = series.pad(start, last, chosen, reference, length)
    lead = (times[slot] - reference[:, None]).float().clamp(max=MAX_LEAD)
    moments = times[slot].minimum(reference[:, None] + MAX_LEAD)
    calendar = phases(moments[:, None], reference[:, None], series.periods)
    return Query(batch, torch.zeros(rows, 1), lead[:, None], calendar)
