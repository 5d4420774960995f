"""Tests run on the path that CPU tensors take in this process, and on the GPU where there is one.

By default that is the plain-PyTorch twin. Under TRITON_INTERPRET=1 it is the Triton kernels in the
interpreter, and only tests and cases that are marked `interpreter` run, those that reach a kernel: one case
for each kernel, dtype and way through it. `test_interpreter.py` does that in processes of its own.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

# Tests share the cores, and small tensors gain nothing from threads. Inductor's own processes would each
# import PyTorch. Here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import pytest
import torch
from hypothesis import settings

from tests.oracles import interpreted
from tests.oracles.works_with import pytest_addoption, pytest_itemcollected, pytest_terminal_summary

settings.register_profile("suite", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("suite")

# On a GPU cuDNN would round float32 to 10 bits of mantissa, in convolutions and recurrent cells.
torch.backends.cudnn.allow_tf32 = False


__all__ = ["pytest_addoption", "pytest_itemcollected", "pytest_terminal_summary"]
INTERPRETED = bool(os.environ.get("TRITON_INTERPRET"))
if INTERPRETED:
    interpreted.quicken()


def chosen(item: pytest.Item) -> bool:
    """Whether a test, with its parameters, is for the interpreter."""
    marker = item.get_closest_marker("interpreter")
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return marker is not None and all(parameters[key] in values for key, values in marker.kwargs.items())


def runs_here(item: pytest.Item) -> bool:
    """Whether this machine has the GPU that a test needs, and the interpreter runs it if it is on."""
    needs_gpu = item.get_closest_marker("gpu") is not None
    return (torch.cuda.is_available() or not needs_gpu) and (chosen(item) or not INTERPRETED)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.hook.pytest_deselected(items=[item for item in items if not runs_here(item)])
    items[:] = sorted(filter(runs_here, items), key=lambda item: item.get_closest_marker("long") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each worker takes half, since tests of a file share what they import, and helps at the end."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


def pytest_collection_finish() -> None:
    """The million objects of PyTorch and the tests stay: collections during tests leave them out."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[False, True], ids=["small", "large"])
def are_large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a few elements are computed in parts and by tables, as a CPU does with large tensors."""
    from sigscale.kernels import reference

    if request.param:
        for name, number in {"PART": 40, "TABLE": 8, "LEARNED_TABLE": 8, "GRAIN": 16, "ROWS": 3}.items():
            monkeypatch.setattr(reference, name, number)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of CIFAR-10 have no more records than those of the tests."""
    from examples.cifar10 import data
    from tests.oracles.cifar10 import RECORDS

    monkeypatch.setattr(data, "RECORDS", RECORDS)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder and a working directory without data, and no network."""
    from examples.cifar10 import data

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    return tmp_path
