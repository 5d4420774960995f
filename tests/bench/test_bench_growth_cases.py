"""The benchmark of growth: what every series computes, and that what is wrong is found before it is timed."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import sigscale as ss

sys.path.append(str(Path(__file__).parents[2] / "bench"))

import codehash
import growth_cases as cases
import growth_figure
import growth_training
import stages
from distributions import generate
from options import Settings

CPU = torch.device("cpu")
SERIES = {series.name: series for series in cases.SERIES}

pytestmark = pytest.mark.usefixtures("one_thread")


def made(series, n=None):
    case = SERIES[series]
    with ExitStack() as stack:
        return dict(case.make(n or case.sizes["cpu"][0], CPU, stack))


@pytest.mark.parametrize("series", SERIES.values(), ids=SERIES)
def test_every_series(series):
    calls = made(series.name)
    assert series.moved.keys() <= calls.keys() <= growth_figure.LOOKS.keys()
    assert "sigscale" in calls
    assert series.baseline is None or series.baseline in calls
    trial = Settings(CPU, (torch.float32,), (10,), 0.01)
    assert series.chosen(trial) == series.sizes["cpu"][:3]
    assert series.chosen(Settings(CPU, (torch.float32,), (), 0.15)) == series.sizes["cpu"]
    assert series.sizes["cpu"] == sorted(set(series.sizes["cpu"]))


def test_tanh():
    x, g = torch.randn(2, 256, generator=torch.Generator().manual_seed(0)).double().numpy()
    calls = made("tanh, forward+backward")
    for name in ("sigscale", "eager"):
        np.testing.assert_allclose(calls[name]().numpy(), g / np.cosh(x / 2) ** 2, rtol=1e-5, atol=1e-6)


def test_quantiles():
    q = [0.05, 0.25, 0.5, 0.75, 0.95]
    x = generate("Gaussian", 256, torch.float32, CPU).double().numpy()
    for call in made("five quantiles").values():
        np.testing.assert_allclose(call().numpy(), np.quantile(x, q), rtol=1e-5, atol=1e-6)
    xs = torch.randn(4, 1024, generator=torch.Generator().manual_seed(0)).double().numpy()
    for call in made("five quantiles of each", 4).values():
        found = np.stack([quantiles.numpy() for quantiles in call()])
        np.testing.assert_allclose(found, np.quantile(xs, q, axis=1).T, rtol=1e-5, atol=1e-6)


def test_gradients_by_the_chain_rule_are_those_of_autograd():
    step = growth_training.Step(3, partial(ss.nn.Tanh, 2.0), CPU)
    model = step.model.double()
    cross_entropy(model(step.x.double()), step.labels).backward()
    expected = [parameter.grad for parameter in model.parameters()]
    torch.testing.assert_close([*step.expected(2.0)][::-1], expected)


PENALTY, TANH, MONITOR, RUN = ss.WeightPenalty, ss.nn.Tanh, ss.GradientMonitor, growth_training._run
WRONG = [
    ("tanh, forward+backward", ss, "tanh", lambda x, alpha: 2.001 * torch.tanh(x / 2), "sigscale, 256"),
    ("sketch of a tensor", ss.QuantileSketch, "update", lambda sketch, x: sketch, "has lost values"),
    ("five quantiles", ss, "quantile", lambda x, q: torch.linspace(-1, 1, 5), "sigscale gives"),
    ("five quantiles of each", ss, "foreach_quantile", lambda xs, q: [torch.zeros(5)], "sigscale, 1"),
    ("penalty's gradient", ss, "WeightPenalty", lambda p, l2: PENALTY(p, l2=1.001 * l2), "sigscale, 1"),
    ("step of an MLP", ss.nn, "Tanh", lambda alpha: TANH(1.99), "sigscale, 2 layers"),
    ("step of an MLP", ss, "GradientMonitor", lambda m: MONITOR(m, exclude="0.bias"), "seen 8906 of 8970"),
    (
        "step of the Table 3 network",
        *(
            growth_training,
            "_run",
            lambda seeds, *a: RUN(seeds if len(seeds) == 1 else [0, 0], *a),
            "2 seeds",
        ),
    ),
]


@pytest.mark.parametrize(("series", "where", "name", "wrong", "words"), WRONG)
def test_what_is_wrong_is_not_timed(series, where, name, wrong, words, monkeypatch):
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises(AssertionError, match=words):
        made(series, 2 if "Table 3" in series else None)


def test_it_belongs_to_the_stage_of_kernels():
    assert "test_growth" in stages._others()
    files = codehash.record(["bench/test_growth.py"])["files"]
    assert {
        "bench/growth_training.py",
        "bench/quantile_cases.py",
        "examples/cifar10/train.py",
    } <= files.keys()
