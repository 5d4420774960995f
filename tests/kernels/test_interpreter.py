"""The tests marked `interpreter` once more, with the Triton kernels run by Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
TESTS = Path(__file__).parents[1]


@pytest.mark.skipif(bool(os.environ.get("TRITON_INTERPRET")), reason="this is that run")
@pytest.mark.parametrize("suites", ["activations test_api.py", "quantiles", "kernels"])
def test_through_the_interpreter(suites):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-m", "interpreter and not gpu"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    paths = [TESTS / suite for suite in suites.split()]
    run = subprocess.run(command + paths, env=environment, capture_output=True, text=True, cwd=TESTS.parent)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
