"""What every test shares: one thread per worker, no window, no telemetry, and property tests that repeat."""

from __future__ import annotations

import os

# Before torch, matplotlib and mlflow are imported by anything; subprocesses inherit them.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["GIT_PYTHON_REFRESH"] = "quiet"

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("tsde", deadline=None, derandomize=True, database=None)
settings.load_profile("tsde")
