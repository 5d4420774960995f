"""Commands with a time limit, each in a process group of its own that is ended as a whole."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from codehash import ROOT

GRACE = (15.0, 5.0)  # seconds after an interrupt and after a request to end; then the group is killed
PASSED, FAILED, TIMED_OUT = "passed", "failed", "timed out"


@dataclass(frozen=True)
class Ended:
    outcome: str
    code: int
    seconds: float


def run(
    command: Sequence[str],
    log: Path,
    seconds: float,
    env: Mapping[str, str] | None = None,
    grace: tuple[float, float] = GRACE,
) -> Ended:
    """Run to the end or the limit; all that is written goes to the end of `log`.

    At the limit, and on an exception such as Ctrl-C, the group is interrupted, asked to end, and killed.
    """
    start = time.monotonic()
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            end(process, grace)
            return Ended(TIMED_OUT, process.returncode, time.monotonic() - start)
        except BaseException:
            end(process, grace)
            raise
    _signal(process, signal.SIGKILL)  # what it may have left running
    outcome = FAILED if process.returncode else PASSED
    return Ended(outcome, process.returncode, time.monotonic() - start)


def end(process: subprocess.Popen[bytes], grace: tuple[float, float] = GRACE) -> None:
    """End a process and all others of its group."""
    for number, patience in zip((signal.SIGINT, signal.SIGTERM), grace, strict=True):
        _signal(process, number)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
        break
    _signal(process, signal.SIGKILL)
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # where all are gone
        os.killpg(process.pid, number)
