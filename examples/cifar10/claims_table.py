"""The claims as tables to read (Markdown): the paper's words, our numbers, the tests and the verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from examples.cifar10 import claims, judging, readings, verdicts
from examples.cifar10.claims import CLAIMS, Claim, Statement
from examples.cifar10.figures import LOWEST
from examples.cifar10.judging import Finding
from examples.cifar10.verdicts import Values, Verdict

_P = f"p < {verdicts.LEVEL:g}"
RULES = (
    "Runs are compared seed by seed: runs of one seed share initial parameters and the order of the images. "
    "p is that of the Wilcoxon signed-rank test (exact up to 50 seeds, up to 13 where differences tie), at "
    f"the level {verdicts.LEVEL:g}, not corrected for the number of tests. Fewer than {verdicts.MIN_SEEDS} "
    f"seeds cannot reach it, so then the verdict is *{Verdict.TOO_FEW.value}*, as it is where a statement "
    "needs more epochs than were run. Of gradients, decimal logarithms are compared; what is below "
    f"{LOWEST:.0e} counts as {LOWEST:.0e}.\n\n"
    "| rule | reproduced | differs | not reproduced |\n|---|---|---|---|\n"
    f"| above | two-sided {_P} in the direction claimed, and a mean difference of at least the margin | "
    f"two-sided {_P} in the other direction | else |\n"
    f"| alike | both one-sided {_P}, that differences are above -margin and below margin (the larger p is "
    f"given) | two-sided {_P} against 0, and a mean difference of at least the margin | otherwise |\n"
    f"| below | as above, for the limit minus the number | two-sided {_P} for numbers above the limit "
    "| else |\n"
    "| never | in no run | in more than half of the runs | otherwise |\n\n"
    'The paper makes its claims in words; these readings of them are ours. "Initially", "immediately": '
    f'epochs 1 to {claims.EARLY}. "In the beginning": epoch 1. "After about ten epochs": the last epoch, '
    f'of at least {claims.LATER}. "Considerably": by {claims.CONSIDERABLE:g} points of accuracy '
    f'(percentage points) or more. "Very similarly": within {claims.SIMILAR:g} point. "Virtually the '
    f'same": within {claims.SAME:g} points. Near chance: below {claims.NEAR_CHANCE:g} %. Exploding: a '
    "gradient is inf or nan, or the 95 % quantile of |gradient| over some epoch exceeds "
    f"{claims.EXPLODING:g} times the larger of 1 and that of the first epoch.\n\n"
    "Statements marked * are further readings and do not count. Of the others, if one differs, the claim "
    "*differs*; else, if one is not reproduced, it is *not reproduced*; else, if there is too little for "
    "one, there is for the claim; and only if all are reproduced, it is."
)
"""How verdicts are reached."""


def render(judged: Mapping[str, Sequence[Finding]], experiment: Mapping[str, Any]) -> list[str]:
    """A table over all, and for each claim that was run its statements."""
    run = [claim for claim in CLAIMS if judged[claim.name]]
    if not run:
        return []
    lines = ["| claim | about | statements reproduced | verdict |", "|---|---|---|---|"]
    for claim in run:
        counted = [finding.judgment.verdict for finding in judged[claim.name] if finding.statement.counts]
        good, all_of_them = counted.count(Verdict.REPRODUCED), sum(s.counts for s in claim.statements)
        overall = judging.verdict(claim, judged[claim.name])
        rest = f" ({all_of_them - len(counted)} left out)" if len(counted) < all_of_them else ""
        about = f"Figure {claim.figure}, {claim.section}"
        lines.append(f"| {claim.name} | {about} | {good} of {len(counted)}{rest} | **{overall.value}** |")
    parts = ["\n".join(lines)]
    for claim in run:
        parts += [
            f"### {claim.name}: Figure {claim.figure}, {claim.section}",
            _statements(judged[claim.name]),
        ]
        if judging.verdict(claim, judged[claim.name]) in (Verdict.DIFFERS, Verdict.NOT_REPRODUCED):
            parts += _explanations(claim, experiment)
    return parts


def _statements(findings: Sequence[Finding]) -> str:
    lines = [
        "| | in the paper's words | measured | our numbers: mean (interquartile range) | paired test "
        "| verdict |",
        "|---|---|---|---|---|---|",
    ]
    for finding in findings:
        s, found = finding.statement, finding.judgment
        numbers = "<br>".join(f"{label}: {_spread(s, n)}" for label, n in finding.numbers.items()) or "-"
        cells = [s.name, f'"{s.words}"', _measured(s), numbers, _test(finding)]
        lines.append(f"| {' | '.join(map(cell, cells))} | **{found.verdict.value}**: {cell(found.why)} |")
    return "\n".join(lines)


def _measured(statement: Statement) -> str:
    log, margin = statement.measure.log, statement.margin
    bound = f"{10**margin:g} times" if log else f"{margin:g} point" + "s" * (margin != 1)
    rules = {
        "above": f", above by {bound}" if margin else ", above",
        "alike": f", alike within {bound}",
        "below": f", below {margin:g} %",
        "never": f", never above {10**margin:g}",
    }
    return statement.measure.words + rules[statement.rule]


def _spread(statement: Statement, numbers: Values) -> str:
    """Mean and quartiles over the seeds whose numbers are finite; geometric ones of gradients."""
    finite = numbers[np.isfinite(numbers)]
    if not len(finite):
        return "not finite"
    mean, *quartiles = (float(finite.mean()), *map(float, np.quantile(finite, (0.25, 0.75))))
    form, unit = (_power, "") if statement.measure.log else ("{:.1f}".format, " %")
    low, high = map(form, quartiles)
    return f"{form(mean)}{unit}" + (f" ({low} to {high})" if len(finite) > 1 else "")


def _test(finding: Finding) -> str:
    found, rule = finding.judgment, finding.statement.rule
    if math.isnan(found.effect):
        return "-"
    if rule == "never":
        return f"n = {found.seeds}; share of runs {found.effect:.0%}" + _between(found, "{:.0%}".format)
    form = _power if finding.statement.measure.log else "{:+.2f}".format
    what = "factor" if finding.statement.measure.log else "difference in points"
    p = "" if math.isnan(found.p) else f"{found.test} p = {found.p:.2g}; "
    return f"n = {found.seeds}; {p}{what} {form(found.effect)}" + _between(found, form)


def _between(found: verdicts.Judgment, form: Any) -> str:
    return "" if math.isnan(found.low) else f" (95 %: {form(found.low)} to {form(found.high)})"


def _power(exponent: float) -> str:
    """10^exponent to two digits, also where that is no number of float64."""
    if -4 <= exponent < 4:
        return f"{10**exponent:.2g}" if exponent < 2 else f"{10**exponent:,.0f}"
    whole = math.floor(exponent)
    return f"{10 ** (exponent - whole):.1f}e{whole:+03d}"


def _explanations(claim: Claim, experiment: Mapping[str, Any]) -> list[str]:
    lines = [f"- {reading}" for reading in readings.of(claim.name, experiment)]
    return ["The paper leaves open, and these could explain it:", "\n".join(lines)]


def cell(text: str) -> str:
    """Text that does not end a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")
