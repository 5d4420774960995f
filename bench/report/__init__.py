"""Runs of the benchmarks as files: what a run is of, how it is read, merged and stored.

`pytest bench --out run.jsonl` writes one line per result, after a line of provenance. A stored run is such a
file, `results.jsonl` in a folder of bench/results/, with its pictures beside it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from cpuinfo import get_cpu_info

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
NAME = "results.jsonl"
CODE = ("kernels", "sigscale")  # what results are of
PLACES = r" --(benchmark-json|out|commit)[ =]\S*"  # options that say nothing about what was measured

Results = list[dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """Where and how numbers were measured, and the numbers."""

    provenance: dict[str, str]
    results: Results


def provenance(device: Any, words: Sequence[str], commit: str = "") -> dict[str, str]:
    import torch

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{get_cpu_info()['brand_raw']}, {torch.get_num_threads()} of {os.cpu_count()} threads"
    found = {of.name: of.version for of in distributions()}
    return {
        "device": name,
        "kind": device.type,
        "commit": commit or measured_commit(),
        **{package: found.get(package, "absent") for package in ("sigscale", "torch", "triton")},
        "python": platform.python_version(),
        "command": re.sub(PLACES, "", " ".join(words)),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def measured_commit() -> str:
    """The commit that is checked out; marked where the code has changes on top of it."""
    try:
        head = git("rev-parse", "HEAD").stdout.strip()
    except FileNotFoundError:
        return "unknown"
    dirty = head and git("diff", "--quiet", "HEAD", "--", *CODE).returncode
    return (head or "unknown") + (" with changes" if dirty else "")


def is_stale(run: Run) -> bool:
    """Whether the code has changed since the commit of a run, or that commit is not known here."""
    return git("diff", "--quiet", run.provenance["commit"], "--", *CODE).returncode != 0


def load(path: Path) -> Run:
    """A run as `--out` and `store` write it; SystemExit where it is none, or names a stranger."""
    from bench.harness.providers import provider

    try:
        first, *results = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        run = Run(first["provenance"], results)
        for result in results:
            provider(result["provider"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        rule = "must be a file of `pytest bench --benchmark-only --out RUN.jsonl`"
        raise SystemExit(f"{path}: {rule} ({type(error).__name__}: {error})") from error
    except LookupError as error:
        raise SystemExit(f"{path}: {error.args[0]}") from error
    return run


def merged(runs: Sequence[Run]) -> Run:
    """The results of all, as if measured by one command; they must be of one device and commit."""
    first = runs[0].provenance
    for name in ("device", "commit", "torch", "triton"):
        if different := {run.provenance[name] for run in runs} - {first[name]}:
            raise SystemExit(f"runs to be merged differ in {name}: {first[name]!r} and {different.pop()!r}")
    command = "; ".join(dict.fromkeys(run.provenance["command"] for run in runs))
    return Run({**first, "command": command}, [result for run in runs for result in run.results])


def store(folder: Path, run: Run) -> None:
    """Write the results, one a line, and the pictures."""
    from bench.report.pictures import PICTURES

    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(line) + "\n" for line in ({"provenance": run.provenance}, *run.results)]
    (folder / NAME).write_text("".join(lines), encoding="utf-8")
    for name, draw in PICTURES.items():
        if figure := draw(run.results):
            finish(figure, run.provenance, folder / name)


def finish(figure: Any, about: dict[str, str], path: Path) -> None:
    """Say below the title where the numbers come from, and save."""
    versions = (
        f"torch {about['torch']}, triton {about['triton']}, commit {about['commit'][:10]}, {about['date']}"
    )
    figure.supxlabel(f"{about['device']}; {versions}", fontsize=7, color="#666666")
    figure.savefig(path, dpi=120)
