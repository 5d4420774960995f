"""Devices without kernels (MPS, XPU), which fake tensors and a patched dispatch stand in for."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import sigscale as ss
from sigscale import _checks
from sigscale.kernels import activation, device, learned


@pytest.fixture
def unsupported(monkeypatch):
    """CPU tensors are on a device that neither kernels nor twins are tested on."""

    def refuse(*arguments, **options):
        raise AssertionError("a kernel or its twin was called")

    monkeypatch.setattr(_checks, "is_supported", lambda x: False)
    for module in (activation, learned):
        for name in ("forward", "backward"):
            monkeypatch.setattr(module, name, refuse)


@pytest.mark.parametrize("name", ss.FUNCTIONS)
@pytest.mark.parametrize("save", ["input", "output"])
def test_activation_in_plain_pytorch(name, save, unsupported):
    function = getattr(ss, name)
    x = torch.linspace(-3, 3, 11, dtype=torch.float64, requires_grad=True)
    alpha = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    exact = [1.7 * float(ss.FUNCTIONS[name].mp_value(number)) for number in _mpf(x / 1.7)]
    torch.testing.assert_close(function(x, 1.7, save=save), torch.tensor(exact, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda x: function(x, 1.7, save=save), x)
    assert torch.autograd.gradcheck(lambda x, alpha: function(x, alpha), (x, alpha))


def _mpf(numbers):
    mpmath = pytest.importorskip("mpmath")
    return [mpmath.mpf(number) for number in numbers.tolist()]


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_counting_and_selecting_are_refused(kind):
    with FakeTensorMode():
        x = torch.empty(3, device=kind)
        assert ss.tanh(x).device == x.device
        for call, name in (
            (lambda: ss.QuantileSketch().update(x), r"update\(\)"),
            (lambda: ss.quantile(x, 0.5), r"quantile\(\)"),
            (lambda: ss.nanquantile(x, 0.5), r"quantile\(\)"),
            (lambda: ss.foreach_quantile([x], 0.5), r"tensors\[0\]: foreach_quantile\(\)"),
            (lambda: ss.tanh(x.requires_grad_(), grad_sketch=ss.QuantileSketch()), "grad_sketch"),
        ):
            with pytest.raises(ValueError, match=f"^{name} takes CPU, CUDA .*on {kind}:0: move it"):
                call()
        with pytest.raises(ValueError, match=f"the model is on {kind}:0: move it there"):
            ss.GradientMonitor(torch.nn.ParameterList([torch.empty(3, device=kind)]))


def test_multiprocessors_of_the_interpreter():
    assert device.multiprocessors(torch.device("cpu")) == 1
    assert not device.has_shared_counters(torch.device("cpu"))


def test_backends():
    assert device.device_of_backend("cpu:gloo,cuda:nccl").type == "cuda"
    assert device.device_of_backend("gloo").type == "cpu"
