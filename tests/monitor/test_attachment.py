"""A monitor leaves no trace in a model and its copies, also where something goes wrong around it."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

import sigscale as ss
from tests.oracles.collected import batch, network
from tests.oracles.models import traces


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), ss.nn.Tanh(), nn.Linear(3, 1))


def train(model, monitor, steps=1):
    for _ in range(steps):
        model.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        monitor.step()


@pytest.mark.parametrize("scaler", [None, torch.amp.GradScaler("cpu")], ids=["", "scaler"])
def test_close(scaler):
    """It restores the model and lets it go; the records can still be read."""
    model = network()
    before = traces(model)
    monitor = ss.GradientMonitor(model, scaler=scaler)
    model(batch(0)).sum().backward()
    monitor.step()
    monitor.close()
    monitor.close()
    assert traces(model) == before
    dead = weakref.ref(model), weakref.ref(model[1]), weakref.ref(model[3]), weakref.ref(model[0].weight)
    del model, before
    gc.collect()
    assert not any(reference() for reference in dead)
    assert monitor.history().count[0, 0] == 3 * 320
    assert "closed" in repr(monitor)


def test_garbage_collected_monitor():
    model = network()
    before = traces(model)
    monitor = ss.GradientMonitor(model)
    del monitor
    assert traces(model) == before


def test_replaced_modules():
    """Modules put in the place of others are followed, with a warning; a row without a module warns once."""
    model = small()

    def train_silently():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(model, monitor)

    with ss.GradientMonitor(model) as monitor:
        train_silently()
        old, model[1] = model[1], nn.ReLU()
        with pytest.warns(UserWarning, match="'1' is another module .* was not counted") as caught:
            train(model, monitor)
        assert caught[0].filename == __file__
        assert "grad_sketch" not in vars(old)
        train_silently()
        model[1] = nn.Sequential(model[1])  # the same module by another name
        train_silently()
        model[1] = nn.Identity()
        with pytest.warns(UserWarning, match="no activation '1' any more, and its row stays empty: make"):
            train(model, monitor)
        train_silently()
        row = monitor.history().names.index("1")
        assert monitor.history().count[:, row].tolist() == [6, 0, 6, 6, 0, 0]
    assert type(model[1]) is nn.Identity


def test_discarded_step():
    """An aborted step leaves nothing in the next one, takes no number, and gives no scale."""
    model, plain = small(), small()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with ss.GradientMonitor(model, scaler=scaler) as monitor, ss.GradientMonitor(plain) as other:
        for end in (monitor.discard, monitor.step, monitor.discard, monitor.step):
            model.zero_grad()
            scaler.scale(model(torch.ones(2, 4)).sum()).backward()
            scaler.step(optimizer)
            scaler.update(2.0**8 if end == monitor.discard else 2.0**12)
            end()
        train(plain, other, 2)
        np.testing.assert_array_equal(monitor.history().values, other.history().values)
        assert monitor.history().steps.tolist() == [0, 1]


def loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    assert b"sigscale" not in file.getvalue()  # it loads where sigscale is not installed
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_copies_made_while_monitored():
    """Ordinary models: of the same classes, without hooks, with a monitor of their own, foldable."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1), nn.ReLU(inplace=True))
    classes, attributes = zip(*((type(m), vars(m).copy().keys()) for m in model.modules()), strict=True)
    keys = [*model.state_dict()]
    scaler = torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ss.GradientMonitor(model, scaler=scaler) as monitor:
        scaler.scale(model(torch.ones(2, 4)).sum()).backward()
        scaler.unscale_(optimizer)  # a scaler refuses to be copied from here on
        model.zero_grad()
        assert [*model.state_dict()] == keys
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), AveragedModel(model).module]
        for clone in (*copies, loaded(model)):
            assert [type(module) for module in clone.modules()] == [*classes]
            assert [vars(module).keys() for module in clone.modules()] == [*attributes]
            assert not any(module._forward_pre_hooks for module in clone.modules())
            ss.fold(clone)
            with ss.GradientMonitor(clone) as other:
                train(clone, other)
            assert other.history().count[0, 0] == 8
        assert type(copy.copy(model[1])) is nn.Tanh
        assert "grad_sketch" not in vars(copy.copy(model[1]))
        monitor.step()
        assert monitor.history().count[0, 0] == 8  # nothing of the copies
        with pytest.raises(ValueError, match=r"monitor.close\(\)"):
            ss.fold(model)
    assert copy.deepcopy(network())[1].grad_sketch is None


def test_traced_while_monitored():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1), ss.nn.Tanh())
    with ss.GradientMonitor(model) as monitor:
        traced = torch.jit.trace(model, torch.ones(2, 4))
        exported = torch.fx.symbolic_trace(model[:3])
        assert "CountGradient" not in str(traced.inlined_graph)
        train(traced, monitor)
        assert monitor.history().count[0, 0] == 0
        assert torch.equal(exported(torch.ones(2, 4)), model[:3](torch.ones(2, 4)))


def raising(step, shares):
    raise KeyError(step)


@pytest.mark.parametrize(("alarm", "error"), [(raising, KeyError), (None, UserWarning)])
def test_raising_alarm(alarm, error):
    """Also a warning that is an error."""
    model = small()
    settings = {"every": 2, "ring": 1, "warn_below": 1e6, "on_vanishing": alarm}
    with ss.GradientMonitor(model, **settings) as monitor, warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error):
            train(model, monitor)
        train(model, monitor, 4)
        history = monitor.history()
    assert history.steps.tolist() == [0, 2, 4]
    assert history.step_count == 5


def test_failing_step(monkeypatch):
    model = small()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    with ss.GradientMonitor(model, scaler=scaler) as monitor:
        train(model, monitor)
        names = monitor.history().names
        measured = [monitor.sketch(name).counts for name in names]
        model.append(nn.Linear(1, 1))  # for which there was no room
        with monkeypatch.context() as patch:
            patch.setattr(monitor._reduction, "add_up", lambda *counts: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                train(model, monitor)
        for name, counts in zip(names, measured, strict=True):
            assert torch.equal(monitor.sketch(name).counts, counts)
        train(model, monitor)
        assert monitor.history().count[:, names.index("1")].tolist() == [6, 6]


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


class Magnitude(nn.Module):
    def forward(self, weight):
        return weight.abs()


@pytest.mark.parametrize("removed_while_monitored", [False, True])
def test_module_parametrized_while_monitored(removed_while_monitored):
    """The parametrized class derives from the one that counts; afterwards, and in copies, from PyTorch's."""
    model = nn.Sequential(nn.Linear(4, 4), nn.PReLU())
    with ss.GradientMonitor(model) as monitor:
        parametrize.register_parametrization(model[1], "weight", Magnitude())
        train(model, monitor)
        copied = copy.deepcopy(model)
        if removed_while_monitored:
            parametrize.remove_parametrizations(model[1], "weight")
    for net in (model, copied):
        if parametrize.is_parametrized(net[1]):
            assert type(net[1]).__bases__ == (nn.PReLU,)
            parametrize.remove_parametrizations(net[1], "weight")
        assert type(net[1]) is nn.PReLU
    with torch.no_grad():
        copied[1].weight.fill_(3.0)
    assert model[1].weight.item() == 0.25
