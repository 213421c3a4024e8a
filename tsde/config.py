"""One experiment as one validated, frozen document: YAML, plus `--set a.b=c`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tsde.advice import advice
from tsde.calibration import CalibrationConfig
from tsde.document import parse_yaml, shortened
from tsde.errors import ConfigError, MissingInputError
from tsde.models import ModelConfig
from tsde.models.filter import FilterConfig
from tsde.table import TableSchema
from tsde.training import TrainConfig
from tsde.windows import SplitConfig, WindowConfig

_MOST = 10  # mistakes that one error lists


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

    @field_validator("horizon", mode="before")
    @classmethod
    def _length(cls, horizon: Any) -> Any:
        number = isinstance(horizon, int | float) and not isinstance(horizon, bool)
        if isinstance(horizon, str) or (number and -math.inf < horizon < math.inf):
            return horizon  # whether it is a length above zero is for the table's clock to say
        raise ValueError("expected a length such as 30d, or a finite number")

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
        section = document.get(name)
        if isinstance(value, Mapping) and (section is None or isinstance(section, Mapping)):
            document[name] = {**(section or {}), **value}
        elif value is not None and not isinstance(value, Mapping):
            document[name] = value
    for override in overrides:
        _apply(document, override)
    return parse_experiment(document, str(source) if source else "the command line")


def parse_experiment(document: Mapping[str, Any], origin: str) -> Experiment:
    """Validate a document; `origin` is named in the error."""
    try:
        experiment = Experiment.model_validate(document)
    except ValidationError as error:
        lines = [_sentence(problem) for problem in error.errors()]
        more = [f"and {len(lines) - _MOST} more"] if len(lines) > _MOST else []
        text = "; ".join(lines[:_MOST] + more)
        raise ConfigError(f"configuration from {origin}: {text}; correct it (configs/ has examples)") from error
    if wrong := _booleans(document, experiment.model_dump()):
        raise ConfigError(f"configuration from {origin}: {wrong[0]!r}: expected a number, got true or false")
    return experiment


def _read(source: Path) -> dict[str, Any]:
    try:
        text = Path(source).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MissingInputError(f"expected a configuration file, but {source} does not exist") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: not readable as YAML: {error}; save it in UTF-8") from error
    except (OSError, ValueError) as error:  # a directory, a forbidden file, a NUL in the name
        raise MissingInputError(f"the configuration file {source} cannot be read: {error}") from error
    document = parse_yaml(text, str(source))
    if not isinstance(document, dict):
        found = "nothing" if document is None else type(document).__name__
        raise ConfigError(f"{source}: expected a mapping of settings such as `horizon: 30d`, found {found}")
    return document


def _apply(document: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(
            f"expected --set section.name=value, got {shortened(override)!r}; for example --set train.steps=500"
        )
    for key in keys[:-1]:
        inner = document.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {shortened(override)}: {key!r} is a value, not a section")
        document = inner
    document[keys[-1]] = parse_yaml(text, f"--set {shortened(override)}")


def _sentence(problem: Any) -> str:
    """One validation error as: field, what was expected, what came."""
    location = [shortened(str(part)) for part in problem["loc"]]
    family = location.pop(1) if location[:1] == ["model"] and len(location) > 1 else FilterConfig().family
    field = ".".join(location) or "document"
    if problem["type"] == "extra_forbidden":
        return f"unknown key {field!r}; {advice(field, Experiment, family)}"
    if problem["type"] == "missing":
        return f"{field!r} is required"
    expected = problem["msg"].removeprefix("Value error, ")
    return f"{field!r}: {expected}, got {shortened(repr(problem['input']))}"


def _booleans(raw: Any, valid: Any, field: str = "") -> list[str]:
    """Fields for which true or false was written and taken for 1 or 0."""
    if isinstance(raw, Mapping) and isinstance(valid, Mapping):
        names = [name for name in raw if name in valid]
        return [found for name in names for found in _booleans(raw[name], valid[name], f"{field}.{name}".strip("."))]
    return [field] if isinstance(raw, bool) and not isinstance(valid, bool) else []
