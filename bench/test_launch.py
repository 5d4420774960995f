"""What a call costs the host at the paper's own shape, where launching is nearly all there is.

On a GPU: real launches of 98,304 elements, in a row that is waited for once; a forward moves 2 elements for
each and a backward 3, which takes 0.2 and 0.3 us in fp32 on an H200. Without a GPU: host side only, no GPU.
Kernels do nothing behind the real launch path; tensors have 16 elements, so that eager PyTorch's arithmetic
costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import sigscale
from cases import ALPHA, SKETCH, bind, expressions
from measure import Call, host_timer, interleaved, synchronize
from options import Record, settings
from sigscale.kernels import device as devices
from sigscale.kernels import launcher

triton = pytest.importorskip("triton")

SHAPE = {"cuda": (32, 3, 32, 32), "cpu": (16,)}
CALLS = ("no grad", "forward", "forward+backward")
NOT_COMPARED = ("sigscale", "plain", SKETCH)  # which compute something else
ROUNDS, ITERATIONS = 5, 50


class NoOps(dict[Any, Any]):
    """Stands for the cache of launches, with a compiled kernel that does nothing under every key."""

    def get(self, key: Any, default: Any = None) -> Any:
        return self.no_op

    def __init__(self) -> None:
        compiled = SimpleNamespace(run=lambda *arguments: None, function=0, packed_metadata=(4, 1, 0))
        self.no_op = launcher.cached_launch(compiled)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> torch.device:
    """The device; without a GPU the launch path is led to no-ops."""
    device = settings(pytestconfig).device
    if device.type == "cpu":
        driver = SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda device: 0)
        runtime = SimpleNamespace(driver=SimpleNamespace(active=driver))
        monkeypatch.setattr(
            launcher,
            "triton",
            SimpleNamespace(runtime=runtime, knobs=triton.knobs, __version__=launcher.VERSIONS_READ[-1]),
        )
        monkeypatch.setattr(devices, "takes_kernel", lambda x: True)
        monkeypatch.setattr(launcher, "_launches", NoOps())
    return device


@pytest.fixture
def jit(monkeypatch: pytest.MonkeyPatch) -> Callable[[Call], Call]:
    """Makes a call take Triton's own launcher, which is what it takes when somebody observes launches."""
    wanted = False
    observed = launcher._observed
    monkeypatch.setattr(launcher, "_observed", lambda: wanted or observed())

    def through_triton(call: Call) -> Call:
        def wrapped() -> None:
            nonlocal wanted
            wanted = True
            call()
            wanted = False

        return wrapped

    return through_triton


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("function", sigscale.FUNCTIONS)
def test_launch(
    benchmark: BenchmarkFixture,
    record: Record,
    device: torch.device,
    jit: Callable[[Call], Call],
    pytestconfig: pytest.Config,
    function: str,
    call: str,
) -> None:
    bound = providers(function, call, device)
    label = call
    if device.type == "cuda":
        bound["JIT launch"] = jit(bound["sigscale"])
    else:
        label += " (host side only, no GPU)"
    timings = interleaved(bound, host_timer(device), settings(pytestconfig).seconds)
    for name in bound:
        others = [
            other for other in bound if name == "sigscale" and other not in ("sigscale", "plain", SKETCH)
        ]
        result: dict[str, Any] = {
            "seconds": timings.seconds(name),
            "ratios": {other: timings.ratio(name, other) for other in others},
        }
        if name == SKETCH:
            result["cost"] = {"sigscale": timings.ratio(name, "sigscale")}
        record(kind="launch", function=function, call=label, provider=name, **result)
    ours = bound["sigscale"]
    benchmark.pedantic(ours, rounds=ROUNDS, iterations=ITERATIONS)  # type: ignore[no-untyped-call]
    synchronize(device)


def providers(function: str, call: str, device: torch.device) -> dict[str, Call]:
    """sigscale and what a user would write by hand; on a GPU all must agree, the first is compiled too."""
    x = torch.randn(SHAPE[device.type], device=device, requires_grad=call != "no grad")
    written = expressions(sigscale.FUNCTIONS[function])
    g = torch.randn_like(x) if call == "forward+backward" else None
    chosen = {name: written[name] for name in ("sigscale", "eager", "plain")}
    if g is not None:
        fused, sketch = getattr(sigscale, function), sigscale.QuantileSketch(device=device)
        chosen[SKETCH] = lambda x: fused(x, ALPHA, grad_sketch=sketch)
    if device.type == "cuda" and function == next(iter(sigscale.FUNCTIONS)):  # seconds a call
        torch.compiler.reset()
        chosen["compile"] = torch.compile(written["eager"])
    bound = {name: bind(of_x, x, g) for name, of_x in chosen.items()}
    if device.type == "cuda":
        for name in {*bound} - {"plain"}:
            torch.testing.assert_close(bound[name](), bound["eager"]())
    return bound
