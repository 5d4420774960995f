"""Theorems 1 and 2, both sides of every claim, and the four properties on which they rest."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import check_integer, check_real
from ..kernels.functions import FUNCTIONS
from ._network import Activation, Numbers, checked_network, checked_tensor, float64, gradient, run

LARGE = 2.0**20  # beyond this multiple of the largest number in the network, alpha makes its layers linear
LARGEST = 2.0**500  # of |d|: times it, the limit at any depth is a float64
NEAR, FAR = 1e-4, 1e3  # relative distance at which a limit counts as reached; growth that counts as explosion


class Theorem1(NamedTuple):
    """Both sides of Theorem 1's claims, for each draw (...) or each draw and layer (..., l)."""

    t: float
    assumed: Tensor  # (...): r >= |d|, and every |theta^i| is at least log(1/t) / min(|x|, 1/2)
    unregularized: Tensor  # (..., l): |d/dtheta^k h|
    upper: Tensor  # (...): |d| t
    first: Tensor  # (..., l): unregularized <= upper, the first claim
    regularized: Tensor  # (..., l): |d/dtheta^k (h + r/2 sum_i (theta^i)^2)|
    lower: Tensor  # (...): |d| log(1/t)
    second: Tensor  # (..., l): regularized >= lower, the second claim
    holds: bool  # both claims hold wherever the assumptions do


def theorem_1(
    t: float, theta: Numbers, x: Numbers, d: Numbers = 1.0, r: Numbers | None = None, function: str = "tanh"
) -> Theorem1:
    """Evaluate Theorem 1, the large-parameters regime: |d/dtheta^k h| <= |d| t, >= |d| log(1/t) with penalty.

    t is in (0, 1); r is by default |d|, the smallest that the theorem allows.

    Returns: both sides of both claims, and whether assumptions and claims hold.
    Source: Theorem 1, Section 2.2 of arXiv 2106.02260; `theorem_1_boundary` says for which t it is true.

    Example:
        >>> result = theory.theorem_1(0.01, theta=[10.0, -12.0, 15.0], x=0.8)
        >>> result.assumed.item(), result.holds
        (True, True)
        >>> theory.theorem_1(0.7, theta=[0.72], x=1.0, d=1.0).second.item()
        False
    """
    t = checked_t(t)
    weights, inputs, slope = checked_network(theta, x=x, d=d)
    _, penalty = checked_network(weights, r=slope.abs() if r is None else r)
    large = weights.abs() >= smallest_parameter(t, inputs).unsqueeze(-1)
    assumed = (penalty >= slope.abs()) & large.all(-1)
    plain = gradient(weights, inputs, function=function, d=slope).abs()
    penalized = gradient(weights, inputs, function=function, d=slope, r=penalty).abs()
    upper, lower = slope.abs() * t, slope.abs() * math.log(1 / t)
    first, second = plain <= upper.unsqueeze(-1), penalized >= lower.unsqueeze(-1)
    holds = bool((~assumed.unsqueeze(-1) | (first & second)).all())
    return Theorem1(t, assumed, plain, upper, first, penalized, lower, second, holds)


def smallest_parameter(t: float, x: Numbers) -> Tensor:
    """log(1/t) / min(|x|, 1/2), the least |theta^i| in Theorem 1; infinite for x = 0.

    Returns: tensor of x's shape.
    Source: Theorem 1, Section 2.2 of arXiv 2106.02260.

    Example:
        >>> theory.smallest_parameter(0.1, [0.25, 3.0])
        tensor([9.2103, 4.6052], dtype=torch.float64)
    """
    return math.log(1 / checked_t(t)) / checked_tensor(x, "x").abs().clamp(max=0.5)


def checked_t(t: float) -> float:
    remedy = "the theorem is true up to t = 0.62"
    return check_real(t, "t", "a real number in (0, 1)", remedy, high=math.nextafter(1, 0))


class Theorem2(NamedTuple):
    """Both sides of Theorem 2's claims for n scales and layers k = 1 to l."""

    unscaled: Tensor  # (l,): |d/dtheta^k h| at alpha = 1
    bound: Tensor  # (l,): |d| / 2^(l - k + 1)
    first: Tensor  # (l,): unscaled <= bound, the first claim
    alphas: Tensor  # (n,): powers of 2, up to one at which the network is linear
    scaled: Tensor  # (n, l): |d/dtheta^k h| with alpha f(z / alpha)
    limit: float  # |d| 1.5^(l - 1) |x|
    error: Tensor  # (n, l): the relative distance of `scaled` from the limit
    second: Tensor  # (l,): the largest alpha reaches the limit to 1e-4, the second claim
    naive: Tensor  # (n, l): |d/dtheta^k h| with alpha f(z)
    naive_explodes: Tensor  # (l,): the largest alpha multiplies `naive` a thousandfold, as the text says
    holds: bool  # both claims hold; the text's remark on naive scaling is not one of them


def theorem_2(depth: int, x: float = 1.5, d: float = 1.0, function: str = "tanh") -> Theorem2:
    """Evaluate Theorem 2, the many-layers regime, at |x| = |theta^1| = ... = |theta^l| = 1.5.

    Unscaled, |d/dtheta^k h| <= |d| / 2^(l - k + 1); scaled, it tends to |d| 1.5^(l - 1) |x| as alpha grows,
    but only once alpha is well above 1.5^(l + 1): see `identity`. The text says that naive scaling,
    alpha f(z), makes the limit infinite. For tanh that is true at l = 1 only: in deeper networks it saturates
    the layers after the first, and the limit is 0.

    `depth` is up to 500, x is 1.5 or -1.5, d up to 2^500 and not 0. The parameters are positive: where f is
    odd, signs change no magnitude.

    Returns: both sides of both claims, and whether they hold.
    Source: Theorem 2, Section 2.3 of arXiv 2106.02260.

    Example:
        >>> result = theory.theorem_2(10)
        >>> result.holds, result.naive_explodes.any().item(), round(result.limit, 2)
        (True, False, 57.67)
    """
    depth = check_integer(depth, "depth", "1 is a single neuron")
    inputs, slope = checked_tensor(x, "x"), checked_tensor(d, "d")
    single = inputs.numel() == slope.numel() == 1
    if depth > 500 or not (single and abs(inputs) == 1.5 and 0 < abs(slope) < LARGEST):
        raise ValueError(
            "Theorem 2 is about a single |x| = 1.5, d not 0, here to |d| = 2^500 and a depth of 500; got "
            f"x={x!r}, d={d!r}, depth={depth!r}: use gradient() for other numbers"
        )
    theta = torch.full((depth,), 1.5, dtype=torch.float64)
    largest = LARGE * 1.5 ** (depth + 1)
    alphas = 2.0 ** torch.arange(math.ceil(math.log2(largest)) + 1, dtype=torch.float64)
    scaled, naive = ((slope * run(theta, inputs, alphas, function, naive=n)[1]).abs() for n in (False, True))
    bound = slope.abs() * 2.0 ** -torch.arange(depth, 0, -1, dtype=torch.float64)
    limit = abs(float(slope)) * 1.5 ** (depth - 1) * abs(float(inputs))
    error = (scaled - limit).abs() / limit
    first, second, explodes = scaled[0] <= bound, error[-1] <= NEAR, naive[-1] >= FAR * naive[0]
    holds = bool((first & second).all())
    return Theorem2(scaled[0], bound, first, alphas, scaled, limit, error, second, naive, explodes, holds)


class Properties(NamedTuple):
    """The four verdicts on f, and the numbers behind them; `linear_if_centered` is property 4 of f - f(0)."""

    name: str
    bound: float  # the supremum of |f|; any finite bound changes only constants in the proofs
    tail: float  # p where |z f'(z)| decays like z^-p on the slower side; infinite if faster than any power
    lower: float  # the limit at minus infinity, which the proof of Theorem 1 needs to be other than 0
    upper: float  # the limit at infinity
    slope: float  # a_lin, the limit of alpha f(z / alpha) / z for large alpha; NaN where there is none
    centered_slope: float  # the same for f - f(0)
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

    Returns: the findings, in the order of `sigscale.FUNCTIONS`.
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
    slopes = torch.cat([alpha * (f.value(z / alpha) - center) / z for alpha in (LARGE, 2 * LARGE)])
    slope = float(slopes.mean())
    return slope if float((slopes - slope).abs().max()) <= NEAR * abs(slope) else math.nan
