"""Judging: the statements of `claims` against the runs of an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from examples.cifar10 import verdicts
from examples.cifar10.claims import CLAIMS, Claim, Statement
from examples.cifar10.pipelines import FIGURES
from examples.cifar10.results import Outcome, by_pipeline
from examples.cifar10.verdicts import Judgment, Values, Verdict


@dataclass(frozen=True)
class Finding:
    """A statement judged; `numbers` has every seed's number for each pipeline, by its label."""

    statement: Statement
    numbers: dict[str, Values]
    judgment: Judgment


def judge(claim: Claim, outcomes: Sequence[Outcome]) -> list[Finding]:
    """Those of the claim's statements whose pipelines were run; none if they are none of those that count."""
    groups = by_pipeline(outcomes)
    there = [s for s in claim.statements if all(name in groups for name in s.pipelines)]
    return [_find(s, groups) for s in there] if any(s.counts for s in there) else []


def verdict(claim: Claim, findings: Sequence[Finding]) -> Verdict:
    """That of a whole claim: the worst of the statements that count; too little, where one was not judged."""
    found = [finding.judgment for finding in findings if finding.statement.counts]
    if len(found) < sum(statement.counts for statement in claim.statements):
        found.append(Judgment(Verdict.TOO_FEW, "a statement was left out"))
    return verdicts.together(found)


def left_out(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each claim that was not, or not wholly, judged, because pipelines were not run."""
    groups, lines = by_pipeline(outcomes), []
    for claim in CLAIMS:
        without = [s for s in claim.statements if not all(name in groups for name in s.pipelines)]
        if not without:
            continue
        missing = dict.fromkeys(name for s in without for name in s.pipelines if name not in groups)
        some = any(s.counts for s in claim.statements if s not in without)
        which = "" if not some else f" ({', '.join(s.name for s in without)})"
        options = " and ".join(f"--figure {key}" for key in sorted({_figure(claim, n) for n in missing}))
        verb = "are" if len(without) > 1 and some else "is"
        lines.append(f"{claim.name}{which} {verb} left out: {', '.join(missing)} not run ({options}).")
    return lines


def _figure(claim: Claim, pipeline: str) -> str:
    """One that has the pipeline, the claim's own if possible."""
    keys = (claim.figure, *FIGURES)
    return next(key for key in keys if any(p.name == pipeline for p in FIGURES[key].pipelines))


def _find(statement: Statement, groups: dict[str, list[Outcome]]) -> Finding:
    chosen = [groups[name] for name in statement.pipelines]
    epochs = min(len(run.column("test_accuracy")) for runs in chosen for run in runs)
    if epochs < statement.measure.epochs:
        why = f"epochs: {epochs}, and the statement needs {statement.measure.epochs}"
        return Finding(statement, {}, Judgment(Verdict.TOO_FEW, why))
    by_seed = [{run.seed: statement.measure.of(run) for run in runs} for runs in chosen]
    labels = [runs[0].label for runs in chosen]
    numbers = {label: np.array(list(seeds.values())) for label, seeds in zip(labels, by_seed, strict=True)}
    common = sorted(set.intersection(*map(set, by_seed)))
    columns = np.array([[seeds[seed] for seed in common] for seeds in by_seed])
    return Finding(statement, numbers, _apply(statement, columns))


def _apply(statement: Statement, columns: Values) -> Judgment:
    """`columns` is (pipelines, seeds)."""
    values = columns[0] - columns[1] if len(columns) == 2 else columns[0]
    if statement.rule == "never":
        return verdicts.never(list(~(values <= statement.margin)))  # a nan counts as well
    if statement.rule == "below":
        values = statement.margin - values
    judgment = (
        verdicts.alike(values, statement.margin)
        if statement.rule == "alike"
        else verdicts.above(values, 0.0 if statement.rule == "below" else statement.margin)
    )
    if lost := np.count_nonzero(~np.isfinite(values)):
        why = f"{judgment.why}; {lost} of {len(values)} seeds left out, their numbers are inf or nan"
        return replace(judgment, why=why)
    return judgment
