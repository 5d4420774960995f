"""What is committed of a stage: its results out of what its processes left behind."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import resumed
from codehash import ROOT, Code
from resumed import Line
from stages import Options, Stage

SLOWEST = 10
PICTURES, TEXTS = (".png",), ("report.md", "claims.json", "run.json")


def collected(
    stage: Stage, options: Options, provenance: dict[str, str], code: Code
) -> tuple[list[str], str]:
    """Write what there is, whether or not the stage has ended well: the files' names, and a remark."""
    folder = options.folder / stage.name
    if stage.kind == "benchmarks":
        return _benchmarks(stage, folder, provenance, code)
    if stage.kind == "tests":
        return _tests(stage, folder, provenance, code)
    return _figures(folder, options.work(stage.name) / "run")


def _benchmarks(stage: Stage, folder: Path, provenance: dict[str, str], code: Code) -> tuple[list[str], str]:
    import report

    results = [result for line in _outcomes(stage).values() for result in line.get("results", ())]
    if not results:
        return [], "no results"
    try:
        report.write(folder, report.Run(provenance, results, code))
    except ImportError as error:
        return [], f"no results: {error}"
    pictures = sorted(path.name for path in folder.iterdir() if path.suffix in PICTURES)
    return ["results.json", "tables.md", *pictures], f"{len(results)} results"


def _tests(stage: Stage, folder: Path, provenance: dict[str, str], code: Code) -> tuple[list[str], str]:
    steps = {step.name: _summary(resumed.read(step.kept)) for step in stage.steps if step.kept}
    if not any(summary["counts"] for summary in steps.values()):
        return [], "no test ran"
    found = {"provenance": provenance, "code": code, "steps": steps}
    (folder / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return ["results.json"], ", ".join(f"{name}: {_counted(steps[name]['counts'])}" for name in steps)


def _summary(lines: dict[str, Line]) -> dict[str, Any]:
    outcomes = [line["outcome"] for line in lines.values()]
    slowest = sorted(lines.values(), key=lambda line: -line["seconds"])[:SLOWEST]
    return {
        "counts": {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))},
        "failed": [test for test, line in lines.items() if line["outcome"] == "failed"],
        "slowest": {line["test"]: line["seconds"] for line in slowest},
        "printed": {test: shown(line["printed"]) for test, line in lines.items() if line.get("printed")},
    }


def _counted(counts: dict[str, int]) -> str:
    return " and ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "none"


def _figures(folder: Path, run: Path) -> tuple[list[str], str]:
    """Pictures and verdicts; checkpoints and the records of single runs stay where they are."""
    names = []
    for path in sorted(run.iterdir()) if run.exists() else ():
        if path.suffix in PICTURES:
            shutil.copyfile(path, folder / path.name)
        elif path.name in TEXTS:
            (folder / path.name).write_text(shown(path.read_text(encoding="utf-8")), encoding="utf-8")
        else:
            continue
        names.append(path.name)
    finished = len(list((run / "runs").glob("*.json")))
    return names, f"{finished} runs finished"


def _outcomes(stage: Stage) -> dict[str, Line]:
    return {
        test: line
        for step in stage.steps
        if step.kept
        for test, line in resumed.read(step.kept).items()
        if line["outcome"] == "passed"
    }


def shown(text: str, also: Iterable[tuple[str, str]] = ()) -> str:
    """Text without the paths of this machine."""
    pythons = [(prefix, "<python>") for prefix in (sys.prefix, sys.base_prefix)]
    places = [(str(ROOT), ""), *pythons, (str(Path.home()), "~")]
    for place, word in (*also, *places):
        if len(place) > 1:
            after = r"(?:/|(?![\w.-]))" if not word else r"(?![\w.-])"
            text = re.sub(re.escape(place) + after, word, text)
    return text


def command(words: Iterable[str], also: Iterable[tuple[str, str]] = ()) -> str:
    """A command as one would type it in the repository's root."""
    return shown(" ".join("python" if word == sys.executable else word for word in words), also)
