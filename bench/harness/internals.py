"""The only module of the benchmarks that names private parts of sigscale: kernels as they are launched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

import sigscale
from sigscale.kernels import activation, device, launcher, learned

MANTISSA_BITS = 3
Gradients = Callable[[], Sequence[Tensor]]


def backward_launches(
    function: str, x: Tensor, g: Tensor, alpha: float, sketch: sigscale.QuantileSketch
) -> tuple[Gradients, Gradients]:
    """The backward kernel without and with counting, from what is kept by default."""
    entry, from_output = sigscale.FUNCTIONS[function], x.dtype.itemsize > 2
    saved = activation.forward(entry, x, alpha) if from_output else x
    counts = sketch.counts_on(x.device)
    return (
        lambda: (activation.backward(entry, g, saved, alpha, from_output=from_output),),
        lambda: (
            activation.backward(
                entry, g, saved, alpha, from_output=from_output, counts=counts, m=MANTISSA_BITS
            ),
        ),
    )


def learned_launches(
    function: str, x: Tensor, g: Tensor, alpha: float, alphas: Tensor
) -> tuple[Gradients, Gradients]:
    """The backward kernel from the input with a number for alpha, and with a tensor that learns."""
    entry = sigscale.FUNCTIONS[function]

    def learning() -> Sequence[Tensor]:
        dx, dalpha = learned.backward(entry, g, x, alphas, dx=True, dalpha=True)
        assert dx is not None
        assert dalpha is not None
        return dx, dalpha

    return lambda: (activation.backward(entry, g, x, alpha, from_output=False),), learning


class _NoOps(dict[Any, Any]):
    """Stands for the cache of launches, with a compiled kernel that does nothing under every key."""

    def get(self, key: Any, default: Any = None) -> Any:
        return self.no_op

    def __init__(self) -> None:
        compiled = SimpleNamespace(run=lambda *arguments: None, function=0, packed_metadata=(4, 1, 0))
        self.no_op = launcher.cached_launch(compiled)


@contextmanager
def launches_without_gpu() -> Iterator[None]:
    """The real launch path for CPU tensors, up to a driver that does nothing."""
    driver = SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda device: 0)
    runtime = SimpleNamespace(driver=SimpleNamespace(active=driver))
    with pytest.MonkeyPatch.context() as patch:
        version = launcher.VERSIONS_READ[-1]
        knobs = vars(launcher)["triton"].knobs
        patch.setattr(launcher, "triton", SimpleNamespace(runtime=runtime, knobs=knobs, __version__=version))
        patch.setattr(device, "takes_kernel", lambda x: True)
        patch.setattr(launcher, "_launches", _NoOps())
        yield


def by_triton(call: Callable[[], object]) -> Callable[[], None]:
    """The call through Triton's own launcher, which runs when somebody observes launches."""
    observed = launcher._observed

    def wrapped() -> None:
        launcher._observed = lambda: True
        try:
            call()
        finally:
            launcher._observed = observed

    return wrapped
