"""Tests run on the path that CPU tensors take in this process, and on the GPU where there is one.

Without more that is the plain-PyTorch twin; under TRITON_INTERPRET=1 it is the Triton kernels in the
interpreter (`test_interpreter.py` runs the suite that way, in a process of its own).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("suite", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("suite")

# On a GPU cuDNN would round float32 to 10 bits of mantissa, in convolutions and recurrent cells.
torch.backends.cudnn.allow_tf32 = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """So small a network is no faster on more threads, and far slower where tests share the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of CIFAR-10 have no more records than those of `cifar10_disk.py`."""
    from examples.cifar10 import data
    from tests.oracles.cifar10_disk import RECORDS

    monkeypatch.setattr(data, "RECORDS", RECORDS)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder and a working directory without data, and no network."""
    from examples.cifar10 import data

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    return tmp_path
