"""What a monitor refuses: the value received, the rule and the remedy are told, nothing is left behind."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import sigscale as ss
from tests.oracles.collected import recorded
from tests.oracles.models import traces


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), ss.nn.Tanh(), nn.Linear(4, 4), nn.ReLU(inplace=True))


def loss(model: nn.Module) -> torch.Tensor:
    return model(torch.ones(2, 4)).sum()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"quantiles": (0.5, 1.5)}, ValueError, r"q must be from 0 to 1; got 1.5: "),
        ({"quantiles": (float("nan"),)}, ValueError, r"q must be from 0 to 1; got nan: "),
        ({"quantiles": "median"}, TypeError, r"q must be a number .*got 'median'.*: pass"),
        ({"quantiles": ()}, ValueError, r"quantiles must not be empty; got \(\): pass \(0.5,\)"),
        ({"quantiles": (0.5, 0.5 + 1e-13)}, ValueError, r"quantiles must be different .*: name each once"),
        ({"thresholds": (1e-8, 1e-8)}, ValueError, r"thresholds must be different .*: name each once"),
        ({"thresholds": (0.0,)}, ValueError, r"thresholds must be .*finite and > 0; got 0.0: "),
        ({"thresholds": (float("inf"),)}, ValueError, r"thresholds must be .*finite.*got inf: "),
        ({"thresholds": 10**400}, ValueError, "thresholds must be a magnitude"),
        ({"thresholds": ("tiny",)}, ValueError, r"thresholds must be .*got 'tiny': "),
        ({"every": 0}, ValueError, r"every must be an integer from 1 on; got 0: "),
        ({"every": 2.0}, ValueError, r"every must be an integer from 1 on; got 2.0: "),
        ({"every": True}, ValueError, r"every must be an integer from 1 on; got True: "),
        ({"ring": 0}, ValueError, r"ring must be an integer from 1 on; got 0: "),
        ({"mantissa_bits": 7}, ValueError, r"mantissa_bits must be one of 2, 3, 4, 5; got 7: "),
        ({"mantissa_bits": 3.0}, ValueError, r"mantissa_bits must be one of 2, 3, 4, 5; got 3.0: "),
        ({"scaler": "amp"}, TypeError, r"scaler must be a torch.amp.GradScaler or None; got str: "),
        ({"group": "world"}, TypeError, r"group must be .*got 'world': pass torch.distributed.group.WORLD"),
        ({"include": "nothing.*"}, ValueError, r"got 'nothing.\*'.*0.weight.*: patterns match whole names"),
        ({"exclude": ["1", "x"]}, ValueError, r"exclude .*got 'x', which matches none of 1, 3, 0.weight"),
        ({"include": [3]}, TypeError, r"include must be a pattern .*got 3 of type int: pass names such as"),
        ({"exclude": 3}, TypeError, r"exclude must be a pattern .*got 3 of type int: pass names such as"),
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


def data_parallel(device_ids: list[int]) -> nn.DataParallel:
    model = nn.DataParallel(network())
    model.device_ids = device_ids
    return model


def with_replaced_forward() -> nn.Sequential:
    model = network()
    model[3].forward = torch.relu
    return model


def with_grad_sketch() -> nn.Sequential:
    model = network()
    model[1].grad_sketch = ss.QuantileSketch()
    return model


META = nn.Linear(2, 2, device="meta")


@pytest.mark.parametrize(
    ("model", "error", "message", "remedy"),
    [
        (None, TypeError, "model must be a torch.nn.Module; got NoneType: pass the model itself", None),
        (nn.Flatten(), ValueError, "have parameters or elementwise activation modules .*got none", None),
        (META, ValueError, r"model is on meta: materialize .*model.to_empty\(", None),
        (nn.Sequential(nn.Linear(2, 2), META), ValueError,
            "one device; the parameters are on cpu, meta: make a monitor for each", {"include": "0.*"}),
        (data_parallel([0, 1]), TypeError, "got DataParallel, .*: use DistributedDataParallel", None),
        (with_replaced_forward(), ValueError, "'3' was replaced on the object: remove that, or .*exclude='3'",
            {"exclude": "3"}),
        (with_grad_sketch(), ValueError, "'1' has a grad_sketch.* your own sketch, set .*grad_sketch to None",
            {"exclude": "1"}),
    ],
)  # fmt: skip
def test_bad_model(model, error, message, remedy):
    before = traces(model) if model is not None else None
    with pytest.raises(error, match=message):
        ss.GradientMonitor(model)
    assert model is None or traces(model) == before
    if remedy:
        ss.GradientMonitor(model, **remedy).close()
        assert traces(model) == before


def test_data_parallel_on_one_device():
    ss.GradientMonitor(data_parallel([])).close()


def test_attached_twice():
    model = network()
    first = ss.GradientMonitor(model, include=["1", "0.*"])
    before = traces(model)
    bias = {"include": "0.bias"}
    for options, name in (({}, "1"), (bias, "0.bias"), ({"activations": False}, "0.weight")):
        with pytest.raises(ValueError, match=rf"one monitor at a time; got '{name}'.*: close\(\) that one"):
            ss.GradientMonitor(model, **options)
    assert traces(model) == before
    with ss.GradientMonitor(model, exclude=["1", "0.*"]) as second:
        loss(model).backward()
        first.step()
        second.step()
    assert first.history().names[2:] == ["1", "0.weight", "0.bias"]
    assert second.history().names[2:] == ["3", "2.weight", "2.bias"]
    first.close()
    ss.GradientMonitor(model).close()


def test_failing_attachment(monkeypatch):
    model = network()
    before = traces(model)
    with monkeypatch.context() as patch:
        patch.setattr("sigscale.monitor._taps.counting_class", None)
        with pytest.raises(TypeError, match="not callable"):
            ss.GradientMonitor(model)
    assert traces(model) == before
    ss.GradientMonitor(model).close()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copies(duplicate):
    with (
        ss.GradientMonitor(network()) as monitor,
        pytest.raises(TypeError, match=r"cannot be copied or pickled: make a new one on the copy"),
    ):
        duplicate(monitor)


def test_reading():
    model = network()
    with ss.GradientMonitor(model) as monitor:
        for read in (monitor.vanishing, lambda: monitor.sketch("1")):
            with pytest.raises(RuntimeError, match=r"no step .*: call monitor.step\(\) after loss.backward"):
                read()
        assert monitor.summary() == "no step has been measured yet"
        assert monitor.history().values.shape == (0, 8, 11)
        loss(model).backward()
        monitor.step()
    assert repr(monitor) == "GradientMonitor(2 activations, 4 parameters; every=1, cpu, closed)"
    with pytest.raises(ValueError, match=r"name must be one of all activations, .*got 'tanh': choose a row"):
        monitor.sketch("tanh")
    for below in (0, -1e-8, float("nan"), "small", None):
        with pytest.raises(ValueError, match="below must be a magnitude, finite and > 0; got "):
            monitor.vanishing(below=below)


def test_after_close(tmp_path):
    model = network()
    recorded(model, loss).save(tmp_path / "history.npz")
    before = traces(model)
    monitor = ss.GradientMonitor(model)
    monitor.close()
    calls = [monitor.step, monitor.pause, monitor.resume, monitor.discard, monitor.__enter__]
    for call in (*calls, lambda: monitor.load(tmp_path / "history.npz")):
        with pytest.raises(RuntimeError, match=r"the monitor is closed .*: make a new GradientMonitor"):
            call()
    assert traces(model) == before


def test_uncountable_gradients():
    """Refused by the step, or by the activation, with the remedy; then the rest counts."""
    sparse = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 4), nn.Tanh())
    wide = nn.Sequential(nn.Linear(4, 4, dtype=torch.complex64), nn.Tanh())
    index, x = torch.tensor([1, 2]), torch.ones(2, 4, dtype=torch.complex64)
    with ss.GradientMonitor(sparse) as monitor:
        sparse(index).sum().backward()
        with pytest.raises(TypeError, match=r"'0.weight' has layout .*sparse_coo.*exclude='0.weight'"):
            monitor.step()
        sparse[0].weight.grad = None
        monitor.step()
    assert monitor.history().count.tolist() == [[8, 20, 8, 0, 16, 4]]
    assert "0.weight" not in recorded(sparse, lambda model: model(index).sum(), exclude="0.weight").names
    with (
        ss.GradientMonitor(wide, parameters=False),
        pytest.raises(TypeError, match=r"of '1' is torch.complex64.*: leave it out with exclude='1'"),
    ):
        wide(x)
    with pytest.raises(TypeError, match=r"'0.weight' has dtype torch.complex64: leave it out with exclude="):
        recorded(wide, lambda model: model(x).abs().sum(), activations=False)


@pytest.mark.works_with("func.grad, jvp, hessian", "monitor", says="refused")
def test_under_transforms():
    model = network()
    weights = dict(model.named_parameters())

    def transformed():
        return torch.func.grad(lambda w: torch.func.functional_call(model, w, (torch.ones(2, 4),)).sum())(
            weights
        )

    with ss.GradientMonitor(model) as monitor:
        with pytest.raises(RuntimeError, match=r"torch.func transforms.*close the monitor"):
            transformed()
        loss(model).backward()
        monitor.step()
    assert monitor.history().count[0, 0] == 16
    transformed()


@pytest.mark.gpu
def test_model_moved_later():
    model = network()
    with ss.GradientMonitor(model, activations=False) as monitor:
        model.to("cuda")
        model(torch.ones(2, 4, device="cuda")).sum().backward()
        with pytest.raises(ValueError, match=r"counts on cpu, .*is on cuda:0: make the monitor after moving"):
            monitor.step()


def test_loading(tmp_path):
    model, path, other = network(), tmp_path / "history.npz", tmp_path / "other.npz"
    with ss.GradientMonitor(model) as monitor:
        loss(model).backward()
        monitor.step()
        monitor.save(path)
        with pytest.raises(RuntimeError, match=r"has made 1 steps.*: call load\(\) before the first step"):
            monitor.load(path)
        with pytest.raises(RuntimeError, match=r"made 1 steps.*: call load_state_dict\(\) before the first"):
            monitor.load_state_dict(monitor.state_dict())
    different = {"quantiles": (0.5,), "thresholds": (1e-3,), "magnitude": False, "mantissa_bits": 4}
    for name, value in different.items():
        with ss.GradientMonitor(model, **{name: value}) as monitor:
            with pytest.raises(ValueError, match=rf"different {name}, .*: record both with the same {name}"):
                monitor.load(path)
            assert len(monitor.history()) == 0
    with (
        ss.GradientMonitor(nn.ModuleDict({"a": nn.Linear(2, 2)})) as monitor,
        pytest.raises(ValueError, match=r"must be of this model; got one of .*, and the model has a.weight"),
    ):
        monitor.load(path)
    with ss.GradientMonitor(model) as monitor:
        with pytest.raises(FileNotFoundError):
            monitor.load(tmp_path / "absent.npz")
        np.savez(other, steps=np.arange(3))
        for content in (other.read_bytes(), b"", b"not an archive", path.read_bytes()[:300]):
            other.write_bytes(content)
            with pytest.raises(ValueError, match=r"other.npz' is no gradient history .*: give a file that"):
                monitor.load(other)
        for wrong, message in (
            ({}, "must hold bytes under 'history'; got none: give"),
            ({"history": [1]}, "must hold bytes under 'history'; got 'history'"),
            ({"history": b"1"}, "the state is no gradient history .*GradientMonitor.state_dict"),
        ):
            with pytest.raises(ValueError, match=message):
                monitor.load_state_dict(wrong)
        monitor.load(path)
        assert len(monitor.history()) == 1
