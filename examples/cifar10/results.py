"""The numbers of an experiment: a table to read, JSON with everything, CSV with a row per epoch."""

from __future__ import annotations

import csv
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

import sigscale as ss
from examples.cifar10.train import Pipeline
from sigscale.files import atomic


@dataclass(frozen=True)
class Outcome:
    """A finished run; `history` has one dict an epoch, `gradients` are those of the layers over the steps."""

    pipeline: Pipeline
    seed: int
    history: Sequence[Mapping[str, float]]
    gradients: ss.GradientHistory

    def column(self, metric: str) -> list[float]:
        return [row[metric] for row in self.history]


def by_pipeline(outcomes: Sequence[Outcome]) -> dict[Pipeline, list[Outcome]]:
    return {p: [o for o in outcomes if o.pipeline == p] for p in dict.fromkeys(o.pipeline for o in outcomes)}


def summarize(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A row per pipeline; over several seeds accuracies are means, gradients medians, seconds sums."""
    rows = []
    for pipeline, runs in by_pipeline(outcomes).items():
        seconds = [sum(run.column("seconds")) for run in runs]
        rows.append(
            {
                "pipeline": pipeline.name,
                "label": pipeline.label,
                "test_accuracy": fmean(run.column("test_accuracy")[-1] for run in runs),
                "best_test_accuracy": fmean(max(run.column("test_accuracy")) for run in runs),
                "first_median_gradient": median(run.column("gradient_q50")[0] for run in runs),
                "last_median_gradient": median(run.column("gradient_q50")[-1] for run in runs),
                "nonfinite_gradients": sum(sum(run.column("gradient_nonfinite")) for run in runs),
                "seconds": sum(seconds),
                "seconds_per_epoch": sum(seconds) / sum(len(run.history) for run in runs),
            }
        )
    return rows


def table(outcomes: Sequence[Outcome]) -> str:
    lines = [
        f"{'':28}{'test accuracy':^18}{'median |gradient|':^22}{'training time':^20}",
        f"{'pipeline':28}{'last':>8}{'best':>8}  {'first epoch':>12}{'last':>9} {'seconds':>9}{'s/epoch':>9}",
    ]
    for row in summarize(outcomes):
        lines.append(
            f"{row['label']:28}{row['test_accuracy']:8.2%}{row['best_test_accuracy']:8.2%}"
            f"  {_short(row['first_median_gradient']):>12}{_short(row['last_median_gradient']):>9}"
            f" {row['seconds']:9.1f}{row['seconds_per_epoch']:9.2f}"
        )
        if row["nonfinite_gradients"]:
            lines.append(f"{'':28}({row['nonfinite_gradients']:,.0f} gradient coordinates were inf or nan)")
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def environment() -> dict[str, Any]:
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in ("torch", "sigscale", "numpy")},
        },
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
    }


def write_json(path: Path, experiment: Mapping[str, Any], outcomes: Sequence[Outcome]) -> None:
    content = {
        "experiment": dict(experiment),
        **environment(),
        "summary": summarize(outcomes),
        "pipelines": {
            p.name: {"label": p.label, "activation": str(p.activation()), "penalty": p.penalty}
            for p in by_pipeline(outcomes)
        },
        "runs": [{"pipeline": o.pipeline.name, "seed": o.seed, "epochs": list(o.history)} for o in outcomes],
    }
    with atomic(path) as part:
        part.write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_csv(path: Path, outcomes: Sequence[Outcome]) -> None:
    rows = [{"pipeline": o.pipeline.name, "seed": o.seed, **row} for o in outcomes for row in o.history]
    with atomic(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _finite(value: Any) -> Any:
    """JSON knows neither nan nor inf: both become null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
