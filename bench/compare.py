"""Is the package faster or slower than at another commit? `make bench-compare BASE=main`.

    python bench/compare.py BASE [--rounds 5] [-- pytest's arguments]

runs a selection of the benchmarks (`bench/test_activations.py -k tanh --exponents 10,20`; by default all of
them) with the package of BASE and that of the working tree by turns, each in a process of its own. What is
compared is `sigscale` and `kernels`: the benchmarks themselves and `examples` are those of the working tree.
Printed are each case's ratio, its spread and a verdict (`verdict.py` has the rule), and as a control how the
code of others differed, which is the same on both sides. The exit code is 0, 1 where a case is slower.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import limited
import resumed
from base import Sides, sides
from codehash import ROOT
from tables import KINDS
from verdict import FASTER, LEAST_ROUNDS, NONE, SLOWER, Verdict, by_chance, judge

Times = dict[str, float]
ROUNDS = 5
NOTHING_SELECTED, USED_WRONGLY = 5, 4  # pytest's exit codes
SIDES = ("base", "tree")
OURS = "sigscale"  # how the package is called among providers; that of `comparison` would load torch


def main(argv: Sequence[str] | None = None) -> int:
    words = [*(sys.argv[1:] if argv is None else argv), "--"]
    own = words.index("--")
    arguments = _parser().parse_args(words[:own])
    if arguments.rounds < LEAST_ROUNDS:
        raise SystemExit(f"--rounds {arguments.rounds}: must be at least {LEAST_ROUNDS}")
    selection = words[own + 1 : -1] or ["bench"]
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with sides(arguments.base) as both:
            print(f"base: {arguments.base} ({both.commit[:10]}); selection: {shlex.join(selection)}")
            if both.same:
                print("the code is the same: this shows the noise")
            times = measured(both, selection, arguments.rounds)
    except KeyboardInterrupt:
        print("interrupted; nothing is left behind", file=sys.stderr)
        return 130
    verdicts = {case: judge(*of) for case, of in paired(times).items()}
    print(table(verdicts, arguments.rounds))
    print("\n".join(unpaired(times)))
    return 1 if any(v.word == SLOWER for case, v in verdicts.items() if ours(case)) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="%(prog)s BASE [--rounds N] [-- pytest's arguments]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("base", metavar="BASE", help="a commit, branch or tag")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each side ({ROUNDS})")
    return parser


def measured(both: Sides, selection: Sequence[str], rounds: int) -> dict[str, list[Times]]:
    """Seconds of each case, by side and round, taken by turns."""
    times: dict[str, list[Times]] = {side: [] for side in SIDES}
    for number in range(1, rounds + 1):
        for side in SIDES:
            place = both.base if side == "base" else both.tree
            found, seconds = once(place, selection, both.scratch / f"{side}-{number}")
            times[side].append(found)
            left = 2 * rounds - sum(map(len, times.values()))
            print(f"round {number}, {side}: {len(found)} cases, {seconds:.0f} s", end="")
            print(f"; about {left * seconds / 60:.1f} minutes left" if left else "", flush=True)
    return times


def once(place: Path, selection: Sequence[str], stem: Path) -> tuple[Times, float]:
    """One run of the benchmarks with the package in `place`: seconds of each case, and of the run."""
    kept, log = stem.with_suffix(".jsonl"), stem.with_suffix(".log")
    path = shlex.join([str(place), str(ROOT), str(ROOT / "bench")])
    plugins = ("-p", "resumed", "--resumed", str(kept), "-p", "package_from", "--package-from", str(place))
    options = ("-q", "--benchmark-only", "-p", "no:cacheprovider", "-o", f"pythonpath={path}")
    command = (sys.executable, "-m", "pytest", *plugins, *options, *selection)
    search = os.pathsep.join(filter(None, [str(ROOT / "bench"), os.environ.get("PYTHONPATH", "")]))
    ended = limited.run(command, log, float("inf"), {"PYTHONPATH": search})
    if ended.code == NOTHING_SELECTED:
        raise SystemExit(f"no benchmark is selected by {shlex.join(selection)}")
    found = dict(cases(resumed.read(kept)))
    if ended.code not in (0, 1) or not found:
        raise SystemExit(
            f"{log.read_text(encoding='utf-8', errors='replace')[-3000:]}\nthe benchmarks failed"
        )
    return found, ended.seconds


def cases(lines: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """What each case is called, and its seconds."""
    for line in lines.values():
        for result in line.get("results", ()) if line["outcome"] == "passed" else ():
            if result.get("seconds"):
                kind = result["kind"]
                what = " ".join([kind, *(str(result[name]) for name in KINDS[kind].keys)])
                yield f"{what}: {result['provider']}", result["seconds"]


def ours(case: str) -> bool:
    """Whether a case runs the package: providers are called sigscale, or sigscale and how."""
    return case.rpartition(": ")[2].startswith(OURS)


def paired(times: Mapping[str, Sequence[Times]]) -> dict[str, tuple[list[float], list[float]]]:
    """The times of both sides, of the cases that ran in every round."""
    first, *others = [found for side in SIDES for found in times[side]]
    common = [case for case in first if all(case in other for other in others)]
    if not common:
        raise SystemExit("no case ran with both packages")
    base, tree = (times[side] for side in SIDES)
    return {case: ([of[case] for of in base], [of[case] for of in tree]) for case in common}


def unpaired(times: Mapping[str, Sequence[Times]]) -> Iterator[str]:
    """Cases that did not run in every round of both."""
    for side in SIDES:
        other = SIDES[1 - SIDES.index(side)]
        for case in dict.fromkeys(case for of in times[side] for case in of):
            if not all(case in of for of in times[other]):
                yield f"not in every round of the {other}: {case}"


def table(verdicts: Mapping[str, Verdict], rounds: int) -> str:
    """Ours line by line; of the code of others how many differ, which nothing but noise can explain."""
    mine = {case: verdict for case, verdict in verdicts.items() if ours(case)}
    width = max(map(len, (*mine, "case")))
    lines = [f"\n{'case':{width}}  ratio  spread       verdict"]
    for case, verdict in mine.items():
        spread = f"{verdict.low:.2f}-{verdict.high:.2f}"
        lines.append(f"{case:{width}}  {verdict.ratio:5.2f}  {spread:11}  {verdict.word}")
    words = [verdict.word for verdict in mine.values()]
    counted = ", ".join(f"{words.count(word)} {word}" for word in (FASTER, SLOWER, NONE))
    chance = by_chance(rounds) * len(mine)
    lines.append(f"\n{counted}; were nothing different, up to {chance:.1f} faster or slower by chance")
    others = [verdict for case, verdict in verdicts.items() if not ours(case)]
    if others:
        wrong = sum(verdict.word != NONE for verdict in others)
        ratios = sorted(verdict.ratio for verdict in others)
        lines.append(
            f"control, code of others: {wrong} of {len(others)} with a difference, "
            f"ratios from {ratios[0]:.2f} to {ratios[-1]:.2f}"
        )
    return "\n".join(lines)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
