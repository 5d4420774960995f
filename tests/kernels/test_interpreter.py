"""The tests marked `interpreter` once more, with the Triton kernels run by Triton's interpreter.

Those of activations see a function of one's own as well, which `toy.py` registers before they are collected.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
TESTS = Path(__file__).parents[1]


@pytest.mark.skipif(bool(os.environ.get("TRITON_INTERPRET")), reason="this is that run")
@pytest.mark.parametrize(
    ("suites", "plugins"),
    [("activations test_api.py", ["-p", "tests.oracles.toy"]), ("quantiles kernels", [])],
)
def test_through_the_interpreter(suites, plugins):
    command = [sys.executable, "-m", "pytest", "-q", "-rp", "-p", "no:cacheprovider", *plugins]
    command += ["-m", "interpreter and not gpu"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    paths = [TESTS / suite for suite in suites.split()]
    run = subprocess.run(command + paths, env=environment, capture_output=True, text=True, cwd=TESTS.parent)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert not plugins or len(re.findall("^PASSED .*algebraic", run.stdout, re.M)) >= 20, run.stdout[-8000:]
