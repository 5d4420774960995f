"""What a monitor records is the truth about the gradients, of every step and in every row."""

from __future__ import annotations

import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

import sigscale as ss
from sigscale.monitor._recorder import Recorder, Statistics
from sigscale.monitor._rows import Rows
from sigscale.monitor.history import assembled
from tests.oracles.collected import Twin, assert_row, assert_step, batch, network, recorded, run


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {"mantissa_bits": 2}),
        (torch.float32, {"quantiles": [0.999, 0.0, 0.5, 1.0]}),
        (torch.float16, {"magnitude": False}),
        (torch.bfloat16, {}),
        (torch.float64, {"magnitude": False, "mantissa_bits": 5}),
    ],
    ids=str,
)
def test_all_rows_of_all_steps(dtype, options, device):
    model = network(device).to(dtype)
    options |= {"thresholds": (1e-8, 2.0**-9, 0.1)}
    history, truth = run(
        model,
        4,
        lambda model, step: model(batch(step, device).to(dtype)).square().mean().backward(),
        **options,
    )
    assert history.steps.tolist() == [0, 1, 2, 3]
    assert history.names == [
        *("all activations", "all parameters", "1", "3", "5"),
        *("0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias", "6.weight", "6.bias"),
    ]
    assert history.kinds == ["total"] * 2 + ["activation"] * 3 + ["parameter"] * 8
    for step in range(4):
        assert_step(history, step, truth[step])
        share = history.below(2.0**-9)[step]  # exact where the threshold is an edge of bins
        want = [(abs(truth[step][name]) < 2.0**-9).mean() for name in history.names]
        np.testing.assert_allclose(share, want, rtol=1e-14)


def both(event, model, twin):
    """Change a model and its twin alike."""
    for net in (model, twin.model):
        if event == "grow":
            torch.manual_seed(len(net))
            net.append(nn.Linear(3, 3))
        else:
            net[0].requires_grad_(event == "thaw")


def train(net, event, step):
    """The backward pass of a step: in micro-batches, by a part of the network, or plainly."""
    net.zero_grad()
    for part in batch(step).split(5 if event == "accumulate" else 20):
        (net[:5] if event == "part" else net)(part).square().sum().backward()


EVENTS = (
    "step",
    "step",
    "accumulate",
    "part",
    "grow",
    "freeze",
    "thaw",
    "pause",
    "resume",
    "abort",
    "restore",
)


@settings(max_examples=40)
@given(
    events=st.lists(st.sampled_from([*EVENTS, "read", "evaluate"]), max_size=25),
    every=st.integers(1, 3),
    ring=st.integers(1, 6),
)
def test_any_training(events, every, ring):
    """Pauses, aborted and resumed trainings, new and frozen parameters: all that is measured is the truth."""
    model = network()
    twin, truth, step, paused = Twin(model), {}, 0, False
    monitor = ss.GradientMonitor(model, every=every, ring=ring)
    for event in events:
        if event in ("grow", "freeze", "thaw"):
            both(event, model, twin)
        elif event in ("pause", "resume"):
            (monitor.pause if event == "pause" else monitor.resume)()
            paused = event == "pause"
        elif event == "abort":
            train(model, event, 99)
            monitor.discard()
            model.zero_grad()
        elif event == "restore":
            state = monitor.state_dict()
            monitor.close()
            monitor, paused = ss.GradientMonitor(model, every=every, ring=ring), False
            monitor.load_state_dict(state)
        elif event == "evaluate":
            with torch.no_grad():
                model(batch(99))
        elif event == "read":
            assert monitor.history().steps.tolist() == [*truth]
            assert monitor.last().steps.tolist() == [*truth][-1:]
            monitor.summary()
        else:
            listening = model[1].grad_sketch is not None and not model[1].grad_sketch.is_idle()
            assert listening == (step % every == 0 and not paused)
            for net in (model, twin.model):
                train(net, event, step)
            found = twin.step()
            truth |= {step: found} if listening else {}
            monitor.step()
            step += 1
    monitor.close()
    history = monitor.history()
    assert history.steps.tolist() == [*truth]
    assert history.step_count == step
    for place, found in enumerate(truth.values()):
        assert_step(history, place, found)


def test_pause_within_a_step():
    """The step in progress is left out, and nothing of it is in a later one."""
    history, _ = run(network(), 2)
    model = network()
    with ss.GradientMonitor(model) as monitor:
        train(model, "step", 5)
        monitor.pause()
        monitor.step()
        monitor.resume()
        train(model, "step", 0)
        monitor.step()
    assert monitor.history().steps.tolist() == [1]
    assert monitor.history().values[0].tobytes() == history.values[0].tobytes()


def test_ring_sizes():
    whole = run(network(), steps=10, ring=100)[0]
    for ring in (1, 3):
        history = run(network(), steps=10, ring=ring)[0]
        assert history.steps.tolist() == list(range(10))
        assert history.values.tobytes() == whole.values.tobytes()


def test_special_values():
    model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Tanh())
    special = torch.tensor([[torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-45]])
    with ss.GradientMonitor(model, magnitude=False) as monitor:
        for g in (special.expand(4, 6), torch.full((4, 6), torch.nan), torch.zeros(4, 6)):
            model[0].weight.grad = g.clone()
            monitor.step()
    history = monitor.history()
    row = history.names.index("0.weight")
    counts = [history[name][:, row].tolist() for name in ("count", "zeros", "infs", "nans")]
    assert counts == [[24, 24, 24], [8, 0, 24], [8, 0, 0], [4, 24, 0]]
    assert len({value.tobytes() for value in history.values[np.isnan(history.values)]}) == 1
    assert history.quantile(0.05)[0, row] == -np.inf
    assert history.quantile(0.5)[0, row] == 0
    assert np.isnan(history.quantile(0.5)[1, row])
    assert history.quantile(0.95)[2, row] == 0


HEAD = ["head.1", "head.3", "head.0.weight", "head.0.bias", "head.2.weight", "head.2.bias"]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"include": "head.*"}, HEAD),
        ({"exclude": ["head.*", "*.bias"]}, ["body.1", "body.3", "body.0.weight", "body.2.weight"]),
        ({"include": ["*.1", "*weight"], "exclude": "head*"}, ["body.1", "body.0.weight", "body.2.weight"]),
        ({"include": ["body.?"]}, ["body.1", "body.3"]),
        ({"include": "body.0.bias"}, ["body.0.bias"]),
        ({"include": "head.*", "parameters": False}, HEAD[:2]),
        ({"include": "head.*", "activations": False}, HEAD[2:]),
    ],
    ids=str,
)
def test_selection(options, names):
    def part():
        return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), ss.nn.Tanh())

    history, truth = run(nn.Sequential(OrderedDict(body=part(), head=part())), **options)
    totals = {"all activations": [], "all parameters": []}
    for name in names:
        assert_row(history, 0, name, truth[0][name])
        totals["all activations" if name[-1].isdigit() else "all parameters"].append(truth[0][name])
    totals = {total: np.concatenate(parts) for total, parts in totals.items() if parts}
    assert history.names == [*totals, *names]
    for total, values in totals.items():
        assert_row(history, 0, total, values)


def test_frozen_throughout():
    model = network()
    model[0].requires_grad_(False)
    names = recorded(model).names
    assert "0.weight" not in names
    assert "2.weight" in names


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


def test_tied_and_empty_parameters():
    """A tied parameter counts once, one without elements not at all."""
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 6, bias=False))
    model[2].weight = model[0].weight
    model.register_parameter("none", nn.Parameter(torch.empty(0)))
    history, truth = run(
        model, backward=lambda model, _: (model(batch(0)).sum() + model.none.sum()).backward()
    )
    assert history.names == ["all activations", "all parameters", "1", "none", "0.weight"]
    assert history.count[0].tolist() == [120, 36, 120, 0, 36]
    del truth[0]["none"]
    assert_step(history, 0, truth[0])


def test_pruned_and_parametrized_layers():
    model = network()
    prune.l1_unstructured(model[2], "weight", 0.5)
    parametrizations.weight_norm(model[4])
    history = recorded(model)
    assert {"2.weight_orig", "4.parametrizations.weight.original0"} <= set(history.names)
    assert not np.isnan(history["mean"]).any()


def test_overwritten_steps():
    """As replays of a CUDA graph would, of which the host knows nothing."""
    model = network()
    with ss.GradientMonitor(model, ring=4) as monitor:
        recorder = monitor._recorder
        for step in range(11):
            train(model, "step", step)
            monitor.step()
            recorder._since_copy, recorder.captured = 0, True
        with pytest.warns(RuntimeWarning, match="7 steps .* ring holds 4.*larger ring=") as caught:
            history = monitor.history()
        assert caught[0].filename == __file__
        assert history.steps.tolist() == [7, 8, 9, 10]
        assert history.step_count == 11
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(monitor.history()) == 4
    want = recorded(network(), lambda model: model(batch(10)).square().sum())
    assert history.values[-1].tobytes() == want.values[-1].tobytes()
