"""What a monitor refuses: the value received, the rule and the remedy are told, nothing is left behind."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import sigscale as ss


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), ss.nn.Tanh(), nn.Linear(4, 4), nn.ReLU(inplace=True))


def traces(model: nn.Module) -> list[object]:
    """What a monitor could leave in a model."""
    return [
        (type(module), sorted(vars(module)), len(module._forward_pre_hooks), len(module._forward_hooks))
        for module in model.modules()
    ]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"quantiles": (0.5, 1.5)}, ValueError, r"q must be from 0 to 1; got 1.5: "),
        ({"quantiles": (float("nan"),)}, ValueError, r"q must be from 0 to 1; got nan: "),
        ({"quantiles": "median"}, TypeError, r"q must be a number .*got 'median'.*: pass"),
        ({"quantiles": ()}, ValueError, r"quantiles must not be empty; got \(\): pass \(0.5,\)"),
        ({"quantiles": (0.5, 0.5)}, ValueError, r"quantiles must be different .*got \(0.5, 0.5\): name each"),
        ({"thresholds": (1e-8, 1e-8)}, ValueError, r"thresholds must be different .*: name each once"),
        ({"thresholds": (0.0,)}, ValueError, r"thresholds must be .*> 0; got 0.0: "),
        ({"thresholds": (float("inf"),)}, ValueError, r"thresholds must be .*finite.*got inf: "),
        ({"thresholds": ("tiny",)}, ValueError, r"thresholds must be .*got 'tiny': "),
        ({"every": 0}, ValueError, r"every must be an integer from 1 on; got 0: "),
        ({"every": 2.0}, ValueError, r"every must be an integer from 1 on; got 2.0: "),
        ({"every": True}, ValueError, r"every must be an integer from 1 on; got True: "),
        ({"ring": 0}, ValueError, r"ring must be an integer from 1 on; got 0: "),
        ({"mantissa_bits": 7}, ValueError, r"mantissa_bits must be one of 2, 3, 4, 5; got 7: "),
        ({"mantissa_bits": 3.0}, ValueError, r"mantissa_bits must be one of 2, 3, 4, 5; got 3.0: "),
        ({"scaler": "amp"}, TypeError, r"scaler must be a torch.amp.GradScaler or None; got str: "),
        ({"group": "world"}, TypeError, r"group must be .*; got 'world': pass torch.distributed.group.WORLD"),
        (
            {"include": "nothing.*"},
            ValueError,
            r"include must match .*got 'nothing.\*'.*0.weight.*: patterns match whole names",
        ),
        (
            {"exclude": ["1", "x"]},
            ValueError,
            r"exclude must match .*got 'x', which matches none of 1, 3, 0.w",
        ),
        ({"include": [3]}, TypeError, r"include must be a pattern .*got 3 of type int: pass names such as"),
        ({"exclude": 3}, TypeError, r"exclude must be a pattern .*got 3 of type int: pass names such as"),
        ({"include": None}, TypeError, r"include must be a pattern .*got None of type NoneType: pass names"),
        ({"include": "1", "exclude": "1"}, ValueError, r"must have parameters or .*: .*widen include="),
        ({"activations": False, "parameters": False}, ValueError, r"got none .*: use modules"),
        ({"warn_below": -1}, ValueError, r"warn_below must be .*got -1: "),
        ({"warn_fraction": 0.0}, ValueError, r"warn_fraction must be a share .*got 0.0: "),
        ({"warn_fraction": 2}, ValueError, r"warn_fraction must be a share .*got 2: "),
        ({"on_vanishing": "print"}, TypeError, r"on_vanishing must be called .*got 'print': pass a function"),
    ],
    ids=str,
)
def test_bad_arguments(options, error, message):
    model = network()
    before = traces(model)
    with pytest.raises(error, match=message):
        ss.GradientMonitor(model, **options)
    assert traces(model) == before
    ss.GradientMonitor(model).close()


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (None, TypeError, "model must be a torch.nn.Module; got NoneType: pass the model itself"),
        ([nn.Linear(2, 2)], TypeError, "model must be a torch.nn.Module; got list: "),
        (nn.Flatten(), ValueError, "must have parameters or elementwise activation modules .*got none"),
        (nn.Sequential(), ValueError, "must have parameters .*: use modules such as sigscale.nn.Tanh"),
        (
            nn.Linear(2, 2, device="meta"),
            ValueError,
            r"model is on meta: materialize .*model.to_empty\(",
        ),
        (
            nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta")),
            ValueError,
            "one device; the parameters are on cpu, meta: make a monitor for each device, with include=",
        ),
    ],
)
def test_bad_model(model, error, message):
    with pytest.raises(error, match=message):
        ss.GradientMonitor(model)


def test_data_parallel():
    model = nn.DataParallel(network())
    with ss.GradientMonitor(model):
        pass
    model.device_ids = [0, 1]
    with pytest.raises(TypeError, match=r"got DataParallel, .*: use DistributedDataParallel"):
        ss.GradientMonitor(model)


def test_attached_twice():
    model = network()
    first = ss.GradientMonitor(model, include=["1", "0.*"])
    before = traces(model)
    for options, name in (
        ({}, "1"),
        ({"include": "0.weight"}, "0.weight"),
        ({"activations": False}, "0.weight"),
    ):
        with pytest.raises(ValueError, match=rf"one monitor at a time; got '{name}'.*: close\(\) that one"):
            ss.GradientMonitor(model, **options)
    assert traces(model) == before
    with ss.GradientMonitor(model, exclude=["1", "0.*"]) as second:
        model(torch.ones(2, 4)).sum().backward()
        first.step()
        second.step()
    assert first.history().names[2:] == ["1", "0.weight", "0.bias"]
    assert second.history().names[2:] == ["3", "2.weight", "2.bias"]
    first.close()
    ss.GradientMonitor(model).close()


def test_module_with_grad_sketch():
    model = network()
    sketch = model[1].grad_sketch = ss.QuantileSketch()
    before = traces(model)
    rule = r"'1' has a grad_sketch.* your own sketch, set .* grad_sketch to None"
    with pytest.raises(ValueError, match=rule):
        ss.GradientMonitor(model)
    assert traces(model) == before
    with ss.GradientMonitor(model, exclude="1"):
        model(torch.ones(2, 4)).sum().backward()
    assert model[1].grad_sketch is sketch
    assert int(sketch.count) == 8


def test_failing_attachment(monkeypatch):
    model = network()
    before = traces(model)
    monkeypatch.setattr("sigscale.monitor._taps.counting_class", None)
    with pytest.raises(TypeError, match="not callable"):
        ss.GradientMonitor(model)
    monkeypatch.undo()
    assert traces(model) == before
    ss.GradientMonitor(model).close()


def test_module_with_a_replaced_forward():
    model = network()
    model[3].forward = torch.relu
    with pytest.raises(ValueError, match=r"'3' was replaced on the object: remove that, or .*exclude='3'"):
        ss.GradientMonitor(model)
    ss.GradientMonitor(model, exclude="3").close()


def test_after_close():
    model = network()
    with ss.GradientMonitor(model) as monitor:
        model(torch.ones(2, 4)).sum().backward()
        monitor.step()
    with pytest.raises(RuntimeError, match=r"the monitor is closed .*: make a new GradientMonitor"):
        monitor.step()
    assert len(monitor.history()) == 1
    assert repr(monitor) == "GradientMonitor(2 activations, 4 parameters; every=1, cpu, closed)"


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copies(duplicate):
    model = network()
    with (
        ss.GradientMonitor(model) as monitor,
        pytest.raises(TypeError, match=r"cannot be copied or pickled: make a new one on the copy"),
    ):
        duplicate({"model": model, "monitor": monitor} if duplicate is not copy.copy else monitor)


def test_nothing_measured_yet():
    with ss.GradientMonitor(network()) as monitor:
        for read in (monitor.vanishing, lambda: monitor.sketch("1")):
            with pytest.raises(
                RuntimeError, match=r"no step .*: call monitor.step\(\) after loss.backward\(\)"
            ):
                read()
        assert monitor.summary() == "no step has been measured yet"
        assert monitor.history().values.shape == (0, 8, 11)


def test_unknown_row_and_threshold():
    model = network()
    with ss.GradientMonitor(model) as monitor:
        model(torch.ones(2, 4)).sum().backward()
        monitor.step()
    with pytest.raises(ValueError, match=r"name must be one of all activations, .*got 'tanh': choose a row"):
        monitor.sketch("tanh")
    for below in (0, -1e-8, float("nan"), "small", None):
        with pytest.raises(ValueError, match="below must be a magnitude, finite and > 0; got "):
            monitor.vanishing(below=below)


def test_sparse_gradients():
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 4), nn.Tanh())
    with ss.GradientMonitor(model) as monitor:
        model(torch.tensor([1, 2])).sum().backward()
        with pytest.raises(
            TypeError, match=r"dense .*'0.weight' has layout .*sparse_coo.*exclude='0.weight'"
        ):
            monitor.step()
        model[0].weight.grad = None
        monitor.step()
        history = monitor.history()
    assert history.count.tolist() == [[8, 20, 8, 0, 16, 4]]
    with ss.GradientMonitor(model, exclude="0.weight") as monitor:
        model(torch.tensor([1, 2])).sum().backward()
        monitor.step()
    assert "0.weight" not in monitor.history().names


def test_complex_gradients():
    model = nn.Sequential(nn.Linear(4, 4, dtype=torch.complex64), nn.Tanh())
    x = torch.ones(2, 4, dtype=torch.complex64)
    with (
        ss.GradientMonitor(model, parameters=False),
        pytest.raises(TypeError, match=r"of '1' is torch.complex64.*: leave it out with exclude='1'"),
    ):
        model(x)
    with ss.GradientMonitor(model, activations=False) as monitor:
        model(x).abs().sum().backward()
        with pytest.raises(
            TypeError, match=r"'0.weight' has dtype torch.complex64: leave it out with exclude="
        ):
            monitor.step()
    model(x)


@pytest.mark.works_with("func.grad, jvp, hessian", "monitor", says="refused")
def test_under_transforms():
    model = network()
    with ss.GradientMonitor(model) as monitor:
        weights = dict(model.named_parameters())

        def loss(weights):
            return torch.func.functional_call(model, weights, (torch.ones(2, 4),)).sum()

        with pytest.raises(RuntimeError, match=r"torch.func transforms.*close the monitor"):
            torch.func.grad(loss)(weights)
        model(torch.ones(2, 4)).sum().backward()
        monitor.step()
    assert monitor.history().count[0, 0] == 16
    torch.func.grad(loss)(weights)


@pytest.mark.gpu
def test_model_moved_later():
    model = network()
    with ss.GradientMonitor(model, activations=False) as monitor:
        model.to("cuda")
        model(torch.ones(2, 4, device="cuda")).sum().backward()
        with pytest.raises(ValueError, match=r"counts on cpu, .*is on cuda:0: make the monitor after moving"):
            monitor.step()


def test_loading(tmp_path):
    model = network()
    path = tmp_path / "history.npz"
    with ss.GradientMonitor(model) as monitor:
        model(torch.ones(2, 4)).sum().backward()
        monitor.step()
        monitor.save(path)
        with pytest.raises(RuntimeError, match=r"has made 1 steps.*: call load\(\) before the first step"):
            monitor.load(path)
    for options, name in (
        ({"quantiles": (0.5,)}, "quantiles"),
        ({"thresholds": (1e-3,)}, "thresholds"),
        ({"magnitude": False}, "magnitude"),
        ({"mantissa_bits": 4}, "mantissa_bits"),
    ):
        with ss.GradientMonitor(model, **options) as monitor:
            with pytest.raises(ValueError, match=rf"different {name}, .*: record both with the same {name}"):
                monitor.load(path)
            assert len(monitor.history()) == 0
    with ss.GradientMonitor(model) as monitor:
        with pytest.raises(FileNotFoundError):
            monitor.load(tmp_path / "absent.npz")
        for content in (b"", b"not an archive", path.read_bytes()[:300]):
            (tmp_path / "other.npz").write_bytes(content)
            with pytest.raises(ValueError, match=r"other.npz' is no gradient history .*: give a file that"):
                monitor.load(tmp_path / "other.npz")
        np.savez(tmp_path / "other.npz", steps=np.arange(3))
        with pytest.raises(ValueError, match="is no gradient history"):
            monitor.load(tmp_path / "other.npz")
        monitor.load(path)
        assert len(monitor.history()) == 1
