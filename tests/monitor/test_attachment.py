"""A monitor leaves no trace in a model and its copies, also where something goes wrong around it."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import sigscale as ss
from tests.oracles.collected import batch, network

pytestmark = pytest.mark.usefixtures("one_thread")


def test_close_restores_the_model():
    model = network()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    hooks = {name: dict(module._forward_pre_hooks) for name, module in model.named_modules()}
    scaler = torch.amp.GradScaler("cpu")
    monitor = ss.GradientMonitor(model, scaler=scaler)
    model(batch(0)).sum().backward()
    monitor.step()
    monitor.close()
    monitor.close()
    for name, module in model.named_modules():
        assert vars(module).keys() == before[name].keys()
        assert dict(module._forward_pre_hooks) == hooks[name] == {}
        assert not module._forward_hooks
        assert not module._forward_pre_hooks_with_kwargs
        assert module._is_full_backward_hook is None
    assert monitor.history().count[0, 0] == 3 * 320  # still to be read


def test_garbage_collected_monitor():
    model = network()
    monitor = ss.GradientMonitor(model)
    del monitor
    assert not model[3]._forward_pre_hooks
    assert model[1].grad_sketch is None
    ss.GradientMonitor(model).close()


@pytest.mark.parametrize("scaler", [None, torch.amp.GradScaler("cpu")], ids=["", "scaler"])
def test_closed_monitor_lets_the_model_go(scaler):
    model = network()
    dead = weakref.ref(model), weakref.ref(model[1]), weakref.ref(model[3]), weakref.ref(model[0].weight)
    with ss.GradientMonitor(model, scaler=scaler) as monitor:
        model(batch(0)).sum().backward()
        monitor.step()
    del model
    gc.collect()
    assert not any(reference() for reference in dead)
    assert monitor.history().count[0, 0] == 3 * 320
    assert "closed" in repr(monitor)


def test_replaced_modules():
    """Modules put in the place of others are followed, with a warning; a row without a module warns once."""
    model = small()
    with ss.GradientMonitor(model) as monitor:
        train(model, monitor)
        old, model[1] = model[1], nn.ReLU()
        with pytest.warns(UserWarning, match="'1' is another module .* was not counted") as caught:
            train(model, monitor)
        assert caught[0].filename == __file__
        assert "grad_sketch" not in vars(old)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(model, monitor)
            model[1] = nn.Sequential(model[1])  # the same module by another name
            train(model, monitor)
        model[1] = nn.Identity()
        with pytest.warns(UserWarning, match="no activation '1' any more, and its row stays empty: make"):
            train(model, monitor)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(model, monitor)
        row = monitor.history().names.index("1")
        assert monitor.history().count[:, row].tolist() == [6, 0, 6, 6, 0, 0]
    assert type(model[1]) is nn.Identity


def test_discarded_step():
    """An aborted step leaves nothing in the next one, and takes no number."""
    model, plain = small(), small()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with ss.GradientMonitor(model, scaler=scaler) as monitor, ss.GradientMonitor(plain) as other:
        for attempt in ("aborted", "made", "aborted", "made"):
            model.zero_grad()
            scaler.scale(model(torch.ones(2, 4)).sum()).backward()
            scaler.step(optimizer)
            scaler.update(2.0**8 if attempt == "aborted" else 2.0**12)
            if attempt == "aborted":
                monitor.discard()
            else:
                monitor.step()
        train(plain, other, 2)
        np.testing.assert_array_equal(monitor.history().values, other.history().values)
        assert monitor.history().steps.tolist() == [0, 1]
    with pytest.raises(RuntimeError, match="the monitor is closed"):
        monitor.discard()


def test_gradients_unchanged():
    want = network()
    want(batch(0)).square().sum().backward()
    model = network()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with ss.GradientMonitor(model) as monitor:
        assert model.state_dict().keys() == state.keys()
        model(batch(0)).square().sum().backward()
        monitor.step()
    for mine, plain in zip(model.parameters(), want.parameters(), strict=True):
        assert torch.equal(mine.grad, plain.grad)


def test_state_and_copies_of_a_monitored_model():
    model = network()
    scaler = torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ss.GradientMonitor(model, scaler=scaler) as monitor:
        scaler.scale(model(batch(0)).sum()).backward()
        scaler.unscale_(optimizer)  # a scaler refuses to be copied from here on
        copies = [copy.deepcopy(model), copy.copy(model)]
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        copies.append(torch.load(file, weights_only=False))
        monitor.step()
        state = io.BytesIO()
        torch.save(model.state_dict(), state)
        state.seek(0)
        model.load_state_dict(torch.load(state))
        copies[0].load_state_dict(model.state_dict())
        for clone in (copies[0], copies[2]):
            clone(batch(1)).sum().backward()
            assert clone[1].grad_sketch is None
        model.zero_grad()
        scaler.scale(model(batch(0)).sum()).backward()
        monitor.step()
    assert (
        monitor.history().count.tolist() == [[960, 707, 320, 320, 320, 96, 16, 256, 16, 256, 16, 48, 3]] * 2
    )


STOCK_AND_LOADED = """
import sys, torch
sys.modules["sigscale"] = None
model = torch.load(sys.argv[1], weights_only=False)
assert [type(layer).__name__ for layer in model] == ["Linear", "Tanh", "Linear", "ReLU"], model
assert type(model[1]) is torch.nn.Tanh
model(torch.ones(2, 4)).sum().backward()
"""


def test_copies_made_while_monitored(tmp_path):
    """Ordinary models: of the same classes, without hooks, with a monitor of their own, foldable."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1), nn.ReLU(inplace=True))
    before = [{*vars(module)} for module in model.modules()]
    plain = [type(module) for module in model.modules()]
    scaler = torch.amp.GradScaler("cpu")
    with ss.GradientMonitor(model, scaler=scaler) as monitor:
        torch.save(model, tmp_path / "model.pt")
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.copy(model[1])]
        copies += [AveragedModel(model).module, torch.load(tmp_path / "model.pt", weights_only=False)]
        for clone in copies[:2] + copies[3:]:
            assert [type(module) for module in clone.modules()] == plain
            assert [{*vars(module)} for module in clone.modules()] == before
            assert not any(module._forward_pre_hooks for module in clone.modules())
            ss.fold(clone)
            with ss.GradientMonitor(clone) as other:
                clone(torch.ones(2, 4)).sum().backward()
                other.step()
            assert other.history().count[0, 0] == 8
        assert type(copies[2]) is nn.Tanh
        assert "grad_sketch" not in vars(copies[2])
        monitor.step()
        assert monitor.history().count[0, 0] == 0
        with pytest.raises(ValueError, match=r"monitor.close\(\)"):
            ss.fold(model)
    command = [sys.executable, "-c", STOCK_AND_LOADED, str(tmp_path / "model.pt")]
    subprocess.run(command, check=True)


def test_traced_while_monitored():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1), ss.nn.Tanh())
    with ss.GradientMonitor(model) as monitor:
        traced = torch.jit.trace(model, torch.ones(2, 4))
        exported = torch.fx.symbolic_trace(model[:3])
        assert "CountGradient" not in str(traced.inlined_graph)
        traced(torch.ones(2, 4)).sum().backward()
        monitor.step()
        assert monitor.history().count[0, 0] == 0
        assert torch.equal(exported(torch.ones(2, 4)), model[:3](torch.ones(2, 4)))


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), ss.nn.Tanh(), nn.Linear(3, 1))


def train(model, monitor, steps=1):
    for _ in range(steps):
        model.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        monitor.step()


def test_loading_into_a_closed_monitor(tmp_path):
    model = small()
    with ss.GradientMonitor(model) as monitor:
        train(model, monitor)
        monitor.save(tmp_path / "history.npz")
    closed = ss.GradientMonitor(model)
    closed.close()
    with pytest.raises(RuntimeError, match="the monitor is closed"):
        closed.load(tmp_path / "history.npz")
    assert "grad_sketch" not in vars(model[1])


def test_raising_alarm():
    def raising(step, shares):
        raise KeyError(step)

    model = small()
    settings = {"every": 2, "ring": 1, "warn_below": 1e6, "on_vanishing": raising}
    with ss.GradientMonitor(model, **settings) as monitor:
        with pytest.raises(KeyError):
            train(model, monitor)
        train(model, monitor, 4)
        history = monitor.history()
    assert history.steps.tolist() == [0, 2, 4]
    assert history.step_count == 5


def test_warnings_as_errors():
    model = small()
    with ss.GradientMonitor(model, ring=1, warn_below=1e6) as monitor, warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            train(model, monitor)
        train(model, monitor, 2)
        assert monitor.history().steps.tolist() == [0, 1, 2]


def test_failing_step(monkeypatch):
    model = small()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    with ss.GradientMonitor(model, scaler=scaler) as monitor:
        train(model, monitor)
        measured = [monitor.sketch(name).counts for name in monitor.history().names]
        model.append(nn.Linear(1, 1))  # for which there was no room
        with monkeypatch.context() as patch:
            patch.setattr(monitor._reduction, "add_up", lambda *counts: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                train(model, monitor)
        for name, counts in zip(monitor.history().names, measured, strict=False):
            assert torch.equal(monitor.sketch(name).counts, counts)
        train(model, monitor)
        history = monitor.history()
    assert history.count[:, history.names.index("1")].tolist() == [6, 6]


def test_made_in_inference_mode():
    model = small()
    with torch.inference_mode():
        monitor = ss.GradientMonitor(model)
        sketch = ss.QuantileSketch().update(torch.ones(3)).clone()
    with monitor:
        train(model, monitor, 2)
        assert len(monitor.history()) == 2
    assert int(sketch.update(torch.ones(3)).count) == 6
    assert int((sketch + sketch).to("cpu").update(torch.ones(1)).count) == 13


def test_grad_sketch_set_meanwhile():
    model, mine = small(), ss.QuantileSketch()
    with ss.GradientMonitor(model) as monitor:
        model[1].grad_sketch = mine
        train(model, monitor, 2)
    assert model[1].grad_sketch is mine
    assert int(mine.count) == 12


def test_colliding_column_names():
    for settings in (
        {"thresholds": 10**400},
        {"warn_below": 10**400},
        {"warn_below": 1e-8, "warn_fraction": 10**400},
    ):
        with pytest.raises(ValueError, match="must be a"):
            ss.GradientMonitor(small(), **settings)
    with pytest.raises(ValueError, match="quantiles must be different"):
        ss.GradientMonitor(small(), (0.5, 0.5 + 1e-13))


def test_history_of_another_model(tmp_path):
    model, path = small(), tmp_path / "history.npz"
    with ss.GradientMonitor(model) as monitor:
        train(model, monitor)
        monitor.save(path)
    with (
        ss.GradientMonitor(nn.ModuleDict({"a": nn.Linear(2, 2)})) as other,
        pytest.raises(ValueError, match=r"must be of this model; got one of .*, and the model has a.weight"),
    ):
        other.load(path)
    with pytest.raises(RuntimeError, match="the monitor is closed"):
        other.__enter__()


class Magnitude(nn.Module):
    def forward(self, weight):
        return weight.abs()


@pytest.mark.parametrize("removed", ["before close()", "after close()"])
def test_module_parametrized_while_monitored(removed):
    """The parametrized class derives from the one that counts; afterwards, and in copies, from PyTorch's."""
    model = nn.Sequential(nn.Linear(4, 4), nn.PReLU())
    parametrize = nn.utils.parametrize
    with ss.GradientMonitor(model) as monitor:
        parametrize.register_parametrization(model[1], "weight", Magnitude())
        model(torch.ones(2, 4)).sum().backward()
        monitor.step()
        copied = copy.deepcopy(model)
        if removed == "before close()":
            parametrize.remove_parametrizations(model[1], "weight")
    for net in (model, copied):
        if parametrize.is_parametrized(net[1]):
            assert type(net[1]).__bases__ == (nn.PReLU,)
            parametrize.remove_parametrizations(net[1], "weight")
        assert type(net[1]) is nn.PReLU
    with torch.no_grad():
        copied[1].weight.fill_(3.0)
    assert model[1].weight.item() == 0.25
