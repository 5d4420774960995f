"""Table 4 of the paper, on this machine and beside what one would write instead; see `table4_cases.py`.

Models and modes are timed in turn, some steps each, over and over, after all were found to train alike
(`table4_check.py`). `python bench/table4.py` is this by itself.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import table4_cases as cases
from comparison import OURS
from examples.cifar10 import runtime
from measure import TRIAL_SECONDS, host_timer, interleaved, waited_for
from options import Record, settings
from table4 import LONGER
from table4_check import check
from table4_results import named, results
from table4_table import WORDS

ROUNDS = 5
STEPS = {"cpu": 5, "cuda": 50}  # a round


def test_table4(benchmark: BenchmarkFixture, record: Record, pytestconfig: pytest.Config) -> None:
    device, seconds = settings(pytestconfig).device, settings(pytestconfig).seconds
    trial = seconds < TRIAL_SECONDS
    modes, skipped = cases.choose_modes(pytestconfig.getoption("--modes"), device, trial=trial)
    split, data = cases.images(pytestconfig.getoption("--data"), device)
    runtime.keep_freed_memory()
    steps = 1 if trial else STEPS[device.type]
    with ExitStack() as stack:
        stack.enter_context(cases.on_device(device))
        made = {
            (mode, name): cases.Training(model, mode, split, device)
            for mode in modes
            for name, model in cases.MODELS.items()
        }
        for training in made.values():
            stack.callback(training.close)
        check([(mode, training) for (mode, _), training in made.items()], split, device)
        for training in made.values():
            training.begin()
        calls = {named(*key): partial(training.steps, steps) for key, training in made.items()}
        timings = interleaved(calls, host_timer(device), seconds if trial else LONGER * seconds)
        timings = timings.divided_by(dict.fromkeys(calls, steps))
        for result in results(timings, [*made]):
            record(kind="table4", batch=cases.BATCH, data=data, steps=steps, **result)
        for mode, why in skipped.items():
            record(kind="table4", mode=mode, provider=WORDS[mode], seconds=None, ratios={}, skipped=why)
        benchmark.group = "Table 4"
        ours = waited_for(made[modes[0], OURS].step, device)
        benchmark.pedantic(ours, rounds=ROUNDS, warmup_rounds=1)  # type: ignore[no-untyped-call]
