"""The only module of the benchmarks that names private parts of sigscale: how its kernels are launched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from sigscale.kernels import device, launcher


@contextmanager
def launches_without_gpu() -> Iterator[None]:
    """The real launch path for CPU tensors, up to a driver that does nothing."""
    driver = SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda device: 0)
    runtime = SimpleNamespace(driver=SimpleNamespace(active=driver))
    with pytest.MonkeyPatch.context() as patch:
        version = launcher.VERSIONS_READ[-1]
        triton = vars(launcher)["triton"]
        compiled = SimpleNamespace(run=lambda *arguments: None, function=0, packed_metadata=(4, 1, 0))
        patch.setattr(
            triton.runtime.JITFunction, "__getitem__", lambda kernel, grid: lambda *_, **__: compiled
        )
        patch.setattr(
            launcher, "triton", SimpleNamespace(runtime=runtime, knobs=triton.knobs, __version__=version)
        )
        patch.setattr(device, "takes_kernel", lambda x: True)
        patch.setattr(launcher, "_launches", {})
        yield
