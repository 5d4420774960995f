"""Time of a training step against its seeds, old against new; see `report/growth.py` for the picture.

    sigscale    all seeds of the Table 3 network as one, with both remedies; on a CPU in C++
    PyTorch     the same by PyTorch's operations, on a CPU

In fp32, by the host's clock, calls in a row. With `--exponents` this is a trial of the smallest sizes.
"""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

from bench.harness.cifar10 import EAGER, Seeds
from bench.harness.options import settings
from bench.harness.timing import OURS, Bench, Call, host_timer

SERIES = "step of the Table 3 network"
SEEDS, TRIAL = [1, 5, 25], 2  # numbers of seeds, how many of them in a trial
TOLERANCE = 1e-4  # of each gradient, relative to its tensor's largest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("seeds", SEEDS[: TRIAL if settings(metafunc.config).exponents else None])


def test_growth(bench: Bench, seeds: int) -> None:
    with ExitStack() as stack:
        bound = calls(seeds, bench.device, stack)
        about = {"kind": "growth", "series": SERIES, "unit": "seeds", "n": seeds}
        bench.compare(about, bound, timer=host_timer)
        bench.steady(SERIES, bound[OURS])


def calls(seeds: int, device: torch.device, stack: ExitStack) -> dict[str, Call]:
    """The ways to make a step, whose gradients are checked to be the same."""
    made = {OURS: Seeds(range(seeds), device)}
    if device.type == "cpu":
        made["PyTorch"] = Seeds(range(seeds), device, native=False)
    for each in made.values():
        stack.callback(each.close)
        for _ in range(2):  # the monitor measures the first step, which PyTorch's operations make
            each.step()
    *_, expected = made.values()
    for one, other in zip(made[OURS].gradients(), expected.gradients(), strict=True):
        atol, message = TOLERANCE * float(other.abs().max()), f"{seeds} seeds: the gradients differ"
        torch.testing.assert_close(one, other, rtol=TOLERANCE, atol=atol, msg=message)
    for _ in range(EAGER):
        made[OURS].step()
    return {name: each.step for name, each in made.items()}
