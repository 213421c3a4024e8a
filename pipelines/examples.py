"""Examples at the end of each command's help."""

from __future__ import annotations

_LINES = {
    "demo": ("tsde demo --out demo",),
    "validate": (
        "tsde validate labs.csv",
        "tsde validate labs.csv --channel-col test --value-col value --json",
    ),
    "ingest": (
        "tsde ingest labs.csv --horizon 30d --out labs",
        "tsde ingest labs.csv --config clinical.yaml --out labs --dry-run",
    ),
    "train": (
        "tsde train --data labs.csv --horizon 30d --set train.max_time=300s --out model",
        "tsde train --data labs --family latent_ode --set train.members=8 --out model",
        "tsde train --data labs.csv --horizon 30d --dry-run > config.yaml",
        "tsde train --resume model.run",
    ),
    "evaluate": (
        "tsde evaluate model",
        "tsde evaluate model --data new_labs.csv --plots figures --json",
        "tsde evaluate model --out scores.csv",
    ),
    "forecast": (
        "tsde forecast model labs.csv --horizon 30d --step 1d --out forecasts.csv",
        "tsde forecast model labs.csv --times asked.csv --level 50 --level 95 --out forecasts.parquet",
        "tsde forecast models:/tsde@latest labs.csv --horizon 7d > forecasts.csv",
    ),
    "report": (
        "tsde report model --out report.html",
        "tsde report model --data labs.csv --out report.html",
    ),
    "serve": (
        "tsde serve model",
        "tsde serve models:/tsde@latest --port 8001 --limit timeout=30",
        "tsde serve model --host 0.0.0.0 --allowed-host tsde.example --token-file /run/secrets/tsde",
    ),
    "ui": ("tsde ui --port 5001",),
    "models": ("tsde models --json",),
}


def examples(command: str) -> str:
    """The examples of a command as the epilog of its help, each on a line of its own."""
    return "\b\n" + "\n".join(["Examples:", *(f"  {line}" for line in _LINES[command])])
