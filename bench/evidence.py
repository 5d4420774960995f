"""One command for all that a machine has to say: `make evidence`, or `python bench/evidence.py`.

Runs the stages that `stages.py` describes, each under a time limit, and writes environment.json to
bench/results/<device>-<date>/ and, for each stage, a folder with stage.json (outcome, code, commands),
log.txt and results. A stage that has passed on the same code is not run again, one that has failed or was cut
off is gone on with, and the others run in any case. The exit code is 0 where no stage has failed (one that is
skipped says why), 1 where one has, 130 after Ctrl-C.

What a stage goes on from is in <stage>/work, which is not committed; to go on on another machine of the same
kind, take that along.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

import codehash
import environment
from codehash import ROOT
from environment import Environment
from limited import PASSED
from sitting import SKIPPED, Sitting, write_json
from stages import NAMES, Options, Stage, stages

RESULTS = ROOT / "bench" / "results"
LIMIT = 450  # seconds a stage; with the time to end it, less than eight minutes
SAME = ("gpu", "torch", "triton", "python", "quick")  # what all stages of a folder have in common


def main(
    argv: Sequence[str] | None = None,
    asked: Callable[[], Environment] = environment.asked,
    made: Callable[[Options], list[Stage]] = stages,
) -> int:
    arguments = _parser().parse_args(argv)
    chosen = (arguments.stages or " ".join(NAMES)).replace(",", " ").split()
    if unknown := [name for name in chosen if name not in NAMES]:
        raise SystemExit(f"{unknown[0]!r}: the stages are {' '.join(NAMES)}")
    data = arguments.data.resolve() if arguments.data else None
    about = {**asked(), "quick": "yes" if arguments.quick else "no"}
    folder = (arguments.out or _folder(about, data)).resolve()
    options = Options(folder, bool(about["gpu"]), arguments.quick, data)
    every = made(options)
    planned = [stage for stage in every if stage.name in chosen]
    if arguments.dry_run:
        _print_commands(planned)
        return 0
    about["commit"] = arguments.commit or environment.commit()
    about["command"] = " ".join(["python bench/evidence.py", *_given(arguments)])
    _check_folder(folder, about)
    _write_environment(folder, about, every)
    signal.signal(signal.SIGTERM, _interrupt)
    sitting = Sitting(options, about, arguments.limit, arguments.again)
    interrupted = False
    for stage in planned:
        if not stage.skip:
            print(f"{stage.name} ...", flush=True)
        if interrupted := sitting.run(stage):
            break
    print(_table(planned, sitting.outcomes, folder), flush=True)
    if interrupted:
        return 130
    bad = [outcome for outcome in sitting.outcomes.values() if outcome["outcome"] not in (PASSED, SKIPPED)]
    return 1 if bad else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--stages", help=f"some of {' '.join(NAMES)}; all by default")
    parser.add_argument("--out", type=Path, metavar="DIR", help="bench/results/<device>-<date> by default")
    parser.add_argument("--data", type=Path, metavar="DIR", help="of CIFAR-10, for the figures")
    parser.add_argument("--limit", type=float, default=LIMIT, metavar="S", help=f"seconds a stage ({LIMIT})")
    parser.add_argument("--again", action="store_true", help="anew, also what has passed on this code")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, to see that the stages run")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    parser.add_argument("--commit", help="of the code, where there is no git to ask")
    return parser


def _given(arguments: argparse.Namespace) -> list[str]:
    """The options that say what was measured, without paths."""
    words = ["--stages", f"'{arguments.stages}'"] if arguments.stages else []
    return [*words, *(["--data", "DATA"] if arguments.data else []), *(["--quick"] * arguments.quick)]


def _folder(about: Environment, data: Path | None) -> Path:
    """The device's latest folder while it holds nothing measured on other code, else a new one."""
    prefix = ("quick-" if about["quick"] == "yes" else "") + environment.slug(about)
    today = RESULTS / f"{prefix}-{datetime.now(timezone.utc):%Y-%m-%d}"
    dated = "-[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"
    found = sorted(path.parent for path in RESULTS.glob(f"{prefix}{dated}/environment.json"))
    if found and found[-1] != today and _same_code(found[-1], about):
        return found[-1]
    return today


def _same_code(folder: Path, about: Environment) -> bool:
    there = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    codes = [json.loads(path.read_text(encoding="utf-8"))["code"] for path in folder.glob("*/stage.json")]
    same = all(there[name] == about[name] for name in SAME)
    return same and not any(codehash.changed(code) for code in codes)


def _check_folder(folder: Path, about: Environment) -> None:
    """Evidence of two machines is never mixed, nor with what something else wrote."""
    path = folder / "environment.json"
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise SystemExit(f"{folder}: holds other files, and no environment.json. Name another --out.")
        return
    there = json.loads(path.read_text(encoding="utf-8"))
    different = [name for name in SAME if there[name] != about[name]]
    if different:
        words = "; ".join(f"{name} {there[name]!r}, here {about[name]!r}" for name in different)
        raise SystemExit(f"{folder}: is of {words}. Name another --out.")


def _write_environment(folder: Path, about: Environment, every: Sequence[Stage]) -> None:
    starts = sorted({start for stage in every for start in stage.starts})
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    folder.mkdir(parents=True, exist_ok=True)
    about["date"] = date
    write_json(folder / "environment.json", {**about, "code": codehash.record(starts)["hash"]})


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _print_commands(planned: Sequence[Stage]) -> None:
    for stage in planned:
        print(f"# {stage.name}{': skipped, ' + stage.skip if stage.skip else ''}")
        for step in stage.steps:
            env = (f"{name}={value}" for name, value in step.env.items())
            print(" ".join([*env, *step.command]))


def _table(planned: Sequence[Stage], outcomes: dict[str, dict[str, Any]], folder: Path) -> str:
    """Stage, outcome, seconds, file; the remark last, since it may be long."""
    lines = [("stage", "outcome", "seconds", "file", "")]
    for stage in planned:
        found = outcomes.get(stage.name, {"outcome": "not begun"})
        outcome = found["outcome"] + (", before" if found.get("before") else "")
        file = found.get("file", "")
        place = os.path.relpath(folder / stage.name / file) if file else ""
        lines.append((stage.name, outcome, f"{found.get('seconds', 0):.0f}", place, found.get("remark", "")))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n" + "\n".join("  ".join(line).rstrip() for line in padded)


if __name__ == "__main__":
    sys.exit(main())
