"""The four properties on which the theorems rest, decided by evaluating each registered function."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.functions import FUNCTIONS
from ._network import Activation, float64

FARTHEST = 2.0**300  # where a limit at infinity is read off; its square is still a float64
SCALE = 2.0**20  # the alpha at which a limit for large alpha is read off
NEAR = 1e-4  # how near a limit has to come to be reached


@dataclass(frozen=True)
class Properties:
    """What was found of one function; the four verdicts are `bounded`, `vanishing`, `positive`, `linear`."""

    name: str
    bound: float
    """The supremum of |f|. Property 1 demands 1; any finite bound changes only constants in the proofs."""
    tail: float
    """p where |z f'(z)| decays like z^-p on the slower side; infinite if faster than any power."""
    lower: float
    """The limit at minus infinity. The proof of Theorem 1 also needs it to be other than 0."""
    upper: float
    """The limit at infinity."""
    slope: float
    """a_lin, the limit of alpha f(z / alpha) / z for large alpha; NaN where there is none."""
    centred_slope: float
    """The same of f - f(0)."""

    @property
    def bounded(self) -> bool:
        """Property 1: |f(z)| <= 1 for all z."""
        return self.bound <= 1

    @property
    def vanishing(self) -> bool:
        """Property 2: z f'(z) -> 0 for z -> +-infinity, however slowly."""
        return self.tail > 0

    @property
    def positive(self) -> bool:
        """Property 3: the limit at infinity is > 0."""
        return self.upper > 0

    @property
    def linear(self) -> bool:
        """Property 4: alpha f(z / alpha) -> a_lin z for large alpha, with a_lin in (0, infinity)."""
        return self.slope > 0

    @property
    def linear_if_centred(self) -> bool:
        """Property 4 of f - f(0)."""
        return self.centred_slope > 0


def properties() -> list[Properties]:
    """|f| <= 1, z f'(z) -> 0, positive limit, linearity at the origin: the four properties of every function.

    The text says that "standard sigmoid-type activation functions, such as logsigmoid and arctan" meet all
    four. Evaluated in float64, to |z| = 2^300 and alpha = 2^20: arctan is bounded by pi / 2, not 1; the
    logistic function is 1/2 at the origin, so that alpha f(z / alpha) grows like alpha / 2; the
    derivatives of arctan and softsign vanish, but like 1 / z^2 and not exponentially, so that Theorem 1's
    bound |d| t fails for small t. Nor does it carry over to the logistic function, whose outputs may come
    near 0.

    Returns:
        What was found, in the order of `sigscale.FUNCTIONS`.

    Source: the list after Theorem 1, Section 2.2 of arXiv 2106.02260.

    Example:
        >>> from sigscale import theory
        >>> for row in theory.properties()[:3]:
        ...     print(row.name, row.bounded, row.vanishing, row.positive, row.linear, row.linear_if_centred)
        tanh True True True True True
        sigmoid True True True False True
        arctan False True True True True
    """
    return [_examine(name, float64(function)) for name, function in FUNCTIONS.items()]


def _examine(name: str, f: Activation) -> Properties:
    powers = 2.0 ** torch.arange(-20, 301, dtype=torch.float64)
    z = torch.cat([-powers.flip(0), powers.new_zeros(1), powers])
    values, origin = f.value(z), f.value(z.new_zeros(()))
    return Properties(
        name=name,
        bound=float(values.abs().max()),
        tail=min(_tail(f, 1.0), _tail(f, -1.0)),
        lower=float(values[0]),
        upper=float(values[-1]),
        slope=_slope_at_origin(f, z.new_zeros(())),
        centred_slope=_slope_at_origin(f, origin),
    )


def _tail(f: Activation, sign: float) -> float:
    """p of |z f'(z)| ~ z^-p, from two points far out on the axis."""
    z = sign * torch.tensor([2.0**50, 2.0**100], dtype=torch.float64)
    near, far = (z * f.slope(z)).abs().tolist()
    return math.log2(near / far) / 50 if far else math.inf


def _slope_at_origin(f: Activation, centre: Tensor) -> float:
    """a if alpha (f(z / alpha) - centre) = a z for several z and two large alpha, else NaN."""
    z = torch.tensor([-3.0, -1.0, 0.5, 2.0], dtype=torch.float64)
    slopes = torch.cat([alpha * (f.value(z / alpha) - centre) / z for alpha in (SCALE, 2 * SCALE)])
    slope = float(slopes.mean())
    return slope if float((slopes - slope).abs().max()) <= NEAR * abs(slope) else math.nan
