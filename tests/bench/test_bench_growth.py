"""The benchmark of growth: the line and its end, and that what is wrong is found before it is timed."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
import torch

from bench import test_growth as cases
from bench.report import growth, pictures
from bench.report.tables import table

SIZES = [4**e for e in range(4, 11)]
FIXED, EACH = 3e-5, 2e-9  # equal at 15,000

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("fixed", "each"), [(FIXED, EACH), (0.0, EACH), (FIXED, 0.0)])
def test_fit(fixed, each):
    for seed in range(5):
        noise = 1 + 0.02 * np.random.default_rng(seed).uniform(-1, 1, len(SIZES))
        found = growth.fit([(n, (fixed + each * n) * e) for n, e in zip(SIZES, noise, strict=True)])
        assert found[0] == pytest.approx(fixed, rel=0.06, abs=FIXED / 50 if fixed else EACH * SIZES[0])
        assert found[1] == pytest.approx(each, rel=0.06, abs=0.1 * FIXED / SIZES[-1])


def records(times, provider="sigscale"):
    about = {"kind": "growth", "series": cases.SERIES, "unit": "seeds", "provider": provider}
    return [{**about, "n": n, "seconds": t, "over": {}} for n, t in times.items()]


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ({2: 3.0, 8: 6.0}, "launch cost ends at 4 seeds"),
        ({2: 1.0, 4: 4.0}, ""),
        ({2: 2.0, 4: 2.1}, ""),
        ({2: 4.0, 4: 2.0}, ""),
    ],
)
def test_where_launch_cost_ends_if_measured(times, words):
    assert growth.end(records(times)) == words


def test_series_of_elements_come_from_other_benchmarks():
    about = {"kind": "activation", "function": "tanh", "direction": "forward+backward", "dtype": "float32"}
    measured = [{**about, "elements": n, "provider": "eager", "seconds": 1e-6 * n} for n in SIZES]
    found = growth.series([*measured, {**measured[0], "provider": "compile"}, {**measured[0], "dtype": "x"}])
    assert found == {"tanh, training": [{**of, "n": of["elements"], "unit": "elements"} for of in measured]}


def test_picture_and_table(tmp_path):
    assert pictures.growing([]) is None
    measured = [*records({2: 3.0, 8: 6.0}), *records({2: 5.0, 8: 20.0}, "PyTorch")]
    figure = pictures.growing(measured)
    assert figure.axes[0].get_title().endswith("launch cost ends at 4 seeds")
    figure.savefig(tmp_path / "growth.png")
    row, _ = table(measured, "growth").to_dict("records")
    assert (row["sigscale, ms a seed"], row["PyTorch, ms a seed"]) == ("1500.00", "2500.00")


def made(seeds):
    with ExitStack() as stack:
        return cases.calls(seeds, torch.device("cpu"), stack)


def test_old_against_new():
    assert {*made(2)} == {"sigscale", "PyTorch"}


def test_what_is_wrong_is_not_timed(monkeypatch):
    right = cases.Seeds
    wrong = lambda seeds, device, native=True: right(seeds if native else [0, 0], device, native=native)  # noqa: E731
    monkeypatch.setattr(cases, "Seeds", wrong)
    with pytest.raises(AssertionError, match="2 seeds: the gradients differ"):
        made(2)
