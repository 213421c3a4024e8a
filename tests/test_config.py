"""Configurations: complete YAML, overrides, and errors that name the field."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from tsde.config import Experiment, load_experiment, parse_experiment
from tsde.errors import ConfigError, MissingInputError
from tsde.models import MODELS, build

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("family", MODELS)
def test_yaml_round_trip(family: str) -> None:
    """The complete YAML, defaults included, gives back the same experiment, to the last digit."""
    experiment = load_experiment(
        None,
        ["train.learning_rate=0.1234567890123", "train.max_time=5min", "split.by=time", "calibration.enabled=false"],
        horizon="30d",
        seed=3,
        model={"family": family},
    )
    text = experiment.to_yaml()
    assert parse_experiment(yaml.safe_load(text), "here") == experiment
    assert set(yaml.safe_load(text)["model"]) == set(type(experiment.model).model_fields)
    assert Experiment.model_validate_json(experiment.model_dump_json()) == experiment


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("horizon: 24\ntrain:\n  learning_rate: 3e-4\nmodel:\n  family: neural_cde\n  path: {depth: 1}\n")
    experiment = load_experiment(path)
    assert experiment.horizon == 24
    assert experiment.train.learning_rate == 3e-4  # YAML 1.1 reads 3e-4 as text
    assert experiment.model.family == "neural_cde" and experiment.model.path.depth == 1
    assert experiment.train.batch == Experiment(horizon=1).train.batch


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.learning_rate=3e-4", 3e-4),
        ("train.learning_rate=0.01", 0.01),
        ("train.steps=7", 7),
        ("train.max_time=60s", 60.0),
        ("train.max_time=300s", 300.0),
        ("train.max_time=5min", 300.0),
        ("train.max_time=1.5h", 5400.0),
        ("train.max_time=45", 45.0),
        ("train.max_time=null", None),
        ("windows.thinning=0", 0.0),
        ("calibration.enabled=false", False),
        ("split.by=series", "series"),
        ("model.steps=3", 3),
        ("model.head=gaussian", "gaussian"),
        ("data.id_col=patient", "patient"),
    ],
)
def test_overrides(override: str, expected: object) -> None:
    experiment = load_experiment(None, [override], horizon="30d")
    section, _, name = override.partition("=")[0].partition(".")
    found = getattr(getattr(experiment, section), name)
    assert found == expected and type(found) is type(expected)


def test_later_settings_win(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("horizon: 1d\nseed: 1\ntrain: {steps: 10, batch: 4}\n")
    experiment = load_experiment(path, ["train.steps=30", "train.steps=40"], seed=2, train={"steps": 20, "clip": 2.0})
    assert experiment.seed == 2 and experiment.horizon == "1d"
    assert (experiment.train.steps, experiment.train.batch, experiment.train.clip) == (40, 4, 2.0)


def test_a_field_that_is_none_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("horizon: 1d\nseed: 4\n")
    assert load_experiment(path, seed=None, horizon=None).seed == 4


def test_a_family_by_override_takes_its_own_defaults() -> None:
    experiment = load_experiment(None, ["model.family=latent_sde", "model.samples=5"], horizon=1)
    assert experiment.model == MODELS["latent_sde"].config(samples=5)
    assert build(experiment.model, 2).forward is not None


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("train.stepz=5", "train.stepz"),
        ("stepz=5", "stepz"),
        ("model.hidden=5", "model.hidden"),  # another family's key
        ("model.path.kind=linear", "model.path"),
        ("train.steps=many", "train.steps"),
        ("train.steps=1.5", "train.steps"),
        ("train.steps=0", "train.steps"),
        ("train.steps=null", "train.steps"),
        ("train.learning_rate=-1", "train.learning_rate"),
        ("train.learning_rate=fast", "train.learning_rate"),
        ("train.max_time=soon", "train.max_time"),
        ("train.max_time=5parsecs", "train.max_time"),
        ("train.max_time=0s", "train.max_time"),
        ("train=5", "train"),
        ("windows.thinning=1", "windows.thinning"),
        ("split.by=colour", "split.by"),
        ("split.validation=0.6", "split.validation"),
        ("calibration.enabled=perhaps", "calibration.enabled"),
        ("model.head=cauchy", "model.head"),
        ("model.family=oracle", "model"),
        ("seed=-1", "seed"),
        ("data.id_column=x", "data.id_column"),
    ],
)
def test_what_is_wrong_is_named(override: str, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"the command line.*'{field}'"):
        load_experiment(None, [override], horizon="30d")


@pytest.mark.parametrize("field", ["train.learning_rate", "train.clip", "train.max_time", "calibration.shrinkage"])
@pytest.mark.parametrize("value", [".nan", ".inf", "nan", "inf", "-.inf"])
def test_what_is_not_finite_is_refused(field: str, value: str) -> None:
    with pytest.raises(ConfigError, match=field):
        load_experiment(None, [f"{field}={value}"], horizon="30d")


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("train.stepz=5", "did you mean 'train.steps'?"),
        ("trian.steps=5", "unknown key 'trian'; did you mean 'train'?"),
        ("sead=5", "did you mean 'seed'?"),
        ("learning_rate=1", "did you mean 'train.learning_rate'?"),
        ("steps=5", "did you mean 'model.steps' or 'train.steps'?"),
        ("model.widht=5", "did you mean 'model.width'?"),
        ("train.mean=5", "unknown key 'train.mean'; expected one of steps, batch,"),  # a family's name as a key
        ("model={family: neural_cde, path: {knd: linear}}", "did you mean 'model.path.kind'?"),
        ("model={family: last, width: 3}", "unknown key 'model.width'; expected one of family"),
    ],
)
def test_an_unknown_key_is_answered_with_a_known_one(override: str, advice: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment(None, [override], horizon="30d")
    assert advice in str(caught.value)


@pytest.mark.parametrize("family", MODELS)
def test_the_advice_knows_every_key_of_every_section(family: str) -> None:
    document = Experiment(horizon=1, model={"family": family}).model_dump(mode="json")
    sections = {"": document, **{f"{name}.": part for name, part in document.items() if isinstance(part, dict)}}
    sections |= {
        f"{path}{name}.": part for path, keys in list(sections.items())[1:] for name, part in keys.items()
        if isinstance(part, dict)
    }  # fmt: skip
    for path, keys in sections.items():
        with pytest.raises(ConfigError) as caught:
            load_experiment(None, [f"model.family={family}", f"{path}zzzzzz=1"], horizon="30d")
        assert f"unknown key '{path}zzzzzz'; expected one of {', '.join(keys)}" in str(caught.value)


@pytest.mark.parametrize("value", [".inf", ".nan", "true", "null", "[1]", "{a: 1}"])
def test_a_horizon_that_is_no_length_is_refused_once(value: str) -> None:
    with pytest.raises(
        ConfigError, match="'horizon': expected a length such as 30d, or a finite number, got"
    ) as caught:
        load_experiment(None, [f"horizon={value}"])
    assert str(caught.value).count("'horizon'") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("horizon: 1\nhorizon: 2\n", "line 2: the key 'horizon' stands twice"),
        ("horizon: 1\ntrain: {steps: 1, steps: 2}\n", "line 2: the key 'steps' stands twice"),
        ("a: &a 1\nhorizon: *a\n", "line 2: the alias"),
        ("horizon: !!int 3\n", "line 1: the tag"),
        ("horizon: " + "[" * 5000, "line 1: nested more than 20 levels"),
        ("horizon: 2024-99-99\n", "not readable as YAML"),
        ("horizon: " + "9" * 5000 + "\n", "not readable as YAML"),
        ("#" + "x" * 2**20, "at most 1,048,576 characters"),
        ("horizon: 1\ntrain: {steps: true}\n", "'train.steps': expected a number, got true or false"),
        ("horizon: 1\ndata: 5\n", "'data': .*got 5; correct it"),
    ],
)
def test_surprises_in_yaml_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"odd\.yaml.*{words}"):
        load_experiment(path, data={"id_col": "patient"})


def test_a_configuration_that_cannot_be_opened_is_a_missing_input(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "a\0b.yaml", tmp_path / ("x" * 300)):
        with pytest.raises(MissingInputError, match="cannot be read"):
            load_experiment(path)


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment(None, ["train.steps=x", "windows.origins=0", "sead=1"], horizon="30d")
    assert all(name in str(caught.value) for name in ("'train.steps'", "'windows.origins'", "'sead'"))


def test_a_missing_horizon_is_named() -> None:
    with pytest.raises(ConfigError, match="'horizon' is required"):
        load_experiment(None)


@pytest.mark.parametrize("override", ["train.steps", "=5", "train..steps=5", ".steps=5", "horizon.days=3", ""])
def test_an_override_that_is_none_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load_experiment(None, [override], horizon="30d")


def test_an_override_that_is_not_yaml_is_refused() -> None:
    with pytest.raises(ConfigError, match="YAML"):
        load_experiment(None, ["train.steps=[1"], horizon="30d")


@pytest.mark.parametrize("text", ["- a\n- b\n", "horizon: [unclosed\n", "just words", "", "\x00"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"odd\.yaml"):
        load_experiment(path)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match=r"odd\.yaml"):
        load_experiment(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"nowhere\.yaml"):
        load_experiment(tmp_path / "nowhere.yaml")


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text("horizon: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError):
        load_experiment(path)


def test_an_experiment_is_frozen() -> None:
    experiment = Experiment(horizon=1)
    with pytest.raises(ValidationError):
        experiment.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path: Path) -> None:
    experiment = load_experiment(path)
    assert parse_experiment(yaml.safe_load(experiment.to_yaml()), path.stem) == experiment
