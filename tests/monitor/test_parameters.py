"""Parameters that are frozen, shared, empty or added later have the rows that they should."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import sigscale as ss
from sigscale.monitor._recorder import Recorder, Statistics
from sigscale.monitor._rows import Rows
from sigscale.monitor.history import assembled
from tests.oracles.collected import Twin, assert_step, batch, network, run

pytestmark = pytest.mark.usefixtures("one_thread")


def test_frozen_parameters_and_missing_gradients():
    model = network()
    model[0].requires_grad_(False)
    model.append(nn.Linear(3, 3))

    def backward(model, step):
        model[0].requires_grad_(step == 2)
        (model[:-1](batch(step)).sum() if step == 1 else model(batch(step)).sum()).backward()

    history, truth = run(model, steps=3, backward=backward)
    for step in range(3):
        assert_step(history, step, truth[step])
    rows = {name: row for row, name in enumerate(history.names)}
    assert history.count[:, rows["7.weight"]].tolist() == [9, 0, 9]
    assert history.count[:, rows["0.weight"]].tolist() == [0, 0, 96]
    assert history.count[:, rows["1"]].tolist() == [0, 0, 320]


def test_frozen_throughout():
    model = network()
    model[0].requires_grad_(False)
    history, truth = run(model)
    assert "0.weight" not in history.names
    assert "2.weight" in history.names
    assert_step(history, 0, truth[0])


def test_parameters_added_later():
    model = network()
    twin, truth = Twin(model), []
    with ss.GradientMonitor(model, ring=4) as monitor:
        for step in range(12):
            if step % 3 == 1:  # more rows each time than before
                for network_ in (model, twin.model):
                    torch.manual_seed(step)
                    network_.add_module(str(len(network_)), nn.Linear(3, 3))
            for network_ in (model, twin.model):
                network_.zero_grad()
                network_(batch(step)).sum().backward()
            monitor.step()
            truth.append(twin.step())
    history = monitor.history()
    assert len(history) == 12
    for step in range(12):
        assert_step(history, step, truth[step])
    assert history.names[13:] == [f"{layer}.{what}" for layer in range(7, 11) for what in ("weight", "bias")]


def test_rows_added_during_a_copy():
    statistics = Statistics((0.5,), (), True, 3)
    rows = Rows([], ["0", "1"])
    recorder = Recorder(torch.device("cpu"), statistics, rows, 8)
    values = []
    for new in ([], ["2"], ["3"]):
        recorder.grow(new)
        for _ in range(2):
            recorder.records.counts[1 : len(rows), 2000] += torch.arange(1, len(rows))
            values += [[sum(range(len(rows))), *range(1, len(rows))]]
            recorder.finish(recorder.records, None)
        recorder._send(recorder.records)
    recorder.take()
    for _ in range(3):
        recorder._send(recorder.records)
    recorder.records.counts[1:5, 2000] += 7
    recorder.finish(recorder.records, None)
    recorder.take(wait=True)
    numbers, found = assembled(recorder.arrived, 5, statistics.columns)
    assert numbers.tolist() == list(range(7))
    for step, want in enumerate([*values, [28, *[7] * 4]]):
        np.testing.assert_array_equal(found[step, :, 0], [*want, *[np.nan] * (5 - len(want))])


def test_tied_parameters_count_once():
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 6, bias=False))
    model[2].weight = model[0].weight
    history, truth = run(model)
    assert history.names == ["all activations", "all parameters", "1", "0.weight"]
    assert_step(history, 0, truth[0])


def test_parameters_without_elements():
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh())
    model.register_parameter("none", nn.Parameter(torch.empty(0)))
    with ss.GradientMonitor(model) as monitor:
        (model(batch(0)).sum() + model.none.sum()).backward()
        assert model.none.grad is not None
        monitor.step()
    history = monitor.history()
    assert history.count[0].tolist() == [80, 28, 80, 0, 24, 4]
    assert np.isnan(history.values[0, 3]).all()


def test_pruned_and_parametrized_layers():
    model = network()
    prune.l1_unstructured(model[2], "weight", 0.5)
    torch.nn.utils.parametrizations.weight_norm(model[4])
    with ss.GradientMonitor(model) as monitor:
        model(batch(0)).sum().backward()
        monitor.step()
    names = monitor.history().names
    assert {"2.weight_orig", "4.parametrizations.weight.original0"} <= set(names)
    assert not np.isnan(monitor.history()["mean"]).any()
