"""Theorems 1 and 2: both sides of every claim, and whether they hold."""

from __future__ import annotations

import math
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import checked_count, checked_network, checked_number, checked_tensor
from ._network import Numbers, gradient, run

LINEAR = 2.0**20  # alpha over the largest number in the network, beyond which its layers are linear
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
    if isinstance(t, Real) and not isinstance(t, bool) and not 0 < t < 1:
        raise ValueError(f"t must be in (0, 1); got {t!r}: the theorem is true up to t = 0.62")
    return checked_number(t, "t")


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
    alpha f(z), makes the limit infinite. For tanh that is so at l = 1 only: in deeper networks it saturates
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
    depth = checked_count(depth, "depth")
    inputs, slope = checked_tensor(x, "x"), checked_tensor(d, "d")
    single = inputs.numel() == slope.numel() == 1
    if depth > 500 or not (single and abs(inputs) == 1.5 and 0 < abs(slope) < LARGEST):
        raise ValueError(
            "Theorem 2 is about a single |x| = 1.5, d not 0, here to |d| = 2^500 and a depth of 500; got "
            f"x={x!r}, d={d!r}, depth={depth!r}: use gradient() for other numbers"
        )
    theta = torch.full((depth,), 1.5, dtype=torch.float64)
    largest = LINEAR * 1.5 ** (depth + 1)
    alphas = 2.0 ** torch.arange(math.ceil(math.log2(largest)) + 1, dtype=torch.float64)
    scaled, naive = ((slope * run(theta, inputs, alphas, function, naive=n)[1]).abs() for n in (False, True))
    bound = slope.abs() * 2.0 ** -torch.arange(depth, 0, -1, dtype=torch.float64)
    limit = abs(float(slope)) * 1.5 ** (depth - 1) * abs(float(inputs))
    error = (scaled - limit).abs() / limit
    first, second, explodes = scaled[0] <= bound, error[-1] <= NEAR, naive[-1] >= FAR * naive[0]
    holds = bool((first & second).all())
    return Theorem2(scaled[0], bound, first, alphas, scaled, limit, error, second, naive, explodes, holds)
