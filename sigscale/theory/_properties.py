"""The four properties on which the theorems rest, decided by evaluating each registered function."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.functions import FUNCTIONS
from ._network import Activation, float64

SCALE = 2.0**20  # the alpha at which a limit for large alpha is read off
NEAR = 1e-4  # how near a limit has to come to be reached


class Properties(NamedTuple):
    """The four verdicts on f, and the numbers behind them; `linear_if_centered` is property 4 of f - f(0)."""

    name: str
    bound: float  # the supremum of |f|; any finite bound changes only constants in the proofs
    tail: float  # p where |z f'(z)| decays like z^-p on the slower side; infinite if faster than any power
    lower: float  # the limit at minus infinity; the proof of Theorem 1 also needs it to be other than 0
    upper: float  # the limit at infinity
    slope: float  # a_lin, the limit of alpha f(z / alpha) / z for large alpha; NaN where there is none
    centered_slope: float  # the same of f - f(0)
    bounded: bool  # property 1: |f(z)| <= 1 for all z
    vanishing: bool  # property 2: z f'(z) -> 0 for z -> +-infinity, however slowly
    positive: bool  # property 3: the limit at infinity is > 0
    linear: bool  # property 4: alpha f(z / alpha) -> a_lin z for large alpha, with a_lin > 0
    linear_if_centered: bool


def properties() -> list[Properties]:
    """|f| <= 1, z f'(z) -> 0, positive limit, linearity at the origin: the four properties of every function.

    The text says that "standard sigmoid-type activation functions, such as logsigmoid and arctan" meet all
    four. Evaluated in float64, to |z| = 2^300 and alpha = 2^20: arctan is bounded by pi / 2, not 1; the
    logistic function is 1/2 at the origin, so that alpha f(z / alpha) grows like alpha / 2; the derivatives
    of arctan and softsign vanish, but like 1 / z^2 and not exponentially.

    Returns: what was found, in the order of `sigscale.FUNCTIONS`.
    Source: the list after Theorem 1, Section 2.2 of arXiv 2106.02260.

    Example:
        >>> [(row.name, row.bounded, row.linear) for row in theory.properties()[:3]]
        [('tanh', True, True), ('sigmoid', True, False), ('arctan', False, True)]
    """
    return [_examine(name, float64(function)) for name, function in FUNCTIONS.items()]


def _examine(name: str, f: Activation) -> Properties:
    powers = 2.0 ** torch.arange(-20, 301, dtype=torch.float64)
    origin = powers.new_zeros(())
    values = f.value(torch.cat([-powers.flip(0), origin.unsqueeze(0), powers]))
    bound, lower, upper = float(values.abs().max()), float(values[0]), float(values[-1])
    tail = min(_tail(f, 1.0), _tail(f, -1.0))
    slopes = _slope_at_origin(f, origin), _slope_at_origin(f, f.value(origin))
    verdicts = bound <= 1, tail > 0, upper > 0, *(slope > 0 for slope in slopes)
    return Properties(name, bound, tail, lower, upper, *slopes, *verdicts)


def _tail(f: Activation, sign: float) -> float:
    """p of |z f'(z)| ~ z^-p, from two points far out on the axis."""
    z = sign * torch.tensor([2.0**50, 2.0**100], dtype=torch.float64)
    near, far = (z * f.slope(z)).abs().tolist()
    return math.log2(near / far) / 50 if far else math.inf


def _slope_at_origin(f: Activation, center: Tensor) -> float:
    """a if alpha (f(z / alpha) - center) = a z for several z and two large alpha, else NaN."""
    z = torch.tensor([-3.0, -1.0, 0.5, 2.0], dtype=torch.float64)
    slopes = torch.cat([alpha * (f.value(z / alpha) - center) / z for alpha in (SCALE, 2 * SCALE)])
    slope = float(slopes.mean())
    return slope if float((slopes - slope).abs().max()) <= NEAR * abs(slope) else math.nan
