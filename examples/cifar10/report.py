"""report.md: what has become of the paper's claims, results, pictures, and what was run; claims.json."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from examples.cifar10 import claims_table, judging
from examples.cifar10.claims import CLAIMS
from examples.cifar10.claims_table import RULES, cell
from examples.cifar10.judging import Finding
from examples.cifar10.results import Outcome, by_pipeline
from examples.cifar10.train import Settings
from sigscale._files import atomic

PAPER = (
    "Ven and Lederer, *Regularization and Reparameterization Avoid Vanishing Gradients in Sigmoid-Type "
    "Networks*, arXiv 2106.02260"
)
PAPERS_SEEDS = 25
BY_TABLE = "as in the paper's tables"
GENERATED = "GENERATED IMAGES, NOT CIFAR-10: these numbers mean nothing, and neither do the verdicts"


def write(
    path: Path,
    outcomes: Sequence[Outcome],
    experiment: Mapping[str, Any],
    pictures: Mapping[str, Path],
    remarks: Mapping[str, str] | None = None,
) -> None:
    """Write the report to `path`, and claims.json next to it.

    Args:
        experiment: the settings, and whatever else is to be said of it; of `data_generated` true a warning.
        pictures: by their captions.
        remarks: what to say below a picture, by its caption.
    """
    remarks = remarks or {}
    judged = {claim.name: judging.judge(claim, outcomes) for claim in CLAIMS}
    parts = [
        *_head(outcomes, experiment),
        "## Claims",
        *claims_table.render(judged, experiment),
        *judging.left_out(outcomes),
        "## Results",
        _results(outcomes),
        *(["## Figures"] if pictures else []),
        *(
            "\n\n".join([_picture(caption, picture, path.parent), *remarks.get(caption, "").splitlines()])
            for caption, picture in pictures.items()
        ),
        "## How verdicts are reached",
        RULES.rstrip(),
        "## What was run",
        _run(outcomes, experiment),
    ]
    with atomic(path) as part:
        part.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    with atomic(path.with_name("claims.json")) as part:
        part.write_text(json.dumps(_numbers(judged, experiment), indent=1) + "\n", encoding="utf-8")


def _head(outcomes: Sequence[Outcome], experiment: Mapping[str, Any]) -> list[str]:
    parts = ["# The paper's experiments on CIFAR-10", f"{PAPER}: its figures and its claims."]
    if experiment.get("data_generated"):
        parts.append(f"**{GENERATED}.**")
    devices = sorted({str(run.about["device"]) for run in outcomes if "device" in run.about})
    seeds = min(map(len, by_pipeline(outcomes).values()))
    epochs, steps = len(outcomes[0].column("test_accuracy")), experiment.get("steps")
    where = f", on {', '.join(devices)}" if devices else ""
    parts.append(f"{_count(epochs, 'epoch')}, {_count(seeds, 'seed')} of each pipeline{where}.")
    less = [f"{_count(seeds, 'seed')} (the paper: {PAPERS_SEEDS})"] * (seeds < PAPERS_SEEDS)
    less += [f"{_count(epochs, 'epoch')} (our default: {Settings.epochs})"] * (epochs < Settings.epochs)
    less += [f"{_count(steps or 0, 'step')} an epoch (not all the images)"] * bool(steps)
    return [*parts, *([f"**Reduced in size:** {', '.join(less)}."] if less else [])]


def _results(outcomes: Sequence[Outcome]) -> str:
    lines = [
        "| pipeline | | seeds | test accuracy, last epoch (interquartile range) | mean of each run's best "
        "| median \\|gradient\\|, first epoch | last epoch | inf or nan | seconds a seed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in by_pipeline(outcomes).items():
        accuracy = 100 * np.array([run.column("test_accuracy") for run in runs])
        low, high = np.quantile(accuracy[:, -1], (0.25, 0.75))
        first, last = np.median([run.column("gradient_q50")[[0, -1]] for run in runs], axis=0)
        nonfinite = sum(float(run.column("gradient_nonfinite").sum()) for run in runs)
        seconds = [run.about["seconds_of_all"] / len(run.about["trained_with_seeds"]) for run in runs]
        lines.append(
            f"| {name} | {runs[0].label} | {len(runs)} "
            f"| {accuracy[:, -1].mean():.2f} % ({low:.2f} to {high:.2f}) | {accuracy.max(1).mean():.2f} % "
            f"| {_short(first)} | {_short(last)} | {nonfinite:,.0f} "
            f"| {np.mean(seconds):.1f} |"
        )
    return "\n".join(lines) + "\n\nGradients are medians over the seeds; chance is 10 %."


def _short(gradient: float) -> str:
    return f"{gradient:.1e}" if gradient else "0"


def _run(outcomes: Sequence[Outcome], experiment: Mapping[str, Any]) -> str:
    """The experiment's settings, and where its runs were made."""
    settings = {key: value for key, value in experiment.items() if not isinstance(value, Mapping)}
    about = [run.about for run in outcomes]
    made = {
        "devices": sorted({str(one["device"]) for one in about if "device" in one}),
        "platforms": sorted({str(one["platform"]) for one in about if "platform" in one}),
        "versions": sorted({_versions(one["versions"]) for one in about if "versions" in one}),
        "dates": _range([str(one["date"]) for one in about if "date" in one]),
    }
    rows = {**settings, **{key: "; ".join(values) for key, values in made.items() if values}}
    lines = [f"| {key.replace('_', ' ')} | {cell(_plain(key, value))} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{package} {version}" for package, version in versions.items())


def _range(dates: Sequence[str]) -> list[str]:
    return [min(dates) if min(dates) == max(dates) else f"{min(dates)} to {max(dates)}"] if dates else []


def _plain(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if value is None:
        return {"steps": "all", "conv": BY_TABLE, "bias": BY_TABLE}.get(key, "-")
    return str(value)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number:,} {what}s"


def _picture(caption: str, picture: Path, folder: Path) -> str:
    """The picture by its path from the report's folder, as it is written in Markdown."""
    relative = quote(Path(os.path.relpath(picture, folder)).as_posix())
    text = "".join("\\" + letter if letter in "[]*_\\" else letter for letter in caption)
    return f"![{text}]({relative})"


def _numbers(judged: Mapping[str, Sequence[Finding]], experiment: Mapping[str, Any]) -> dict[str, Any]:
    """What claims.json says; numbers that are not finite are null."""
    return {
        "data_generated": bool(experiment.get("data_generated")),
        "claims": {
            claim.name: judging.verdict(claim, judged[claim.name]).value
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
        "effect": _or_none(judgment.effect),
        "interval": [_or_none(judgment.low), _or_none(judgment.high)],
        "numbers": {label: [_or_none(n) for n in numbers] for label, numbers in finding.numbers.items()},
    }


def _or_none(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None
