"""Rules that turn the differences between paired runs into a plain verdict.

A rule is given one number for each seed and answers with a `Judgment`.  All of them test with the
distribution-free Wilcoxon signed-rank test; none knows what the numbers are of.  The constants below
are the whole of their discretion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import numpy.typing as npt
from scipy import stats

LEVEL = 0.05
"""Of every test; not corrected for there being many."""
MIN_SEEDS = 6
"""With fewer no two-sided signed-rank test falls below LEVEL: five seeds reach 2 / 2^5 = 0.0625 at best."""
ROUNDING = 9
"""Decimals that differences are rounded to, so that equal ones tie."""

Values = npt.NDArray[np.float64]


class Verdict(str, Enum):
    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    DIFFERS = "differs"
    TOO_FEW = "too few seeds/epochs to tell"


@dataclass(frozen=True)
class Judgment:
    """`p` is that of `test`; `effect` a mean (or a share) with its interval of 95 %; `why` a sentence."""

    verdict: Verdict
    why: str
    seeds: int = 0
    test: str = ""
    p: float = math.nan
    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan


def above(differences: Sequence[float], margin: float = 0.0) -> Judgment:
    """Whether differences are above 0, by `margin` on average: the two-sided test, then the size.

    Reproduced: p < LEVEL with positive ranks ahead, and a mean of at least `margin` (and above 0).
    Differs: p < LEVEL with negative ranks ahead.  Not reproduced: all else.
    """
    values = _finite(differences)
    more, less = signed_rank(values, "greater"), signed_rank(values, "less")
    p = min(1.0, 2 * min(more, less))
    mean, low, high = interval(values)
    if p >= LEVEL:
        verdict, why = Verdict.NOT_REPRODUCED, "no significant difference"
    elif less < more:
        verdict, why = Verdict.DIFFERS, "significantly the other way round"
    elif mean < margin or mean <= 0:
        verdict, why = Verdict.NOT_REPRODUCED, "significant, but smaller than the margin"
    else:
        verdict, why = Verdict.REPRODUCED, "significant, in the direction claimed"
    judgment = Judgment(verdict, why, len(values), "Wilcoxon, two-sided", p, mean, low, high)
    return _enough(judgment, int(np.count_nonzero(np.round(values, ROUNDING))))


def alike(differences: Sequence[float], margin: float) -> Judgment:
    """Whether differences are within `margin` of 0: two one-sided tests, of d > -margin and of d < margin.

    Reproduced: both p < LEVEL (the larger one is reported).  Differs: a two-sided test against 0 has
    p < LEVEL, and the mean is at least `margin` away.  Not reproduced: all else.
    """
    values = _finite(differences)
    p = max(signed_rank(values + margin, "greater"), signed_rank(values - margin, "less"))
    mean, low, high = interval(values)
    if p < LEVEL:
        verdict, why = Verdict.REPRODUCED, "significantly within the margin"
    elif abs(mean) >= margin and signed_rank(values, "two-sided") < LEVEL:
        verdict, why = Verdict.DIFFERS, "significantly apart, by more than the margin"
    else:
        verdict, why = Verdict.NOT_REPRODUCED, "equality within the margin is not established"
    return _enough(Judgment(verdict, why, len(values), "Wilcoxon, two one-sided", p, mean, low, high))


def never(events: Sequence[bool]) -> Judgment:
    """Whether something happens in no run; `effect` is the share of runs in which it did (Clopper-Pearson).

    Reproduced: in none.  Differs: in more than half.  Not reproduced: all else.
    """
    count, seeds = sum(map(bool, events)), len(events)
    if not seeds:
        return _enough(Judgment(Verdict.TOO_FEW, ""))
    bounds = stats.binomtest(count, seeds).proportion_ci(0.95)
    low, high = float(bounds.low), float(bounds.high)
    if not count:
        verdict = Verdict.REPRODUCED
    else:
        verdict = Verdict.DIFFERS if 2 * count > seeds else Verdict.NOT_REPRODUCED
    why = f"in {count} of {seeds} runs"
    return _enough(Judgment(verdict, why, seeds, effect=count / seeds, low=low, high=high))


def signed_rank(values: Values, alternative: str) -> float:
    """The p value of the Wilcoxon signed-rank test of the location 0; zeros are dropped.

    Exact up to 50 seeds, or up to 13 where absolute differences tie; beyond by the normal approximation.
    """
    rounded = np.round(values, ROUNDING)
    rounded = rounded[rounded != 0]
    if not len(rounded):
        return 1.0
    return float(stats.wilcoxon(rounded, alternative=alternative).pvalue)


def interval(values: Values) -> tuple[float, float, float]:
    """The mean, and Student's interval of 95 % for it; a single value has none."""
    if not len(values):
        return math.nan, math.nan, math.nan
    mean = float(values.mean())
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def together(judgments: Sequence[Judgment]) -> Verdict:
    """That of several statements: the first of differs, not reproduced and too few that is among theirs."""
    found = {judgment.verdict for judgment in judgments}
    order = (Verdict.DIFFERS, Verdict.NOT_REPRODUCED, Verdict.TOO_FEW)
    return next((verdict for verdict in order if verdict in found), Verdict.REPRODUCED)


def _finite(differences: Sequence[float]) -> Values:
    values = np.asarray(differences, dtype=np.float64)
    return values[np.isfinite(values)]


def _enough(judgment: Judgment, differing: int | None = None) -> Judgment:
    """The same, unless it rests on fewer than MIN_SEEDS; of which the test may use but those that differ."""
    seeds = judgment.seeds if differing is None else differing
    if seeds >= MIN_SEEDS or (judgment.seeds >= MIN_SEEDS and not seeds):  # all equal: no difference
        return judgment
    what = "seeds" if seeds == judgment.seeds else "seeds that differ"
    why = f"n = {seeds}; fewer than {MIN_SEEDS} {what} cannot decide at the level {LEVEL:g}"
    return replace(judgment, verdict=Verdict.TOO_FEW, why=why)
