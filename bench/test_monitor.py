"""What a training step costs with its gradients monitored, in the ways that `training.py` lists.

Seconds are those of the host's clock for a step; on a GPU for rows of ten steps that are waited for once.
A monitor of every tenth step is always timed over ten, on a CPU the others step by step.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from comparison import OURS, compared
from measure import TRIAL_SECONDS, host_timer, interleaved, waited_for
from options import Record, settings
from training import BASELINE, MONITORS, NETWORKS, trainings

ROUNDS = 5
STEPS = 10
LONGER = 20  # times the seconds of other cases, since steps are long and unsteady; not in a trial


def steps_a_call(way: str, device: torch.device) -> int:
    return STEPS if device.type == "cuda" or "every" in MONITORS.get(way, {}) else 1


@pytest.mark.parametrize("network", NETWORKS)
def test_monitor(
    benchmark: BenchmarkFixture, record: Record, network: str, pytestconfig: pytest.Config
) -> None:
    device, seconds = settings(pytestconfig).device, settings(pytestconfig).seconds
    seconds *= 1 if seconds < TRIAL_SECONDS else LONGER
    with ExitStack() as stack:
        made = trainings(network, device, stack)
        counts = {way: steps_a_call(way, device) for way in made}
        calls = {way: partial(training.steps, counts[way]) for way, training in made.items()}
        timings = interleaved(calls, host_timer(device), seconds).divided_by(counts)
        for result in compared(timings, {}, BASELINE):
            record(kind="monitor", network=network, **result)
        benchmark.group = network
        ours = waited_for(made[OURS].step, device)
        benchmark.pedantic(ours, rounds=ROUNDS, warmup_rounds=1)  # type: ignore[no-untyped-call]
