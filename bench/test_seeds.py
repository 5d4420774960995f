"""What training many seeds at once costs, and the form of its convolutions; see `seed_cases.py`.

The aims: on a GPU 25 seeds take at most three times as long as one, on a CPU no longer than one by one.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from comparison import OURS, compared
from examples.cifar10 import runtime
from measure import TRIAL_SECONDS, device_timer, host_timer, interleaved, waited_for
from options import Record, settings
from seed_cases import ONE_BY_ONE, SEEDS, SIDES, SINGLE, convolutions, steps

ROUNDS = 3
WARM_UP = 6  # calls until graphs are captured
LONGER = 20  # times the seconds of other cases, since steps are long and unsteady; not in a trial


@pytest.fixture(autouse=True)
def _kept_memory() -> None:
    runtime.keep_freed_memory()


def test_seeds(benchmark: BenchmarkFixture, record: Record, pytestconfig: pytest.Config) -> None:
    given = settings(pytestconfig)
    calls, runs = steps(given.device)
    for call in calls.values():
        for _ in range(WARM_UP if given.device.type == "cuda" else 1):
            call()
    seconds = given.seconds * (1 if given.seconds < TRIAL_SECONDS else LONGER)
    timings = interleaved(calls, host_timer(given.device), seconds)
    for result in compared(timings, {}, SINGLE):
        of_one = {ONE_BY_ONE: timings.ratio(result["provider"], ONE_BY_ONE)}
        more = of_one if result["provider"] == f"{SEEDS} seeds" else {}
        record(kind="seeds", network="Table 3 network, batch 32", **{**result, "ratios": more})
    benchmark.group = "seeds at once"
    step = waited_for(calls[f"{SEEDS} seeds"], given.device)
    benchmark.pedantic(step, rounds=ROUNDS)  # type: ignore[no-untyped-call]
    for run in runs.values():
        run.monitor.close()


@pytest.mark.parametrize("side", SIDES)
def test_convolution(
    benchmark: BenchmarkFixture, record: Record, side: int, pytestconfig: pytest.Config
) -> None:
    given = settings(pytestconfig)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # all in float32
        calls, refused = convolutions(side, given.device)
        timings = interleaved(calls, device_timer(given.device), given.seconds)
        for result in compared(timings, refused):
            record(kind="convolution", networks=SEEDS, images=f"{side} x {side}", **result)
        benchmark.group = "convolutions of many networks"
        benchmark.pedantic(waited_for(calls[OURS], given.device), rounds=ROUNDS)  # type: ignore[no-untyped-call]
