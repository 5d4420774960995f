"""What goes wrong around a monitor, and what must be left then."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import sigscale as ss


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), ss.nn.Tanh(), nn.Linear(3, 1))


def train(model, monitor, steps=1):
    for _ in range(steps):
        model.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        monitor.step()


def test_loading_into_a_closed_monitor(tmp_path):
    model = network()
    with ss.GradientMonitor(model) as monitor:
        train(model, monitor)
        monitor.save(tmp_path / "history.npz")
    closed = ss.GradientMonitor(model)
    closed.close()
    with pytest.raises(RuntimeError, match="the monitor is closed"):
        closed.load(tmp_path / "history.npz")
    assert "grad_sketch" not in vars(model[1])


def test_an_alarm_that_raises_leaves_the_steps_in_order():
    def raising(step, shares):
        raise KeyError(step)

    model = network()
    settings = {"every": 2, "ring": 1, "warn_below": 1e6, "on_vanishing": raising}
    with ss.GradientMonitor(model, **settings) as monitor:
        with pytest.raises(KeyError):
            train(model, monitor)
        train(model, monitor, 4)
        history = monitor.history()
    assert history.steps.tolist() == [0, 2, 4]
    assert history.step_count == 5


def test_warnings_as_errors():
    model = network()
    with ss.GradientMonitor(model, ring=1, warn_below=1e6) as monitor, warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            train(model, monitor)
        train(model, monitor, 2)
        assert monitor.history().steps.tolist() == [0, 1, 2]


def test_a_step_that_fails_half_way(monkeypatch):
    model = network()
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
    model = network()
    with torch.inference_mode():
        monitor = ss.GradientMonitor(model)
        sketch = ss.QuantileSketch().update(torch.ones(3)).clone()
    with monitor:
        train(model, monitor, 2)
        assert len(monitor.history()) == 2
    assert int(sketch.update(torch.ones(3)).count) == 6
    assert int((sketch + sketch).to("cpu").update(torch.ones(1)).count) == 13


def test_a_sketch_set_meanwhile_stays():
    model, mine = network(), ss.QuantileSketch()
    with ss.GradientMonitor(model) as monitor:
        model[1].grad_sketch = mine
        train(model, monitor, 2)
    assert model[1].grad_sketch is mine
    assert int(mine.count) == 12


def test_numbers_beyond_floats_and_names_that_meet():
    for settings in (
        {"thresholds": 10**400},
        {"warn_below": 10**400},
        {"warn_below": 1e-8, "warn_fraction": 10**400},
    ):
        with pytest.raises(ValueError, match="must be a"):
            ss.GradientMonitor(network(), **settings)
    with pytest.raises(ValueError, match="quantiles must be different"):
        ss.GradientMonitor(network(), (0.5, 0.5 + 1e-13))


def test_a_history_of_another_model(tmp_path):
    model, path = network(), tmp_path / "history.npz"
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
