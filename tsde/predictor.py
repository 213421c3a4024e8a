"""What is saved and served: a configuration, a scaler, trained members and a calibrator that answer with a table."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from tsde.artifact import parse_json, read_files, write_files
from tsde.calibration import Calibrator, Residuals
from tsde.clock import Clock
from tsde.config import Experiment, parse_experiment
from tsde.distribution import GRID, Quantiles, average, coherent, summarise
from tsde.errors import ArtifactError, TsdeError, UsageError
from tsde.lattice import between_ends, towards_values
from tsde.model import Cautious, Forecaster
from tsde.noise import series_keys, uniform
from tsde.requests import request_batches
from tsde.scaling import Scaler
from tsde.soundness import load_members, require_sound
from tsde.table import Queries, Table
from tsde.threads import single_thread
from tsde.windows import Query, Window, rounding


@dataclass(frozen=True)
class Forecasts:
    """Forecasts for M (series, time) queries, in the channels' own units.

    Attributes:
        law: batch shape `(M, C)`, float64.
        status: `(M,)` object: ok, beyond_horizon, past, no_history or diverged.
        samples: `(S, M, C)` if asked for.
    """

    law: Quantiles
    status: NDArray[np.object_]
    samples: NDArray[np.float64] | None = None


_MOST_LEADS, _MOST_QUERIES = 10**6, 10**8  # times per series, and of all series at once
_YEAR_9999 = 253_370_764_800.0  # seconds since 1970: the last year that ISO 8601 and time zones know
KIND = "model"
"""What a saved predictor's directory is."""


class Predictor:
    """Members trained on one table, averaged into one forecast, corrected, and put back into the table's units.

    Forecasts of a series depend on its own rows before the query and on the seed, bit for bit: not on its neighbours
    in the table, on the order of rows, or on how the work is cut up. Every batch has a fixed shape that follows from
    the series' own length and number of queries, so the same arithmetic is done whatever is asked beside it.
    """

    def __init__(
        self,
        experiment: Experiment,
        clock: Clock,
        scaler: Scaler,
        members: Sequence[Forecaster],
        calibrator: Calibrator,
        marginal: Quantiles,
        baselines: dict[str, Predictor] | None = None,
        card: dict[str, Any] | None = None,
    ):
        """
        Args:
            marginal: each channel's law in training, batch shape `(C,)`, scaled: the answer where nothing is known.
            baselines: naive predictors trained on the same windows, by family.
            card: what a person would like to know of the model: data, scores, versions.
        """
        self.experiment, self.clock, self.scaler, self.calibrator = experiment, clock, scaler, calibrator
        self.members = [member.eval() for member in members]
        self._values, self._ends = scaler.scaled_values(), scaler.scaled_ends()
        self.marginal, self.baselines, self.card = marginal, baselines or {}, card or {}

    @property
    def channels(self) -> tuple[str, ...]:
        return self.scaler.channels

    @property
    def trust(self) -> tuple[float, float]:
        """The members' average trust in the means and quantiles that they learnt; ones if no part is cautious.

        The rest is ridge regression.
        """
        parts = [part.trust for member in self.members for part in member.modules() if isinstance(part, Cautious)]
        means, quantiles = torch.stack(parts).mean(0).tolist() if parts else (1.0, 1.0)
        return means, quantiles

    @torch.no_grad()
    def law(self, query: Query, calibrated: bool = True) -> Quantiles:
        """The members' average for a scaled query, raw or as it is served; batch shape `(B, K, H, C)`."""
        forecast = coherent(average([summarise(member(query)) for member in self.members]))
        if not calibrated:
            return forecast
        channel = torch.arange(len(self.channels)).expand(forecast.mean.shape)
        return self.served(forecast, query.lead[..., None].expand(forecast.mean.shape), channel)

    def served(self, raw: Quantiles, lead: Tensor, channel: Tensor) -> Quantiles:
        """What takes a raw forecast's place: corrected by calibration, drawn to values where they are few, and kept
        from going beyond the ends that a channel comes back to."""
        found = towards_values(self.calibrator(raw, lead, channel), channel, self._values)
        return found if self._ends is None else between_ends(found, *(end[channel] for end in self._ends))

    def residuals(self, windows: Sequence[Window], calibrated: bool = True) -> Residuals:
        """Forecasts beside the known answers of windows, observed entries only, scaled."""
        return Residuals.concatenate([_observed(self.law(w.query, calibrated), w) for w in windows])

    def leads(self, horizon: str | float, step: str | float | None = None) -> NDArray[np.float64]:
        """Lengths of time `step, 2 step, ...` up to the horizon, `(H,)`; the horizon alone without a step.

        Raises:
            UsageError: no lengths of time, a step beyond the horizon, or one so small that no series has room for it.
        """
        reach = self.clock.parse_duration(horizon)
        stride = reach if step is None else self.clock.parse_duration(step)
        if stride > reach:
            raise UsageError(f"the step {step} is longer than the horizon {horizon}; expected at most the horizon")
        count = math.floor(reach / stride * (1 + 1e-9))
        if count > _MOST_LEADS:
            raise UsageError(f"a step of {step} asks for {count:,} times per series; at most {_MOST_LEADS:,}")
        return np.asarray(stride * np.arange(1, count + 1), np.float64)

    def queries(self, table: Table, horizon: str | float, step: str | float | None = None) -> Queries:
        """Times `origin + step, origin + 2 step, ...` up to the horizon for every series; the horizon alone without."""
        leads = self.leads(horizon, step)
        if (count := len(leads) * table.n_series) > _MOST_QUERIES:
            raise UsageError(f"a step of {step} asks for {count:,} times; at most {_MOST_QUERIES:,}")
        origin = table.times[table.offsets[1:] - 1]
        with np.errstate(over="ignore"):
            times = (origin[:, None] + leads).ravel()
        if not (times < (_YEAR_9999 if self.clock.kind == "datetime" else math.inf)).all():
            raise UsageError(f"a horizon of {horizon} leads beyond the times that can be written; ask for a nearer one")
        return Queries(np.repeat(table.ids, len(leads)), times, self.clock.format(times))

    def forecast(
        self,
        table: Table,
        horizon: str | float | None = None,
        step: str | float | None = None,
        queries: Queries | None = None,
        levels: Sequence[float] = (80.0,),
        seed: int = 0,
    ) -> pd.DataFrame:
        """Forecast a table's series: columns id, time, channel, tsde, tsde-median, tsde-lo-L, tsde-hi-L, ..., status.

        Args:
            table: the histories, with the model's channels.
            horizon, step: ask for regular times after each series' last row; by default at the model's own horizon.
            queries: or ask for arbitrary times per series, answered in their order.
            levels: central intervals in percent.

        Raises:
            UsageError: for a level outside (0, 100) or both kinds of question at once.
        """
        if queries is not None and horizon is not None:
            raise UsageError("expected a horizon or a table of times, got both")
        if queries is None:
            queries = self.queries(table, self.experiment.horizon if horizon is None else horizon, step)
        return self.frame(self.answer(table, queries, seed), queries, levels)

    def answer(self, table: Table, queries: Queries, seed: int = 0, samples: int = 0) -> Forecasts:
        """Forecasts for each query, in order. A forecast for time t uses the rows before t, never a later one."""
        with single_thread():
            return self._answer(table, queries, seed, samples)

    def _answer(self, table: Table, queries: Queries, seed: int, samples: int) -> Forecasts:
        if not table.n_series:
            return self._unknown(queries, seed, samples)
        series = self.scaler.apply(table, seed).telling()
        owner = pd.Index(table.ids).get_indexer(pd.Index(queries.ids))
        owner_tensor = torch.from_numpy(owner.astype(np.int64))
        known = torch.from_numpy(owner >= 0)
        times = torch.from_numpy(queries.times / self.scaler.horizon)
        safe = owner_tensor.clamp(min=0)
        row = series.count_until(safe, times, strict=True) - 1
        usable = known & (row >= series.offsets[safe])
        seen = series.mask.any(1).cumsum(0)
        start_seen = torch.where(series.offsets[safe] > 0, seen[(series.offsets[safe] - 1).clamp(min=0)], 0)
        usable &= seen[row.clamp(min=0)] > start_seen
        past = known & (row < series.offsets[safe + 1] - 1)

        channels, grid = len(self.channels), torch.tensor(GRID)
        mean = self.marginal.mean.expand(len(times), -1).clone()
        values = self.marginal.values.expand(len(times), -1, -1).clone()
        asked = torch.nonzero(usable)[:, 0]
        context, alone = self.experiment.windows.context, any(member.adaptive for member in self.members)
        for index, query in request_batches(series, asked, safe, row, times, context, channels, alone):
            with torch.inference_mode():
                law = self.law(query)
            block, slot = torch.nonzero(index >= 0, as_tuple=True)
            mean[index[block, slot]] = law.mean[block, 0, slot]
            values[index[block, slot]] = law.values[block, 0, slot]
        broken = ~torch.isfinite(mean.sum(1) + values.sum((1, 2)))  # a sum is as finite as its terms
        mean[broken], values[broken] = self.marginal.mean, self.marginal.values

        lead = times - series.times[row.clamp(min=0)]
        status = np.full(len(times), "ok", dtype=object)
        status[(lead > 1 + rounding(times)).numpy()] = "beyond_horizon"
        status[past.numpy()] = "past"
        status[~usable.numpy()] = "no_history"
        status[broken.numpy()] = "diverged"
        law = self.scaler.undo(Quantiles(mean, values, grid))
        drawn = self._draw(law, queries, seed, samples) if samples else None
        return Forecasts(law, status, drawn)

    def _unknown(self, queries: Queries, seed: int, samples: int) -> Forecasts:
        """The answer where no series has a history."""
        count = len(queries.times)
        mean, values = self.marginal.mean.expand(count, -1), self.marginal.values.expand(count, -1, -1)
        law = self.scaler.undo(Quantiles(mean, values, torch.tensor(GRID)))
        drawn = self._draw(law, queries, seed, samples) if samples else None
        return Forecasts(law, np.full(count, "no_history", dtype=object), drawn)

    @staticmethod
    def _draw(law: Quantiles, queries: Queries, seed: int, samples: int) -> NDArray[np.float64]:
        """Independent draws from each marginal, `(S, M, C)`; the numbers follow from seed, series and time alone."""
        names = [f"{name}@{time!r}" for name, time in zip(queries.ids, queries.times.tolist(), strict=True)]
        level = uniform(series_keys(names, seed), (samples, law.mean.shape[-1]))  # (M, S, C)
        return law.at(level.transpose(1, 2)).movedim(-1, 0).numpy()

    def columns(self, levels: Sequence[float]) -> list[str]:
        """The names of the forecast table's columns.

        Raises:
            UsageError: a level outside (0, 100), or levels alike in the six digits that columns have.
        """
        for level in levels:
            if not 0 < level < 100:
                raise UsageError(f"expected a level between 0 and 100 percent, got {level:g}")
        texts = [f"{level:g}" for level in levels]
        if len(set(texts)) < len(texts) or "100" in texts:
            found = ", ".join(map(str, levels))
            raise UsageError(f"expected levels that differ from each other and from 100 in six digits, got {found}")
        schema = self.experiment.data
        bounds = [f"tsde-{side}-{text}" for text in texts for side in ("lo", "hi")]
        return [schema.id_col, schema.time_col, "channel", "tsde", "tsde-median", *bounds, "status"]

    def frame(self, found: Forecasts, queries: Queries, levels: Sequence[float]) -> pd.DataFrame:
        """Answers as the forecast table, a row per query and channel.

        Raises:
            UsageError: a level outside (0, 100).
        """
        names, channels = self.columns(levels), len(self.channels)
        wanted = [0.5] + [0.5 + sign * level / 200 for level in levels for sign in (-1, 1)]
        values = found.law.at(torch.tensor(wanted, dtype=torch.float64)).numpy()  # (M, C, P)
        # text is taken up once per query, and once per channel: pandas looks at each of its objects
        ids, labels, status = (
            pd.array(x, dtype="str").repeat(channels) for x in (queries.ids, queries.labels, found.status)
        )
        columns = [
            ids,
            labels,
            pd.array(self.channels, dtype="str").take(np.tile(np.arange(channels), len(queries.ids))),
            found.law.mean.numpy().ravel(),
            *np.moveaxis(values, -1, 0).reshape(len(wanted), -1),
            status,
        ]
        return pd.DataFrame(dict(zip(names, columns, strict=True)))

    def save(self, folder: Path) -> None:
        """Write the predictor as a directory, whole or not at all."""
        files, tensors = self._parts("")
        write_files(folder, files, tensors, kind=KIND)

    def _parts(self, prefix: str) -> tuple[dict[str, bytes], dict[str, dict[str, Tensor]]]:
        about = {
            "clock": self.clock.model_dump(),
            "scaler": self.scaler.model_dump(),
            "members": len(self.members),
            "baselines": list(self.baselines),
        }
        files = {
            f"{prefix}experiment.yaml": self.experiment.to_yaml().encode(),
            f"{prefix}predictor.json": json.dumps(about, indent=1).encode(),
        }
        if self.card:
            files[f"{prefix}card.json"] = json.dumps(self.card, indent=1).encode()
        weights = {
            f"{number}/{name}": value
            for number, member in enumerate(self.members)
            for name, value in member.state_dict().items()
        }
        calibration = {
            "edges": self.calibrator.edges,
            "shift": self.calibrator.shift,
            "marginal_mean": self.marginal.mean,
            "marginal_values": self.marginal.values,
        }
        tensors = {f"{prefix}weights.safetensors": weights, f"{prefix}calibration.safetensors": calibration}
        for name, baseline in self.baselines.items():
            more_files, more_tensors = baseline._parts(f"{name}/")
            files |= more_files
            tensors |= more_tensors
        return files, tensors

    @classmethod
    def load(cls, folder: Path) -> Predictor:
        """Read a saved predictor.

        Raises:
            MissingInputError: no such directory. ArtifactError: not a predictor, torn, altered or newer.
        """
        files, tensors = read_files(Path(folder), KIND)
        try:
            return cls._assemble(files, tensors, "")
        except (LookupError, ValueError, TypeError, RuntimeError, MemoryError, yaml.YAMLError, TsdeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ArtifactError(
                f"{folder} is not a predictor this tsde can read ({reason}): copy it again, train it again, or use the "
                "version that wrote it"
            ) from error

    @classmethod
    def _assemble(cls, files: dict[str, bytes], tensors: dict[str, dict[str, Tensor]], prefix: str) -> Predictor:
        about = parse_json(files[f"{prefix}predictor.json"])
        experiment = parse_experiment(yaml.safe_load(files[f"{prefix}experiment.yaml"]), "the saved predictor")
        scaler = Scaler.model_validate(about["scaler"])
        weights, saved = tensors[f"{prefix}weights.safetensors"], tensors[f"{prefix}calibration.safetensors"]
        members = load_members(experiment, len(scaler.channels), about["members"], weights)
        calibrator = Calibrator(saved["edges"], saved["shift"])
        marginal = Quantiles(saved["marginal_mean"], saved["marginal_values"], torch.tensor(GRID))
        clock = Clock.model_validate(about["clock"])
        require_sound(clock, scaler, calibrator, marginal)
        card = json.loads(files.get(f"{prefix}card.json", b"{}"))
        if not isinstance(card, dict) or (prefix and about["baselines"]):
            raise ValueError(f"{prefix}card.json is no card, or a baseline has baselines")
        baselines = {name: cls._assemble(files, tensors, f"{name}/") for name in about["baselines"]}
        return cls(experiment, clock, scaler, members, calibrator, marginal, baselines, card)


def _observed(law: Quantiles, window: Window) -> Residuals:
    """The observed entries of a window and their forecasts, flattened."""
    seen = window.mask
    lead = window.query.lead[..., None].expand(seen.shape)
    channel = torch.arange(seen.shape[-1]).expand(seen.shape)
    series = window.series[:, None, None, None].expand(seen.shape)
    forecast = Quantiles(law.mean[seen], law.values[seen], law.levels)
    return Residuals(forecast, window.values[seen], lead[seen], channel[seen], series[seen])
