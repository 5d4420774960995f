"""The alarm tells once of each layer whose gradient has vanished, when the host learns of it."""

from __future__ import annotations

import math
import re
import warnings

import pytest
import torch
from torch import nn

import sigscale as ss

pytestmark = pytest.mark.usefixtures("one_thread")


def monitored(sizes, **options):
    """A monitor of two parameters after steps with gradients of these sizes, None for none."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    monitor = ss.GradientMonitor(model, **options)
    for pair in sizes:
        for layer, size in zip(model, pair, strict=True):
            layer.weight.grad = None if size is None else torch.full((2, 2), float(size))
        monitor.step()
    monitor.close()
    return monitor


def test_rearmed_alarm():
    told = []
    sizes = [(1, 1), (1e-9, 1), (1e-9, 1), (1e-12, 0), (None, 1), (1e-9, 1), (1, 1), (1e-9, 0), (1e-9, 0)]
    monitor = monitored(sizes, ring=1, on_vanishing=lambda step, layers: told.append((step, layers)))
    assert told == [(1, {"0.weight": 1.0}), (3, {"1.weight": 1.0}), (7, {"0.weight": 1.0, "1.weight": 1.0})]
    monitor.history()
    assert len(told) == 3


@pytest.mark.parametrize(
    ("fraction", "layers"), [(0.5, ["0.weight"]), (0.75, []), (0.25, ["0.weight", "1.weight"])]
)
def test_share_of_a_layer(fraction, layers):
    told = {}
    model = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(4, 1, bias=False))
    options = {"warn_below": 2.0**-10, "warn_fraction": fraction, "thresholds": (1e-3,)}
    with ss.GradientMonitor(
        model, **options, on_vanishing=lambda step, layers: told.update(layers)
    ) as monitor:
        model[0].weight.grad = torch.tensor([[2.0**-11, -(2.0**-10), 1.0, 0.0]])
        model[1].weight.grad = torch.tensor([[-(2.0**-11), 2.0**-10, 1.0, -1.0]])
        monitor.step()
    history = monitor.history()
    assert list(told) == layers
    assert history.thresholds == (1e-3, 2.0**-10)
    assert history.below(2.0**-10)[0].tolist() == [0.375, 0.5, 0.25]


def test_warning():
    with pytest.warns(UserWarning, match="vanishing gradients") as caught:
        monitored([(1e-7, 1), (1e-7, 1)], ring=1, warn_below=1e-6)
    (warning,) = caught
    assert warning.filename == __file__
    assert re.search(
        r"below 1e-06 in magnitude at step 0: 100% of '0\.weight'\. Where .*sigscale\.nn\.Tanh",
        str(warning.message),
    )


def test_time_of_the_alarm():
    """Every half round of the ring, or when something is read."""
    told = []
    model = nn.Linear(2, 2, bias=False)
    with ss.GradientMonitor(model, ring=8, on_vanishing=lambda step, layers: told.append(step)) as monitor:
        model.weight.grad = torch.zeros(2, 2)
        for _ in range(4):
            assert told == []
            monitor.step()
        assert told == [0]
        model.weight.grad = torch.ones(2, 2)
        monitor.step()
        model.weight.grad = torch.zeros(2, 2)
        monitor.step()
        assert told == [0]
        monitor.vanishing()
        assert told == [0, 5]


def test_silent_by_default():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitored([(0, 0)], ring=1)


def test_steps_of_a_monitor_with_every():
    told = []
    sizes = [(1, 1)] * 3 + [(0, 1)] * 4
    monitored(sizes, ring=1, every=2, on_vanishing=lambda step, layers: told.append(step))
    assert told == [4]


def test_any_threshold_afterwards():
    monitor = monitored([(1, 1), (2.0**-7, None)])
    assert monitor.vanishing(2.0**-6)["0.weight"] == 1
    assert monitor.vanishing(below=2.0**-7)["0.weight"] == 0
    assert set(monitor.vanishing()) == {"0.weight", "1.weight"}
    assert monitor.vanishing()["1.weight"] != monitor.vanishing()["1.weight"]  # NaN: it has no gradient
    assert monitor.vanishing(1e-300)["0.weight"] == 0


@pytest.mark.parametrize(
    ("threshold", "m", "magnitude"),
    [
        *((1e-8, m, True) for m in (2, 3, 4, 5)),
        *((threshold, 3, True) for threshold in (9.5e-9, 2.0**-27, 1e-30)),
        *((1e-3, m, False) for m in (2, 3)),
    ],
)
def test_thresholds_inside_a_bin(threshold, m, magnitude):
    """A threshold is rounded up to an edge: what lies below it is below, without a part of a bin."""
    octave = 2.0 ** math.floor(math.log2(threshold))
    edge = octave * (1 + math.ceil((threshold / octave - 1) * 2**m) / 2**m)
    assert threshold <= edge < threshold * (1 + 2.0**-m)
    just_below = torch.nextafter(torch.tensor(threshold), torch.tensor(0.0)).item()
    for size, share in (
        (just_below, 1.0),
        (-just_below, 1.0),
        (0.5 * octave, 1.0),
        (edge, 0.0),
        (-edge, 0.0),
    ):
        told = []
        monitor = monitored(
            [(size, 1), (size, 1)],
            mantissa_bits=m,
            magnitude=magnitude,
            thresholds=(threshold,),
            warn_below=threshold,
            on_vanishing=lambda step, layers, told=told: told.append(layers),
        )
        assert monitor.history().below(threshold)[0, 1] == share
        assert monitor.vanishing(threshold)["0.weight"] == share
        assert told == ([{"0.weight": 1.0}] if share else [])
        mean = monitor.history()["mean"][0, 1]
        assert abs(abs(mean) - abs(size)) <= abs(size) / 2 ** (m + 1)
