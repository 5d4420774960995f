"""The pictures and report.md: what became of the paper's claims, the results, and what was run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from examples.cifar10 import claims, figures, verdicts
from examples.cifar10.claims import CLAIMS, Statement
from examples.cifar10.figures import LOWEST
from examples.cifar10.pipelines import Figure, unique
from examples.cifar10.store import Folder, Outcome, by_pipeline
from examples.cifar10.verdicts import Finding, Values, Verdict
from examples.common import durable

PAPER = (
    "Ven and Lederer, *Regularization and Reparameterization Avoid Vanishing Gradients in Sigmoid-Type "
    "Networks*, arXiv 2106.02260: its figures and its claims."
)
GENERATED = "GENERATED IMAGES, NOT CIFAR-10: these numbers mean nothing, and neither do the verdicts"
RULES = f"""\
Runs are compared seed by seed: runs of one seed share initial parameters and the order of the images. p is
that of the Wilcoxon signed-rank test, at the level {verdicts.LEVEL:g}, with Holm's correction over the
statements of a claim. Fewer than {verdicts.MIN_SEEDS} seeds cannot reach it: *{Verdict.TOO_FEW.value}*,
as where a statement needs more epochs than were run. Of gradients, decimal logarithms are compared; what is
below {LOWEST:.0e} counts as {LOWEST:.0e}.

- **above**: reproduced if significant in the direction claimed, with a mean difference of at least the
  margin; differs if significant in the other direction.
- **alike**: reproduced if both one-sided tests, that differences are above -margin and below margin, are
  significant; differs if they are significantly not 0 and on average at least the margin.
- **below**: as above, for the limit minus the number.
- **never**: reproduced if it happens in no run, differs if it does in more than half of them.

All else is not reproduced. A claim gets the worst verdict of its statements, in the order differs, not
reproduced, too few, reproduced; those marked * are further readings and do not count.

The paper makes its claims in words; these readings are ours. "Initially", "immediately": epochs 1 to
{claims.EARLY}. "In the beginning": epoch 1. "After about ten epochs": the last epoch, of at least
{claims.LATER}. "Considerably": by {claims.CONSIDERABLE:g} points of accuracy or more. "Very similarly":
within {claims.SIMILAR:g} point. "Virtually the same": within {claims.SAME:g} points. Near chance: below
{claims.NEAR_CHANCE:g} %. Exploding: a gradient is inf or nan, or the 95 % quantile of |gradient| over some
epoch exceeds {claims.EXPLODING:g} times the larger of 1 and that of the first epoch."""
OPEN = """\
The paper leaves open, and these could explain what is not reproduced: `--epochs`, `--batch`, `--pixels`,
`--conv`, `--bias`; and the factor of the penalty, here r/2 as the paper writes it (`R` in pipelines.py)."""


def write(folder: Folder, compared: Sequence[Figure], experiment: Mapping[str, Any]) -> None:
    """Draw the figures, print the results, and write report.md."""
    epochs = experiment["epochs"]
    outcomes = folder.outcomes((p.name for p in unique(compared)), epochs=epochs)
    warning = GENERATED.partition(":")[0] if experiment["data_generated"] else ""
    pictures = []
    for figure in compared:
        found = [outcome for outcome in outcomes if outcome.pipeline in {p.name for p in figure.pipelines}]
        seeds = len({outcome.seed for outcome in found})
        words = {"setting": f"{describe(experiment)}, seeds: {seeds}", "warning": warning}
        histories = {p.label: folder.histories(p.name, epochs) for p in figure.pipelines}
        figures.draw(figure, found, folder.path / figure.name, **words)
        figures.draw_layers(histories, epochs, folder.path / f"{figure.name}-layers", **words)
        figures.draw_escapes(figure, found, folder.path / f"{figure.name}-escapes", **words)
        pictures += [f"### {figure.title}", *filter(None, [figure.question])]
        pictures += [
            f"![{kind or 'curves'}]({figure.name}{kind}.png)" for kind in ("", "-escapes", "-layers")
        ]
        table = results(found).drop(columns="pipeline")
        print("", figure.title, *filter(None, [warning]), table.to_markdown(index=False), sep="\n")
    with durable(folder.path / "report.md") as part:
        part.write_text(render(outcomes, experiment, pictures) + "\n", encoding="utf-8")
    drawn = ", ".join(f"{figure.name}.png" for figure in compared)
    print(f"\nwritten to {folder.path}: report.md, runs.npz, {drawn}, ...")


def render(outcomes: Sequence[Outcome], experiment: Mapping[str, Any], pictures: Sequence[str] = ()) -> str:
    """The text of report.md."""
    judged = {claim.name: verdicts.judge(claim, outcomes) for claim in CLAIMS}
    seeds = min(map(len, by_pipeline(outcomes).values()))
    parts = [
        "# The paper's experiments on CIFAR-10",
        PAPER,
        *([f"**{GENERATED}.**"] if experiment["data_generated"] else []),
        f"{describe(experiment)}; seeds of each pipeline: {seeds} (the paper: 25).",
        "## Claims",
        *_claims(judged),
        *verdicts.left_out(outcomes),
        "## Results",
        results(outcomes).to_markdown(index=False),
        "Accuracies: mean over the seeds (interquartile range); chance is 10 %. Gradients: their median.",
        *(["## Figures", *pictures] if pictures else []),
        "## How verdicts are reached",
        RULES,
        "## What was run",
        _run(outcomes, experiment),
    ]
    return "\n\n".join(parts)


def describe(settings: Mapping[str, Any]) -> str:
    steps = f" of {settings['steps']} steps" if settings["steps"] else ""
    batch = f"batches of {settings['batch']}"
    return f"epochs: {settings['epochs']}{steps}, Adam with learning rate {settings['lr']:g}, {batch}"


def results(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """A row for each pipeline."""
    rows = []
    for name, runs in by_pipeline(outcomes).items():
        accuracy = figures.accuracy(runs)
        low, high = accuracy.iloc[:, -1].quantile([0.25, 0.75])
        first, last = np.median([run.curves["gradient_q50"][[0, -1]] for run in runs], axis=0)
        seconds = np.mean([run.about["seconds"] / len(run.about["seeds"]) for run in runs])
        row = {
            "pipeline": name,
            "": runs[0].label,
            "seeds": len(runs),
            "test accuracy, last epoch": f"{accuracy.iloc[:, -1].mean():.2f} % ({low:.2f} to {high:.2f})",
            "best epoch": f"{accuracy.max(axis=1).mean():.2f} %",
            "median gradient, first epoch": f"{first:.1e}",
            "last epoch": f"{last:.1e}",
            "inf or nan": f"{sum(run.curves['gradient_nonfinite'].sum() for run in runs):,.0f}",
            "seconds a seed": f"{seconds:.1f}",
        }
        rows.append(row)
    return pd.DataFrame(rows)


def _claims(judged: Mapping[str, Sequence[Finding]]) -> list[str]:
    """A table of all claims, and for each claim that was run a table of its statements."""
    rows, parts = [], []
    for claim in CLAIMS:
        if not (found := judged[claim.name]):
            continue
        counted = [finding.judgment.verdict for finding in found if finding.statement.counts]
        everything = sum(statement.counts for statement in claim.statements)
        about = f"Figure {claim.figure}, {claim.section}"
        row = {
            "claim": claim.name,
            "about": about,
            "statements reproduced": f"{counted.count(Verdict.REPRODUCED)} of {everything}",
            "verdict": f"**{verdicts.verdict(claim, found).value}**",
        }
        rows.append(row)
        parts += [f"### {claim.name}: {about}", _markdown(map(_statement_row, found))]
    if any(row["verdict"] != f"**{Verdict.REPRODUCED.value}**" for row in rows):
        parts.append(OPEN)
    return [_markdown(rows), *parts] if rows else []


def _statement_row(finding: Finding) -> dict[str, str]:
    s, found = finding.statement, finding.judgment
    numbers = [f"{label}: {_spread(s, numbers)}" for label, numbers in finding.numbers.items()]
    return {
        "": s.name,
        "in the paper's words": f'"{s.words}"',
        "measured": _measured(s),
        "our numbers: mean (interquartile range)": "<br>".join(numbers) or "-",
        "paired test": _test(finding),
        "verdict": f"**{found.verdict.value}**: {found.why}",
    }


def _markdown(rows: Iterable[Mapping[str, str]]) -> str:
    return str(pd.DataFrame(list(rows)).replace(r"\|", r"\|", regex=True).to_markdown(index=False))


def _measured(statement: Statement) -> str:
    log, margin = statement.measure.log, statement.margin
    bound = f"{10**margin:g} times" if log else f"{margin:g} points"
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
    form = _power if statement.measure.log else "{:.1f} %".format
    mean, low, high = map(form, (finite.mean(), *np.quantile(finite, (0.25, 0.75))))
    return f"{mean} ({low} to {high})" if len(finite) > 1 else mean


def _test(finding: Finding) -> str:
    found, log = finding.judgment, finding.statement.measure.log
    if math.isnan(found.effect):
        return "-"
    form: Callable[[float], str] = _power if log else "{:+.2f}".format
    what = "factor" if log else "difference in points"
    if finding.statement.rule == "never":
        form, what = "{:.0%}".format, "share of runs"
    p = "" if math.isnan(found.p) else f"{found.test} p = {found.p:.2g} (Holm: {found.adjusted:.2g}); "
    between = "" if math.isnan(found.low) else f" (95 %: {form(found.low)} to {form(found.high)})"
    return f"n = {found.seeds}; {p}{what} {form(found.effect)}{between}"


def _power(exponent: float) -> str:
    """10^exponent to two digits, also where that is no number of float64."""
    if -4 <= exponent < 4:
        return f"{10**exponent:.2g}" if exponent < 2 else f"{10**exponent:,.0f}"
    whole = math.floor(exponent)
    return f"{10 ** (exponent - whole):.1f}e{whole:+03d}"


def _run(outcomes: Sequence[Outcome], experiment: Mapping[str, Any]) -> str:
    """The experiment's settings, and where its runs were made."""
    about = [run.about for run in outcomes]
    made = {key: sorted({str(one[key]) for one in about}) for key in ("device", "platform", "commit")}
    made["versions"] = sorted({", ".join(f"{p} {v}" for p, v in one["versions"].items()) for one in about})
    dates = sorted(str(one["date"]) for one in about)
    values = {**experiment, **{key: "; ".join(found) for key, found in made.items()}}
    values["dates"] = f"{dates[0]} to {dates[-1]}"
    default = {"steps": "all", "conv": "as in the paper's tables", "bias": "as in the paper's tables"}
    rows = {
        key.replace("_", " "): default.get(key, "-") if v is None else str(v) for key, v in values.items()
    }
    return _markdown({"": key, "value": value} for key, value in rows.items())
