"""For which t Theorem 1 is true: the exact boundary, and a random search for counterexamples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import check_integer
from ._theorems import checked_t, smallest_parameter, theorem_1

GRID = (0.01, 0.1, 1 / math.e, 0.5, 0.6, 0.62, 0.63, 0.65, 0.7, 0.73, 0.75, 0.8, 0.9, 0.99)
DEPTH = 6  # layers of the deepest networks drawn

Draws = tuple[Tensor, Tensor, Tensor, Tensor]  # theta (draws, l), x, d and r (draws,)


class Boundary(NamedTuple):
    """The largest t at which each claim of Theorem 1 is true, for every x, theta, d, r and depth."""

    first: float
    second: float


def theorem_1_boundary() -> Boundary:
    """The first claim is true up to t = 0.7385, the second up to t = 0.6230, and no further.

    exp(-l) with l the smaller root of l exp(-l) = M / 2, and exp(-sqrt(M / 2)), where M = 0.4477 is the
    maximum of u sech^2(u): the proof is in this folder's README.md.

    Returns: both boundaries, which the paper says are 1, and its proof 1/e.
    Source: Theorem 1 of arXiv 2106.02260; the boundaries are this package's.

    Example:
        >>> theory.theorem_1_boundary()
        Boundary(first=0.738..., second=0.623...)
    """
    return Boundary(0.7384899368098137, 0.6230361610712328)


class Counterexample(NamedTuple):
    """Numbers that satisfy Theorem 1's assumptions and violate a claim at layer k, in units of |d|."""

    theta: tuple[float, ...]
    x: float
    d: float
    r: float
    k: int
    found: float  # the derivative
    claimed: float  # its upper bound (first claim) or lower bound (second)


class Search(NamedTuple):
    """The outcome at one t: for each claim, the number of draws that violate it, and the worst."""

    t: float
    draws: int
    first: int
    second: int
    worst_first: Counterexample | None
    worst_second: Counterexample | None


def theorem_1_domain(
    ts: Sequence[float] = GRID, draws: int = 14_000, seed: int = 0, function: str = "tanh"
) -> list[Search]:
    """Search `draws` random networks for each t in `ts` for counterexamples to Theorem 1's two claims.

    Depths 1 to 6 are equally frequent. |x| is log-uniform from 0.03 to 30; half of the parameters have the
    smallest magnitude that the theorem allows, the others are up to a hundred times larger; r is |d| in half
    of the draws and larger in the others; signs are random; |d| is 1, since the claims scale with it.
    README.md in this folder lists the results for every function.

    Returns: one outcome for each t, in the order given.
    Source: Theorem 1 of arXiv 2106.02260, and what follows it about other functions.

    Example:
        >>> [(row.t, row.first > 0, row.second > 0) for row in theory.theorem_1_domain([0.3, 0.7, 0.9])]
        [(0.3, False, False), (0.7, False, True), (0.9, True, True)]
    """
    draws = check_integer(draws, "draws", "14_000 is the default")
    ts = [checked_t(t) for t in ts]
    generator = torch.Generator("cpu").manual_seed(seed)
    return [_search(t, draws, generator, function) for t in ts]


def _search(t: float, draws: int, generator: torch.Generator, function: str) -> Search:
    counts, worst = [0, 0], [list[Counterexample](), list[Counterexample]()]
    for depth in range(1, min(DEPTH, draws) + 1):
        numbers = _draw(t, (draws + DEPTH - depth) // DEPTH, depth, generator)
        theta, x, d, r = numbers
        result = theorem_1(t, theta, x, d, r, function)
        sides = (
            (result.first, result.unregularized, result.upper),
            (result.second, result.regularized, result.lower),
        )
        for claim, (holds, found, claimed) in enumerate(sides):
            violated = result.assumed.unsqueeze(-1) & ~holds
            counts[claim] += int(violated.any(-1).sum())
            worst[claim] += _worst(numbers, violated, found, claimed)
    first, second = (max(each, key=lambda one: abs(one.found - one.claimed), default=None) for each in worst)
    return Search(t, draws, counts[0], counts[1], first, second)


def _draw(t: float, draws: int, depth: int, generator: torch.Generator) -> Draws:
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        numbers = torch.rand(*shape, dtype=torch.float64, device="cpu", generator=generator)
        return low + (high - low) * numbers

    def sign(*shape: int) -> Tensor:
        return uniform(-1, 1, *shape).sign()

    def factor(*shape: int) -> Tensor:
        """1 in half of all cases, else larger."""
        return torch.where(sign(*shape) > 0, 1.0, 1 + 10 ** uniform(-2, 2, *shape))

    x = sign(draws) * 10 ** uniform(-1.5, 1.5, draws)
    theta = sign(draws, depth) * factor(draws, depth) * smallest_parameter(t, x).unsqueeze(-1)
    return theta, x, sign(draws), factor(draws)


def _worst(numbers: Draws, violated: Tensor, found: Tensor, claimed: Tensor) -> list[Counterexample]:
    """The draw and layer that violate a claim most, if any."""
    distance = torch.where(violated, (found - claimed.unsqueeze(-1)).abs(), -1.0)
    row, layer = divmod(int(distance.argmax()), distance.shape[-1])
    if not violated[row, layer]:
        return []
    theta, *others = (each[row] for each in (*numbers, found[:, layer], claimed))
    x, d, r, is_found, is_claimed = (each.item() for each in others)
    return [Counterexample(tuple(theta.tolist()), x, d, r, layer + 1, is_found, is_claimed)]
