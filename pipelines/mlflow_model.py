"""A predictor as MLflow serves it: models from code, no pickle. MLflow copies this file into the model and runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.models.signature import ModelSignature
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType

from tsde.errors import UsageError
from tsde.predictor import Predictor
from tsde.table import read_table

ARTIFACT = "predictor"
PARAMS = ParamSchema(
    [
        ParamSpec("horizon", "string", None),
        ParamSpec("step", "string", None),
        ParamSpec("level", "double", [80.0], (-1,)),
        ParamSpec("seed", "long", 0),
    ]
)
"""As the command line's options; without a horizon the model's own."""


def signature(columns: list[str]) -> ModelSignature:
    """Columns of any type, all optional for MLflow: what a table must hold is checked, and said better, by tsde."""
    return ModelSignature(Schema([ColSpec(AnyType(), name, required=False) for name in columns]), params=PARAMS)


def serve(predictor: Predictor, table: pd.DataFrame, params: dict[str, Any]) -> pd.DataFrame:
    """The forecast that `tsde forecast` writes.

    Raises:
        UsageError: an unknown parameter. MLflow itself drops those with no more than a warning in its log.
        DataError: the table is not what the model expects.
    """
    known = [param.name for param in PARAMS]
    if unknown := set(params) - set(known):
        raise UsageError(f"unknown parameters {sorted(unknown)}; expected some of {known}")
    schema, settings = predictor.experiment.data, {param.name: param.default for param in PARAMS} | params
    return predictor.forecast(
        read_table(table, schema, expected_channels=predictor.channels, expected_clock=predictor.clock),
        horizon=settings["horizon"],
        step=settings["step"],
        levels=list(settings["level"]),
        seed=int(settings["seed"]),
    )


class Served(PythonModel):
    """What `mlflow.pyfunc.load_model(...)` answers with."""

    def load_context(self, context: PythonModelContext) -> None:
        self.predictor = Predictor.load(Path(context.artifacts[ARTIFACT]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        return serve(self.predictor, model_input, params or {})


set_model(Served())
