"""The paper's claims C1 to C4 about its Figures 1 to 4, as statements that numbers can decide.

Each `Statement` quotes the paper and names what is measured in every run, which pipelines are compared seed
by seed (runs of one seed share initial parameters and image order), and the rule of `verdicts` that decides.
The paper states its claims in words alone; that "considerably" is two points, say, is our reading, and the
constants below are all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from examples.cifar10.figures import LOWEST
from examples.cifar10.store import Outcome

EARLY = 5
"""Epochs, from the first, that "initially" and "immediately" mean: their mean accuracy is compared."""
LATER = 12
"""Epochs that "after about ten epochs" needs."""
CONSIDERABLE = 2.0
"""Points of accuracy (percentage points) that the mean must gain."""
SIMILAR = 1.0
"""Points that "very similarly" allows between two pipelines."""
SAME = 2.0
"""Points that "virtually the same" allows."""
NEAR_CHANCE = 15.0
"""Per cent; chance is 10."""
EXPLODING = 100.0
"""A run explodes when a gradient is inf or nan, or the 95 % quantile of |gradient| over some epoch exceeds
so many times that of the first epoch, or so many times 1 where that is larger."""


@dataclass(frozen=True)
class Measure:
    """A number of a run: in per cent, or, where `log`, the decimal logarithm of a gradient or a ratio."""

    words: str
    of: Callable[[Outcome], float]
    epochs: int = 1
    log: bool = False


@dataclass(frozen=True)
class Statement:
    """One sentence of the paper and what decides it.

    `rule` is "above", "alike", "below" or "never"; `margin` is its margin, or the limit of the latter two.
    With two `pipelines` it is applied to the first one's numbers minus the second one's, else to the numbers
    themselves.  A reading of ours that does not count (`counts`) is reported beside the claim.
    """

    name: str
    words: str
    measure: Measure
    pipelines: tuple[str, ...]
    rule: str
    margin: float = 0.0
    counts: bool = True


@dataclass(frozen=True)
class Claim:
    name: str
    figure: str
    section: str
    statements: tuple[Statement, ...]


def _early(run: Outcome) -> float:
    return 100 * float(run.curves["test_accuracy"][:EARLY].mean())


def _final(run: Outcome) -> float:
    return 100 * float(run.curves["test_accuracy"][-1])


def _median(run: Outcome, name: str, epoch: int = 0) -> float:
    """log10; what has vanished counts as LOWEST, what is not finite as nan."""
    value = float(run.curves[f"{name}_q50"][epoch])
    return math.log10(max(value, LOWEST)) if math.isfinite(value) else math.nan


def _fall(run: Outcome) -> float:
    return _median(run, "gradient") - _median(run, "gradient", -1)


def _growth(run: Outcome) -> float:
    high = run.curves["gradient_q95"]
    if run.curves["gradient_nonfinite"].any() or not np.isfinite(high).all():
        return math.inf
    return math.log10(max(high.max(), LOWEST) / max(high[0], 1.0))


INITIAL = Measure(f"mean test accuracy over epochs 1 to {EARLY}", _early, EARLY)
FINAL = Measure("test accuracy after the last epoch", _final, EARLY)
AFTER_TEN = replace(FINAL, epochs=LATER)
START = Measure("median |gradient| over the first epoch", partial(_median, name="gradient"), log=True)
START_OF_LOSS = replace(
    START, words="the same of the loss alone, without the penalty", of=partial(_median, name="loss_gradient")
)
FALL = Measure("median |gradient| over the first epoch / over the last", _fall, LATER, log=True)
GROWTH = Measure("largest 95 % quantile of |gradient| / max(1, that of epoch 1)", _growth, 2, log=True)

AS_BEFORE = "We obtain virtually the same results as before"
LARGE, DEEP = ("large-tanh-r", "large-tanh"), ("deep-tanh-a2", "deep-tanh")


def _start(name: str, words: str, pair: tuple[str, str]) -> tuple[Statement, Statement]:
    return (
        Statement(name, words, START, pair, "above"),
        Statement(f"{name}*", words, START_OF_LOSS, pair, "above", counts=False),
    )


def _calm(name: str, words: str, pipeline: str) -> Statement:
    return Statement(name, words, GROWTH, (pipeline,), "never", math.log10(EXPLODING))


def _combined(claim: str, activation: str) -> tuple[Statement, ...]:
    """What Figure 3 shows, and Figure 4 for the logistic function."""
    plain, remedied = f"combined-{activation}", f"combined-{activation}-a2-r"
    combine, corroborate, bad = (
        "regularization and scaling can be combined",
        "The results here corroborate the results above",
        "relu, in this specific example, is not performing well",
    )
    if claim == "C4":
        combine, corroborate, bad = (f"{AS_BEFORE} [both remedies help]", AS_BEFORE, AS_BEFORE)
    relus = (
        ("d", f"{bad} [relu]", "combined-relu"),
        ("e", f"{bad} [relu with the penalty]", "combined-relu-r"),
    )
    return (
        Statement(f"{claim}a", combine, AFTER_TEN, (remedied, plain), "above", CONSIDERABLE),
        *_start(f"{claim}b", f"{corroborate} [larger gradients at the start]", (remedied, plain)),
        _calm(f"{claim}c", f"{corroborate} [no explosion]", remedied),
        *(Statement(claim + k, words, AFTER_TEN, (remedied, relu), "above") for k, words, relu in relus),
        *(
            Statement(f"{claim}{k}*", words, AFTER_TEN, (relu,), "below", NEAR_CHANCE, counts=False)
            for k, words, relu in relus
        ),
    )


def _as_before(name: str, suffix: str) -> Statement:
    pair = (f"combined-sigmoid{suffix}", f"combined-tanh{suffix}")
    return Statement(name, AS_BEFORE, AFTER_TEN, pair, "alike", SAME)


_SIMILARLY = "unregularized and regularized training perform very similarly initially"
_IMPROVES = "after about ten epochs, the regularization improves the accuracies considerably"
_C1 = (
    Statement("C1a", _SIMILARLY, INITIAL, LARGE, "alike", SIMILAR),
    Statement("C1b", _IMPROVES, AFTER_TEN, LARGE, "above", CONSIDERABLE),
    *_start("C1c", "regularization leads to larger gradients in the beginning", LARGE),
    _calm("C1d", "regularization does not lead to exploding gradients", LARGE[0]),
    Statement("C1e", "indeed, the gradients become smaller", FALL, LARGE[:1], "above"),
)
_C2 = (
    Statement("C2a", "the improvements kick in immediately", INITIAL, DEEP, "above"),
    Statement("C2b", "speed up parameter training considerably", FINAL, DEEP, "above", CONSIDERABLE),
    Statement("C2c", "the larger gradients in the beginning", START, DEEP, "above"),
    _calm("C2d", "without leading to an exploding-gradient problem", DEEP[0]),
)
_C4 = (*_combined("C4", "sigmoid"), _as_before("C4f", ""), _as_before("C4g", "-a2-r"))
CLAIMS = (
    Claim("C1", "1", "Section 3.1", _C1),
    Claim("C2", "2", "Section 3.2", _C2),
    Claim("C3", "3", "Section 3.3", _combined("C3", "tanh")),
    Claim("C4", "4", "Appendix C", _C4),
)
