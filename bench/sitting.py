"""One run of `evidence.py`: its stages one after the other, and what they came to."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import codehash
import collect
import environment
import limited
from codehash import Code
from environment import Environment
from limited import FAILED, PASSED, TIMED_OUT, Ended
from stages import FINDINGS, Options, Stage, Step

LINE = 100  # characters of a log's last line that are told
INTERRUPTED, SKIPPED = "interrupted", "skipped"
SIDE = ("driver", "cuda", "cpu", "sigscale", "torch", "triton", "python", "commit")


class Sitting:
    """`outcomes` has of each stage what its stage.json says, and of one that was not run why."""

    def __init__(
        self,
        options: Options,
        about: Environment,
        limit: float,
        again: bool = False,
        grace: tuple[float, float] = limited.GRACE,
    ) -> None:
        self.options, self.about, self.limit, self.again, self.grace = options, about, limit, again, grace
        self.outcomes: dict[str, dict[str, Any]] = {}
        data = [(str(options.data), "DATA")] if options.data else []
        self.places = [*data, (str(options.folder), "OUT")]

    def run(self, stage: Stage) -> bool:
        """Run a stage unless that is done; True where it was interrupted."""
        if stage.skip:
            self.outcomes[stage.name] = {"outcome": SKIPPED, "remark": stage.skip}
            return False
        code = codehash.record(stage.starts)
        folder = self.options.folder / stage.name
        before = self._before(folder, code)
        if before and before["outcome"] == PASSED:
            self.outcomes[stage.name] = {**before, "before": True}
            return False
        steps: dict[str, Any] = before["steps"] if before else {}
        _prepare(folder, fresh=not before)
        outcome = self._steps(stage, folder / "log.txt", steps)
        _without_paths(folder / "log.txt", self.places)
        found = self._found(stage, outcome, steps, folder, code)
        write_json(folder / "stage.json", {**found, "code": code})
        self.outcomes[stage.name] = found
        return outcome == INTERRUPTED

    def _before(self, folder: Path, code: Code) -> dict[str, Any] | None:
        """What the stage has come to on the same code."""
        path = folder / "stage.json"
        if self.again or not path.exists():
            return None
        there: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return there if there["code"]["hash"] == code["hash"] else None

    def _steps(self, stage: Stage, log: Path, steps: dict[str, Any]) -> str:
        """Run the steps that have not passed; what is left of the limit is divided among those left."""
        left = [step for step in stage.steps if steps.get(step.name, {}).get("outcome") != PASSED]
        end = time.monotonic() + self.limit
        for index, step in enumerate(left):
            share = max(1.0, end - time.monotonic()) / (len(left) - index)
            seconds = steps.get(step.name, {}).get("seconds", 0.0)
            try:
                ended = self._step(step, log, share)
            except KeyboardInterrupt:
                steps[step.name] = {"outcome": INTERRUPTED, "seconds": seconds, "remark": ""}
                return INTERRUPTED
            remark = collect.shown(_remark(ended, share, log), self.places)
            total = round(seconds + ended.seconds, 1)
            steps[step.name] = {"outcome": ended.outcome, "seconds": total, "remark": remark}
        outcomes = [steps[step.name]["outcome"] for step in stage.steps]
        return next((bad for bad in (FAILED, TIMED_OUT) if bad in outcomes), PASSED)

    def _step(self, step: Step, log: Path, seconds: float) -> Ended:
        if step.whole and step.kept:
            step.kept.unlink(missing_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"\n$ {collect.command(step.command, self.places)}\n")
        return limited.run(step.command, log, seconds, step.env, self.grace)

    def _found(
        self, stage: Stage, outcome: str, steps: dict[str, Any], folder: Path, code: Code
    ) -> dict[str, Any]:
        commands = [collect.command(step.command, self.places) for step in stage.steps]
        date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        about = {name: self.about.get(name, "") for name in SIDE}
        device = environment.device(self.about)
        provenance = {**about, "device": device, "command": commands[-1], "date": date}
        names, counted = collect.collected(stage, self.options, provenance, code)
        remarks = [f"{name}: {step['remark']}" for name, step in steps.items() if step["remark"]]
        return {
            "outcome": outcome,
            "seconds": round(sum(step["seconds"] for step in steps.values()), 1),
            "remark": "; ".join([*remarks, counted]),
            "file": names[0] if names else "log.txt",
            "files": [*names, "log.txt"],
            "steps": steps,
            "commands": commands,
            "date": date,
            "about": about,
        }


def write_json(path: Path, value: Any) -> None:
    """The whole file or none of it."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def _prepare(folder: Path, fresh: bool) -> None:
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    (folder / "work").mkdir(parents=True, exist_ok=True)
    (folder / "work" / ".gitignore").write_text("*\n", encoding="utf-8")


def _remark(ended: Ended, seconds: float, log: Path) -> str:
    if ended.outcome == TIMED_OUT:
        return f"cut off after {seconds:.0f} s"
    if ended.code == FINDINGS:
        return f"findings, see {log.name}"
    if ended.outcome == PASSED:
        return ""
    text = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"exit code {ended.code}, {text[-1].strip(' =')[:LINE]}"


def _without_paths(log: Path, places: Sequence[tuple[str, str]]) -> None:
    log.write_text(collect.shown(log.read_text(encoding="utf-8", errors="replace"), places), encoding="utf-8")
