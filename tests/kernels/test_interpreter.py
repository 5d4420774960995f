"""The tests marked `interpreter` once more, with the Triton kernels run by Triton's interpreter.

They see a function of one's own as well, which `toy.py` registers before they are collected.
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


@pytest.mark.long
@pytest.mark.skipif(bool(os.environ.get("TRITON_INTERPRET")), reason="this is that run")
@pytest.mark.parametrize(
    ("suites", "of_toy"), [("activations test_api.py", 20), ("quantiles", 0), ("kernels", 0)]
)
def test_through_the_interpreter(suites, of_toy):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rp",
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.oracles.toy",
    ]
    command += ["-m", "interpreter and not gpu", *(TESTS / suite for suite in suites.split())]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=TESTS.parent)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert len(re.findall("^PASSED .*algebraic", run.stdout, re.M)) >= of_toy, run.stdout[-8000:]
