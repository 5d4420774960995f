"""Every registered function against what it replaces: time and memory; see `harness/activations.py`.

On a GPU the device's time between two events with cold caches, and the memory of the largest tensors. On a
CPU the kernels' plain-PyTorch twin takes temporary tensors that the kernels do not.
"""

from __future__ import annotations

import pytest
import torch

from bench.harness.activations import EXPONENTS, TRAINING, bind, calls, cases, tensors
from bench.harness.inputs import Case, parametrize
from bench.harness.options import settings
from bench.harness.providers import made
from bench.harness.timing import OURS, Bench

REMEMBERED = (OURS, "plain", "eager")  # whose memory is measured


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc, cases(settings(metafunc.config)))


def test_activation(bench: Bench, case: Case, pytestconfig: pytest.Config) -> None:
    given = settings(pytestconfig)
    bound, refused = calls(case, given.compiles)
    bench.compare(case.about, bound, refused)
    bench.steady(f"{case['function']}, {case['direction']}", bound[OURS])
    largest = case["direction"] == TRAINING and case.exponent == max(given.sizes(EXPONENTS))
    if case.device.type == "cuda" and largest:
        for name in REMEMBERED:
            about = {**case.about, "kind": "memory", "provider": name}
            bench.record(**about, seconds=None, over={}, **memory(case, name))


def memory(case: Case, name: str) -> dict[str, int]:
    """Bytes in use after a forward pass, its result included, and at the worst moment of forward+backward."""
    x, g = tensors(case)
    function = made(name, case["function"], x)
    training = bind(function, x, g)
    before = torch.cuda.memory_allocated(case.device)
    y = function(x)
    kept = torch.cuda.memory_allocated(case.device) - before
    del y
    torch.cuda.reset_peak_memory_stats(case.device)
    training()
    return {"kept": kept, "peak": torch.cuda.max_memory_allocated(case.device) - before}
