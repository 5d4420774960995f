"""The benchmark of activations: who takes part, what its check finds, memory, and the timers of a GPU."""

from __future__ import annotations

import sys
import types
from dataclasses import replace

import pytest
import torch

import sigscale as ss
from bench import test_activations as memory
from bench.harness import activations as cases
from bench.harness import providers, timing

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
    assert ("sigscale, sketch" in bound) == (direction != cases.FORWARD)
    assert all(call().shape == (1 << 10,) for call in bound.values())
    assert refused.keys() == ({*providers.PEERS} if function == "tanh" else set())


@pytest.mark.parametrize("where", [3, -3])
def test_a_wrong_result_is_found_at_both_ends(monkeypatch, where):
    right = ss.tanh

    def wrong(x, alpha):
        y = right(x, alpha).clone()
        y[where] += 0.01
        return y

    monkeypatch.setattr(ss, "tanh", wrong)
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
    record = {**replace(CASE, direction=direction).about, "seconds": 1e-6}
    assert cases.gbps({**record, "provider": "eager"}) == pytest.approx(moved * 4 * 1024 / 1e3)
    assert cases.gbps({**record, "provider": "copy"}) == pytest.approx(2 * 4 * 1024 / 1e3)


def test_what_does_not_fit():
    assert CASE.too_large() == ""
    assert "GiB of memory, but only" in replace(CASE, exponent=45).too_large()


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
    absent = providers.absent
    absent.cache_clear()
    yield
    absent.cache_clear()


@pytest.mark.usefixtures("installed")
def test_peers_compute_what_is_asked_of_them(monkeypatch):
    monkeypatch.setattr(providers, "absent", lambda device: {})
    for direction in (cases.FORWARD, cases.BACKWARD, cases.TRAINING):
        bound, refused = cases.calls(replace(CASE, direction=direction, exponent=12))
        assert {"liger", "flag_gems"} <= set(bound)
        assert not refused
    assert "liger" not in cases.calls(replace(CASE, function="sigmoid", exponent=12))[0]
    assert "liger" not in cases.calls(CASE)[0]  # less than a row


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["flag_gems", "compile"])
def test_a_peer_that_is_wrong_is_named_and_spoils_nothing(name, monkeypatch):
    monkeypatch.setattr(providers, "absent", lambda device: {})
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
    monkeypatch.setattr(providers, "absent", lambda device: {})
    bound, refused = cases.calls(replace(CASE, exponent=12))
    assert "liger" not in bound
    assert refused["liger"].startswith("RuntimeError('no such device")


def test_peers_that_are_absent_are_named(monkeypatch):
    monkeypatch.setattr(torch, "empty", lambda *arguments, **options: None)
    monkeypatch.setitem(sys.modules, "flag_gems", None)
    monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
    absent = providers.absent(CUDA)
    assert "liger-kernel is not installed" in absent["liger"]
    assert "flag-gems is not installed" in absent["flag_gems"]
    assert "runs on GPUs only" in providers.absent(CPU)["liger"]


def test_what_is_kept_for_the_backward_pass():
    x = torch.randn(1 << 10, requires_grad=True)

    def kept(function):
        return tuple(memory.kept(function, x).values())

    assert kept(torch.tanh) == (0, BYTES, 0)
    assert kept(torch.sin) == (BYTES, 0, 0)
    assert kept(torch.clone) == (0, 0, 0)
    assert kept(lambda x: 2 * torch.tanh(x / 2)) == (0, 0, BYTES)
    assert kept(lambda x: torch.sin(x) * torch.sin(x.flip(0))) == (BYTES, 0, 3 * BYTES)
    assert kept(ss.tanh) == (0, BYTES, 0)
    assert kept(lambda x: ss.tanh(x, save="input")) == (BYTES, 0, 0)


def test_peaks():
    x = torch.randn(1 << 10)
    assert memory.peak(x.exp, CPU) == BYTES
    assert memory.peak(lambda: x.exp().exp(), CPU) == 2 * BYTES
    assert memory.peak(lambda: x.exp().exp().exp(), CPU) == 2 * BYTES
    assert memory.peak(x.exp_, CPU) == 0


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
    """Caches are overwritten, then read, so that nothing written is left to be evicted within the sample."""
    gpu = Gpu()
    scratch = types.SimpleNamespace(
        zero_=lambda: gpu.done.append("write"), sum=lambda: gpu.done.append("read")
    )
    monkeypatch.setattr(torch, "cuda", gpu)
    monkeypatch.setattr(torch, "empty", lambda *arguments, **options: scratch)
    assert timing.device_timer(CUDA)(gpu.work) == pytest.approx(3e-3)
    assert gpu.done == ["write", "read", "call"]
    gpu.done.clear()
    assert timing.warm_timer(CUDA)(gpu.work) == pytest.approx(3e-3)
    assert gpu.done == ["sleep", *["call"] * (1 + timing.WARM_CALLS)]


def test_only_what_does_not_wait_is_captured(monkeypatch):
    calls = {"sigscale": object(), "wandb": object()}
    monkeypatch.setattr(timing, "_captured", lambda call, device: ("captured", call))
    assert timing.replayed(calls, CPU, providers.WAITING) == calls
    captured = {"sigscale": ("captured", calls["sigscale"]), "wandb": calls["wandb"]}
    assert timing.replayed(calls, CUDA, providers.WAITING) == captured


def test_comparison():
    """Ratios of paired rounds: a slow round cancels."""
    timings = timing.Timings(
        {name: [t, 3 * t, t] for name, t in (("sigscale", 2.0), ("eager", 1.0), ("read", 4.0))}
    )
    ours, eager, read, refused = timing.compared(timings, {"numpy": "no bfloat16"}, "read")
    assert ours["ratios"] == {"eager": [2.0, 2.0, 2.0]}
    assert ours["cost"] == {"read": [0.5, 0.5, 0.5]}
    assert (eager["ratios"], eager["cost"], read.get("cost")) == ({}, {"read": [0.25] * 3}, None)
    assert (refused["seconds"], refused["refused"]) == (None, "no bfloat16")
