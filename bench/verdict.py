"""Faster, slower or no difference: the rule of `make bench-compare`.

Of each case there are n rounds of both sides, A B A B ..., n at least 3. The ratio of a round is the time of
the working tree over that of the base just before it; told are its median, smallest and largest value.

    faster           all times of the tree are below all of the base, and the median ratio below 1 - MARGIN
    slower           all times of the tree are above all of the base, and the median ratio above 1 + MARGIN
    no difference    all else

Were both sides the same, the first conditions would hold by chance in 2 of (2n)! / (n!)^2 cases: 10 % for 3
rounds, 0.8 % for 5. A machine that drifts hits both sides alike, since they take turns, and blurs them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

MARGIN = 0.02
LEAST_ROUNDS = 3
FASTER, SLOWER, NONE = "faster", "slower", "no difference"


@dataclass(frozen=True)
class Verdict:
    ratio: float
    low: float
    high: float
    word: str


def judge(base: Sequence[float], tree: Sequence[float], margin: float = MARGIN) -> Verdict:
    """The rule above, of the times of one case by round."""
    if len(base) != len(tree) or len(base) < LEAST_ROUNDS:
        raise ValueError(f"{len(base)}, {len(tree)} rounds: must be as many of both, at least {LEAST_ROUNDS}")
    ratios = [after / before for before, after in zip(base, tree, strict=True)]
    ratio = median(ratios)
    word = NONE
    if max(tree) < min(base) and ratio < 1 - margin:
        word = FASTER
    elif min(tree) > max(base) and ratio > 1 + margin:
        word = SLOWER
    return Verdict(ratio, min(ratios), max(ratios), word)


def by_chance(rounds: int) -> float:
    """The share of cases without a difference that are separated all the same."""
    return 2 / math.comb(2 * rounds, rounds)
