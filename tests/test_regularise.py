"""Regularised dynamics and recomputation, as options of the one loop."""

from __future__ import annotations

import pytest
import torch
from test_training import TRAINED, VALIDATION, config, fresh, same, train, weights

from tsde.errors import UsageError
from tsde.solving import Estimates, estimating
from tsde.training import Regularise


def estimated(model: torch.nn.Module) -> tuple[float, float]:
    """Mean error and stiffness over the validation windows."""
    with torch.no_grad(), estimating() as estimates:
        for window in VALIDATION:
            model(window.query if model.causal else window.per_origin().query)
    return float(torch.stack(estimates.error).mean()), float(torch.stack(estimates.stiffness).mean())


@pytest.mark.parametrize("times", ["all", "random"])
@pytest.mark.parametrize("family", sorted(set(TRAINED) - {"gru", "mixer"}))
def test_a_regularised_model_is_easier_to_solve(family: str, times: str) -> None:
    plain, cheap = fresh(family), fresh(family)
    train(plain, config(steps=80))
    train(cheap, config(steps=80, regularise={"error": 3.0, "stiffness": 0.3, "times": times}))
    (error, stiffness), (less, softer) = estimated(plain), estimated(cheap)
    assert less < 0.95 * error and softer < stiffness


def test_without_weights_nothing_is_estimated_and_nothing_changes() -> None:
    one, other = fresh(), fresh()
    train(one, config())
    train(other, config(regularise={"times": "random"}))
    assert same(weights(one), weights(other))


def test_one_time_costs_on_average_what_all_cost() -> None:
    estimates = Estimates(list(torch.rand(20)), list(torch.rand(20)))
    every = Regularise(error=2.0, stiffness=0.5).penalty(estimates)
    torch.manual_seed(0)
    drawn = torch.stack([Regularise(error=2.0, stiffness=0.5, times="random").penalty(estimates) for _ in range(4000)])
    assert float(drawn.std()) > 0.1
    assert float(drawn.mean()) == pytest.approx(float(every), abs=4 * float(drawn.std()) / 4000**0.5)


def test_a_family_without_an_equation_cannot_be_regularised() -> None:
    with pytest.raises(UsageError, match="solves an equation"):
        Regularise(error=1.0).penalty(Estimates())


@pytest.mark.parametrize("family", ["filter", "latent_ode", "neural_cde"])
def test_recomputation_trains_the_same_model(family: str) -> None:
    whole, parts = fresh(family), fresh(family)
    train(whole, config())
    train(parts, config(recompute=3))
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], value, rtol=1e-3, atol=1e-5)
