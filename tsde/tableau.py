"""Explicit Runge-Kutta methods by their coefficients."""

from __future__ import annotations

from typing import NamedTuple


class Tableau(NamedTuple):
    """y_s = z + h sum_{j<s} alpha_sj k_j with k_s = f(c_s h, y_s), and z+ = z + h sum_s beta_s k_s.

    Attributes:
        nodes: c.
        alpha: rows of coefficients, of length s each.
        beta: weights of the solution.
        lower: weights of an embedded solution one order lower or more, whose distance from the first estimates the
            error of a step; `None` for Euler's method, whose one stage has none.
    """

    nodes: tuple[float, ...]
    alpha: tuple[tuple[float, ...], ...]
    beta: tuple[float, ...]
    lower: tuple[float, ...] | None


TABLEAUS = {
    "euler": Tableau((0.0,), ((),), (1.0,), None),
    "midpoint": Tableau((0.0, 0.5), ((), (0.5,)), (0.0, 1.0), (1.0, 0.0)),
    "heun": Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5), (1.0, 0.0)),
    # Kutta's 3/8 rule, with the trapezoidal rule on its outer stages embedded
    "rk4": Tableau(
        (0.0, 1 / 3, 2 / 3, 1.0),
        ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
        (1 / 8, 3 / 8, 3 / 8, 1 / 8),
        (0.5, 0.0, 0.0, 0.5),
    ),
}
"""Kutta 1901; Hairer, Norsett and Wanner 1993, "Solving Ordinary Differential Equations I", section II.1."""
