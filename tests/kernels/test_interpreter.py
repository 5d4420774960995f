"""The suite once more with the Triton kernels themselves, run by Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
TESTS = Path(__file__).parents[1]
SUITES = (
    "activations/test_accuracy.py",
    "activations/test_layout.py",
    "activations/test_autograd.py",
    "activations/test_extension.py",
    "activations/test_learned.py",
    "test_api.py",
    "quantiles/test_sketch.py",
    "quantiles/test_sketch_state.py",
    "quantiles/test_grad_sketch.py",
    "quantiles/test_quantile.py",
    "kernels/test_multi_tensor.py",
    "kernels/test_penalty_kernel.py",
    "examples/test_cifar10_convolution.py",
    "bench/test_bench_activations.py",
)


@pytest.mark.skipif(bool(os.environ.get("TRITON_INTERPRET")), reason="this is that run")
@pytest.mark.parametrize("suite", SUITES)
def test_through_the_interpreter(suite):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu", TESTS / suite]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=TESTS.parent)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
