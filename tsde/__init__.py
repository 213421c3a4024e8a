"""tsde: calibrated forecasts of irregular, gappy, multivariate time series at any future time.

>>> import tsde
>>> table = tsde.read_table("history.csv")
>>> model = tsde.fit_predictor(table, tsde.Experiment(horizon="30d")).predictor
>>> model.forecast(table, horizon="30d", step="1d", levels=[50, 80])
>>> model.save("model")
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "read_table": "tsde.table",
    "read_queries": "tsde.table",
    "TableSchema": "tsde.table",
    "Experiment": "tsde.config",
    "load_experiment": "tsde.config",
    "Predictor": "tsde.predictor",
    "fit_predictor": "tsde.fitting",
    "evaluate": "tsde.evaluation",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import tsde` costs nothing (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tsde' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
