"""The suite once more with the Triton kernels themselves, run by Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
HERE = Path(__file__).parent
SUITES = (
    "test_accuracy.py",
    "test_layout.py",
    "test_autograd.py",
    "test_extension.py",
    "test_learned.py",
    "test_api.py",
    "test_sketch.py",
    "test_sketch_state.py",
    "test_grad_sketch.py",
    "test_quantile.py",
    "test_multi_tensor.py",
    "test_penalty_kernel.py",
    "test_cifar10_convolution.py",
    "test_bench_activations.py",
)


@pytest.mark.skipif(bool(os.environ.get("TRITON_INTERPRET")), reason="this is that run")
@pytest.mark.parametrize("suite", SUITES)
def test_through_the_interpreter(suite):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu", HERE / suite]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parent)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
