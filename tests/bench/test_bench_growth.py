"""The benchmark of growth: the line and its end, and that what is wrong is found before it is timed."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
import torch

import sigscale as ss
from bench import test_growth as cases
from bench.report import growth

SIZES = [4**e for e in range(4, 11)]
FIXED, EACH = 3e-5, 2e-9  # equal at 15,000
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


def made(series, n):
    with ExitStack() as stack:
        return dict(cases.SERIES[series][1](n, CPU, stack))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("fixed", "each"), [(FIXED, EACH), (0.0, EACH), (FIXED, 0.0)])
def test_fit(fixed, each, seed):
    noise = 1 + 0.02 * np.random.default_rng(seed).uniform(-1, 1, len(SIZES))
    found = growth.fit([(n, (fixed + each * n) * e) for n, e in zip(SIZES, noise, strict=True)])
    assert found[0] == pytest.approx(fixed, rel=0.06, abs=FIXED / 50 if fixed else EACH * SIZES[0])
    assert found[1] == pytest.approx(each, rel=0.06, abs=0.1 * FIXED / SIZES[-1])


def records(times, provider="sigscale"):
    about = {"kind": "growth", "series": "step of an MLP", "unit": "layers", "provider": provider}
    return [{**about, "n": n, "seconds": t, "ratios": {}} for n, t in times.items()]


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ({2: 3.0, 8: 6.0}, "launch cost ends at 4 layers"),
        ({2: 1.0, 4: 4.0}, ""),
        ({2: 2.0, 4: 2.1}, ""),
        ({2: 4.0, 4: 2.0}, ""),
    ],
)
def test_where_launch_cost_ends_if_measured(times, words):
    assert growth.draw(records(times)).axes[0].get_title() == f"step of an MLP\n{words}"


def test_series_of_elements_come_from_other_benchmarks():
    about = {"kind": "activation", "function": "tanh", "direction": "forward+backward", "dtype": "float32"}
    measured = [{**about, "elements": n, "provider": "eager", "seconds": 1e-6 * n} for n in SIZES]
    found = growth.series([*measured, {**measured[0], "provider": "compile"}, {**measured[0], "dtype": "x"}])
    assert found == {("tanh, training", "elements"): {"eager": [(n, 1e-6 * n) for n in SIZES]}}


def test_picture(tmp_path):
    assert growth.draw([]) is None
    figure = growth.draw([*records({2: 3.0, 8: 6.0}), *records({2: 1.0, 8: 2.0}, "plain")])
    figure.savefig(tmp_path / "growth.png")


def test_every_series():
    assert {*made("step of an MLP", 2)} == {"plain", "sigscale", "sigscale, monitored"}
    assert {*made("step of the Table 3 network", 2)} == {"sigscale", "one by one"}


TANH, MONITOR, SEEDS = ss.nn.Tanh, ss.GradientMonitor, cases.Seeds
WRONG = [
    ("step of an MLP", ss.nn, "Tanh", lambda alpha: TANH(1.99), "sigscale, 2 layers"),
    ("step of an MLP", ss, "GradientMonitor", lambda m, q: MONITOR(m, q, exclude="0.bias"), "has not seen"),
    (
        "step of the Table 3 network",
        cases,
        "Seeds",
        lambda seeds, device: SEEDS(seeds if len(seeds) == 1 else [0, 0], device),
        "2 seeds",
    ),
]


@pytest.mark.parametrize(("series", "where", "name", "wrong", "words"), WRONG)
def test_what_is_wrong_is_not_timed(series, where, name, wrong, words, monkeypatch):
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises(AssertionError, match=words):
        made(series, 2)
