"""A function of one's own works everywhere: one entry in the registry is all it takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sigscale as ss
from tests.oracles.toy import ALGEBRAIC

TESTS = Path(__file__).parents[1]
OF_ANY_FUNCTION = ("activations", "quantiles/test_grad_sketch.py", "theory", "test_api.py")


@pytest.fixture
def toy():
    if "algebraic" in ss.FUNCTIONS:  # by the plugin
        yield ss.FUNCTIONS["algebraic"]
        return
    yield ss.FUNCTIONS.register(ALGEBRAIC)
    ss.FUNCTIONS.unregister("algebraic")


@pytest.mark.interpreter
@pytest.mark.usefixtures("toy")
def test_end_to_end(device):
    layer = ss.nn.Algebraic(alpha=1.7)
    assert repr(layer) == "Algebraic(alpha=1.7)"
    assert "u / sqrt(1 + u^2)" in ss.algebraic.__doc__
    for save in ("input", "output"):
        x = torch.linspace(-3, 3, 11, dtype=torch.float64, device=device).requires_grad_()
        y = ss.algebraic(x, 1.7, save=save)
        torch.testing.assert_close(y, x / torch.sqrt(1 + (x / 1.7) ** 2))
        assert torch.autograd.gradcheck(lambda x, save=save: ss.algebraic(x, 1.7, save=save), x)
        assert torch.autograd.gradgradcheck(lambda x, save=save: ss.algebraic(x, 1.7, save=save), x)
    x = torch.randn(1000, device=device)
    torch.testing.assert_close(layer(x), x / torch.sqrt(1 + (x / 1.7) ** 2))


@pytest.mark.long
def test_suite_on_registered_function():
    """Registered before collection, it goes through every test that is parametrized by the registry.

    Through the interpreter, `tests/kernels/test_interpreter.py` does that.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.oracles.toy"]
    command += ["-m", "not gpu", "-k", "algebraic", *(TESTS / suite for suite in OF_ANY_FUNCTION)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_XDIST_WORKER"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=TESTS.parent)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert int(run.stdout.split(" passed")[0].split()[-1]) >= 30, run.stdout


def test_unregister(toy):
    ss.FUNCTIONS.unregister("algebraic")
    assert not hasattr(ss, "algebraic")
    assert not hasattr(ss.nn, "Algebraic")
    ss.FUNCTIONS.register(toy)


def test_duplicate_name(toy):
    with pytest.raises(ValueError, match=r"cannot register 'algebraic'.*not yet taken"):
        ss.FUNCTIONS.register(toy)
