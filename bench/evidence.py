"""Everything a GPU has to say, within the minutes it is there.

    python -m bench.evidence                          print the plan of both calls
    python -m bench.evidence --call N --out DIR       call 1, short, to show faults early; or 2, long
    python -m bench.evidence --call N --rehearse      every step at its smallest size, on any machine

A step starts if the budget (`--seconds`) still has what it is expected to take, and is cut off at three times
that or at the end of the budget. All results so far are packed to DIR/call-N.tar.xz after each step and every
half minute; `python -m bench.report call-N/*.jsonl --name NAME` reads them. In .stage/ may travel: compiled
kernels (cache.txz, from `bench.precompile`) and halves of CIFAR-10's archive (cifar10.1, cifar10.2).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.harness import options
from bench.precompile import ENVIRONMENT
from bench.report import ROOT, measured_commit

SECONDS = {1: 150, 2: 580}  # the budget of each call
GRACE, PACK_EVERY, LIMIT = 5, 30, 3  # seconds, seconds, times the expected seconds
PACKED = (".json", ".jsonl", ".log", ".md", ".npz", ".png")
EPOCHS, EPOCH_SECONDS, FIGURE_SECONDS = 100, 2.2, 25  # of Figure 3 with 25 seeds, and what else it takes
PYTEST = "python -m pytest -q -p no:cacheprovider"
KERNELS = (  # small tensors through every family of kernels
    "tests/activations/test_layout.py::test_around_a_block tests/activations/test_learned.py::test_counted "
    "tests/quantiles/test_grad_sketch.py::test_any_layout tests/kernels/test_multi_tensor.py::test_counts "
    "tests/quantiles/test_quantile.py::test_selection_from_many "
    "tests/kernels/test_penalty_kernel.py::test_small_factors"
)
VALUES = {  # what stands in braces in commands; a rehearsal takes REHEARSED instead
    "bench": f"{PYTEST} --benchmark-only --out {{folder}}/{{name}}.jsonl --commit '{{commit}}'",
    "install": "python -m pip install -q --no-deps --no-build-isolation -e .",
    "tests": f"{PYTEST} -m gpu -rf",
    "memcheck": "compute-sanitizer --tool memcheck --error-exitcode 99",
    "racecheck": "compute-sanitizer --tool racecheck --error-exitcode 99",
    "figure": "python -m examples.cifar10 --figure 3 --out {folder}/figure3",
    "seeds": "--seeds 25 --epochs {epochs} --data data",
    "archive": "data/cifar-10-binary.tar.gz",
    "long": "every_fp32_input or more_than_2_to_the_31 or beyond_32_bits",
    "kernels": KERNELS,
    "small": "",
    "cases": "",
}
REHEARSED = {
    "tests": f"{PYTEST} --collect-only",
    "long": "around_a_block",
    "memcheck": "",
    "racecheck": "",
    "seeds": "--quick --seeds 1 --epochs 1 --steps 2",
    "small": "--exponents 10 --seconds 0.01 --dtypes float32 --modes eager",
    "cases": "--cases 1",
}

# Two lines per step: name, seconds expected on an H100, what it proves; the command. x & y run side by side.
CALLS = {
    1: """
    install 6 s: the package installs
        {install}
    cache 2 s: compiled kernels were carried and fit this Triton; else all are compiled, on every core
        python -m bench.precompile .stage/cache.txz --unpack {cases}
    data-1 1 s: half of CIFAR-10 was carried
        test ! -e .stage/cifar10.1 || (mkdir -p data && cp .stage/cifar10.1 {archive})
    smoke 15 s: every kernel agrees with its twin
        {tests} {kernels}
    ceilings 15 s: forward and backward run at 95 % of a copy's bandwidth
        {bench} bench/test_activations.py -k tanh --exponents 26,28 --modes eager
    atomics 6 s: cycles per shared atomic, by sketches of what the L2 cache holds
        {bench} bench/test_quantiles.py -k 'sketch and (Gaussian or constant or distinct)' --exponents 23
    counting 10 s: grad_sketch costs 1.02 (fp32), 1.03 (bf16) of a backward pass, a learned alpha 1.05
        {bench} bench/test_backward.py -k 'Gaussian or layer' --exponents 26,28 --seconds 0.1
    selection 12 s: five quantiles of 2^24 take 55 us, 64 gradients one launch, a sketch as long as a read
        {bench} bench/test_quantiles.py -k 'Gaussian and (sketch or five or many)' --exponents 16,24,28
    monitored 12 s: a monitored step takes 2 % more
        {bench} bench/test_training.py -k monitor
    seeds 10 s: a step of Figure 3 takes 0.33 ms
        {bench} bench/test_growth.py
    gpu-tests 60 s: all GPU tests but the exhaustive ones pass; no access is out of bounds
        {tests} tests -n 8 -k 'not ({long})' & {memcheck} {tests} {kernels}
    """,
    2: """
    data-2 1 s: the other half of CIFAR-10 was carried
        test ! -e .stage/cifar10.2 || cat .stage/cifar10.2 >> {archive}
    bandwidth 75 s: GB/s of every function by size; memory kept, and peaks
        {bench} bench/test_activations.py --exponents 20,24,26,28 --modes eager
    sketches 45 s: what counting and learning cost by size
        {bench} bench/test_backward.py --exponents 22,26,28 --seconds 0.1
    launch 10 s: the host's time is at or under eager's at 98,304 elements
        {bench} bench/test_launch.py
    quantiles 60 s: what exact quantiles cost by size and values, alike or not
        {bench} bench/test_quantiles.py --exponents 16,22,26
    table4 75 s: both remedies add at most 0.5 % to a captured step
        {bench} bench/table4 --modes eager,graph --seconds 1.5
    training 30 s: what monitors cost
        {bench} bench/test_training.py -k monitor
    exhaustive 60 s: every fp32 input and tensors of more than 2^31 elements are right
        {tests} tests -k '{long}'
    figure3 200 s: Figure 3 with 25 seeds, as many epochs as there is time for
        {figure} {seeds}
    table4-compiled 90 s: what torch.compile makes of Table 4
        {bench} bench/table4 --modes compile --seconds 0.3
    racecheck 60 s: no race in shared memory
        {racecheck} {tests} {kernels}
    """,
}


@dataclass(frozen=True)
class Step:
    name: str
    expected: int
    proves: str
    command: str

    def shell(self, rehearse: bool, **values: str) -> str:
        """The command as a shell takes it, with this Python; x & y fails if one of both does."""
        found = {**VALUES, **(REHEARSED if rehearse else {}), "name": self.name, **values}
        text = self.command + " {small}" * self.command.startswith("{bench}")
        while (filled := re.sub(r"{(\w+)}", lambda part: found[part[1]], text)) != text:
            text = filled
        text = re.sub(r"\bpython -", f"{shlex.quote(sys.executable)} -", text)
        one, parallel, other = text.partition(" & ")
        return f"{one} & first=$!; {other}; second=$?; wait $first && exit $second" if parallel else one


def steps_of(call: int) -> list[Step]:
    found = re.findall(r"(\S+) (\d+) s: (.+)\n +(.+)\n", CALLS[call])
    return [Step(name, int(seconds), proves, command) for name, seconds, proves, command in found]


def plan(call: int, seconds: float) -> str:
    """The steps in order, with expected seconds, and those that the budget has no room for."""
    lines, used = [f"call {call}, {seconds:g} s:"], 0
    for step in steps_of(call):
        fits = used + step.expected <= seconds
        used += step.expected * fits
        lines.append(f"{step.expected:5d} s  {'' if fits else 'LEFT OUT '}{step.name}: {step.proves}")
    return "\n".join([*lines, f"{used:5d} s  expected in all"])


class Runner:
    """One call: runs steps, keeps outcomes, packs everything."""

    def __init__(self, call: int, seconds: float, out: Path, rehearse: bool, commit: str) -> None:
        self.deadline = time.monotonic() + seconds
        self.archive, self.rehearse, self.commit = out / f"call-{call}.tar.xz", rehearse, commit
        self.folder = ROOT / "build" / f"call-{call}"
        shutil.rmtree(self.folder, ignore_errors=True)  # of an earlier call
        self.folder.mkdir(parents=True)
        self.outcomes: list[dict[str, Any]] = []

    def run(self, step: Step) -> None:
        """A step is left out if there is no time; cut off at its limit or the end of the budget."""
        left = self.deadline - time.monotonic()
        if not self.rehearse and step.expected > left:
            self.keep(step, "left out", 0.0)
            return
        start = time.monotonic()
        limit = left - GRACE if self.rehearse else min(LIMIT * step.expected, left - GRACE)
        process, outcome = None, "cut off"
        try:
            process = self.start(step, left)
            while outcome == "cut off" and (spent := time.monotonic() - start) < limit:
                try:
                    outcome = "failed" if process.wait(min(PACK_EVERY, limit - spent)) else "passed"
                except subprocess.TimeoutExpired:
                    self.pack()
        finally:
            if process is not None:
                end(process)
            self.keep(step, outcome, time.monotonic() - start)
            self.pack()

    def start(self, step: Step, left: float) -> subprocess.Popen[bytes]:
        """Start a process group, which is ended as a whole."""
        epochs = f"{max(1, min(EPOCHS, (left - FIGURE_SECONDS) / EPOCH_SECONDS)):.0f}"
        folder = shlex.quote(str(self.folder))
        command = step.shell(self.rehearse, folder=folder, commit=self.commit, epochs=epochs)
        with (self.folder / f"{step.name}.log").open("wb") as log:
            where: dict[str, Any] = {"cwd": ROOT, "stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            environment = {**os.environ, **ENVIRONMENT}
            return subprocess.Popen(["sh", "-c", command], env=environment, start_new_session=True, **where)

    def keep(self, step: Step, outcome: str, seconds: float) -> None:
        self.outcomes.append({**asdict(step), "outcome": outcome, "seconds": round(seconds, 1)})
        (self.folder / "steps.json").write_text(json.dumps(self.outcomes, indent=1) + "\n", encoding="utf-8")
        print(f"{outcome:8} {seconds:6.1f} s of {step.expected:3d}  {step.name}", flush=True)

    def pack(self) -> None:
        """The whole archive or the one before."""
        part = self.archive.with_name(f".{self.archive.name}.part")
        with tarfile.open(part, "w:xz") as archive:
            for path in sorted(self.folder.rglob("*")):
                if path.suffix in PACKED:
                    archive.add(path, f"{self.folder.name}/{path.relative_to(self.folder)}")
        os.replace(part, self.archive)


def end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a process and its children, then kill them."""
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(GRACE)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--call", type=int, choices=[*CALLS], help="which to run; by default print the plan")
    parser.add_argument("--seconds", type=options.seconds, help=f"the budget of a call; by default {SECONDS}")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the archive")
    parser.add_argument("--rehearse", action="store_true", help="every step at its smallest size")
    parser.add_argument("--commit", default="", help="the measured commit, where there is no git to ask")
    given = parser.parse_args(argv)
    if given.call is None:
        print("\n\n".join(plan(call, given.seconds or SECONDS[call]) for call in CALLS))
        return 0
    given.out.mkdir(parents=True, exist_ok=True)
    seconds = given.seconds or (float("inf") if given.rehearse else SECONDS[given.call])
    runner = Runner(given.call, seconds, given.out, given.rehearse, given.commit or measured_commit())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for step in steps_of(given.call):
            runner.run(step)
    except KeyboardInterrupt:
        return 130
    return int(any(outcome["outcome"] in ("failed", "cut off") for outcome in runner.outcomes))


if __name__ == "__main__":
    sys.exit(main())
