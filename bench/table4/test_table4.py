"""Table 4 of the paper on this machine, beside what one would write instead; see `__init__.py`.

Models and modes are timed in turn, some steps each, over and over, after all were found to train alike
(`check.py`). `make table4` runs this alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

from bench.harness.cifar10 import BATCH, keep_memory, training_images
from bench.harness.timing import OURS, Bench, Timings, host_timer, interleaved
from bench.table4 import MODELS, Training, choose_modes, on_device
from bench.table4.check import check

STEPS = {"cpu": 5, "cuda": 50}  # per round
LONGER = 30  # times the seconds of other cases, since steps are long and unsteady
MODE_LABELS = {"eager": "eager", "compile": "torch.compile", "graph": "CUDA graph"}
ALTERNATIVES = ("eager", "batch norm")  # what both remedies are compared with besides their baseline


def test_table4(bench: Bench, pytestconfig: pytest.Config) -> None:
    device = bench.device
    modes, skipped = choose_modes(pytestconfig.getoption("--modes"), device, trial=bench.trial)
    split, data = training_images(device)
    keep_memory()
    steps = 1 if bench.trial else STEPS[device.type]
    with ExitStack() as stack:
        stack.enter_context(on_device(device))
        made = {
            (mode, name): Training(model, mode, split, device)
            for mode in modes
            for name, model in MODELS.items()
        }
        for training in made.values():
            stack.callback(training.close)
        check([(mode, training) for (mode, _), training in made.items()], split, device)
        for training in made.values():
            training.begin()
        calls = {named(*key): partial(training.steps, steps) for key, training in made.items()}
        repeats, seconds = dict.fromkeys(calls, steps), bench.longer(LONGER).seconds
        timings = interleaved(calls, host_timer(device), seconds, repeats)
        for result in results(timings, [*made]):
            bench.record(kind="table4", batch=BATCH, data=data, steps=steps, **result)
        for mode, why in skipped.items():
            about = {"mode": MODE_LABELS[mode], "provider": OURS, "model": MODELS[OURS].label}
            bench.record(kind="table4", **about, seconds=None, over={}, skipped=f"{mode} {why}")
        bench.steady("Table 4", made[modes[0], OURS].step)


def named(mode: str, name: str) -> str:
    """What is timed, in `Timings`."""
    return f"{mode}: {name}"


def results(timings: Timings, keys: Iterable[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """A record for each of these modes and models, each compared with others in the same mode."""
    for mode, name in keys:
        model, this = MODELS[name], named(mode, name)
        base = MODELS[model.baseline].paper
        others = [model.baseline] * (name != model.baseline) + [*ALTERNATIVES] * (name == OURS)
        yield {
            "mode": MODE_LABELS[mode],
            "provider": name,
            "model": model.label,
            "seconds": timings.seconds(this),
            "over": {other: timings.ratio(this, named(mode, other)) for other in others},
            "paper": model.paper / base - 1 if model.paper and base and model.baseline != name else None,
        }
