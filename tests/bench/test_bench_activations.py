"""The benchmark of the activations: who takes part, what its check finds, memory, and the timers of a GPU."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sigscale as ss

sys.path.append(str(Path(__file__).parents[2] / "bench"))

import cases
import measure
import memory
import memory_table
import peers
import sketch_figure
import tables

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CASE = cases.Case("tanh", cases.BACKWARD, torch.float32, 10, CPU, compiles=False)
BYTES = 4 << 10

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("direction", [cases.FORWARD, cases.BACKWARD, cases.TRAINING])
@pytest.mark.parametrize("function", ss.FUNCTIONS)
def test_everyone_computes_the_same(function, direction, dtype):
    case = replace(CASE, function=function, direction=direction, dtype=dtype)
    bound, refused = cases.calls(case)
    assert set(bound) == set(case.providers)
    assert (cases.SKETCH in bound) == (direction != cases.FORWARD)
    assert all(call().shape == (1 << 10,) for call in bound.values())
    assert refused.keys() == (peers.PEERS.keys() if function == "tanh" else set())


@pytest.mark.parametrize("where", [3, -3])
def test_a_wrong_result_is_found_at_both_ends(monkeypatch, where):
    right = cases.expressions

    def wrong(function):
        def spoiled(x):
            y = right(function)["sigscale"](x).clone()
            y[where] += 0.01
            return y

        return {**right(function), "sigscale": spoiled}

    monkeypatch.setattr(cases, "expressions", wrong)
    monkeypatch.setattr(cases, "CHECKED", 4)
    with pytest.raises(AssertionError, match=r"sigscale is further than .* from fp64 in tanh-forward"):
        cases.calls(replace(CASE, direction=cases.FORWARD))


def test_a_wrong_gradient_is_found():
    x, g = cases.tensors(CASE)
    call = cases.bind(lambda x: ss.tanh(x, 1.999), x, g, backward_alone=True)
    with pytest.raises(AssertionError, match="sigscale is further"):
        cases.check(CASE, {"sigscale": call}, x, g)


def test_a_backward_pass_alone_does_not_run_the_forward_pass_again():
    x, g = cases.tensors(CASE)
    ran = []

    def counted(x):
        ran.append(1)
        return torch.tanh(x)

    call = cases.bind(counted, x, g, backward_alone=True)
    torch.testing.assert_close(call(), g / torch.cosh(x.detach()) ** 2)
    call()
    assert len(ran) == 1


@pytest.mark.parametrize(("direction", "moved"), [("forward", 2), ("backward", 3), ("forward+backward", 5)])
def test_bytes(direction, moved):
    case = replace(CASE, direction=direction)
    assert case.gbps("eager", 1e-6) == pytest.approx(moved * 4 * 1024 / 1e3)
    assert case.gbps("copy", 1e-6) == pytest.approx(2 * 4 * 1024 / 1e3)


def test_what_does_not_fit():
    assert CASE.too_large() == ""
    assert "GiB of memory, of which" in replace(CASE, exponent=45).too_large()


class Dyt:
    """As in liger-kernel: gamma tanh(slope x) + beta."""

    @staticmethod
    def apply(x, slope, gamma, beta):
        assert x.ndim == 2
        assert gamma.shape == x.shape[1:]
        return torch.tanh(slope * x) * gamma


@pytest.fixture
def installed(monkeypatch):
    """Modules of the peers that hold what is asked of them."""

    def tanh_backward(g, y):
        return g * (1 - y * y)

    for name, members in {
        "liger_kernel.ops.dyt": {"LigerDyTFunction": Dyt},
        "flag_gems.ops.tanh": {"tanh": torch.tanh, "tanh_backward": tanh_backward},
    }.items():
        parts = name.split(".")
        for depth in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:depth]), types.ModuleType(parts[depth - 1]))
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture(autouse=True)
def _peers_of_each_test():
    found = peers.found
    found.cache_clear()
    yield
    found.cache_clear()


@pytest.mark.usefixtures("installed")
def test_peers_compute_what_is_asked_of_them(monkeypatch):
    monkeypatch.setattr(cases.peers, "found", lambda device, found=peers.found: found(CUDA))
    for direction in (cases.FORWARD, cases.BACKWARD, cases.TRAINING):
        bound, refused = cases.calls(replace(CASE, direction=direction, exponent=12))
        assert {"liger", "flag_gems"} <= set(bound)
        assert not refused
    assert "liger" not in cases.calls(replace(CASE, function="sigmoid", exponent=12))[0]
    assert "liger" not in cases.calls(CASE)[0]  # less than a row


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["flag_gems", "compile"])
def test_a_peer_that_is_wrong_is_named_and_spoils_nothing(name, monkeypatch):
    monkeypatch.setattr(cases.peers, "found", lambda device, found=peers.found: found(CUDA))
    monkeypatch.setattr(sys.modules["flag_gems.ops.tanh"], "tanh", torch.sin)
    monkeypatch.setattr(torch, "compile", lambda function: torch.sin)
    bound, refused = cases.calls(replace(CASE, direction=cases.FORWARD, compiles=True))
    assert {"sigscale", "eager", "copy"} <= set(bound)
    assert name not in bound
    assert f"{name} is further than" in refused[name]


@pytest.mark.usefixtures("installed")
def test_a_peer_that_fails_is_named_with_its_words(monkeypatch):
    def fails(*arguments):
        raise RuntimeError("no such device\nand more")

    monkeypatch.setattr(Dyt, "apply", fails)
    monkeypatch.setattr(cases.peers, "found", lambda device, found=peers.found: found(CUDA))
    bound, refused = cases.calls(replace(CASE, exponent=12))
    assert "liger" not in bound
    assert refused["liger"].startswith("RuntimeError('no such device")


def test_peers_that_are_absent_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "flag_gems", None)
    broken = types.ModuleType("liger_kernel")
    monkeypatch.setitem(sys.modules, "liger_kernel", broken)
    here, absent = peers.found(CUDA)
    assert not here
    assert "liger-kernel is not installed" in absent["liger"]
    assert "flag-gems is not installed" in absent["flag_gems"]
    assert "runs on GPUs only" in peers.found(CPU)[1]["liger"]


def test_what_is_kept_for_the_backward_pass():
    x = torch.randn(1 << 10, requires_grad=True)
    assert memory.kept(torch.tanh, x) == (0, BYTES, 0)
    assert memory.kept(torch.sin, x) == (BYTES, 0, 0)
    assert memory.kept(torch.clone, x) == (0, 0, 0)
    assert memory.kept(lambda x: 2 * torch.tanh(x / 2), x) == (0, 0, BYTES)
    assert memory.kept(lambda x: torch.sin(x) * torch.sin(x.flip(0)), x) == (BYTES, 0, 3 * BYTES)
    assert memory.kept(ss.tanh, x) == (0, BYTES, 0)
    assert memory.kept(lambda x: ss.tanh(x, save="input"), x) == (BYTES, 0, 0)


def test_peaks():
    x = torch.randn(1 << 10)
    assert memory.peak(x.exp, CPU) == BYTES
    assert memory.peak(lambda: x.exp().exp(), CPU) == 2 * BYTES
    assert memory.peak(lambda: x.exp().exp().exp(), CPU) == 2 * BYTES
    assert memory.peak(x.exp_, CPU) == 0


def test_memory_in_words():
    about = {"kind": "memory", "function": "tanh", "dtype": "float32", "provider": "eager", "elements": 1024}
    of = {"kept": {"x": 0, "y": 4096, "more": 4}, "peak_forward": 8192, "peak_training": 16384}
    (row,) = memory_table.rows([{**about, **of}, {"kind": "launch"}])
    assert row["kept"] == "4 (y)"
    assert (row["peak forward"], row["peak forward+backward"]) == ("8", "16")
    (row,) = memory_table.rows([{**about, **of, "kept": {"x": 0, "y": 0, "more": 8192}}])
    assert row["kept"] == "8 more"


class Gpu:
    """Stands for torch.cuda: a clock that calls move on, and events that read it."""

    def __init__(self):
        self.now, self.done = 0.0, []

    def work(self):
        self.now += 3.0
        self.done.append("call")

    def Event(self, enable_timing):  # noqa: N802
        event = types.SimpleNamespace(at=None, synchronize=lambda: None)
        event.record = lambda: setattr(event, "at", self.now)
        event.elapsed_time = lambda end: end.at - event.at
        return event

    def _sleep(self, cycles):
        self.now += 1000.0
        self.done.append("sleep")


def test_the_timers_of_a_gpu_time_calls_only(monkeypatch):
    gpu = Gpu()
    scratch = types.SimpleNamespace(zero_=lambda: gpu.done.append("flush"))
    monkeypatch.setattr(torch, "cuda", gpu)
    monkeypatch.setattr(torch, "empty", lambda *arguments, **options: scratch)
    assert measure.device_timer(CUDA)(gpu.work) == pytest.approx(3e-3)
    assert gpu.done == ["flush", "call"]
    gpu.done.clear()
    assert measure.warm_timer(CUDA)(gpu.work) == pytest.approx(3e-3)
    assert gpu.done == ["sleep", *["call"] * (1 + measure.WARM_CALLS)]


def activation(provider, seconds, **more):
    about = {"kind": "activation", "function": "tanh", "direction": "backward", "dtype": "float32"}
    return {**about, "elements": 1024, "provider": provider, "seconds": seconds, "ratios": {}, **more}


def test_what_variants_cost_stands_in_the_table():
    ours = activation("sigscale", 1e-6, gbps=1.0, share_of_copy=0.5)
    counted = activation(cases.SKETCH, 2e-6, cost={"sigscale": [2.0, 1.9, 2.1]})
    absent = activation("liger", None, refused="liger-kernel runs on GPUs only")
    (row,) = tables.rows([ours, counted, absent], "activation")
    assert row["sketch/sigscale"] == "2.00 (1.90-2.10)"
    assert "liger" not in row
    assert "liger refuses 1 cases: liger-kernel runs on GPUs only" in tables.losses([ours, counted, absent])


def test_what_a_sketch_costs_is_drawn_by_direction_provider_and_values():
    about = {"kind": "backward", "function": "tanh", "direction": "backward", "dtype": "float32"}
    results = [
        {**about, "values": values, "elements": elements, "provider": provider, **cost}
        for values, elements in (("Gaussian", 1024), ("constant", 1024), ("Gaussian", 4096))
        for provider, cost in (
            ("no sketch", {}),
            ("sigscale", {"cost": {"no sketch": [elements / 512, 1, 1]}}),
        )
    ]
    found = sketch_figure.costs(results)
    assert found == {
        "backward": {
            ("sigscale", "float32"): {"Gaussian": {1024: 2.0, 4096: 8.0}, "constant": {1024: 2.0}},
        }
    }
