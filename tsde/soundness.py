"""Whether the parts of a saved predictor fit each other: a digest says nothing was altered, not that it is right."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from tsde.calibration import Calibrator
from tsde.clock import Clock
from tsde.config import Experiment
from tsde.distribution import GRID, Quantiles
from tsde.model import Forecaster
from tsde.models import build
from tsde.scaling import Scaler


def load_members(experiment: Experiment, channels: int, count: int, weights: dict[str, Tensor]) -> list[Forecaster]:
    """Members with their saved weights, all of which belong to one and are finite.

    Raises:
        ValueError, RuntimeError: they do not fit.
    """
    by_member: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        number, _, parameter = name.partition("/")
        by_member.setdefault(number, {})[parameter] = value
        if not torch.isfinite(value).all():
            raise ValueError(f"expected finite weights, found NaN or infinity in {name}")
    if len(by_member) != count or sorted(by_member, key=int) != [str(number) for number in range(count)]:
        raise ValueError(f"expected the weights of {count} members, found those of {len(by_member)}")
    members = [build(experiment.model, channels) for _ in range(count)]
    for index, member in enumerate(members):
        member.load_state_dict(by_member[str(index)])
    return members


def require_sound(clock: Clock, scaler: Scaler, calibrator: Calibrator, marginal: Quantiles) -> None:
    """Refuse shapes and numbers that no training leaves.

    Raises:
        ValueError, LookupError: names what was expected and found.
    """
    clock.format(np.zeros(1))  # refuses a time zone that does not exist
    channels, levels = len(scaler.channels), len(GRID)
    shapes = {
        "location": ((len(scaler.location),), (channels,)),
        "scale": ((len(scaler.scale),), (channels,)),
        "edges": (calibrator.edges.shape, (len(calibrator.shift) - 1,)),
        "shift": (calibrator.shift.shape, (len(calibrator.edges) + 1, channels, levels + 1)),
        "marginal_mean": (marginal.mean.shape, (channels,)),
        "marginal_values": (marginal.values.shape, (channels, levels)),
    }
    for name, (found, expected) in shapes.items():
        if tuple(found) != expected:
            raise ValueError(f"expected {name} of shape {expected}, found {tuple(found)}")
    if scaler.values and len(scaler.values) != channels:
        raise ValueError(f"expected the values of {channels} channels, found those of {len(scaler.values)}")
    if not all(
        np.isfinite(values).all() and (np.diff(values) > 0).all() and len(values) != 1 for values in scaler.values
    ):
        raise ValueError("expected a channel's values to be none or several, finite and increasing")
    if not all(0 < x < math.inf for x in (*scaler.scale, scaler.horizon)) or not np.isfinite(scaler.location).all():
        raise ValueError("expected finite locations, and finite scales and a horizon above zero")
    if not all(torch.isfinite(x).all() for x in (calibrator.edges, calibrator.shift, marginal.mean, marginal.values)):
        raise ValueError("expected finite numbers in calibration.safetensors, found NaN or infinity")
