"""Theorems 1 and 2: both sides of every claim, and whether they hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from ._checks import checked_count, checked_number, checked_tensor, checked_theta, checked_together
from ._network import Numbers, gradient, run

LINEAR = 2.0**20  # alpha over the largest number in the network, from which on its layers are linear
LARGEST = 2.0**500  # of d, times which the limit at any depth is a float64
NEAR, FAR = 1e-4, 1e3  # how near a limit has to come to be reached; how far to be infinite


@dataclass(frozen=True)
class Theorem1:
    """What Theorem 1 compares; tensors (..., l), but `assumed` and the bounds (...)."""

    t: float
    assumed: Tensor
    """Whether r >= |d| and every |theta^i| is at least log(1/t) / min(|x|, 1/2)."""
    unregularized: Tensor
    """|d/dtheta^k h|, said to be at most `upper`."""
    upper: Tensor
    """|d| t."""
    regularized: Tensor
    """|d/dtheta^k (h + r/2 sum_i (theta^i)^2)|, said to be at least `lower`."""
    lower: Tensor
    """|d| log(1/t)."""

    @property
    def first(self) -> Tensor:
        """Whether the first claim holds for each k: unregularized <= |d| t."""
        return self.unregularized <= self.upper.unsqueeze(-1)

    @property
    def second(self) -> Tensor:
        """Whether the second claim holds for each k: regularized >= |d| log(1/t)."""
        return self.regularized >= self.lower.unsqueeze(-1)

    @property
    def holds(self) -> bool:
        """Whether both claims hold wherever the assumptions do."""
        return bool((~self.assumed.unsqueeze(-1) | (self.first & self.second)).all())


def theorem_1(
    t: float,
    theta: Numbers,
    x: Numbers,
    d: Numbers = 1.0,
    r: Numbers | None = None,
    function: str = "tanh",
) -> Theorem1:
    """Evaluate Theorem 1, the large-parameters regime: |d/dtheta^k h| <= |d| t, >= |d| log(1/t) with penalty.

    Args:
        t: the constant of the theorem, in (0, 1).
        theta: parameters (..., l), any number of draws at once.
        x, d, r: the input, h'[y - g(x)] and the tuning parameter of the penalty, of shapes that broadcast
            with theta's leading dimensions. By default r is |d|, the smallest that the theorem allows.
        function: name of f; the theorem is stated for tanh.

    Returns:
        Both sides of both claims, in float64, and whether assumptions and claims hold.

    Raises:
        TypeError, ValueError: an argument is not a real number, or out of its range.

    Source: Theorem 1, Section 2.2 of arXiv 2106.02260; `theorem_1_boundary` says for which t it is true.

    Example:
        >>> from sigscale import theory
        >>> result = theory.theorem_1(0.01, theta=[10.0, -12.0, 15.0], x=0.8)
        >>> result.assumed.item(), result.holds
        (True, True)
        >>> theory.theorem_1(0.7, theta=[0.72], x=1.0, d=-1.0).second.item()
        True
        >>> theory.theorem_1(0.7, theta=[0.72], x=1.0, d=1.0).second.item()
        False
    """
    t = checked_t(t)
    weights = checked_theta(theta)
    inputs, slope = checked_together(weights, x=x, d=d)
    (penalty,) = checked_together(weights, r=slope.abs() if r is None else r)
    assumed = (penalty >= slope.abs()) & (weights.abs() >= smallest_parameter(t, inputs).unsqueeze(-1)).all(
        -1
    )
    return Theorem1(
        t=t,
        assumed=assumed,
        unregularized=gradient(weights, inputs, function=function, d=slope).abs(),
        upper=slope.abs() * t,
        regularized=gradient(weights, inputs, function=function, d=slope, r=penalty).abs(),
        lower=slope.abs() * math.log(1 / t),
    )


def smallest_parameter(t: float, x: Numbers) -> Tensor:
    """log(1/t) / min(|x|, 1/2), what Theorem 1 asks of every |theta^i|; infinite for x = 0.

    Args:
        t: the constant of the theorem, in (0, 1).
        x: inputs of any shape.

    Returns:
        float64 tensor of x's shape.

    Raises:
        TypeError, ValueError: an argument is not a real number, or out of its range.

    Source: Theorem 1, Section 2.2 of arXiv 2106.02260.

    Example:
        >>> from sigscale import theory
        >>> theory.smallest_parameter(0.1, [0.25, 3.0])
        tensor([9.2103, 4.6052], dtype=torch.float64)
    """
    return math.log(1 / checked_t(t)) / checked_tensor(x, "x").abs().clamp(max=0.5)


def checked_t(t: float) -> float:
    if isinstance(t, Real) and not isinstance(t, bool) and not 0 < t < 1:
        raise ValueError(f"t must be in (0, 1); got {t!r}: the theorem is true up to t = 0.62")
    return checked_number(t, "t")


@dataclass(frozen=True)
class Theorem2:
    """What Theorem 2 compares; the rows of `scaled` and `naive` belong to `alphas`."""

    unscaled: Tensor
    """(l,): |d/dtheta^k h| at alpha = 1, said to be at most `bound`."""
    bound: Tensor
    """(l,): |d| / 2^(l - k + 1)."""
    alphas: Tensor
    """(n,): powers of 2, the last so large that the network is linear."""
    scaled: Tensor
    """(n, l): |d/dtheta^k h| with alpha f(z / alpha), said to tend to `limit`."""
    limit: float
    """|d| 1.5^(l - 1) |x|."""
    naive: Tensor
    """(n, l): |d/dtheta^k h| with alpha f(z), said to tend to infinity."""

    @property
    def first(self) -> Tensor:
        """Whether the first claim holds for each k: unscaled <= |d| / 2^(l - k + 1)."""
        return self.unscaled <= self.bound

    @property
    def error(self) -> Tensor:
        """(n, l): how far `scaled` is from the limit, relative to it."""
        return (self.scaled - self.limit).abs() / self.limit

    @property
    def second(self) -> Tensor:
        """Whether the second claim holds for each k: at the largest alpha the limit is reached to 1e-4."""
        return self.error[-1] <= NEAR

    @property
    def naive_explodes(self) -> Tensor:
        """Whether, for each k, naive scaling multiplies the gradient a thousandfold at the largest alpha."""
        return self.naive[-1] >= FAR * self.naive[0]

    @property
    def holds(self) -> bool:
        """Whether both claims hold; what the text says about naive scaling is none of the theorem's."""
        return bool((self.first & self.second).all())


def theorem_2(depth: int, x: float = 1.5, d: float = 1.0, function: str = "tanh") -> Theorem2:
    """Evaluate Theorem 2, the many-layers regime, at |x| = |theta^1| = ... = |theta^l| = 1.5.

    Unscaled, |d/dtheta^k h| <= |d| / 2^(l - k + 1); alpha-scaled, it tends to |d| 1.5^(l - 1) |x| as alpha
    grows. It does so only once alpha is well above 1.5^(l + 1): scaling by alpha divides the input by alpha
    (see `identity`), and after some log(alpha) / log(1.5) layers the signal has grown back.

    Naive scaling, alpha f(z), is said in the text to make the limit infinite. For tanh that is so at l = 1
    only: in deeper networks it drives the layers after the first into saturation, and the limit is 0. What
    it multiplies, by alpha a layer, are the derivatives at the origin.

    Args:
        depth: the number of layers l, up to 500.
        x: the input, 1.5 or -1.5. The signs of the parameters change no magnitude where f is odd; they are
            all positive here.
        d: h'[y - g(x)], not 0 and up to 2^500.
        function: name of f; the theorem is stated for tanh.

    Returns:
        Both sides of both claims, in float64, and whether they hold.

    Raises:
        TypeError, ValueError: an argument is not a real number, or out of its range.

    Source: Theorem 2, Section 2.3 of arXiv 2106.02260.

    Example:
        >>> from sigscale import theory
        >>> result = theory.theorem_2(10)
        >>> result.holds, result.naive_explodes.any().item(), round(result.limit, 2)
        (True, False, 57.67)
        >>> theory.theorem_2(10, function="sigmoid").second.any().item()  # not linear at the origin
        False
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
    scaled, naive = (
        (slope * run(theta, inputs, alphas, function, naive=naive)[1]).abs() for naive in (False, True)
    )
    return Theorem2(
        unscaled=scaled[0],
        bound=slope.abs() * 2.0 ** -torch.arange(depth, 0, -1, dtype=torch.float64),
        alphas=alphas,
        scaled=scaled,
        limit=abs(float(slope)) * 1.5 ** (depth - 1) * abs(float(inputs)),
        naive=naive,
    )
