"""The benchmark of activations: who takes part, what its check finds, and the timers of a GPU."""

from __future__ import annotations

import types

import pytest
import torch

import sigscale as ss
from bench.harness import activations, providers, timing
from bench.harness.inputs import Case

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def case(direction, function="tanh", dtype=torch.float32, exponent=10):
    what = (("kind", "activation"), ("function", function), ("direction", direction))
    return Case(what, dtype, exponent, CPU)


@pytest.mark.parametrize(
    ("function", "direction", "dtype"),
    [
        *((function, activations.BACKWARD, torch.float32) for function in ss.FUNCTIONS),
        ("tanh", activations.FORWARD, torch.float32),
        ("tanh", activations.TRAINING, torch.bfloat16),
        ("sigmoid", activations.FORWARD, torch.bfloat16),
        ("softsign", activations.TRAINING, torch.float64),
    ],
    ids=str,
)
def test_everyone_computes_the_same(function, direction, dtype):
    bound, refused = activations.calls(case(direction, function, dtype))
    assert {"sigscale", "eager", "plain", "copy"} <= set(bound)
    assert ("sigscale, sketch" in bound) == (direction != activations.FORWARD)
    assert all(call().shape == (1 << 10,) for call in bound.values())
    assert not refused


@pytest.mark.parametrize("where", [3, -3])
def test_a_wrong_result_is_found_at_both_ends(monkeypatch, where):
    right = ss.tanh

    def wrong(x, alpha):
        y = right(x, alpha).clone()
        y[where] += 0.01
        return y

    monkeypatch.setattr(ss, "tanh", wrong)
    monkeypatch.setattr(activations, "CHECKED", 4)
    with pytest.raises(
        AssertionError, match=r"sigscale is further than .* from fp64 in activation-tanh-forward"
    ):
        activations.calls(case(activations.FORWARD))


def test_a_wrong_gradient_is_found():
    of = case(activations.BACKWARD)
    x, g = activations.tensors(of)
    call = activations.bind(lambda x: ss.tanh(x, 1.999), x, g, backward_alone=True)
    with pytest.raises(AssertionError, match="sigscale is further"):
        activations.check(of, "sigscale", call(), x, g)


def test_a_backward_pass_alone_does_not_run_the_forward_pass_again():
    x, g = activations.tensors(case(activations.BACKWARD))
    ran = []

    def counted(x):
        ran.append(1)
        return torch.tanh(x)

    call = activations.bind(counted, x, g, backward_alone=True)
    torch.testing.assert_close(call(), g / torch.cosh(x.detach()) ** 2)
    call()
    assert len(ran) == 1


@pytest.mark.parametrize(("direction", "moved"), [("forward", 2), ("backward", 3), ("forward+backward", 5)])
def test_bytes(direction, moved):
    record = {**case(direction).about, "seconds": 1e-6}
    assert activations.gbps({**record, "provider": "eager"}) == pytest.approx(moved * 4 * 1024 / 1e3)
    assert activations.gbps({**record, "provider": "copy"}) == pytest.approx(2 * 4 * 1024 / 1e3)


def test_a_compiler_that_is_wrong_is_named_and_spoils_nothing(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: torch.sin)
    monkeypatch.setattr(activations, "COMPILED", {"cpu": {10}})
    bound, refused = activations.calls(case(activations.FORWARD), compiles=True)
    assert {"sigscale", "eager", "copy"} <= set(bound)
    assert "compile" not in bound
    assert "compile is further than" in refused["compile"]


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
    samples = {name: [t, 3 * t, t] for name, t in (("sigscale", 2.0), ("eager", 1.0), ("read", 4.0))}
    ours, eager, read = timing.Timings(samples).results("read")
    assert ours["over"] == {"eager": [2.0, 2.0, 2.0], "read": [0.5, 0.5, 0.5]}
    assert (eager["over"], read["over"]) == ({"read": [0.25] * 3}, {})
    _, eager, _ = timing.Timings(samples).results()
    assert eager["over"] == {"sigscale": [0.5, 0.5, 0.5]}
