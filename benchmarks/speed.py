"""How fast the engine is, as ratios against the usual stack: `python benchmarks/speed.py [--quick] [--json FILE]`.

Every ratio comes from runs that alternate within one process, on one thread, and is a median with its quartiles.
Forward and backward unless said, batch 128. The usual stack is in `usual.py`. `--write FILE` keeps the table as
Markdown with the machine, the versions and the command.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from torch import Tensor

import regularised
import usual
from pipelines import forecast
from pipelines.question import Question
from tsde.config import Experiment
from tsde.diffusion import SteeredField, SteeredWeights, diffuse
from tsde.fitting import fit_predictor
from tsde.flow import ControlledField, Rotation, Solver, controlled
from tsde.model import Forecaster
from tsde.models import MODELS
from tsde.models.filter import Filter, FilterConfig
from tsde.models.parts import RecurrentEncoder
from tsde.path import ControlPath, PathConfig, control_path
from tsde.predictor import Predictor
from tsde.series import SeriesBatch
from tsde.synthetic import ornstein_uhlenbeck
from tsde.table import read_table
from tsde.threads import WORKER_ENVIRONMENT
from tsde.windows import Query, Window

BATCH, LENGTH, CHANNELS = 128, 100, 8
LENGTHS = (50, 200, 1000, 4000)
NEURAL = ("filter", "neural_cde", "latent_ode", "latent_sde")

Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One line of the table. `at_most` turns the target round: growth exponents and costs should be small."""

    name: str
    ratio: float
    target: float | None
    spread: tuple[float, float]
    ours: str
    theirs: str
    remark: str = ""
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.ratio <= self.target if self.at_most else self.ratio >= self.target


def seconds(work: Work) -> float:
    """One run."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def alternate(works: Sequence[Work], repeats: int) -> list[list[float]]:
    """Times of each work over `repeats` rounds, in which they take turns; a first round does not count.

    A turn runs its work as often as fits into 50 ms and is their mean: the caches are the work's own, not its rival's.
    """
    turns = [max(1, int(0.05 / seconds(work))) for work in works]

    def turn(work: Work, count: int) -> float:
        return seconds(lambda: [work() for _ in range(count)]) / count

    rounds = [[turn(work, count) for work, count in zip(works, turns, strict=True)] for _ in range(repeats)]
    return [list(times) for times in zip(*rounds, strict=True)]


def against(
    name: str, target: float | None, ours: Work, theirs: Work, repeats: int, remark: str = "", scale: float = 1.0
) -> Row:
    """The ratio of two works' times; `scale` is how much more of the same work ours does."""
    mine, others = alternate([ours, theirs], repeats)
    ratios = sorted(scale * theirs / mine for mine, theirs in zip(mine, others, strict=True))
    quartiles = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    return Row(name, statistics.median(ratios), target, quartiles, _ms(mine), _ms(others), remark)


def _ms(times: Sequence[float]) -> str:
    return f"{1e3 * statistics.median(times):,.3g} ms"


def gemm_peak() -> float:
    """Floating-point operations per second of a matrix product of 512 x 512, the best of ten."""
    a = torch.randn(512, 512)
    return 2 * 512**3 / min(seconds(lambda: a @ a) for _ in range(10))


def neural_cde(quick: bool) -> Iterator[Row]:
    """Hidden 32, width 64, 100 observations of 8 channels: the same field, weights and control on both sides."""
    torch.manual_seed(0)
    hidden, width = 32, 64
    field = usual.CDEField(hidden, width, CHANNELS)
    rows, start = 0.1 * torch.randn(BATCH, LENGTH, CHANNELS).cumsum(1), 0.3 * torch.randn(BATCH, hidden)

    def weights(dtype: torch.dtype = torch.float32) -> ControlledField:
        parts = field.inner.weight, field.inner.bias, field.outer.weight, field.outer.bias
        return ControlledField(*(part.to(dtype) for part in parts))

    def path(dtype: torch.dtype = torch.float32) -> ControlPath:
        steps = rows.to(dtype).diff(dim=1)
        knots = torch.arange(LENGTH).expand(BATCH, -1)
        return ControlPath(rows[:, 0].to(dtype), steps, None, None, knots, torch.ones(BATCH, LENGTH - 1, dtype=dtype))

    def ours(method: str, substeps: int = 1) -> Tensor:
        return controlled(weights(), path(), start, Solver(method=method, substeps=substeps))[-1]

    def step(solve: Callable[[], Tensor]) -> Work:
        def work() -> None:
            field.zero_grad()
            solve().square().mean().backward()

        return work

    with torch.no_grad():
        fine = Solver(method="rk4", substeps=16)
        exact = controlled(weights(torch.float64), path(torch.float64), start.double(), fine)[-1]

    def error(found: Tensor) -> float:
        return float((found.detach() - exact).abs().max())

    field.evaluations = 0
    default_error = error(usual.cde(field, rows, start, None))
    substeps = next(n for n in (1, 2, 4, 8) if error(ours("rk4", n)) <= default_error)
    remark = (
        f"terminal error {error(ours('rk4', substeps)):.1e} (rk4, {substeps} per interval) against {default_error:.1e}"
    )
    default = step(lambda: usual.cde(field, rows, start, None))
    yield against("neural CDE step, torchcde's default", 100, step(lambda: ours("rk4", substeps)), default, 1, remark)
    rounds = 7 if quick else 25
    for method, target in (("rk4", 1.7), ("euler", None)):
        gap = float((ours(method) - usual.cde(field, rows, start, method)).detach().abs().max())
        yield against(
            f"neural CDE step, torchcde {method} without adjoint",
            target,
            step(lambda method=method: ours(method)),  # type: ignore[misc]
            step(lambda method=method: usual.cde(field, rows, start, method)),  # type: ignore[misc]
            rounds,
            f"equal discretisation, states within {gap:.1e}",
        )
    operations = 3 * 2 * BATCH * 4 * (LENGTH - 1) * (hidden * width + width * CHANNELS * hidden)
    shares, rates = [], []
    for _ in range(rounds):
        peak = gemm_peak()
        rates.append(operations / seconds(step(lambda: ours("rk4"))))
        shares.append(rates[-1] / peak)
    shares.sort()
    quartiles = shares[len(shares) // 4], shares[-1 - len(shares) // 4]
    speed = f"{statistics.median(rates) / 1e9:.1f} GFLOP/s"
    yield Row(
        "neural CDE step, share of the GEMM peak",
        statistics.median(shares),
        0.55,
        quartiles,
        speed,
        f"{gemm_peak() / 1e9:.1f} GFLOP/s",
    )


def latent_sde(quick: bool) -> Iterator[Row]:
    """16 dimensions, three two-layer networks of width 64 each, with the path's divergence."""
    torch.manual_seed(0)
    size, width, steps = 16, 64, 64
    context, start = torch.randn(BATCH, width), torch.randn(BATCH, size)
    model = usual.SDE(size, width, torch.randn(BATCH, size))
    shapes = (3 * width, size), (3 * width,), (3, size, width), (3, size)
    weights = SteeredWeights(*(torch.randn(shape).mul(0.2).requires_grad_() for shape in shapes))
    turn = Rotation(torch.full((size // 2,), 0.1), torch.ones(size // 2))

    def ours(steps: int) -> Work:
        def work() -> None:
            noise = torch.randn(steps, 1, BATCH, size)
            rows = torch.cat([context, context], -1).expand(steps + 1, -1, -1)
            field = SteeredField(weights)
            found = diffuse("euler", field, start[None], rows, lambda i: noise[i], 1 / steps, turn)
            (found.states[-1].square().mean() + found.cost.mean()).backward()

        return work

    def theirs(adjoint: bool) -> Work:
        def work() -> None:
            state, divergence = usual.sde(model, start, steps, adjoint)
            (state.square().mean() + divergence.mean()).backward()

        return work

    rounds = 5 if quick else 15
    remark = "equal steps, networks of equal sizes; states and divergence agree in tests/test_parity.py"
    yield against("latent SDE step with path KL, torchsde adjoint", 12, ours(steps), theirs(True), rounds, remark)
    yield against("latent SDE step with path KL, torchsde without adjoint", 2.7, ours(steps), theirs(False), rounds)
    yield growth("latent SDE step, growth with steps", [32, 64, 128, 256], ours, rounds)


def growth(name: str, sizes: Sequence[int], work: Callable[[int], Work], rounds: int, remark: str = "") -> Row:
    """The exponent of the time in the size, from the largest and the second smallest; overheads hide the smallest."""
    times = alternate([work(size) for size in sizes], rounds)
    medians = [min(found) for found in times]
    exponent = float(np.log(medians[-1] / medians[1]) / np.log(sizes[-1] / sizes[1]))
    listed = " / ".join(f"{1e3 * found:,.3g}" for found in medians)
    sizes_listed = " / ".join(map(str, sizes))
    return Row(name, exponent, 1.1, (exponent, exponent), f"{listed} ms", f"{sizes_listed}", remark, at_most=True)


def unions(quick: bool) -> Iterator[Row]:
    """ODE-RNN and latent ODE with clocks of their own, rounded to a thousandth, so that the union has 1,000 times."""
    torch.manual_seed(0)
    hidden, channels, asked = 64, CHANNELS, 50
    times = (torch.rand(BATCH, LENGTH) * 1000).round().sort(1).values / 1000
    values, mask = torch.randn(BATCH, LENGTH, channels), torch.rand(BATCH, LENGTH, channels) < 0.5
    union, spread, seen = usual.on_union(times, values, mask)
    recurrent = usual.ODERNN(channels, hidden)
    encoder = RecurrentEncoder(channels, hidden)
    context = SeriesBatch(times, values * mask, mask, torch.arange(BATCH), torch.zeros(BATCH, 0))

    def theirs() -> None:
        recurrent(union, spread, seen, "euler").square().mean().backward()

    def ours() -> None:
        encoder(context)[:, -1].square().mean().backward()

    rounds = 1 if quick else 3
    yield against("ODE-RNN step, Euler on the union of times", 20, ours, theirs, rounds, f"union of {len(union)} times")
    config = MODELS["latent_ode"].config(dropout=0.0)
    model = MODELS["latent_ode"].model(config, channels)
    query_times = 1 + (torch.rand(BATCH, 1, asked) * 1000).round().sort(-1).values / 1000
    query = Query(context, times[:, -1:], query_times)
    target = torch.randn(BATCH, 1, asked, channels)
    window = Window(query, target, torch.rand(target.shape) < 0.5, torch.arange(BATCH))
    other = usual.LatentODE(channels, hidden)
    queries = torch.unique(query_times)
    queries = queries - 1 + 1e-3

    def whole() -> None:
        loss = model.loss(window)
        (loss.score + loss.kl).backward()

    def usual_whole() -> None:
        other(union, spread, seen, queries, "dopri5").square().mean().backward()

    yield against(
        "latent ODE step, dopri5 on the union of times", 20, whole, usual_whole, rounds, f"{asked} queries each"
    )


def coefficients(quick: bool) -> Iterator[Row]:
    """Backward Hermite splines through 128 x 100 x 8 values, a third of them missing."""
    torch.manual_seed(0)
    times = torch.rand(LENGTH).cumsum(0)
    mask = torch.rand(BATCH, LENGTH, CHANNELS) < 0.67
    values = torch.randn(BATCH, LENGTH, CHANNELS)
    context = SeriesBatch(times.expand(BATCH, -1), values * mask, mask, torch.arange(BATCH), torch.zeros(BATCH, 0))
    config = PathConfig(kind="hermite", fill="linear", counts=False)
    gappy = torch.where(mask, values, torch.nan)
    rounds = 2 if quick else 5
    yield against(
        "coefficients with missing values, torchcde",
        400,
        lambda: control_path(context, config),
        lambda: usual.hermite(times, gappy),
        rounds,
    )


def lengths(quick: bool) -> Iterator[Row]:
    """A training step of every family with contexts of growing length."""
    for name in NEURAL:
        torch.manual_seed(0)
        family = MODELS[name]
        model = family.model(family.config(), 4)
        for what, origins in (("last", 1), ("8 origins", 8)):

            def work(length: int, origins: int = origins, model: Forecaster = model) -> Work:
                window = _window(16, length, origins)

                def step() -> None:
                    loss = model.loss(window)
                    (loss.score + loss.kl).backward()

                return step

            yield growth(f"{name}, growth with L, {what}", LENGTHS, work, 1 if quick else 3)

        def every(length: int, model: Any = model) -> Work:
            context = _window(16, length, 1).query.context
            encode = model.encoder if hasattr(model, "encoder") else model.encode

            def step() -> None:
                states = encode(context)
                (states[1] if isinstance(states, tuple) else states).square().mean().backward()

            return step

        yield growth(f"{name}, growth with L, states after all rows", LENGTHS, every, 1 if quick else 3)


def _window(batch: int, length: int, origins: int, targets: int = 8, channels: int = 4) -> Window:
    times = torch.rand(batch, length).cumsum(1) * (8 / length)
    mask = torch.rand(batch, length, channels) < 0.5
    context = SeriesBatch(
        times, torch.randn(batch, length, channels) * mask, mask, torch.arange(batch), torch.zeros(batch, 0)
    )
    rows = torch.linspace(length / 2, length - 1, origins).long() if origins > 1 else torch.tensor([length - 1])
    start = times[:, rows]
    query = Query(context, start, start[..., None] + torch.rand(batch, origins, targets))
    shape = batch, origins, targets, channels
    return Window(query, torch.randn(shape), torch.rand(shape) < 0.5, torch.arange(batch))


def dense(quick: bool) -> Iterator[Row]:
    """200 query times per series against 2: one solve over a shared grid, then interpolation."""
    torch.manual_seed(0)
    model = Filter(FilterConfig(), 1).eval()
    few, many = (_window(64, LENGTH, 1, targets, channels=1).query for targets in (2, 200))

    def ask(query: Query) -> Work:
        def work() -> None:
            with torch.no_grad():
                model.horizon(model.encoded(torch.zeros(64, 1, 128)), query)

        return work

    few_times, many_times = alternate([ask(few), ask(many)], 10)
    ratio = statistics.median(many_times) / statistics.median(few_times)
    yield Row("dense output: 200 query times against 2", ratio, None, (ratio, ratio), _ms(many_times), _ms(few_times))


def forecasts(quick: bool) -> Iterator[Row]:
    """10,000 series of 20 rows, forecast at 24 times each: from a CSV to a CSV.

    The usual stack reads and writes with pandas, encodes with a GRU and samples 100 paths per series with torchsde.
    `filter` answers in closed form, `latent_sde` by 100 paths. First on one core and in one process, then as commands,
    imports included, with as many threads and workers as either takes by default.
    """
    for family, many, changes in (
        ("filter", 2000 if quick else 10_000, {}),
        ("latent_sde", 500 if quick else 1000, {"samples": 100}),
    ):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            frame = ornstein_uhlenbeck(many, 20, seed=0)
            frame.to_csv(folder / "table.csv", index=False)
            part = frame[frame["unique_id"].isin(frame["unique_id"].unique()[:500])]
            part.to_csv(folder / "part.csv", index=False)
            _small_predictor(frame, family, **changes).save(folder / "model")
            step = str(1 / 24)
            question, outputs = Question(horizon="1", step=step), forecast.Outputs(folder / "ours.csv")
            yield against(
                f"batch forecast, table to table, torchsde Euler against {family}",
                8,
                partial(forecast.run, folder / "model", folder / "table.csv", question, outputs),
                partial(usual.forecast_table, folder / "part.csv", folder / "usual.csv", paths=100, steps=24),
                2 if quick else 5,
                f"{many:,} series x 24 times; the usual stack on 500 of them, scaled",
                scale=many / 500,
            )
            tsde = "from pipelines.cli import app; app()"
            given = "forecast", folder / "model", folder / "table.csv", "--horizon", 1, "--step", step
            script = (
                "import sys, pathlib, usual; "
                "usual.forecast_table(*map(pathlib.Path, sys.argv[1:]), paths=100, steps=24)"
            )
            yield against(
                f"the same as commands, {family}",
                None,
                _command(tsde, *given, "--out", folder / "ours.csv"),
                _command(script, folder / "table.csv", folder / "usual.csv"),
                1,
                f"{many:,} series on both sides, all cores, with imports",
            )


def _command(program: str, *arguments: object) -> Work:
    """A program run from a shell: in a process of its own that knows nothing of this one's thread."""
    environment = {name: value for name, value in os.environ.items() if name not in WORKER_ENVIRONMENT}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parent)
    words = [sys.executable, "-c", program, *map(str, arguments)]
    return partial(subprocess.run, words, env=environment, check=True, capture_output=True)


def _small_predictor(frame: pd.DataFrame, family: str, **changes: object) -> Predictor:
    """One member, hardly trained: what a forecast costs does not depend on how good it is."""
    known = frame[frame["unique_id"].isin(frame["unique_id"].unique()[:60])]
    experiment = Experiment.model_validate(
        {"horizon": 1.0, "model": {"family": family, **changes}, "train": {"steps": 2, "members": 1, "warmup": 1}}
    )
    return fit_predictor(read_table(known), experiment).predictor


def dynamics(quick: bool) -> Iterator[Row]:
    """The same model trained with and without the solver's estimates in its objective."""
    plain, cheap = regularised.compare(steps=200 if quick else 1200)
    remark = f"CRPS {cheap.crps:.4f} against {plain.crps:.4f}, error {regularised.ERROR:g}"
    for name, target, ours, theirs in (
        ("evaluations of an adaptive solver after regularised training", 0.55, cheap.evaluations, plain.evaluations),
        ("fixed steps after regularised training", None, cheap.fixed_steps, plain.fixed_steps),
    ):
        share = ours / theirs
        yield Row(name, share, target, (share, share), f"{ours:.0f}", f"{theirs:.0f}", remark, at_most=True)


SECTIONS = (neural_cde, latent_sde, unions, coefficients, dense, forecasts, lengths, dynamics)


def measured(section: int, quick: bool) -> list[Row]:
    """The rows of one section, each printed when it is there."""
    torch.set_num_threads(1)
    rows = []
    with Console(stderr=True).status(f"measuring: {SECTIONS[section].__name__}"):
        for row in SECTIONS[section](quick):
            rows.append(row)
            target = "" if row.target is None else f"(target {row.target:g}: {'met' if row.met else 'MISSED'})"
            told = f"{row.name:<62} {row.ratio:>8.3g} {target:<22} {row.ours} | {row.theirs} {row.remark}"
            print(told, flush=True)
    return rows


def markdown(rows: Sequence[Row], command: str) -> str:
    """The table with what made it."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchcde", "torchsde", "torchdiffeq"))
    lines = [
        "# Speed",
        "",
        "Ratios against the usual stack (`usual.py`), each from runs that alternate within one process; medians and",
        "quartiles. Forward and backward unless said, batch 128.",
        "",
        f"Made by `{command}` on {os.cpu_count()} cores ({_processor()}), one thread, "
        f"Python {platform.python_version()}, {packages}.",
        "",
        "| what | ratio | quartiles | target | met | ours | usual | remark |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        target = "" if row.target is None else f"{'<= ' if row.at_most else '>= '}{row.target:g}"
        met = {None: "", True: "yes", False: "**no**"}[row.met]
        quartiles = f"{row.spread[0]:.3g} - {row.spread[1]:.3g}"
        cells = row.name, f"{row.ratio:.3g}", quartiles, target, met, row.ours, row.theirs, row.remark
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _processor() -> str:
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return names[0] if names else platform.processor()


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats and shorter trainings: a few minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a list of name, ratio, target, met")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table as Markdown")
    names = [section.__name__ for section in SECTIONS]
    parser.add_argument("--only", nargs="*", choices=names, default=names, help="some sections")
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in WORKER_ENVIRONMENT.items()):
        os.environ.update(WORKER_ENVIRONMENT)  # both sides run as the program's training workers do
        os.execv(sys.executable, [sys.executable, *sys.argv])
    rows: list[Row] = []
    for name in options.only:
        # in a process of its own: a section that comes after others would inherit their heap
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            rows += process.submit(measured, names.index(name), options.quick).result()
    if options.json:
        kept = [{"name": row.name, "ratio": row.ratio, "target": row.target, "met": row.met} for row in rows]
        options.json.write_text(json.dumps(kept, indent=1) + "\n")
    if options.write:
        options.write.write_text(markdown(rows, shlex.join(["python", *sys.argv])))


if __name__ == "__main__":
    main()
