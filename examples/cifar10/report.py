"""report.md and claims.json: what became of the paper's claims, the results, pictures, and what was run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd

from examples.cifar10 import claims, figures, verdicts
from examples.cifar10.claims import CLAIMS, LATER, Statement
from examples.cifar10.figures import LOWEST
from examples.cifar10.networks import CONVOLUTIONS
from examples.cifar10.pipelines import Figure, unique
from examples.cifar10.store import Folder, Outcome, by_pipeline, durable
from examples.cifar10.train import PIXELS, Settings
from examples.cifar10.verdicts import Finding, Judgment, Values, Verdict

PAPER = (
    "Ven and Lederer, *Regularization and Reparameterization Avoid Vanishing Gradients in Sigmoid-Type "
    "Networks*, arXiv 2106.02260"
)
PAPERS_SEEDS = 25
BY_TABLE = "as in the paper's tables"
GENERATED = "GENERATED IMAGES, NOT CIFAR-10: these numbers mean nothing, and neither do the verdicts"
PENALIZED = ("C1", "C3", "C4")

_P = f"p < {verdicts.LEVEL:g}"
RULES = (
    "Runs are compared seed by seed: runs of one seed share initial parameters and the order of the images. "
    "p is that of the Wilcoxon signed-rank test (exact up to 50 seeds, up to 13 where differences tie), at "
    f"the level {verdicts.LEVEL:g}, with Holm's correction over the statements of a claim. "
    f"Fewer than {verdicts.MIN_SEEDS} "
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


def write(folder: Folder, compared: Sequence[Figure], experiment: Mapping[str, Any]) -> None:
    """Draw the figures, print the results, and write report.md and claims.json."""
    outcomes = folder.outcomes((p.name for p in unique(compared)), epochs=experiment["epochs"])
    warning = GENERATED.partition(":")[0] if experiment["data_generated"] else ""
    pictures = []
    for figure in compared:
        found = [outcome for outcome in outcomes if outcome.pipeline in {p.name for p in figure.pipelines}]
        title = f"{figure.title} on CIFAR-10\n{describe(experiment)}, {_count(_seeds(found), 'seed')}"
        histories = {p.label: folder.histories(p.name, experiment["epochs"]) for p in figure.pipelines}
        options = {"title": title, "warning": warning}
        figures.draw(figure, found, folder.path / figure.name, **options)
        figures.draw_layers(histories, experiment["epochs"], folder.path / f"{figure.name}-layers", **options)
        figures.draw_escapes(figure, found, folder.path / f"{figure.name}-escapes", **options)
        pictures += [f"![{_escaped(figure.title)}]({figure.name}.png)", *filter(None, [figure.question])]
        pictures += [f"![{_escaped(figure.title)}: escapes from chance]({figure.name}-escapes.png)"]
        pictures += [f"![{_escaped(figure.title)}: layers]({figure.name}-layers.png)"]
        table = results(found).drop(columns="pipeline")
        print("", figure.title, *filter(None, [warning]), table.to_markdown(index=False), sep="\n")
    text, numbers = render(outcomes, experiment, pictures)
    for name, content in (("report.md", text), ("claims.json", json.dumps(numbers, indent=1))):
        with durable(folder.path / name) as part:
            part.write_text(content + "\n", encoding="utf-8")
    drawn = ", ".join(f"{figure.name}.png" for figure in compared)
    print(f"\nwritten to {folder.path}: report.md, runs.npz, {drawn}, ...")


def render(
    outcomes: Sequence[Outcome], experiment: Mapping[str, Any], pictures: Sequence[str] = ()
) -> tuple[str, dict[str, Any]]:
    """The text of report.md, and what claims.json says."""
    judged = {claim.name: verdicts.judge(claim, outcomes) for claim in CLAIMS}
    parts = [
        *_head(outcomes, experiment),
        "## Claims",
        *_claims(judged, experiment),
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
    return "\n\n".join(parts), _numbers(judged, experiment)


def results(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """A row for each pipeline."""
    rows = []
    for name, runs in by_pipeline(outcomes).items():
        accuracy = 100 * np.array([run.column("test_accuracy") for run in runs])
        low, high = np.quantile(accuracy[:, -1], (0.25, 0.75))
        first, last = np.median([run.column("gradient_q50")[[0, -1]] for run in runs], axis=0)
        rows.append(
            {
                "pipeline": name,
                "": runs[0].label,
                "seeds": len(runs),
                "test accuracy, last epoch": f"{accuracy[:, -1].mean():.2f} % ({low:.2f} to {high:.2f})",
                "best epoch": f"{accuracy.max(1).mean():.2f} %",
                "median |gradient|, first epoch": f"{first:.1e}",
                "last epoch": f"{last:.1e}",
                "inf or nan": f"{sum(run.column('gradient_nonfinite').sum() for run in runs):,.0f}",
                "seconds a seed": f"{np.mean([_seconds(run) for run in runs]):.1f}",
            }
        )
    table: pd.DataFrame = pd.DataFrame(rows)
    table.columns = table.columns.str.replace("|", "\\|")
    return table


def _seconds(run: Outcome) -> float:
    return float(run.about["seconds"] / len(run.about["seeds"]))


def describe(settings: Mapping[str, Any]) -> str:
    steps = f" of {settings['steps']} steps" if settings["steps"] else ""
    epochs = _count(settings["epochs"], "epoch")
    return f"{epochs}{steps}, Adam with learning rate {settings['lr']:g}, batches of {settings['batch']}"


def _head(outcomes: Sequence[Outcome], experiment: Mapping[str, Any]) -> list[str]:
    parts = ["# The paper's experiments on CIFAR-10", f"{PAPER}: its figures and its claims."]
    if experiment.get("data_generated"):
        parts.append(f"**{GENERATED}.**")
    devices = ", ".join(sorted({str(run.about["device"]) for run in outcomes}))
    seeds, epochs = min(map(len, by_pipeline(outcomes).values())), experiment["epochs"]
    parts.append(f"{_count(epochs, 'epoch')}, {_count(seeds, 'seed')} of each pipeline, on {devices}.")
    less = [f"{_count(seeds, 'seed')} (the paper: {PAPERS_SEEDS})"] * (seeds < PAPERS_SEEDS)
    less += [f"{_count(epochs, 'epoch')} (our default: {Settings.epochs})"] * (epochs < Settings.epochs)
    if steps := experiment.get("steps"):
        less.append(f"{_count(steps, 'step')} an epoch (not all the images)")
    return [*parts, *([f"**Reduced in size:** {', '.join(less)}."] if less else [])]


def _claims(judged: Mapping[str, Sequence[Finding]], experiment: Mapping[str, Any]) -> list[str]:
    """A table of all claims, and for each claim that was run a table of its statements."""
    run = [claim for claim in CLAIMS if judged[claim.name]]
    rows, parts = [], []
    for claim in run:
        found = judged[claim.name]
        counted = [finding.judgment.verdict for finding in found if finding.statement.counts]
        good, everything = counted.count(Verdict.REPRODUCED), sum(s.counts for s in claim.statements)
        overall = verdicts.verdict(claim, found)
        rest = f" ({everything - len(counted)} left out)" if len(counted) < everything else ""
        about = f"Figure {claim.figure}, {claim.section}"
        reproduced = f"{good} of {len(counted)}{rest}"
        rows.append((claim.name, about, reproduced, f"**{overall.value}**"))
        parts += [f"### {claim.name}: {about}", _markdown(map(_statement_row, found))]
        if overall in (Verdict.DIFFERS, Verdict.NOT_REPRODUCED):
            lines = [f"- {reading}" for reading in readings(claim.name, experiment)]
            parts += ["The paper leaves open, and these could explain it:", "\n".join(lines)]
    columns = ("claim", "about", "statements reproduced", "verdict")
    return [_markdown(dict(zip(columns, row, strict=True)) for row in rows), *parts] if run else []


def _statement_row(finding: Finding) -> dict[str, str]:
    s, found = finding.statement, finding.judgment
    return {
        "": s.name,
        "in the paper's words": f'"{s.words}"',
        "measured": _measured(s),
        "our numbers: mean (interquartile range)": "<br>".join(
            f"{label}: {_spread(s, numbers)}" for label, numbers in finding.numbers.items()
        )
        or "-",
        "paired test": _test(finding),
        "verdict": f"**{found.verdict.value}**: {found.why}",
    }


def _markdown(rows: Any) -> str:
    return str(pd.DataFrame(list(rows)).replace(r"\|", r"\|", regex=True).to_markdown(index=False))


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
    p = "" if math.isnan(found.p) else f"{found.test} p = {found.p:.2g} (Holm: {found.adjusted:.2g}); "
    return f"n = {found.seeds}; {p}{what} {form(found.effect)}" + _between(found, form)


def _between(found: Judgment, form: Any) -> str:
    return "" if math.isnan(found.low) else f" (95 %: {form(found.low)} to {form(found.high)})"


def _power(exponent: float) -> str:
    """10^exponent to two digits, also where that is no number of float64."""
    if -4 <= exponent < 4:
        return f"{10**exponent:.2g}" if exponent < 2 else f"{10**exponent:,.0f}"
    whole = math.floor(exponent)
    return f"{10 ** (exponent - whole):.1f}e{whole:+03d}"


def _run(outcomes: Sequence[Outcome], experiment: Mapping[str, Any]) -> str:
    """The experiment's settings, and where its runs were made."""
    about = [run.about for run in outcomes]
    made = {key: sorted({str(one[key]) for one in about}) for key in ("device", "platform", "commit", "date")}
    made["versions"] = sorted({", ".join(f"{p} {v}" for p, v in one["versions"].items()) for one in about})
    dates = made.pop("date")
    values = {**experiment, **{key: "; ".join(found) for key, found in made.items()}}
    values["dates"] = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    rows = [(key.replace("_", " "), _plain(key, value)) for key, value in values.items()]
    return _markdown({"": key, "value": value} for key, value in rows)


def _plain(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return {"steps": "all", "conv": BY_TABLE, "bias": BY_TABLE}.get(key, "-") if value is None else str(value)


def _seeds(outcomes: Sequence[Outcome]) -> int:
    return len({outcome.seed for outcome in outcomes})


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number:,} {what}s"


def _escaped(text: str) -> str:
    return "".join("\\" + letter if letter in "[]*_\\" else letter for letter in text)


def readings(claim: str, experiment: Mapping[str, Any]) -> list[str]:
    """Sentences for a claim that an experiment did not reproduce; they name what it was run with."""
    now = {field.name: experiment.get(field.name, field.default) for field in fields(Settings)}
    pixels = "|".join(p for p in PIXELS if p != now["pixels"])
    conv = now["conv"] or "as in the paper's tables"
    others = "|".join(c for c in CONVOLUTIONS if c != now["conv"])
    bias = {None: "as in the paper's tables", True: "everywhere", False: "nowhere"}[now["bias"]]
    biases = {None: "`--bias`, `--no-bias`", True: "`--no-bias`", False: "`--bias`"}[now["bias"]]
    lines = [
        f"Epochs: not stated, here {now['epochs']}: `--epochs {max(2 * now['epochs'], 2 * LATER)}`.",
        f"Batch: not stated, here {now['batch']} images, by which the steps of an epoch change as well: "
        f"`--batch {2 * now['batch']}`, `--batch {max(1, now['batch'] // 2)}`.",
        f"The pixels' scale: not stated, here `{now['pixels']}`: `--pixels {pixels}`.",
        f"The reading of the tables' convolutions: here {conv}: `--conv {others}`.",
        f"Biases: here {bias}: {biases}.",
        "The initial values of biases: not stated, here zero. No option; `large_uniform` and `small_normal` "
        "in networks.py set them.",
        _rate(now["lr"]),
    ]
    if now["steps"]:
        lines.insert(
            0,
            f"Not all images: an epoch was cut to {now['steps']} steps: run without `--quick` and `--steps`.",
        )
    if claim in PENALIZED:
        lines.append(
            "The penalty: here r/2 times the sum of squares, as the paper writes it; Keras's `l2(r)` is r "
            "times it, with twice the gradient. No option; `R = 0.02` in pipelines.py is that reading."
        )
        lines.append(
            "Which gradient the lower panels show: here that of the objective, penalty included; statements "
            "marked * are of the loss alone."
        )
    return lines


def _rate(lr: float) -> str:
    if lr != Settings.lr:
        return f"Adam's learning rate: here {lr:g}, not the paper's: `--lr {Settings.lr:g}`."
    return f"Adam's learning rate: the paper's, {lr:g}; what it does depends on epochs and batch: `--lr F`."


def _numbers(judged: Mapping[str, Sequence[Finding]], experiment: Mapping[str, Any]) -> dict[str, Any]:
    """What claims.json says; numbers that are not finite are null."""
    return {
        "data_generated": bool(experiment.get("data_generated")),
        "claims": {
            claim.name: verdicts.verdict(claim, judged[claim.name]).value
            for claim in CLAIMS
            if judged[claim.name]
        },
        "statements": [_statement(finding) for found in judged.values() for finding in found],
    }


def _statement(finding: Finding) -> dict[str, Any]:
    statement, judgment = finding.statement, finding.judgment
    scale = "decimal logarithm" if statement.measure.log else "per cent"
    return {
        "name": statement.name,
        "counts": statement.counts,
        "words": statement.words,
        "measured": statement.measure.words,
        "unit": "share of runs" if statement.rule == "never" else scale,
        "pipelines": statement.pipelines,
        "rule": statement.rule,
        "margin": statement.margin,
        "verdict": judgment.verdict.value,
        "why": judgment.why,
        "seeds": judgment.seeds,
        "test": judgment.test,
        "p": _or_none(judgment.p),
        "p_holm": _or_none(judgment.adjusted),
        "effect": _or_none(judgment.effect),
        "interval": [_or_none(judgment.low), _or_none(judgment.high)],
        "numbers": {label: [_or_none(n) for n in numbers] for label, numbers in finding.numbers.items()},
    }


def _or_none(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None
