"""Which way a kernel is launched, on a machine without a GPU: Triton and its driver are stood in for."""

from __future__ import annotations

import struct
import sys
from types import SimpleNamespace

import pytest
import torch

import sigscale as ss
from sigscale.kernels import activation, device, launcher

pytest.importorskip("triton")


class Compiled:
    """A compiled kernel of Triton 3.6 to 3.9 as far as a cached launch needs it."""

    function, packed_metadata = "handle", "metadata"

    def __init__(self) -> None:
        self.runs: list[tuple] = []

    def run(self, *arguments) -> None:
        self.runs.append(arguments)


class Kernel:
    """A JIT function that counts what goes the slow way."""

    def __init__(self, compiled) -> None:
        self.compiled, self.calls = compiled, []

    def __getitem__(self, grid):
        def call(*arguments, **options):
            self.calls.append((grid, arguments, options))
            return self.compiled

        return call


@pytest.fixture
def gpu(monkeypatch):
    """CPU tensors take the kernel path; hands out the stand-ins for the forward kernel."""
    compiled = Compiled()
    kernel = Kernel(compiled)
    driver = SimpleNamespace(
        get_current_device=lambda: 0, get_current_stream=lambda device: ("stream", device)
    )
    hooks = SimpleNamespace(
        launch_enter_hook=SimpleNamespace(calls=[]), launch_exit_hook=SimpleNamespace(calls=[])
    )
    stand_in = SimpleNamespace(
        __version__="3.9.0",
        runtime=SimpleNamespace(driver=SimpleNamespace(active=driver)),
        knobs=SimpleNamespace(runtime=hooks),
    )
    monkeypatch.setattr(launcher, "triton", stand_in)
    monkeypatch.setattr(device, "takes_kernel", lambda x: True)
    monkeypatch.setattr(activation, "forward_kernel", kernel)
    monkeypatch.setattr(launcher, "_launches", {})
    return SimpleNamespace(kernel=kernel, compiled=compiled, hooks=hooks)


def test_first_by_triton_then_cached(gpu):
    x = torch.randn(5000)
    ss.tanh(x, 1.7)
    assert len(gpu.kernel.calls) == 1
    assert not gpu.compiled.runs
    (grid, arguments, options) = gpu.kernel.calls[0]
    assert grid == (-(-5000 // activation.SMALL_BLOCK[4]),)
    assert options == {"num_warps": activation.SMALL_WARPS} | launcher.OPTIONS
    y = ss.tanh(x, 1.9)
    assert len(gpu.kernel.calls) == 1
    (run,) = gpu.compiled.runs
    assert run[:9] == (*grid, 1, 1, ("stream", 0), "handle", "metadata", None, None, None)
    assert run[9:11] == (x.data_ptr(), y.data_ptr())
    assert run[11] == 5000
    assert struct.unpack("<2d", struct.pack("<2q", *run[12:14])) == (1.9, 1 / 1.9)
    assert run[14:] == (ss.FUNCTIONS["tanh"].value, activation.SMALL_BLOCK[4])
    assert len(run[9:]) == len(arguments)


def test_another_dtype_or_function_is_another_kernel(gpu):
    for x in (torch.randn(64), torch.randn(64).bfloat16()):
        for function in (ss.tanh, ss.arctan):
            function(x)
            function(x)
    assert len(gpu.kernel.calls) == 4
    assert len(gpu.compiled.runs) == 4


def test_each_device_has_its_own_launch(gpu, monkeypatch):
    """Launched with the tensor's device current, compiled there, and on a stream of that device."""
    current = [0]

    class Device:
        def __init__(self, index):
            self.index = index

        def __enter__(self):
            self.before, current[0] = current[0], self.index

        def __exit__(self, *error):
            current[0] = self.before

    index = [0]
    monkeypatch.setattr(torch.Tensor, "get_device", lambda self: index[0])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(launcher.triton.runtime.driver.active, "get_current_device", lambda: current[0])
    x = torch.randn(64)
    for index[0] in (0, 1, 0, 1):
        ss.tanh(x)
    assert len(gpu.kernel.calls) == 2
    assert [run[3] for run in gpu.compiled.runs] == [("stream", 0), ("stream", 1)]
    assert current == [0]


def test_beyond_32_bit_offsets_is_left_to_triton(gpu, monkeypatch):
    """There AMD's kernels, and only those, are compiled apart."""
    monkeypatch.setattr(launcher, "OFFSET_REACH", 1000)
    monkeypatch.setattr(device, "HIP", True)
    ss.tanh(torch.randn(64))
    ss.tanh(torch.randn(250))
    ss.tanh(torch.randn(250))
    assert len(gpu.kernel.calls) == 3
    assert not gpu.compiled.runs
    monkeypatch.setattr(device, "HIP", False)
    ss.tanh(torch.randn(250))
    assert len(gpu.compiled.runs) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("n", [98_304, activation.SMALL])
def test_small_tensors_occupy_every_multiprocessor(gpu, dtype, n):
    ss.tanh(torch.randn(n, dtype=dtype))
    ss.tanh(torch.randn(activation.SMALL + 1, dtype=dtype))
    (small, _, _), (large, _, options) = gpu.kernel.calls
    assert small[0] > 132
    assert options["num_warps"] == activation.NUM_WARPS
    assert large == (-(-(activation.SMALL + 1) // activation.FORWARD_BLOCK[dtype.itemsize]),)


def test_unaligned_tensors_are_left_to_triton(gpu):
    x = torch.randn(65)[1:]
    ss.tanh(x)
    ss.tanh(x)
    assert len(gpu.kernel.calls) == 2
    assert not gpu.compiled.runs


@pytest.mark.parametrize("hook", ["launch_enter_hook", "launch_exit_hook"])
def test_profilers_see_every_launch(gpu, hook):
    x = torch.randn(64)
    ss.tanh(x)
    getattr(gpu.hooks, hook).calls.append(print)
    ss.tanh(x)
    assert len(gpu.kernel.calls) == 2
    getattr(gpu.hooks, hook).calls.clear()
    ss.tanh(x)
    assert len(gpu.kernel.calls) == 2
    assert len(gpu.compiled.runs) == 1


@pytest.mark.parametrize(
    ("version", "cached"),
    [("3.6.0", 1), ("3.9.1", 1), ("3.5.1", 0), ("3.10.0", 0), ("3.60.0", 0), ("4.0.0", 0)],
)
def test_versions_of_triton(gpu, monkeypatch, version, cached):
    """A version whose source was not read launches by itself, whatever its compiled kernels look like."""
    monkeypatch.setattr(launcher.triton, "__version__", version)
    x = torch.randn(64)
    ss.tanh(x)
    ss.tanh(x)
    assert len(gpu.compiled.runs) == cached
    assert len(gpu.kernel.calls) == 2 - cached


@pytest.mark.parametrize("missing", ["run", "function", "packed_metadata"])
def test_falls_back_where_triton_has_changed(gpu, missing):
    parts = {"run": print, "function": 1, "packed_metadata": 2}
    parts.pop(missing)
    gpu.kernel.compiled = SimpleNamespace(**parts)
    x = torch.randn(64)
    ss.tanh(x)
    ss.tanh(x)
    assert len(gpu.kernel.calls) == 2


def test_falls_back_without_the_drivers_streams(gpu):
    del launcher.triton.runtime.driver.active.get_current_stream
    x = torch.randn(64)
    ss.tanh(x)
    ss.tanh(x)
    assert len(gpu.kernel.calls) == 2


def calls_of(function):
    """How many Python functions and built-in ones a call enters, once all is cached."""
    function(), function()
    events = []
    sys.setprofile(lambda frame, event, argument: events.append(event))
    function()
    sys.setprofile(None)
    return len([event for event in events if event in ("call", "c_call")])


def test_what_the_host_does(gpu, monkeypatch):
    """Where launching is all there is, the functions entered are what a call costs."""
    monkeypatch.setattr(activation, "backward_kernel", Kernel(gpu.compiled))
    x, g = torch.randn(64), torch.randn(64)
    weighted = x.clone().requires_grad_()
    counted = [
        calls_of(lambda: ss.tanh(x)),
        calls_of(lambda: ss.tanh(weighted)),
        calls_of(lambda: torch.autograd.grad(ss.tanh(weighted), weighted, g)),
        calls_of(lambda: torch.autograd.grad(torch.tanh(weighted), weighted, g)),
    ]
    alone, forward, both, plain = counted
    assert alone <= 38
    assert forward <= 44
    assert both - plain <= 78


def test_nothing_is_launched_for_nothing(gpu):
    assert ss.tanh(torch.empty(0, 3)).shape == (0, 3)
    assert not gpu.kernel.calls


@pytest.mark.gpu
def test_both_ways_agree_on_a_gpu(monkeypatch):
    x = torch.randn(100_000, device="cuda")
    ss.tanh(x)
    again = ss.tanh(x)
    assert any(launcher._launches.values())
    monkeypatch.setattr(launcher, "_observed", lambda: True)
    assert torch.equal(ss.tanh(x), again)


@pytest.mark.gpu
def test_capture_in_a_graph():
    x = torch.randn(1000, device="cuda", requires_grad=True)
    ones = torch.ones_like(x)

    def step():
        return torch.autograd.grad(ss.tanh(x, 1.7), x, ones)[0]

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        dx = step()
    with torch.no_grad():
        x.normal_()
    graph.replay()
    torch.testing.assert_close(dx, torch.cosh(x.detach() / 1.7) ** -2)
