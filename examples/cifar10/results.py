"""What is kept of a run of one seed: its curves, and where they come from; and a table to read.

    runs/<pipeline>-seed<k>.npz     for each of `train.NUMBERS` an array (epochs,)
    runs/<pipeline>-seed<k>.json    every setting, versions, device, checksum of the data

Both are written when the run is complete, the second one last: a run is there when its JSON is.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from examples.cifar10.errors import FolderError
from examples.cifar10.files import durable
from examples.cifar10.train import NUMBERS, Run

DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged file raises."""

Curve = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """A finished run of one seed; `about` is its JSON."""

    pipeline: str
    label: str
    seed: int
    curves: Mapping[str, Curve]
    about: Mapping[str, Any]

    def column(self, name: str) -> Curve:
        """One of `train.NUMBERS`, (epochs,)."""
        return self.curves[name]


def stem(pipeline: str, seed: int) -> str:
    return f"{pipeline}-seed{seed:02d}"


def write(folder: Path, run: Run, experiment: Mapping[str, Any]) -> None:
    """The files of each seed of a finished run, but for those that are there, merged from elsewhere."""
    for place, seed in enumerate(run.seeds):
        path = folder / f"{stem(run.pipeline.name, seed)}.json"
        if path.exists() and epochs(path) >= run.epoch:
            continue
        about = {
            "pipeline": run.pipeline.name,
            "label": run.pipeline.label,
            "seed": seed,
            "architecture": run.pipeline.architecture.name,
            "activation": str(run.pipeline.activation()),
            "l2": run.pipeline.l2,
            "l1": run.pipeline.l1,
            "normalize": run.pipeline.normalize,
            "dtype": run.pipeline.dtype,
            **experiment,
            "trained_with_seeds": list(run.seeds),
            "seconds_of_all": sum(run.seconds),
            **environment(),
        }
        with durable(folder / f"{stem(run.pipeline.name, seed)}.npz") as part, part.open("wb") as file:
            curves: dict[str, Any] = {name: run.column(name)[:, place] for name in NUMBERS}
            np.savez(file, **curves)
        with durable(folder / f"{stem(run.pipeline.name, seed)}.json") as part:
            part.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def epochs(path: Path) -> int:
    """How many the results have whose JSON is at `path`; 0 if that is damaged."""
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["epochs"])
    except DAMAGED:
        return 0


def read(folder: Path, pipeline: str, seed: int) -> Outcome:
    path = folder / f"{stem(pipeline, seed)}.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        path = path.with_suffix(".npz")
        with np.load(path, allow_pickle=False) as archive:
            curves = {name: np.asarray(archive[name], dtype=np.float64) for name in NUMBERS}
        return Outcome(pipeline, about["label"], seed, curves, about)
    except DAMAGED as error:
        raise FolderError(
            f"{path}: missing or damaged ({type(error).__name__}). Delete {stem(pipeline, seed)}.json and "
            ".npz there: with --resume this run is made again."
        ) from error


def by_pipeline(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.pipeline, []).append(outcome)
    return groups


def summarize(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A row per pipeline; over several seeds accuracies are means, gradients medians."""
    rows = []
    for pipeline, runs in by_pipeline(outcomes).items():
        seconds = [run.about["seconds_of_all"] / len(run.about["trained_with_seeds"]) for run in runs]
        rows.append(
            {
                "pipeline": pipeline,
                "label": runs[0].label,
                "seeds": len(runs),
                "test_accuracy": fmean(run.column("test_accuracy")[-1] for run in runs),
                "best_test_accuracy": fmean(run.column("test_accuracy").max() for run in runs),
                "first_median_gradient": median(run.column("gradient_q50")[0] for run in runs),
                "last_median_gradient": median(run.column("gradient_q50")[-1] for run in runs),
                "nonfinite_gradients": sum(run.column("gradient_nonfinite").sum() for run in runs),
                "seconds": sum(seconds),
            }
        )
    return rows


def table(outcomes: Sequence[Outcome]) -> str:
    lines = [
        f"{'':36}{'test accuracy':^18}{'median |gradient|':^22}",
        f"{'pipeline':30}{'seeds':>6}{'last':>8}{'best':>8}  {'first epoch':>12}{'last':>9} {'seconds':>9}",
    ]
    for row in summarize(outcomes):
        lines.append(
            f"{row['label']:30}{row['seeds']:6}{row['test_accuracy']:8.2%}{row['best_test_accuracy']:8.2%}"
            f"  {_short(row['first_median_gradient']):>12}{_short(row['last_median_gradient']):>9}"
            f" {row['seconds']:9.1f}"
        )
        if row["nonfinite_gradients"]:
            lines.append(f"{'':36}({row['nonfinite_gradients']:,.0f} gradient coordinates were inf or nan)")
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
        "commit": commit(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
    }


@cache
def commit() -> str | None:
    """That of the checkout this code is from, with "-dirty" behind if files were changed since."""
    git = ["git", "-C", os.fspath(Path(__file__).parent)]
    describe = [*git, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
