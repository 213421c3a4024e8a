"""What is particular to the peers: the recurrent unit, the mixer, and boosting with its optional library."""

from __future__ import annotations

import json
import math
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from tsde import trees
from tsde.config import load_experiment
from tsde.errors import ArtifactError, ConfigError
from tsde.fitting import fit_predictor
from tsde.metrics import mse
from tsde.models import MODELS
from tsde.models.boosting import LEVELS, Boosting, BoostingConfig
from tsde.models.gru import GRU, GRUConfig
from tsde.models.mixer import Mixer, MixerConfig
from tsde.models.ridge import Ridge, RidgeConfig
from tsde.noise import series_keys
from tsde.predictor import Predictor
from tsde.series import SeriesBatch
from tsde.synthetic import spirals
from tsde.table import read_table
from tsde.windows import Query, Window

CHANNELS = 2
needs_lightgbm = pytest.mark.skipif(not trees.available(), reason="the extra `boosting` is not installed")


def bent(seed: int, batch: int = 40) -> Window:
    """What comes is the square of the first channel's last value, a quarter of it in the second channel."""
    generator = torch.Generator().manual_seed(seed)
    times = torch.linspace(-1, 0, 6).expand(batch, -1)
    values = torch.randn(batch, 6, CHANNELS, generator=generator)
    mask = torch.rand(values.shape, generator=generator) < 0.8
    mask[:, -1] = True
    keys = series_keys([f"{seed}-{i}" for i in range(batch)], 0)
    context = SeriesBatch(times, values * mask, mask, keys, torch.zeros(batch, 0))
    lead = torch.rand(batch, 1, 3, generator=generator)
    square = values[:, -1, 0].square() - 1
    answers = (square[:, None] * torch.tensor([1.0, 0.25]))[:, None, None].expand(-1, 1, 3, -1)
    noise = 0.05 * torch.randn(answers.shape, generator=generator)
    query = Query(context, torch.zeros(batch, 1), lead)
    return Window(
        query, answers + noise, torch.ones(answers.shape, dtype=torch.bool), batch * seed + torch.arange(batch)
    )


def made(config: BoostingConfig | GRUConfig | MixerConfig, seed: int = 0) -> Boosting | GRU | Mixer:
    torch.manual_seed(seed)
    model = MODELS[config.family].model(config, CHANNELS).eval()
    assert isinstance(model, Boosting | GRU | Mixer)
    return model


def numbers(model: torch.nn.Module, query: Query) -> Tensor:
    with torch.no_grad():
        law = model(query)
    return torch.cat([law.mean[..., None], law.values], -1)


@pytest.mark.parametrize("config", [GRUConfig(), MixerConfig()])
def test_without_its_last_layer_a_peer_carries_the_last_value_forward(config: GRUConfig | MixerConfig) -> None:
    model = made(config)
    last = [part for part in model.out.modules() if isinstance(part, torch.nn.Linear)][-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    query = bent(0).query
    with torch.no_grad():
        found = model(query).mean
    torch.testing.assert_close(found, query.context.values[:, None, None, -1].expand_as(found))


def test_the_recurrent_unit_reads_gaps() -> None:
    """The same values at other times, and the same age of the last of them, are another past."""
    model, query = made(GRUConfig()), bent(0).query
    times = query.context.times.clone()
    times[:, 1:-1] = times[:, 1:-1] * 0.5
    context = SeriesBatch(times, query.context.values, query.context.mask, query.context.key, query.context.static)
    moved = Query(context, query.origins, query.times)
    assert ((numbers(model, moved) - numbers(model, query)).abs().amax((1, 2, 3, 4)) > 1e-5).all()


def test_an_average_of_the_mixer_is_its_sum_over_pairs() -> None:
    """One series, one origin in its middle, by a loop over the observed pairs up to it."""
    model = made(MixerConfig(hidden=4, width=8))
    assert isinstance(model, Mixer)
    query = bent(3, batch=1).query
    context, origin = query.context, query.context.times[:, 3:4]
    with torch.no_grad():
        average, weights = model.aggregate(Query(context, origin, query.times))
        part = model.aggregate
        slope, level = part.slope[:, 0], part.level[:, 0]  # (2 D, C)
        for channel in range(CHANNELS):
            total, top = torch.zeros(4), torch.zeros(4)
            for row in range(4):
                if context.mask[0, row, channel]:
                    raw, content = (context.values[0, row, channel] * slope[:, channel] + level[:, channel]).chunk(2)
                    age = origin[0, 0] - context.times[0, row]
                    shape, factor = part.ages(age).chunk(2)
                    weight = torch.exp(torch.tanh(raw) + 3 * torch.tanh(shape) - part.log_rate.exp() * age)
                    total, top = total + weight, top + weight * (1 + factor) * content
            torch.testing.assert_close(weights[0, 0, channel], torch.log1p(total), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(average[0, 0, channel], top / (total + 0.1), rtol=1e-4, atol=1e-6)


def test_the_mixer_mixes_channels() -> None:
    """Another past of the first channel is another forecast of the second."""
    model, query = made(MixerConfig()), bent(0).query
    values = query.context.values.clone()
    values[..., 0] += 1.0
    context = SeriesBatch(query.context.times, values, query.context.mask, query.context.key, query.context.static)
    change = numbers(model, Query(context, query.origins, query.times)) - numbers(model, query)
    assert (change[..., 1, :].abs().amax((1, 2, 3)) > 1e-5).all()


# Boosting

SMALL = {"trees": 60, "leaves": 8, "smallest_leaf": 10}


def fitted(seed: int = 0, **changes: object) -> Boosting:
    model = made(BoostingConfig.model_validate(SMALL | changes), seed)
    assert isinstance(model, Boosting)
    model.prepare([bent(n) for n in range(1, 7)])
    return model


@needs_lightgbm
def test_boosting_learns_what_no_line_can_say() -> None:
    model, line = fitted(), Ridge(RidgeConfig(), CHANNELS)
    line.prepare([bent(n) for n in range(1, 7)])
    window = bent(9)
    trees_off, line_off = (float(mse(each(window.query).mean, window.values).mean()) for each in (model, line.eval()))
    assert trees_off < 0.5 * line_off


@needs_lightgbm
def test_boosting_covers_what_it_says() -> None:
    """Noise of known spread around nothing: its quantiles hold their shares, within four standard errors."""
    draw = torch.Generator().manual_seed(0)

    def noise(seed: int) -> Window:
        empty = bent(seed)
        values = torch.randn(empty.values.shape, generator=draw)
        return Window(empty.query, values, empty.mask, empty.series)

    model = made(BoostingConfig.model_validate(SMALL))
    model.prepare([noise(n) for n in range(1, 12)])
    held = noise(20)
    with torch.no_grad():
        law = model(held.query)
    for level in LEVELS:
        bound = law.at(torch.tensor([level]))[..., 0]
        share = (held.values < bound).float().mean()
        assert abs(float(share) - level) < 0.03 + 4 * math.sqrt(level * (1 - level) / held.values.numel())


@needs_lightgbm
def test_boosting_follows_from_its_seed() -> None:
    query = bent(9).query
    first, again, other = numbers(fitted(1), query), numbers(fitted(1), query), numbers(fitted(2), query)
    assert torch.equal(first, again) and not torch.equal(first, other)


@needs_lightgbm
def test_boosting_draws_from_more_cells_than_it_may_use() -> None:
    model = fitted(cells=300)
    features, targets, held = model._examples([bent(n) for n in range(1, 7)])
    assert 200 < len(features) == len(targets) == len(held) < 400
    assert features.shape[1] == model.features and 0.1 < held.float().mean() < 0.3


@needs_lightgbm
@pytest.mark.parametrize("batch", [1, 4])
def test_boosting_learns_from_few_series(batch: int) -> None:
    """One of four series is held out; from a single one nothing is learnt, and nothing breaks."""
    model = made(BoostingConfig.model_validate(SMALL | {"smallest_leaf": 2}))
    before = numbers(model, bent(9).query)
    model.prepare([bent(1, batch), bent(1, batch)])
    found = numbers(model, bent(9).query)
    assert torch.isfinite(found).all() and torch.equal(found, before) == (batch == 1)


@needs_lightgbm
def test_trees_of_any_number_fit_a_fresh_model() -> None:
    source, query = fitted(), bent(9).query
    state = source.state_dict()
    fresh = made(BoostingConfig.model_validate(SMALL), 5)
    assert not torch.equal(numbers(fresh, query), numbers(source, query))
    fresh.load_state_dict(state)
    assert torch.equal(numbers(fresh, query), numbers(source, query))
    fresh.load_state_dict(made(BoostingConfig(), 6).state_dict())  # back to none
    assert len(fresh.get_extra_state()) < 3000
    name = next(name for name in state if "extra" in name)
    for wrong in (state[name].float(), state[name][None], state[name][:-9]):
        with pytest.raises(ValueError, match="trees"):
            fresh.load_state_dict(state | {name: wrong})
    with pytest.raises(RuntimeError, match="Missing key"):
        fresh.load_state_dict({key: value for key, value in state.items() if key != name})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("boosting") / "model"
    words = ["model.family=boosting", "model.trees=5", "model.smallest_leaf=5", "train.members=1"]
    fit_predictor(read_table(spirals(40, 10, seed=1)), load_experiment(None, words, horizon=1)).predictor.save(folder)
    return folder


def rewrite(folder: Path, old: bytes, new: bytes) -> None:
    """Other trees in a saved predictor, with the right digest."""
    path = folder / "weights.safetensors"
    weights = load(path.read_bytes())
    name = next(name for name in weights if "extra" in name)
    text = weights[name].numpy().tobytes()
    assert old in text
    weights[name] = torch.frombuffer(bytearray(text.replace(old, new, 1)), dtype=torch.uint8)
    path.write_bytes(save(weights))
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"]["weights.safetensors"] = sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


@needs_lightgbm
@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"\nleft_child=", b"\nleft_child=77", "is none: expected one parent"),
        (b"num_class=8", b"num_class=9", "another head"),
        (b"end of trees", b"end of", "another head or end"),
        (b"Tree=0\n", b"Tree=0\n\xff", "ASCII"),
    ],
)
def test_hostile_trees_are_refused_in_a_sentence(saved: Path, old: bytes, new: bytes, reason: str) -> None:
    files = {path: path.read_bytes() for path in saved.iterdir() if path.is_file()}
    try:
        rewrite(saved, old, new)
        with pytest.raises(ArtifactError, match=rf"is not a predictor this tsde can read \(.*{reason}"):
            Predictor.load(saved)
    finally:
        for path, data in files.items():
            path.write_bytes(data)
    assert Predictor.load(saved).experiment.model.family == "boosting"


@needs_lightgbm
def test_damaged_trees_never_reach_the_reader(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved / "weights.safetensors"
    whole = path.read_bytes()

    def reached(*arguments: object) -> None:
        raise AssertionError("read before its digest was checked")

    monkeypatch.setattr(trees, "read", reached)
    try:
        path.write_bytes(whole[:-200] + bytes(200))
        with pytest.raises(ArtifactError, match="does not match its SHA-256"):
            Predictor.load(saved)
    finally:
        path.write_bytes(whole)


@needs_lightgbm
def test_a_model_of_trees_without_the_library_says_what_to_install(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "available", lambda: False)
    with pytest.raises(ArtifactError, match=r"expects LightGBM, .* not installed \(python -m pip install lightgbm"):
        Predictor.load(saved)


def test_without_the_library_the_choice_is_refused_and_all_others_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "available", lambda: False)
    for words in (["model.family=boosting"], ["model={family: auto, candidates: [filter, boosting]}"]):
        with pytest.raises(ConfigError, match=r"expects LightGBM, .* not installed \(python -m pip install lightgbm"):
            load_experiment(None, words, horizon=1)
    words = ["model.family=gru", "model.hidden=8", "model.width=8", "train.steps=1", "train.members=1"]
    found = fit_predictor(read_table(spirals(20, 8, seed=1)), load_experiment(None, words, horizon=1))
    assert np.isfinite(found.predictor.forecast(read_table(spirals(3, 8, seed=2)))["tsde"]).all()
