"""For which t Theorem 1 is true: the exact boundary, and a random search for counterexamples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import checked_count
from ._theorems import checked_t, smallest_parameter, theorem_1

GRID = (0.01, 0.1, 1 / math.e, 0.5, 0.6, 0.62, 0.63, 0.65, 0.7, 0.73, 0.75, 0.8, 0.9, 0.99)
DEPTH = 6  # layers of the deepest networks drawn


class Boundary(NamedTuple):
    """The largest t at which a claim of Theorem 1 is true, for every x, theta, d, r and depth."""

    first: float
    second: float


def theorem_1_boundary() -> Boundary:
    """The first claim is true up to t = 0.7385, the second up to t = 0.6230, and no further.

    Theorem 1 is stated for every t in (0, 1); its proof needs log(1/t) >= 1, t <= 0.3679. The truth lies
    between. With u_i = theta^i f^(i-1), f^i = tanh(u_i), every partial derivative of g is

        (1 / theta^k) u_l sech^2(u_l) prod_(i = k .. l-1) 2 u_i / sinh(2 u_i),

    whose last factors are at most 1. So it is at most M / |theta^k| with M = max_u u sech^2(u) = 0.4477,
    attained where 2 u tanh(u) = 1, at depth 1 by x = u / theta. With L = log(1/t), |theta^k| >= 2 L.

    - Second claim: r |theta^k| - |d| M / |theta^k| >= |d| (2 L - M / 2L), which is at least |d| L if and only
      if L^2 >= M / 2. The boundary is t = exp(-sqrt(M / 2)).
    - First claim: M / 2L <= exp(-L) if and only if L exp(-L) >= M / 2. The boundary is the smaller root. Near
      the larger one, L = 2.5, and beyond it, the layers are saturated: |u_l| >= 2 L tanh(L) for l > 1, so
      that the derivative is at most 4 exp(-4 L tanh(L)) < exp(-L), and at most sech^2(L) / 2 for l = 1.

    Beyond a boundary theta = 2 L, x = u / theta, d = 1 at depth 1 is a counterexample, to the second claim
    with r = 1 or with the larger r that makes the penalized derivative 0.

    Returns:
        Both boundaries.

    Source: Theorem 1 of arXiv 2106.02260; the bound and the proof above are this package's.

    Example:
        >>> from sigscale import theory
        >>> theory.theorem_1_boundary()
        Boundary(first=0.738..., second=0.623...)
    """
    u = _bisected(lambda u: 2 * u * math.tanh(u) - 1, 0.0, 1.0)
    half = u / math.cosh(u) ** 2 / 2
    smaller_root = _bisected(lambda logarithm: logarithm * math.exp(-logarithm) - half, 0.0, 1.0)
    return Boundary(math.exp(-smaller_root), math.exp(-math.sqrt(half)))


def _bisected(rising: Callable[[float], float], low: float, high: float) -> float:
    """The root of a rising function between low and high."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return high


@dataclass(frozen=True)
class Counterexample:
    """Numbers that satisfy the assumptions of Theorem 1 and violate a claim, at layer k."""

    theta: tuple[float, ...]
    x: float
    d: float
    r: float
    k: int
    found: float
    """What the derivative is, in units of |d|."""
    claimed: float
    """What it is claimed to be at most (first claim) or at least (second)."""


@dataclass(frozen=True)
class Search:
    """The outcome of a random search at one t; of each claim, how many draws violate it and the worst."""

    t: float
    draws: int
    first: int
    second: int
    worst_first: Counterexample | None
    worst_second: Counterexample | None


def theorem_1_domain(
    ts: Sequence[float] = GRID, draws: int = 14_000, seed: int = 0, function: str = "tanh"
) -> list[Search]:
    """Search at random, for each t, for counterexamples to the two claims of Theorem 1.

    Depths 1 to 6 come equally often. |x| is log-uniform from 0.03 to 30; half of the parameters have the
    smallest magnitude that the theorem allows, the others are up to a hundred times larger; r is |d| in half
    of the draws and larger in the others; signs are random, and |d| is 1, since the claims scale with it.

    Args:
        ts: values of t in (0, 1).
        draws: networks for each t, at least 1.
        seed: of the draws, which are made on the CPU.
        function: name of f; the theorem is stated for tanh, the text transfers it to the others.

    Returns:
        One outcome for each t, in the order given.

    Raises:
        TypeError, ValueError: an argument is of a wrong type, or out of its range.

    Source: Theorem 1 of arXiv 2106.02260, and what follows it about other functions.

    Example:
        >>> from sigscale import theory
        >>> [(row.t, row.first > 0, row.second > 0) for row in theory.theorem_1_domain([0.3, 0.7, 0.9])]
        [(0.3, False, False), (0.7, False, True), (0.9, True, True)]
    """
    checked_count(draws, "draws")
    ts = [checked_t(t) for t in ts]
    generator = torch.Generator("cpu").manual_seed(seed)
    return [_search(t, draws, generator, function) for t in ts]


def _search(t: float, draws: int, generator: torch.Generator, function: str) -> Search:
    first, second = _Tally(), _Tally()
    for depth in range(1, DEPTH + 1):
        share = (draws + DEPTH - depth) // DEPTH
        if share:
            numbers = _draw(t, share, depth, generator)
            result = theorem_1(t, *numbers, function=function)
            assumed = result.assumed.unsqueeze(-1)
            first.add(numbers, assumed & ~result.first, result.unregularized, result.upper)
            second.add(numbers, assumed & ~result.second, result.regularized, result.lower)
    return Search(t, draws, first.count, second.count, first.worst, second.worst)


def _draw(
    t: float, draws: int, depth: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """theta (draws, depth), x, d and r (draws,)."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        numbers = torch.rand(*shape, dtype=torch.float64, device="cpu", generator=generator)
        return low + (high - low) * numbers

    def sign(*shape: int) -> Tensor:
        return uniform(-1, 1, *shape).sign()

    def factor(*shape: int) -> Tensor:
        """1 in half of all cases, else greater."""
        return torch.where(sign(*shape) > 0, 1.0, 1 + 10 ** uniform(-2, 2, *shape))

    x = sign(draws) * 10 ** uniform(-1.5, 1.5, draws)
    theta = sign(draws, depth) * factor(draws, depth) * smallest_parameter(t, x).unsqueeze(-1)
    return theta, x, sign(draws), factor(draws)


class _Tally:
    """How many draws violate a claim, and by how much the worst does."""

    def __init__(self) -> None:
        self.count = 0
        self.worst: Counterexample | None = None

    def add(
        self, numbers: tuple[Tensor, Tensor, Tensor, Tensor], violated: Tensor, found: Tensor, claimed: Tensor
    ) -> None:
        """`violated` and `found` are (draws, l), `claimed` is (draws,)."""
        self.count += int(violated.any(-1).sum())
        distance = torch.where(violated, (found - claimed.unsqueeze(-1)).abs(), -1.0)
        row, layer = divmod(int(distance.argmax()), distance.shape[-1])
        before = abs(self.worst.found - self.worst.claimed) if self.worst else 0.0
        if distance[row, layer] > before:
            theta, *others = (each[row] for each in numbers)
            x, d, r, is_found, is_claimed = (
                each.item() for each in (*others, found[row, layer], claimed[row])
            )
            self.worst = Counterexample(tuple(theta.tolist()), x, d, r, layer + 1, is_found, is_claimed)
