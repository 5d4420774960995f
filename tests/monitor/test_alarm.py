"""The alarm tells once of each layer whose gradient has vanished, when the host learns of it."""

from __future__ import annotations

import math
import re
import warnings

import pytest
import torch
from torch import nn

import sigscale as ss


def monitored(*gradients, **options):
    """A monitor after steps with these gradients of two parameters, None for none, and what it told."""
    told = []
    model = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(4, 1, bias=False))
    options = {"on_vanishing": lambda step, layers: told.append((step, layers)), "ring": 1} | options
    with ss.GradientMonitor(model, **options) as monitor:
        for pair in gradients:
            for layer, gradient in zip(model, pair, strict=True):
                value = None if gradient is None else torch.tensor(gradient, dtype=torch.float32)
                layer.weight.grad = None if value is None else value.expand(1, 4).clone()
            monitor.step()
    return monitor, told


def test_rearmed_alarm():
    sizes = [(1, 1), (1e-9, 1), (1e-9, 1), (1e-12, 0), (None, 1), (1e-9, 1), (1, 1), (1e-9, 0), (1e-9, 0)]
    monitor, told = monitored(*sizes)
    assert told == [(1, {"0.weight": 1.0}), (3, {"1.weight": 1.0}), (7, {"0.weight": 1.0, "1.weight": 1.0})]
    monitor.history()
    assert len(told) == 3
    assert [step for step, _ in monitored(*[(1, 1)] * 3, *[(0, 1)] * 4, every=2)[1]] == [4]


@pytest.mark.parametrize(
    ("fraction", "layers"), [(0.5, ["0.weight"]), (0.75, []), (0.25, ["0.weight", "1.weight"])]
)
def test_share_of_a_layer(fraction, layers):
    pair = [2.0**-11, -(2.0**-10), 1.0, 0.0], [-(2.0**-11), 2.0**-10, 1.0, -1.0]
    monitor, told = monitored(pair, warn_below=2.0**-10, warn_fraction=fraction, thresholds=(1e-3,))
    assert [name for _, shares in told for name in shares] == layers
    assert monitor.history().thresholds == (1e-3, 2.0**-10)
    assert monitor.history().below(2.0**-10)[0].tolist() == [0.375, 0.5, 0.25]


def test_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitored((0, 0), on_vanishing=None)
    with pytest.warns(UserWarning, match="vanishing gradients") as caught:
        monitored((1e-7, 1), (1e-7, 1), on_vanishing=None, warn_below=1e-6)
    (warning,) = caught
    assert warning.filename == __file__
    told = r"below 1e-06 in magnitude at step 0: 100% of '0\.weight'\. Where .*sigscale\.nn\.Tanh"
    assert re.search(told, str(warning.message))


def test_time_of_the_alarm():
    """Every half round of the ring, or when something is read."""
    told = []
    model = nn.Linear(2, 2, bias=False)
    with ss.GradientMonitor(model, ring=8, on_vanishing=lambda step, layers: told.append(step)) as monitor:
        for size, expected in ((0, []), (0, []), (0, []), (0, [0]), (1, [0]), (0, [0])):
            model.weight.grad = torch.full((2, 2), float(size))
            monitor.step()
            assert told == expected
        monitor.vanishing()
        assert told == [0, 5]


def test_any_threshold_afterwards():
    monitor, _ = monitored((1, 1), (2.0**-7, None))
    assert monitor.vanishing(2.0**-6)["0.weight"] == 1
    assert monitor.vanishing(below=2.0**-7)["0.weight"] == 0
    assert set(monitor.vanishing()) == {"0.weight", "1.weight"}
    assert math.isnan(monitor.vanishing()["1.weight"])  # it has no gradient
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
    below = torch.nextafter(torch.tensor(threshold), torch.tensor(0.0)).item()
    options = {"mantissa_bits": m, "magnitude": magnitude, "thresholds": (threshold,)}
    for size, share in ((below, 1.0), (-below, 1.0), (0.5 * octave, 1.0), (edge, 0.0), (-edge, 0.0)):
        monitor, told = monitored((size, 1), (size, 1), warn_below=threshold, **options)
        assert monitor.history().below(threshold)[0, 1] == share
        assert monitor.vanishing(threshold)["0.weight"] == share
        assert told == ([(0, {"0.weight": 1.0})] if share else [])
        mean = monitor.history()["mean"][0, 1]
        assert abs(abs(mean) - abs(size)) <= abs(size) / 2 ** (m + 1)
