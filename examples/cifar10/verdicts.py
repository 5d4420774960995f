"""The statements of `claims`, judged on the runs of an experiment.

A rule takes one number for each seed and returns a `Judgment`, by the distribution-free Wilcoxon signed-rank
test.  The constants below are all its discretion.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import numpy.typing as npt
from scipy import stats

from examples.cifar10.claims import CLAIMS, Claim, Statement
from examples.cifar10.store import Outcome, by_pipeline

LEVEL = 0.05
"""Of the tests of one claim together: Holm's correction."""
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
    """`p` is that of `test`, `adjusted` the same with Holm's correction; `effect` a mean (or a share) with an
    interval of 95 %; `why` a sentence.
    """

    verdict: Verdict
    why: str
    seeds: int = 0
    test: str = ""
    p: float = math.nan
    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    adjusted: float = math.nan


@dataclass(frozen=True)
class Finding:
    """A statement judged; `numbers` has every seed's number for each pipeline, by its label."""

    statement: Statement
    numbers: dict[str, Values]
    judgment: Judgment


def above(differences: Sequence[float], margin: float = 0.0, factor: float = 1.0) -> Judgment:
    """Whether differences are above 0, by `margin` on average: the two-sided test, then the size.

    Reproduced: p < LEVEL with positive ranks ahead, and a mean of at least `margin` (and above 0).
    Differs: p < LEVEL with negative ranks ahead.  Not reproduced: all else.  `factor` is Holm's, for p.
    """
    values = _finite(differences)
    more, less = signed_rank(values, "greater"), signed_rank(values, "less")
    p = min(1.0, 2 * min(more, less))
    adjusted = min(1.0, factor * p)
    mean, low, high = interval(values)
    if adjusted >= LEVEL:
        verdict, why = Verdict.NOT_REPRODUCED, "no significant difference"
    elif less < more:
        verdict, why = Verdict.DIFFERS, "significantly the other way round"
    elif mean < margin or mean <= 0:
        verdict, why = Verdict.NOT_REPRODUCED, "significant, but smaller than the margin"
    else:
        verdict, why = Verdict.REPRODUCED, "significant, in the direction claimed"
    judgment = Judgment(verdict, why, len(values), "Wilcoxon, two-sided", p, mean, low, high, adjusted)
    return _enough(judgment, int(np.count_nonzero(np.round(values, ROUNDING))))


def alike(differences: Sequence[float], margin: float, factor: float = 1.0) -> Judgment:
    """Whether differences are within `margin` of 0: two one-sided tests, of d > -margin and of d < margin.

    Reproduced: both p < LEVEL (the larger one is reported).  Differs: a two-sided test against 0 has
    p < LEVEL, and the mean is at least `margin` away.  Not reproduced: all else.
    """
    values = _finite(differences)
    p = max(signed_rank(values + margin, "greater"), signed_rank(values - margin, "less"))
    adjusted = min(1.0, factor * p)
    mean, low, high = interval(values)
    if adjusted < LEVEL:
        verdict, why = Verdict.REPRODUCED, "significantly within the margin"
    elif abs(mean) >= margin and factor * signed_rank(values, "two-sided") < LEVEL:
        verdict, why = Verdict.DIFFERS, "significantly apart, by more than the margin"
    else:
        verdict, why = Verdict.NOT_REPRODUCED, "equality within the margin is not established"
    test = "Wilcoxon, two one-sided"
    return _enough(Judgment(verdict, why, len(values), test, p, mean, low, high, adjusted))


def never(events: Sequence[bool]) -> Judgment:
    """Whether something happens in no run; `effect` is the share of runs in which it did (Clopper-Pearson).

    Reproduced: in none.  Differs: in more than half.  Not reproduced: all else.
    """
    count, seeds = sum(map(bool, events)), len(events)
    if not seeds:
        return _enough(Judgment(Verdict.TOO_FEW, ""))
    low, high = map(float, stats.binomtest(count, seeds).proportion_ci(0.95))
    seldom = Verdict.NOT_REPRODUCED if count else Verdict.REPRODUCED
    verdict = Verdict.DIFFERS if 2 * count > seeds else seldom
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
    if len(values) < 2:
        return float(values.sum()) if len(values) else math.nan, math.nan, math.nan
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean, mean - half, mean + half


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """That of several statements: the first of differs, not reproduced and too few that is among theirs."""
    order = (Verdict.REPRODUCED, Verdict.TOO_FEW, Verdict.NOT_REPRODUCED, Verdict.DIFFERS)
    return max(verdicts, key=order.index)


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


def judge(claim: Claim, outcomes: Sequence[Outcome]) -> list[Finding]:
    """The claim's statements whose pipelines were run; none unless one of them counts.

    The p values of those that count are corrected together.
    """
    groups = by_pipeline(outcomes)
    there = [s for s in claim.statements if all(name in groups for name in s.pipelines)]
    if not any(s.counts for s in there):
        return []
    alone = [_find(s, groups) for s in there]
    ps = {f.statement.name: f.judgment.p for f in alone if f.statement.counts and f.judgment.p >= 0}
    factors = dict(zip(ps, holm([*ps.values()]), strict=True))
    return [_find(s, groups, factors.get(s.name, 1.0)) for s in there]


def holm(ps: Sequence[float]) -> list[float]:
    """By what Holm's step-down procedure multiplies each p value."""
    order = np.argsort(ps, kind="stable")
    adjusted = np.maximum.accumulate(np.asarray(ps)[order] * np.arange(len(ps), 0, -1))
    return [float(adjusted[place] / p) for place, p in zip(np.argsort(order), ps, strict=True)]


def verdict(claim: Claim, findings: Sequence[Finding]) -> Verdict:
    """That of a whole claim: the worst of the statements that count; too little, where one was not judged."""
    found = {f.statement.name: f.judgment.verdict for f in findings}
    return worst(found.get(s.name, Verdict.TOO_FEW) for s in claim.statements if s.counts)


def left_out(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each claim that was not, or not wholly, judged, because pipelines were not run."""
    groups, lines = by_pipeline(outcomes), []
    for claim in CLAIMS:
        without = [s for s in claim.statements if not groups.keys() >= set(s.pipelines)]
        if without:
            missing = dict.fromkeys(name for s in without for name in s.pipelines if name not in groups)
            some = len(without) < len(claim.statements)
            which = f" in part ({', '.join(s.name for s in without)})" if some else ""
            lines.append(f"{claim.name} is left out{which}: {', '.join(missing)} not run.")
    return lines


def _find(statement: Statement, groups: dict[str, list[Outcome]], factor: float = 1.0) -> Finding:
    chosen = [groups[name] for name in statement.pipelines]
    epochs = min(len(run.curves["test_accuracy"]) for runs in chosen for run in runs)
    if epochs < statement.measure.epochs:
        why = f"epochs: {epochs}, and the statement needs {statement.measure.epochs}"
        return Finding(statement, {}, Judgment(Verdict.TOO_FEW, why))
    by_seed = [{run.seed: statement.measure.of(run) for run in runs} for runs in chosen]
    labels = [runs[0].label for runs in chosen]
    numbers = {label: np.array(list(seeds.values())) for label, seeds in zip(labels, by_seed, strict=True)}
    common = sorted(set.intersection(*map(set, by_seed)))
    columns = np.array([[seeds[seed] for seed in common] for seeds in by_seed])
    return Finding(statement, numbers, _apply(statement, columns, factor))


def _apply(statement: Statement, columns: Values, factor: float) -> Judgment:
    """`columns` is (pipelines, seeds)."""
    values = columns[0] - columns[1] if len(columns) == 2 else columns[0]
    match statement.rule:
        case "never":
            return never(list(~(values <= statement.margin)))  # a nan counts as well
        case "alike":
            judgment = alike(values, statement.margin, factor)
        case "below":
            judgment = above(statement.margin - values, 0.0, factor)
        case _:
            judgment = above(values, statement.margin, factor)
    if lost := np.count_nonzero(~np.isfinite(values)):
        why = f"{judgment.why}; {lost} of {len(values)} seeds left out, their numbers are inf or nan"
        return replace(judgment, why=why)
    return judgment
