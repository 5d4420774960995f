"""Table 4 of the paper by itself: what both remedies cost a training, in all modes that this machine has.

    python bench/table4.py --seconds 120 --out table4.json
    python bench/report.py table4.json --name h200 --readme README.md

It runs `test_table4.py` and needs what `pip install -e ".[bench]"` installs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import options
from measure import TRIAL_SECONDS

ROOT = Path(__file__).resolve().parents[1]
ALL = ",".join(options.MODES)
LONGER = 30  # times the seconds of other cases, since steps are long and unsteady


def arguments_of_pytest(given: Sequence[str] | None = None) -> list[str]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=options.folder, help="CIFAR-10; by default what is in the cache, or random images"
    )
    parser.add_argument("--device", type=options.device, help="cpu, cuda or cuda:N; a GPU by default")
    parser.add_argument(
        "--modes", type=options.modes, help=f"some of {ALL}, by default all; on a CPU compile takes minutes"
    )
    parser.add_argument(
        "--seconds",
        type=options.seconds,
        default=60.0,
        help="of interleaved rounds, by default 60; a trial below 3",
    )
    parser.add_argument("--out", type=options.file_to_write, help="JSON to write, for report.py")
    parser.add_argument("--threads", type=options.count, help="on a CPU; by default one for each core")
    chosen = parser.parse_args(given)
    trial = chosen.seconds < LONGER * TRIAL_SECONDS
    named = {
        "seconds": round(chosen.seconds / LONGER, 6),
        "device": chosen.device,
        "modes": chosen.modes or (None if trial else ALL),
        "threads": chosen.threads,
        "data": chosen.data and chosen.data.resolve(),
        "benchmark-json": chosen.out and chosen.out.resolve(),
    }
    given_on = [f"--{name}={value}" for name, value in named.items() if value is not None]
    return ["bench/test_table4.py", "--benchmark-only", "-q", *given_on]


if __name__ == "__main__":
    arguments = arguments_of_pytest()
    os.chdir(ROOT)
    sys.exit(pytest.main(arguments))
