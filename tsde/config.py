"""One experiment as one validated, frozen document: YAML, plus `--set a.b=c`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tsde.advice import advice
from tsde.calibration import CalibrationConfig
from tsde.errors import ConfigError, MissingInputError
from tsde.models import ModelConfig
from tsde.models.filter import FilterConfig
from tsde.table import TableSchema
from tsde.training import TrainConfig
from tsde.windows import SplitConfig, WindowConfig


class Experiment(BaseModel):
    """Everything that decides a result, apart from the data.

    Attributes:
        horizon: how far ahead to forecast: "30d" for datetimes, a number in the table's own unit otherwise.
        seed: the one seed; splits, initial weights, windows and sampled forecasts all follow from it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    horizon: str | float
    seed: int = Field(0, ge=0)
    data: TableSchema = TableSchema()
    split: SplitConfig = SplitConfig()
    windows: WindowConfig = WindowConfig()
    model: ModelConfig = FilterConfig()
    train: TrainConfig = TrainConfig()
    calibration: CalibrationConfig = CalibrationConfig()

    @field_validator("model", mode="before")
    @classmethod
    def _default_family(cls, model: Any) -> Any:
        """A model section that names no family means the default one, so that `--set model.width=32` works alone."""
        return {"family": FilterConfig().family, **model} if isinstance(model, Mapping) else model

    def to_yaml(self) -> str:
        """The complete configuration, defaults included, in the order of the fields."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_experiment(source: Path | None, overrides: Sequence[str] = (), **fields: Any) -> Experiment:
    """Read a YAML file, apply `fields` (whole sections or values), then `a.b=c` overrides, and validate.

    Raises:
        MissingInputError: no such file.
        ConfigError: not YAML, an unknown key, a wrong type or a value out of range; names each field.
    """
    document = _read(source) if source else {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            document[name] = {**(document.get(name) or {}), **value}
        elif value is not None:
            document[name] = value
    for override in overrides:
        _apply(document, override)
    return parse_experiment(document, str(source) if source else "the command line")


def parse_experiment(document: Mapping[str, Any], origin: str) -> Experiment:
    """Validate a document; `origin` is named in the error."""
    try:
        return Experiment.model_validate(document)
    except ValidationError as error:
        lines = [_sentence(problem) for problem in error.errors()]
        raise ConfigError(f"configuration from {origin}: " + "; ".join(lines)) from error


def _read(source: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingInputError(f"expected a configuration file, but {source} does not exist") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{source} is not readable as YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{source}: expected a mapping of settings, found {type(document).__name__}")
    return document


def _apply(document: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"expected --set section.name=value, got {override!r}; for example --set train.steps=500")
    for key in keys[:-1]:
        inner = document.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override}: {key!r} is a value, not a section")
        document = inner
    try:
        document[keys[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: {text!r} is not a YAML value") from error


def _sentence(problem: Any) -> str:
    """One validation error as: field, what was expected, what came."""
    location = [str(part) for part in problem["loc"]]
    family = location.pop(1) if location[:1] == ["model"] and len(location) > 1 else FilterConfig().family
    field = ".".join(location) or "document"
    if problem["type"] == "extra_forbidden":
        return f"unknown key {field!r}; {advice(field, Experiment, family)}"
    if problem["type"] == "missing":
        return f"{field!r} is required"
    return f"{field!r}: {problem['msg']}, got {problem['input']!r}"
